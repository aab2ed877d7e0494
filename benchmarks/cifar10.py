"""All systems of the survey's Table 1 on natural images at their papers' sizes, an equal time each on a GPU.

    python -m benchmarks.cifar10 PATH/cifar10_20k.npz [--budget 45s] [--images 5000] [--minutes 9] [--systems glow ddpm]

Each has its preset `cifar10`, or its defaults where it has none: the table says which. Training is in bf16, in whole
steps and one at least (`seconds` say how long they were), and validates once, at the end; measuring is in fp32. The
comparison lies in the folder `--out`: what was stopped, by hand or after `--minutes`, goes on when run again. What is
finished is written in any case: `results/cifar10.json` and `.md`, and a page of samples as `.png`; with `--device cpu`
into `--out`.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, bits, figures, kept_arrays, machine, number, picture, write_result
from fivefold import catalog, compare, load_data
from fivefold.report import folder
from fivefold.report.survey import TABLE_1
from fivefold.run import Run

PRESET = "cifar10"
TEST = 2000  # test images: as many as a density is measured on


def part_of(source: Path, images: int) -> dict[str, Any]:
    """The first `images` of the training images of `source`, and of its test images at most as many."""
    arrays, counts = np.load(source, allow_pickle=False), {"train": images, "test": min(images, TEST)}
    return {f"{key}_{part}": arrays[f"{key}_{part}"][:count] for part, count in counts.items() for key in "xy"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="an .npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--budget", default="45s")
    parser.add_argument("--images", type=int, default=5000, help="for training, the first of the file")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so many; 0: when all is done")
    parser.add_argument("--out", type=Path, default=Path("cifar10"))
    parser.add_argument("--device", default="cuda", help="cpu to try it without a GPU")
    parser.add_argument("--systems", nargs="*")
    given = parser.parse_args()
    if given.device != "cpu" and not torch.cuda.is_available():
        sys.exit(
            "no GPU here: paper sizes take one; --device cpu tries it (with --systems, --budget and --images small)"
        )
    source = kept_arrays(given.out / f"data-{given.images}.npz", lambda: part_of(given.source, given.images))
    names = given.systems or [name for name in TABLE_1 if name in catalog.entries()]
    work(names, source, given)
    report(names, given)


def work(names: list[str], source: Path, given: argparse.Namespace) -> None:
    """The comparison, or as much of it as the minutes allow."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 60 * given.minutes)
    try:
        compare(
            names, load_data(source), budget=given.budget, out=given.out / "comparison", device=given.device,
            table1=True, preset=PRESET, diagnostics=False, precision="bf16", evaluations=1,
        )  # fmt: skip
    except KeyboardInterrupt as stopped:
        print(stopped or "stopped; the same command goes on")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def report(names: list[str], given: argparse.Namespace) -> None:
    """Figures and samples of what is finished."""
    directory = given.out / "comparison"
    finished = [row for row in folder.read_rows(directory) if row["label"] in names]
    rows = [measured(row, directory) for row in finished]
    drawn = {row["label"]: folder.read_arrays(directory / "rows" / f"{_name(row)}.npz") for row in finished}
    drawn = {"real": folder.read_arrays(directory / "real.npz"), **drawn}
    place = given.out if given.device == "cpu" else RESULTS  # what was only tried does not replace results
    picture({name: torch.from_numpy(x["samples"]) for name, x in drawn.items() if x}, place / "cifar10.png")
    headline = f"{sum('steps' in row for row in rows)} of {len(names)} systems trained and measured"
    settings = {"machine": machine(), "budget": given.budget, "images": given.images, "device": given.device}
    write_result("cifar10", headline, {**settings, "rows": rows}, place)
    (place / "cifar10.md").write_text(page(rows, headline, settings))


def measured(row: dict[str, Any], directory: Path) -> dict[str, Any]:
    """A row's figures; of a system that failed its word."""
    found = {"system": row["label"], "preset": row["preset"]}
    if row["status"] != "ok":
        return {**found, "note": f"{row['status']}: {row['error']}"}
    record, cost = Run.open(directory / "runs" / _name(row)).record, row["cost"]
    return {
        **found,
        "parameters": cost["parameters"],
        "steps": record["steps"],
        "batch_size": record["examples"] // record["steps"],
        "seconds": record["seconds"],
        "examples_per_second": cost["train_examples_per_second"],
        "samples_per_second": cost["sample_per_second_64"],
        "memory_gib": cost["peak_memory_bytes"] and cost["peak_memory_bytes"] / 2**30,
        **figures(row),
        "note": row["quality"].get("note", ""),
    }


def _name(row: dict[str, Any]) -> str:
    return folder.file_name(row["label"], row["seed"])


def page(rows: list[dict[str, Any]], headline: str, settings: dict[str, Any]) -> str:
    """The table, in Markdown."""
    head = [
        "# Natural images at 32x32, paper sizes", "",
        f"{headline}. {settings['budget']} of training each, in bf16, on {settings['images']} images; on "
        f"{settings['machine']} (`--device {settings['device']}`).", "",
        "A part of CIFAR-10 and seconds in place of days: figures compare systems here, not with published ones. "
        f"Preset: `{PRESET}` where the system has it, else its defaults. Memory: the process's peak. Samples a second: "
        "64 at a time. Training takes whole steps; one may end after the time is over.", "",
        "![Samples](cifar10.png)", "",
        "| system | preset | parameters | batch | steps | seconds | examples/s | samples/s | memory, GiB "
        "| Fréchet distance | bits per dimension |",
        "|---" * 11 + "|",
    ]  # fmt: skip
    notes = [f"- `{row['system']}`: {row['note']}" for row in rows if row.get("note")]
    return "\n".join([*head, *map(_line, rows), *([""] if notes else []), *notes]) + "\n"


def _line(row: dict[str, Any]) -> str:
    cells = [f"`{row['system']}`", row["preset"] or "default", number(row.get("parameters"), ",")]
    cells += [number(row.get(key), ",") for key in ("batch_size", "steps")]
    cells += [number(row.get(key), form) for key, form in _FORMS.items()]
    return "| " + " | ".join([*cells, bits(row)]) + " |"


_FORMS = {
    "seconds": ".0f", "examples_per_second": ",.1f", "samples_per_second": ",.2f", "memory_gib": ".2f",
    "frechet": ".1f",
}  # fmt: skip


if __name__ == "__main__":
    main()
