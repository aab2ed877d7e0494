"""Which parts of which systems can be exported, and how fast the files are: `python -m benchmarks.export`.

Every part of every system of the catalogue, small (as the contract's test makes it) and on images of 4x4, in a process
of its own that has ten minutes of one core; before that six systems as they are on digits. What is done is kept in
`results/export.json`, so that it goes on where it stopped; the tables of what is there go into docs/export.md.
`python -m benchmarks.export SYSTEM ...` measures these alone, again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime  # noqa: F401  # once, for all processes
import torch

from benchmarks.common import RESULTS, machine, write_result
from fivefold import Space, catalog
from fivefold.apps.export import FORMATS, write
from fivefold.apps.parts import PARTS
from fivefold.apps.tracing import LARGEST, Traced, trace
from fivefold.errors import FivefoldError, Unfit
from fivefold.system import System
from tests.test_contract import build

PAGE = Path(__file__).parents[1] / "docs" / "export.md"
BEGIN = "<!-- from here on by benchmarks/export.py -->\n"
SMALL = Space("image", (1, 4, 4), levels=17, layout="HW")
DIGITS = Space("image", (1, 8, 8), levels=17, layout="HW")
SIX = {
    "vae": ("sample", "log_prob", "encode", "decode"),
    "dcgan": ("sample",),
    "gated-pixelcnn": ("log_prob",),
    "ddpm": ("step",),
    "realnvp": ("sample", "log_prob", "encode", "decode"),
    "glow": ("sample", "log_prob", "encode", "decode"),
}
SECONDS = 600  # of one core, for a part
BATCH, REPEATS = 64, 4  # when timed
SECONDS_TIMED = 0.1  # of one repeat, for the clock is coarse

Row = dict[str, Any]


def measure(system: System, name: str) -> Row:
    """A part in every format: whether it works, for which batches, how far it is from the run, and its speed."""
    try:
        traced = trace(system, name)
    except Unfit as error:
        return {"absent": str(error)}
    except FivefoldError as error:
        return {"why": str(error).partition("exported: ")[2]}
    row: Row = {"batch": traced.batches.describe(), "free": traced.batches.most == LARGEST}
    with tempfile.TemporaryDirectory() as folder:
        return row | {to: measure_file(traced, to, Path(folder) / f"part.{to}") for to in FORMATS}


@torch.no_grad()
def measure_file(traced: Traced, to: str, path: Path) -> Row:
    try:
        found = write(traced, to, path)
    except FivefoldError as error:
        return {"why": str(error).partition(f"exported to {to}: ")[2]}
    n = BATCH if traced.batches.free else traced.batches.most
    inputs, _ = traced.case(n)
    own = inputs[: len(traced.part.inputs)]
    ours, theirs = side_by_side(lambda: traced.part.call(n, *own), lambda: found.run(inputs))
    return {
        "error": found.interface["checked"].split()[1],
        "bytes": path.stat().st_size,
        "milliseconds": 1e3 * theirs,
        "torch_milliseconds": 1e3 * ours,
        "ratio": theirs / ours,
    }


def side_by_side(*functions: Callable[[], Any]) -> list[float]:
    """Median seconds of each on one thread, in turns; of the processor, so that what else runs does not count."""
    taken: list[list[float]] = [[] for _ in functions]
    for _ in range(REPEATS):
        for times, function in zip(taken, functions, strict=True):
            started, calls = time.process_time(), 0
            while (spent := time.process_time() - started) < SECONDS_TIMED or calls < 2:
                function()
                calls += 1
            times.append(spent / calls)
    return [statistics.median(times[1:]) for times in taken]  # the first is slower


def apart(make: Callable[[], System], part: str) -> Row:
    """`measure` in a process of its own, with so much of one core."""
    with tempfile.NamedTemporaryFile() as file:

        def work() -> None:
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            try:
                row = measure(make(), part)
            except Exception as error:  # a row says so
                row = {"why": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
            Path(file.name).write_text(json.dumps(row))

        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join()
        text = Path(file.name).read_text()
    return json.loads(text) if text else {"why": f"it takes more than {SECONDS} s of one core"}


def main(again: Sequence[str]) -> None:
    torch.set_num_threads(1)
    kept = RESULTS / "export.json"
    rows: dict[str, Row] = json.loads(kept.read_text())["rows"] if kept.exists() else {}
    jobs: dict[str, tuple[Callable[[], System], str]] = {}
    for name, parts in SIX.items():
        jobs |= {f"digits {name} {part}": (lambda name=name: catalog.build(name, DIGITS), part) for part in parts}
    for name in catalog.entries():
        jobs |= {f"{name} {part}": (lambda name=name: build(name, SMALL), part) for part in PARTS}
    for job, (make, part) in jobs.items():
        if job.split()[-2] in again if again else job not in rows:
            rows[job] = apart(make, part)
            write_result("export", headline(rows), {"machine": machine(), "rows": rows})
            text = PAGE.read_text(encoding="utf-8").partition(BEGIN)[0]
            PAGE.write_text(text + BEGIN + tables(rows), encoding="utf-8")


def headline(rows: dict[str, Row]) -> str:
    small = {job: row for job, row in rows.items() if not job.startswith("digits") and "absent" not in row}
    works = {to: sum("error" in row.get(to, {}) for row in small.values()) for to in FORMATS}
    return f"of {len(small)} parts {works['pt2']} go to pt2 and {works['onnx']} to ONNX"


# --- tables -----------------------------------------------------------------------------------------


def tables(rows: dict[str, Row]) -> str:
    names = list(catalog.entries())
    small = {(name, part): rows.get(f"{name} {part}") for name in names for part in PARTS}
    left = len({name for (name, _), row in small.items() if row is None})
    lines = [
        f"\n{headline(rows)[0].upper()}{headline(rows)[1:]}, made on {machine()}."
        + (f" Not measured yet: {left} systems.\n" if left else "\n"),
        "## Six systems as they are, on digits\n",
        f"Milliseconds of one thread for {BATCH} examples in torch (the run itself), and the time of the file as a "
        "share of that; of the processor's time.\n",
        "| system | part | batch | from the run (ONNX) | torch | pt2 | ONNX Runtime |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, parts in SIX.items():
        for part in parts:
            if (row := rows.get(f"digits {name} {part}")) is not None:
                cells = [f"`{name}`", part, sizes(row), row.get("onnx", {}).get("error", "–"), taken(row)]
                lines.append("| " + " | ".join([*cells, ratio(row, "pt2"), ratio(row, "onnx")]) + " |")
    lines += [
        "\n## All systems, small, on images of 4x4\n",
        "Both: both formats work, and how long ONNX Runtime takes as a share of the run itself in torch (of networks "
        "as small as these much is overhead). * The batch is not free. – There is no such part.\n",
        "| system | " + " | ".join(PARTS) + " |",
        "|---" * (len(PARTS) + 1) + "|",
    ]
    lines += [f"| `{name}` | " + " | ".join(cell(small[name, part]) for part in PARTS) + " |" for name in names]
    found = {place: row for place, row in small.items() if row is not None}
    lines += ["\n## What stops the others\n", "| system | part | format | what stops it |", "|---|---|---|---|"]
    for (name, part), row in found.items():
        lines += [f"| `{name}` | {part} | {to} | {escaped(why)} |" for to, why in stops(row)]
    lines += ["\n## What fixes or limits the batch\n", "| system | part | batch |", "|---|---|---|"]
    lines += [
        f"| `{name}` | {part} | {escaped(row['batch'])} |"
        for (name, part), row in found.items()
        if not row.get("free", True)
    ]
    return "\n".join(lines) + "\n"


def cell(row: Row | None) -> str:
    if row is None:
        return "?"
    if "absent" in row:
        return "–"
    if "why" in row:
        return "no"
    works = [to for to in FORMATS if "error" in row[to]]
    said = f"both, {ratio(row, 'onnx')}" if len(works) == len(FORMATS) else works[0] if works else "no"
    return said + ("" if row["free"] or not works else " *")


def stops(row: Row) -> list[tuple[str, str]]:
    if "why" in row:
        return [("both", row["why"])]
    return [(to, row[to]["why"]) for to in FORMATS if "why" in row.get(to, {})]


def sizes(row: Row) -> str:
    return row.get("batch", row.get("why", "")).partition(", fixed")[0]


def taken(row: Row) -> str:
    return f"{row['pt2']['torch_milliseconds']:.3g} ms" if "error" in row.get("pt2", {}) else "–"


def ratio(row: Row, to: str) -> str:
    return f"{row[to]['ratio']:.2f}" if "error" in row.get(to, {}) else "no"


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1:])
