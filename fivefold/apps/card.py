"""What goes with a run that is shown to others: samples, and a card of what it is and what it reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fivefold import catalog
from fivefold.apps.parts import some
from fivefold.data.writers import save_examples
from fivefold.errors import FivefoldError
from fivefold.evaluation.evaluate import conditions, evaluate
from fivefold.report import folder
from fivefold.report.columns import Line, columns
from fivefold.run import Run
from fivefold.system import Density, System

SUFFIXES = {"image": ".png", "table": ".csv", "text": ".txt", "audio": ".wav"}
COUNTS = {"image": 64, "table": 200, "text": 16, "audio": 8}


def write_samples(run: Run, system: System, place: Path) -> list[Path]:
    """Samples of a run, of the seed 0, in a file or files `samples.*` in the folder `place`."""
    space, kind = system.data_space, system.data_space.kind
    given, labels = _conditions(run, system, COUNTS[kind]), None
    if given is not None and space.condition is not None:
        decoded = space.condition.decode(given)
        rows = decoded.to_numpy() if hasattr(decoded, "to_numpy") else np.asarray(decoded)
        labels = [", ".join(map(str, np.atleast_1d(row))) for row in rows] if space.condition.kind == "table" else None
    drawn = space.decode(system.sample_encoded(COUNTS[kind], given, seed=0))
    return save_examples(place / f"samples{SUFFIXES[kind]}", space, drawn, labels)


def _conditions(run: Run, system: System, n: int) -> Any:
    """Those of the test split; drawn evenly where the data cannot be read any more."""
    space = system.data_space.condition
    if space is None:
        return None
    try:
        return conditions(system, run.load_data(), n)
    except (FivefoldError, OSError):
        return some(space, n)


def write_card(run: Run, system: System, place: Path, samples: list[Path]) -> None:
    """The card `README.md` in the folder `place`: the table's row, how to load it, what its numbers are."""
    record, name = run.record, run.record["system"]
    row, why = _row(run)
    entry, module = catalog.entries().get(name), name.partition(":")[0]
    what = f"`{name}` ({entry.title}; {entry.reference})" if entry else f"`{name}`"
    tags = ", ".join(["fivefold", *([entry.family, name] if entry else [])])
    own = "" if entry else f', trust="{module}"'
    lines = [
        "---",
        "library_name: fivefold",
        f"tags: [{tags}]",
        "---",
        f"# {run.directory.resolve().name}",
        "",
        f"{what}, trained with fivefold on {record['data']['name']} for {record['budget']}: "
        f"{record.get('parameters', 0):,} parameters. Examples: {system.data_space.describe()}.",
        "",
    ]
    lines += [f"![samples]({path.name})" for path in samples if path.suffix == ".png"][:1] or [
        f"Samples: {', '.join(path.name for path in samples)}."
    ]
    lines += ["", "## Measured on the test split", ""]
    lines += [f"The density is {_density(system)}.", ""]
    lines += _table(row) if row else [f"Not measured: {why}."]
    lines += [
        "",
        "## Use",
        "",
        "```sh",
        "fivefold pull SOURCE --out run      # where you found this",
        f"fivefold sample run -n 16 --out samples{samples[0].suffix}",
        "```",
        "",
        "```python",
        "import fivefold",
        "",
        f'model = fivefold.load("run"{own})',
        "samples = model.sample(16, seed=0)",
        "```",
        "",
        "The files hold data alone: loading them runs no code of theirs"
        + (f", but that of your module `{module}`." if own else "."),
    ]
    (place / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _density(system: System) -> str:
    if system.density is Density.NONE:
        return "none: it can only sample"
    note = f" ({system.density_note})" if system.density_note else ""
    words = {
        Density.EXACT: "exact",
        Density.LOWER_BOUND: f"a lower bound{note}: the true one is at least as high",
        Density.ESTIMATE: f"an estimate{note}, with a standard error",
        Density.UNNORMALISED: "unnormalised: known up to a constant, and not to be compared with others",
    }
    return words[system.density]


def _row(run: Run) -> tuple[dict[str, Any] | None, str]:
    """The run's row of the table: of its comparison, else measured now; or why there is none."""
    try:
        row = folder.row_of_run(run.directory) or evaluate(run.directory, trust=run.trust)
    except (FivefoldError, OSError) as error:
        return None, str(error)
    return (row, "") if row["status"] == "ok" else (None, f"{row['status']}: {row.get('error')}")


def _table(row: dict[str, Any]) -> list[str]:
    line = Line(row["label"], (row,))
    shown = [(column, reading) for column in columns([row]) if (reading := line.reading(column)) is not None]
    cells = [f"| {column.title} | {column.show(reading, True)} |" for column, reading in shown]
    return ["| | |", "|---|---|", *cells, *(f"\n{note}" for note in line.notes)]
