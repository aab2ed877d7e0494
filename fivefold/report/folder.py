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
| report.html            | the page                                                            |
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from fivefold.errors import RunError
from fivefold.files import read_json, replacing
from fivefold.report import pairs, trials
from fivefold.report.page import Arrays, Content

SETTINGS = "comparison.json"
REPORT = "report.html"
TUNING = "tuning"
RACE = "race.json"


def file_name(label: str, seed: int | None) -> str:
    """A row's name as part of a path: letters, digits, dots and dashes of its label, and its seed."""
    safe = re.sub(r"[^A-Za-z0-9.-]+", "_", label).lstrip(".").rstrip("_")
    return safe if seed is None else f"{safe}-seed{seed}"


def read_rows(directory: Path) -> list[dict[str, Any]]:
    """The finished rows in the order of the comparison's systems, later ones behind; `shared` is `pairs.of_row`."""
    rows = [read_row(path) for path in sorted((directory / "rows").glob("*.json"))]
    return sorted(rows, key=lambda row: (row.get("position", 0), row.get("seed") or 0))


def read_row(path: Path) -> dict[str, Any]:
    """One row of a JSON file, with what it shares with others."""
    row = read_json(path)
    if row["status"] == "ok":
        row["shared"] = pairs.of_row(
            row, read_arrays(path.with_suffix(".npz"), ("log_prob", "reference_", "reference."))
        )
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


def content(directory: Path) -> Content:
    """What the page of a comparison is made of; of several seeds the first one's pictures."""
    rows = read_rows(directory)
    arrays: dict[str, Arrays] = {}
    for row in rows:
        if row["label"] not in arrays and row["status"] == "ok":
            arrays[row["label"]] = read_arrays(
                directory / "rows" / f"{file_name(row['label'], row['seed'])}.npz", ("samples", "density")
            )
    real = read_arrays(directory / "real.npz").get("samples")
    return Content(
        read_json(directory / SETTINGS),
        rows,
        real,
        arrays,
        trials.read(directory / TUNING),
        read_json(directory / RACE) if (directory / RACE).exists() else None,
    )
