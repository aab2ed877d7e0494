"""The folder of a comparison: what `compare` writes and the report reads.

| file                   | content                                                             |
|------------------------|---------------------------------------------------------------------|
| comparison.json        | data, budget and all else that rows must share to be comparable      |
| features.safetensors   | the network in whose features samples are compared                  |
| real.npz               | held-out examples, encoded, for the page                            |
| data.pt                | the data, where they were given in memory                           |
| rows/NAME.json, .npz   | a finished row; its samples, in 2-D its density on a grid, and what   |
|                        | it shares with other rows (`evaluation.evaluate`)                    |
| runs/NAME/             | the row's run                                                       |
| logs/NAME.txt          | what the row's process printed, with the traceback where it failed   |
| tuning/NAME/           | the trials of a row that was tuned (`fivefold.training.tuning`)      |
| race.json              | the turns of a race (`fivefold.comparison.racing`)                   |
| rows.parquet           | of all rows what the table needs, in one file (`report.rows`)         |
| progress.json          | what runs at the moment (`report.progress`)                          |
| report.html            | the page                                                            |
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fivefold.errors import RunError
from fivefold.files import is_temporary, read_json, replacing
from fivefold.report import pairs
from fivefold.report.columns import Row
from fivefold.report.page import Arrays

SETTINGS = "comparison.json"
REPORT = "report.html"
TUNING = "tuning"
RACE = "race.json"
PROGRESS = "progress.json"
SHARED = ("log_prob", "reference_", "reference.")  # how the names of arrays begin that a row shares with others


def comparison(directory: str | Path) -> Path:
    """The folder, which must be a comparison's; else RunError."""
    if not (Path(directory) / SETTINGS).exists():
        raise RunError(f"{directory} is no comparison: it has no {SETTINGS}")
    return Path(directory)


def file_name(label: str, seed: int | None) -> str:
    """A row's name as part of a path: letters, digits, dots and dashes of its label, and its seed."""
    safe = re.sub(r"[^A-Za-z0-9.-]+", "_", label).lstrip(".").rstrip("_")
    return safe if seed is None else f"{safe}-seed{seed}"


def read_rows(directory: Path) -> list[Row]:
    """The finished rows in the order of the comparison's systems, later ones behind; `shared` is `pairs.of_row`."""
    return ordered(read_row(path) for path in sorted((directory / "rows").glob("*.json")) if not is_temporary(path))


def ordered(rows: Iterable[Row]) -> list[Row]:
    """By the place of the system, then the seed."""
    return sorted(rows, key=lambda row: (row.get("position", 0), row.get("seed") or 0))


def read_row(path: Path) -> Row:
    """One row of a JSON file, with what it shares with others."""
    row = read_json(path)
    if row["status"] == "ok":
        row["shared"] = pairs.of_row(row, read_arrays(path.with_suffix(".npz"), SHARED))
    return row


def row_of_run(directory: Path) -> dict[str, Any] | None:
    """The row of a run that is part of a comparison; None of another."""
    kept = directory.parent.parent / "rows" / f"{directory.name}.json"
    return read_row(kept) if directory.parent.name == "runs" and kept.exists() else None


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Arrays as one compressed NPZ file, whole or not at all."""
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path, begins: tuple[str, ...] = ("",)) -> Arrays:
    """The arrays of an NPZ file whose names begin so; none where it does not exist."""
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files if name.startswith(begins)}
    except Exception as error:
        raise RunError(f"{path} is truncated or was changed ({error}); remove it") from error
