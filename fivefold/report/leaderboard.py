"""Several comparisons, each on its own data, as one table: the rank of every system on each, and its mean rank.

Ranked are the systems that finished in all of them, among one another; nothing stands for what is missing. On one data
set a system's rank is 1, and 1 more for each that is clearly better than it (as `columns.apart` tells), and 1/2 for
each that it is not told apart from: the ranks of n systems add up to n (n + 1) / 2, however many are tied.

The error of a mean rank over k data sets is the larger of two: the standard deviation of its k ranks over the square
root of k, which takes the data sets for a draw from those that there could be; and what the errors of the values move
it by, over `DRAWS` redrawn tables. Of a single data set there is the second alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fivefold.errors import OptionError, RunError
from fivefold.files import read_json
from fivefold.report import folder, table
from fivefold.report.columns import (
    DENSITY,
    Column,
    Line,
    Reading,
    apart,
    columns,
    density_column,
    lines,
    score,
    with_error,
)
from fivefold.report.rows import Shelf

DRAWS = 1000
_NUMBERS = 2_000_000  # that are drawn at once, at most


_ERROR = {
    True: "the larger of the spread over the data sets, over the root of their number, and of what the errors of the "
    "values move a mean rank by",
    False: "what the errors of the values move a rank by",
}


@dataclass(frozen=True)
class Place:
    """A system: its rank and the text of its value on each data set, its mean rank and that rank's error.

    Where it is not ranked `mean` is None, and `missing` says by data set why.
    """

    label: str
    family: str
    ranks: tuple[float, ...]
    values: tuple[str, ...]
    mean: float | None
    error: float
    missing: Mapping[str, str]


def _why(place: Place) -> str:
    return "; ".join(f"{name}: {why}" for name, why in place.missing.items())


@dataclass(frozen=True)
class Leaderboard:
    """The places, the best first and those that are not ranked last, of these data sets and by this column."""

    names: tuple[str, ...]
    by: str
    places: tuple[Place, ...]

    @property
    def text(self) -> str:
        """For a terminal or Markdown."""
        ranked = [place for place in self.places if place.mean is not None]
        others = [place for place in self.places if place.mean is None]
        head = ["System", "Mean rank", *self.names]
        cells = [
            [place.label, with_error(place.mean or 0.0, place.error),
             *(f"{rank:g} ({value})" for rank, value in zip(place.ranks, place.values, strict=True))]
            for place in ranked
        ]  # fmt: skip
        about = (
            f"Ranks by {self.by.lower()}, in brackets, of the {len(ranked)} systems that have one on all of "
            f"{len(self.names)}; those that are not told apart share theirs. ±: {_ERROR[len(self.names) > 1]}."
        )
        missing = [f"- {place.label}: {_why(place)}" for place in others]
        return "\n".join([table.piped([head, *cells]), about, *(["", "Not ranked:", "", *missing] if missing else [])])

    def frame(self) -> pd.DataFrame:
        """A line for each system; NaN where it has no rank."""
        found: dict[str, list[Any]] = {
            "system": [place.label for place in self.places],
            "family": [place.family for place in self.places],
            "mean rank": [math.nan if place.mean is None else place.mean for place in self.places],
            "mean rank, error": [math.nan if place.mean is None else place.error for place in self.places],
        }
        for i, name in enumerate(self.names):
            found[f"rank on {name}"] = [place.ranks[i] if place.ranks else math.nan for place in self.places]
            found[f"{self.by} on {name}"] = [place.values[i] for place in self.places]
        found["missing"] = [_why(place) for place in self.places]
        return pd.DataFrame(found)

    def write(self, path: str | Path) -> Path:
        """As a file .csv, .md or .parquet."""
        return table.write(Path(path), self.frame(), self.text)


def leaderboard(directories: Sequence[str | Path], *, by: str = "frechet", kind: str | None = None) -> Leaderboard:
    """Rank the systems of several comparisons.

    Args:
        directories: what `compare` wrote, of each data set one.
        by: the key of the column that ranks (`frechet`, `sample_64`, ...), or "density", in bits or nats as data are.
        kind: of density, since only like is ranked with like; "exact" unless given.

    Raises:
        OptionError: the column is in none of them, ranks nothing, or a kind is given where it says nothing.
        RunError: a folder is no comparison, or two of them have the same data.
    """
    if kind and by != "density":
        raise OptionError(f"a kind of density says nothing of {by!r}: give --by density, or leave it out")
    boards = [_board(folder.comparison(directory), by, kind or "exact") for directory in directories]
    if len({board.name for board in boards}) < len(boards):  # as of two files table.csv: known by their folders then
        boards = [replace(b, name=Path(place).name) for b, place in zip(boards, directories, strict=True)]
    if len({board.data["fingerprint"] for board in boards}) < len(boards):
        raise RunError(f"each comparison must be on other data, got {', '.join(board.name for board in boards)}")
    labels = list(dict.fromkeys(label for board in boards for label in board.lines))
    ranked = [label for label in labels if all(label in board.readings for board in boards)]
    ranks = np.array([_ranks(board, ranked) for board in boards]).T
    own = _own_errors(boards, ranked)
    places = [
        Place(label, boards[0].lines[label].family, tuple(of), tuple(b.shown(label) for b in boards), float(of.mean()),
              max(_over(of), error), {})
        for label, of, error in zip(ranked, ranks, own, strict=True)
    ]  # fmt: skip
    others = [
        Place(label, next(b.lines[label].family for b in boards if label in b.lines), (),
              tuple(b.shown(label) for b in boards), None, 0.0,
              {b.name: b.why_not(label) for b in boards if label not in b.readings})
        for label in labels if label not in ranked
    ]  # fmt: skip
    places.sort(key=lambda place: (place.mean, place.label))
    return Leaderboard(tuple(board.name for board in boards), boards[0].column.title, (*places, *others))


@dataclass(frozen=True)
class _Board:
    """One comparison: its lines by label, and those readings that can be ranked."""

    name: str
    data: Mapping[str, Any]
    column: Column
    lines: Mapping[str, Line]
    readings: Mapping[str, Reading]

    def shown(self, label: str) -> str:
        """The value as the comparison's table has it."""
        reading = self.lines[label].reading(self.column) if label in self.lines else None
        return "–" if reading is None else self.column.show(reading, True)

    def why_not(self, label: str) -> str:
        """Why a system has no value that is ranked."""
        if label not in self.lines:
            return "not compared"
        line = self.lines[label]
        if not line.finished:
            return f"{line.rows[0]['status']}: {line.rows[0].get('error') or 'no reason given'}"
        return f"{self.column.title.lower()}: {self.shown(label)}"


def _board(directory: Path, by: str, kind: str) -> _Board:
    rows = Shelf(directory).read()
    known = {column.key: column for column in columns(rows)}
    able = [key for key, column in known.items() if column.best is not None and column.group != "Density"]
    if by not in ("density", *able):
        raise OptionError(f"{directory} has nothing to be ranked by {by!r}: one of {', '.join(['density', *able])}")
    column = density_column(rows) if by == "density" else known[by]
    table_lines = {line.label: line for line in lines(rows)}
    found = {label: reading for label, line in table_lines.items() if (reading := line.reading(column)) is not None}
    wanted = {
        label: reading
        for label, reading in found.items()
        if math.isfinite(reading.value) and (reading.kind not in DENSITY or reading.kind == kind)
    }
    data = read_json(directory / folder.SETTINGS)["data"]
    return _Board(data["name"], data, column, table_lines, wanted)


def _ranks(board: _Board, labels: list[str]) -> list[float]:
    """Ranks among these systems alone; who is not told apart shares."""
    found = dict.fromkeys(labels, 1.0)
    for one, other in itertools.combinations(labels, 2):
        a, b = board.readings[one], board.readings[other]
        if not apart(board.column, a, b):
            found[one] += 0.5
            found[other] += 0.5
        else:
            found[one if score(board.column, b) < score(board.column, a) else other] += 1.0
    return list(found.values())


def _over(ranks: np.ndarray[Any, Any]) -> float:
    """The standard error of a mean over data sets; 0 of one, which has none."""
    return float(ranks.std(ddof=1)) / math.sqrt(len(ranks)) if len(ranks) > 1 else 0.0


def _own_errors(boards: list[_Board], labels: list[str]) -> list[float]:
    """By how much the errors of the values move each system's mean rank."""
    if not labels:
        return []
    rng = np.random.default_rng(0)
    draws = max(100, min(DRAWS, _NUMBERS // len(labels)))
    total = np.zeros((draws, len(labels)))
    for board in boards:
        readings = [board.readings[label] for label in labels]
        errors = np.array([reading.error for reading in readings])
        scores = np.array([score(board.column, reading) for reading in readings])
        total += (scores + errors * rng.standard_normal((draws, len(labels)))).argsort(1).argsort(1)
    return (total / len(boards)).std(0, ddof=1).tolist()
