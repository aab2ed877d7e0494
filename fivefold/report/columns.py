"""The columns of the comparison table: how each is read from a row, shown, and ranked.

The terminal and the page show the same columns. Rows of one label (several seeds) are one line: the
mean, with the error over seeds or of a single evaluation, whichever is larger, since what all seeds
share (the held-out set) does not average out. Lines are told apart by the error of their difference
(`report.pairs`), which is smaller where they have the same held-out examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from fivefold.evaluation.resolution import LIMITS
from fivefold.report import curves, pairs
from fivefold.report.pairs import Seeds, Shared, Side
from fivefold.tools.metrics import MEASURES

Row = dict[str, Any]
DECIMALS = 4  # shown at most
TIMING_ERROR = 0.05  # relative error granted to rates and times, which are measured once
DENSITY = ("exact", "lower bound", "estimate")  # the kinds that can be compared, each with its own


class Reading(NamedTuple):
    """A value of one cell: with its standard error, and for a density its kind and how it was computed."""

    value: float
    error: float = 0.0
    kind: str = ""
    note: str = ""
    floor: float | None = None
    excess_error: float = 0.0  # of value - floor
    shared: Shared | None = None
    seeds: Seeds | None = None

    @property
    def side(self) -> Side:
        return Side(self.error, self.shared, self.seeds)


@dataclass(frozen=True)
class Column:
    """One column.

    `best` is "low", "high", a number that a perfect model reaches, or None where nothing is ranked.
    `show` makes the cell's text from its reading and whether the error is to be shown.
    """

    key: str
    title: str
    group: str
    text: str
    best: str | float | None
    read: Callable[[Row], Reading | None]
    show: Callable[[Reading, bool], str]
    always_error: bool = False


@dataclass(frozen=True)
class Cell:
    """What a reader sees: `text`, the value to sort by, and whether it is "best" or a "tie" for it.

    `error` and `kind` are the reading's, for those who compute with the table.
    """

    text: str
    sort: float | None = None
    mark: str = ""
    hint: str = ""
    error: float = 0.0
    kind: str = ""


@dataclass(frozen=True)
class Line:
    """One line of the table: the rows of one label, over seeds."""

    label: str
    rows: tuple[Row, ...]

    @property
    def finished(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row["status"] == "ok")

    @property
    def family(self) -> str:
        return self.rows[0].get("family") or "samples"

    @property
    def title(self) -> str:
        return self.rows[0].get("title") or self.label

    @property
    def notes(self) -> list[str]:
        """What to know when reading the line, each once."""
        found = []
        for row in self.finished:
            found += [row.get("note"), (row.get("quality") or {}).get("note")]
        return list(dict.fromkeys(note for note in found if note))

    def reading(self, column: Column) -> Reading | None:
        """The mean over seeds, with its error; None where no seed has a value."""
        found = [reading for row in self.finished if (reading := column.read(row)) is not None]
        if not found:
            return None
        if len(found) == 1:
            return found[0]
        if len({reading.kind for reading in found}) > 1:  # of densities one system has one kind
            found[0] = found[0]._replace(kind=f"{SEVERAL} ({self.label})", note=SEVERAL)
        values = np.array([reading.value for reading in found])
        seeds = Seeds(float(values.var(ddof=1)), len(values))
        errors = [float(np.mean([getattr(r, name) for r in found])) for name in ("error", "excess_error")]
        error, excess = (max(math.sqrt(seeds.variance / seeds.runs), of_one) for of_one in errors)
        shared = pairs.mean([reading.shared for reading in found])
        return found[0]._replace(
            value=float(values.mean()), error=error, excess_error=excess, shared=shared, seeds=seeds
        )


def lines(rows: Iterable[Row]) -> list[Line]:
    """Rows grouped by label, in the order in which labels first appear."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row["label"], []).append(row)
    return [Line(label, tuple(group)) for label, group in grouped.items()]


# --- how numbers are shown ----------------------------------------------------------------------


def number(value: float, error: float = 0.0) -> str:
    """Three significant digits, or as many decimals as the error has (its first digit, or two where that is a 1)."""
    if not math.isfinite(value):
        return "not finite"
    if error > 0:
        power = math.floor(math.log10(error))
        digits = max(0, -power + (error < 2 * 10.0**power))
    else:
        digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, DECIMALS)}f}".replace("-", "−")


def with_error(value: float, error: float) -> str:
    """`3.30 ± 0.12`."""
    known = error >= 0.5 * 10.0**-DECIMALS
    return f"{number(value, error)} ± {number(error, error)}" if known else number(value)


def amount(value: float) -> str:
    """Three significant digits with thousands as k, M, G: `1.25M`."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def density_text(reading: Reading, with_errors: bool, *, flattering: str) -> str:
    """The kind travels with the number: `1.88 (exact)`, `≤ 2.31 (bound, 16 samples)`, `3.3 ± 0.1 (estimate)`."""
    if reading.kind not in DENSITY:
        return reading.kind
    word = {"exact": "exact", "lower bound": "bound", "estimate": "estimate"}[reading.kind]
    note = f", {reading.note}" if reading.note else ""
    sign = f"{flattering} " if reading.kind == "lower bound" else ""
    shown_error = reading.error if with_errors or reading.kind == "estimate" else 0.0
    value = with_error(reading.value, shown_error) if shown_error else f"{reading.value:,.2f}".replace("-", "−")
    return f"{sign}{value} ({word}{note})"


def _stars(reading: Reading, with_errors: bool) -> str:
    return "★" * round(reading.value) + "☆" * (5 - round(reading.value))


# --- reading cells from rows --------------------------------------------------------------------


def _density(scale: str, error: str) -> Callable[[Row], Reading | None]:
    def read(row: Row) -> Reading | None:
        density = row.get("density") or {}
        kind = density.get("kind", "none")
        if kind not in DENSITY:
            return Reading(math.nan, kind=kind)
        if density.get(scale) is None:
            return None
        known = row.get("shared") or {}
        shared = known.get("log_prob")
        if shared is not None:
            unit = density[scale] / density["nats"] if density["nats"] else 1.0
            terms = known[scale].terms if scale in known else shared.terms * unit
            shared = shared._replace(terms=terms, own=shared.own * abs(unit))
        return Reading(density[scale], density.get(error) or 0.0, kind, density.get("note") or "", shared=shared)

    return read


def _quality(name: str) -> Callable[[Row], Reading | None]:
    def read(row: Row) -> Reading | None:
        measured = (row.get("quality") or {}).get(name)
        if measured is None or measured.get("value") is None:
            return None
        error, shared = measured.get("error") or 0.0, (row.get("shared") or {}).get(name)
        excess = measured.get("excess_error", error)
        return Reading(measured["value"], error, floor=measured.get("floor"), excess_error=excess, shared=shared)

    return read


def _resolution(row: Row) -> Reading | None:
    found = row.get("resolution")
    note = f"{found['limits']}; {found['why']}" if found else ""
    return None if found is None else Reading(float(found["side"] or 0), kind=machine(row), note=note)


def _cost(name: str, relative_error: float = 0.0, of: str = "") -> Callable[[Row], Reading | None]:
    """`of`: what says on which machine it was measured, so that only values of one machine are ranked."""

    def read(row: Row) -> Reading | None:
        value = (row.get("cost") or {}).get(name)
        kind = machine(row, of) if of else ""
        return None if value is None else Reading(float(value), relative_error * abs(value), kind)

    return read


SEVERAL = "several machines"


def machine(row: Row, of: str = "timed") -> str:
    """Where a row was made ("machine"), or where its speeds were measured ("timed"), in words; two machines that cannot
    be told apart by them are one kind of machine.
    """
    found = row.get(of) or row.get("machine") or {}
    if "processor" not in found:
        return ""
    device = "" if found["device"] == "cpu" else f", {found['device']}"
    at_once = f", {found['jobs']} at a time" if found.get("jobs") else ""
    return f"{found['processor']}, {found['cores']} cores, {found['memory'] / 2**30:.0f} GiB{device}{at_once}"


def _machine(row: Row) -> Reading | None:
    words = machine(row)
    return Reading(math.nan, kind=words, note=words) if words else None


def _star(name: str) -> Callable[[Row], Reading | None]:
    def read(row: Row) -> Reading | None:
        value = (row.get("stars") or {}).get(name)
        return None if value is None else Reading(float(value))

    return read


_TICKS = {True: "✓", False: "✗", "yes": "✓", "approximate": "(✓)", "no": "✗"}
_TICK_ORDER = {"✗": 0.0, "(✓)": 1.0, "✓": 2.0}


def _fact(name: str) -> Callable[[Row], Reading | None]:
    def read(row: Row) -> Reading | None:
        value = (row.get("facts") or {}).get(name)
        return None if value is None else Reading(_TICK_ORDER[_TICKS[value]], note=_TICKS[value])

    return read


BITS = Column(
    "bits", "Bits per dimension", "Density",
    "Negative log-likelihood of held-out data, in bits for each dimension. Exact values, bounds (the truth is at most "
    "that) and estimates are marked apart: only values of one kind are ranked with one another.",
    "low", _density("bits_per_dim", "bits_error"), lambda r, e: density_text(r, e, flattering="≤"),
)  # fmt: skip
CHARACTER_BITS = replace(BITS, title="Bits per character", text=BITS.text.replace("dimension", "character"))
NATS = Column(
    "nats", "Log-likelihood", "Density",
    "Mean log-density of a held-out example, in nats and in the data's own units. Exact values, bounds (the truth is "
    "at least that) and estimates are marked apart: only values of one kind are ranked with one another.",
    "high", _density("nats", "standard_error"), lambda r, e: density_text(r, e, flattering="≥"),
)  # fmt: skip

QUALITY = tuple(
    Column(key, m.title, "Sample quality", m.text[0].upper() + m.text[1:] + ".", m.best, _quality(key),
           lambda r, e: with_error(r.value, r.error), True)
    for key, m in MEASURES.items()
)  # fmt: skip


def _plain(reading: Reading, with_errors: bool) -> str:
    return amount(reading.value)


def _seconds(reading: Reading, with_errors: bool) -> str:
    return f"{reading.value:.3g} s"


def _at_end(row: Row) -> Reading | None:
    if not any(curves.marks(row, name) for name in curves.SIGNS):
        return None
    names = [name for name in curves.SIGNS if curves.improved(row, name)]
    return Reading(float(bool(names)), note=" and ".join(names))


def _threads(row: Row) -> Reading | None:
    """Of the works whose number is known; the value is the load."""
    found = row.get("threads") or {}
    known = [str(found[work]) for work in ("training", "sampling") if found.get(work)]
    return Reading(found.get("load") or 0.0, note=", ".join(known)) if known else None


COST = (
    Column("train_rate", "Training/s", "Cost", "Examples a second in training.", "high",
           _cost("train_examples_per_second", TIMING_ERROR, "timed"), _plain),
    Column("to_best", "Time to best", "Cost", "Training seconds until validation had come 99 % of the way from its "
           "first value to the best that it reached.", "low",
           _cost("seconds_to_best", TIMING_ERROR, "machine"), _seconds),
    Column("at_end", "At the end", "Cost", "Whether validation, density or distance, was still improving by more than "
           "its error over the last fifth of the training time.", None, _at_end,
           lambda r, e: "still improving" if r.value > 0.5 else "level"),
    Column("validation", "Validation time", "Cost", "Seconds that validation took, which the budget does not count.",
           None, _cost("validation_seconds"), _seconds),
    Column("sample_1", "Samples/s, one at a time", "Cost", "Examples a second, drawn one by one.", "high",
           _cost("sample_per_second_1", TIMING_ERROR, "timed"), _plain),
    Column("sample_64", "Samples/s, 64 at a time", "Cost", "Examples a second, drawn in batches of 64.", "high",
           _cost("sample_per_second_64", TIMING_ERROR, "timed"), _plain),
    Column("evaluations", "Evaluations a sample", "Cost", "Network evaluations that a sample takes, one after another.",
           "low", _cost("sample_evaluations"), _plain),
    Column("parameters", "Parameters", "Cost", "Trained numbers.", "low", _cost("parameters"), _plain),
    Column("memory", "Peak memory", "Cost", "The most memory that the process held (all of it, the libraries too).",
           "low", _cost("peak_memory_bytes", TIMING_ERROR, "machine"), lambda r, e: f"{amount(r.value)}B"),
    Column("threads", "Threads", "Cost", "Threads that training and sampling were found to be fastest with; a point at "
           "the cell shows what else the machine did (its load, in processes that want a core).", None, _threads,
           lambda r, e: r.note),
    Column("machine", "Machine", "Cost", "Where the speeds were measured. They are ranked among those of one kind of "
           "machine only; --measure-on measures all of them again on one.", None, _machine, lambda r, e: r.note),
    Column("resolution", "Largest side", "Cost", f"The largest square images, doubling from 8, with {LIMITS}.",
           "high", _resolution, lambda r, e: f"{r.value:.0f}" if r.value else "none"),
)  # fmt: skip

_SURVEY = "The survey's columns"
SURVEY = (
    Column("stars_training", "Training", _SURVEY, "Time to the best as a share of the budget, in the five steps of the "
           "survey's Table 2 (its days, with this budget in place of ten).", None, _star("training"), _stars),
    Column("stars_sampling", "Sampling", _SURVEY, "Table 2: 1 star autoregressive, 2 MCMC, 3 in the middle, 4 at most "
           "20 steps, 5 one step.", None, _star("sampling"), _stars),
    Column("stars_parameters", "Params", _SURVEY, "Table 2: 5 stars to 10 M parameters, 4 to 30 M, 3 to 60 M, 2 to "
           "120 M, else 1.", None, _star("parameters"), _stars),
    Column("stars_resolution", "Resolution", _SURVEY, "Table 2, of the largest resolution measured here: 1 star below "
           "32 pixels, 2 at 32, 3 at 64 or 128, 4 at 256 or 512, 5 from 1024.", None, _star("resolution"), _stars),
    Column("free_form", "Free-form Jacobian", _SURVEY, "Whether the network's form is unrestricted (a fact of the "
           "system).", None, _fact("free_form_jacobian"), lambda r, e: r.note),
    Column("exact", "Exact density", _SURVEY, "✓ tractable, (✓) approximate, ✗ none (a fact of the system).", None,
           _fact("exact_density"), lambda r, e: r.note),
)  # fmt: skip


def _published(name: str, kind: str | None = None) -> Callable[[Row], Reading | None]:
    def read(row: Row) -> Reading | None:
        published = row.get("survey") or {}
        value = published.get(name)
        return None if value is None else Reading(value, kind=published["kind"] if kind is None else kind)

    return read


_PRINTED = "The survey's figures (CIFAR-10)"
PRINTED = (
    Column("survey_fid", "FID, CIFAR-10 (survey)", _PRINTED, "As printed in the survey's Table 1: others' models on "
           "CIFAR-10, not measured here and not comparable with this page's distances.", None, _published("fid", ""),
           lambda r, e: f"{r.value:.2f}"),
    Column("survey_bits", "Bits, CIFAR-10 (survey)", _PRINTED, "As printed in the survey's Table 1: bits per dimension "
           "on CIFAR-10, not measured here.", None, _published("bits"),
           lambda r, e: {"lower bound": "≤ ", "estimate": "≈ "}.get(r.kind, "") + f"{r.value:.2f}"),
)  # fmt: skip


def density_column(rows: Iterable[Row]) -> Column:
    """Bits where the data are discrete, of text per character; else nats."""
    found = [row["density"] for row in rows if (row.get("density") or {}).get("bits_per_dim") is not None]
    return NATS if not found else CHARACTER_BITS if found[0].get("unit") == "character" else BITS


def columns(rows: Iterable[Row]) -> list[Column]:
    """The columns in which at least one row has something to show; bits only where the data are discrete."""
    rows = [row for row in rows if row["status"] == "ok"]
    names = {row["quality"]["frechet_name"] for row in rows if (row.get("quality") or {}).get("frechet_name")}
    quality = [replace(c, title=names.copy().pop()) if c.key == "frechet" and len(names) == 1 else c for c in QUALITY]
    several = len({words for row in rows if (words := machine(row))}) > 1
    return [
        c
        for c in (density_column(rows), *quality, *COST, *SURVEY, *PRINTED)
        if any(c.read(row) is not None for row in rows) and (several or c.key != "machine")
    ]


# --- ranking ------------------------------------------------------------------------------------


def score(column: Column, reading: Reading) -> float:
    """The reading as a number of which less is better.

    A distance below its floor (training against held-out data) is no better than the floor.
    """
    if column.best == "high":
        return -reading.value
    if column.best == "low":
        return reading.value if reading.floor is None else max(reading.value, reading.floor)
    assert isinstance(column.best, float | int)
    return abs(reading.value - column.best)


def apart(column: Column, a: Reading, b: Reading, times: int = 1) -> bool:
    """Whether the scores of `a` and `b` differ by more than their error explains, of `times` comparisons together."""
    return pairs.difference(a.side, b.side).tells(score(column, a) - score(column, b), times)


def better(column: Column, a: Reading, b: Reading, times: int = 1) -> bool:
    """Whether `a` is clearly better than `b`."""
    return score(column, a) < score(column, b) and apart(column, a, b, times)


def leaders(column: Column, readings: dict[str, Reading]) -> list[str]:
    """The label of the best and of those within error of it, best first."""
    ranked = {label: r for label, r in readings.items() if math.isfinite(r.value)}
    if not ranked or column.best is None:
        return []
    order = sorted(ranked, key=lambda label: score(column, ranked[label]))
    return [label for label in order if not apart(column, ranked[order[0]], ranked[label])]


def by_kind(readings: dict[str, Reading]) -> dict[str, dict[str, Reading]]:
    """Readings apart by kind of density, and speeds by machine, so that only like ranks with like."""
    kinds: dict[str, dict[str, Reading]] = {}
    for label, reading in readings.items():
        kinds.setdefault(reading.kind, {})[label] = reading
    return kinds


def cells(column: Column, table: list[Line]) -> dict[str, Cell]:
    """The cell of every line, with the best marked; for densities, the best of each kind."""
    readings = {line.label: r for line in table if (r := line.reading(column)) is not None}
    marks: dict[str, str] = {}
    for group in by_kind(readings).values():
        first = leaders(column, group)
        if len(group) > max(len(first), 1):  # a tie of all distinguishes nothing
            marks |= dict.fromkeys(first, "tie" if len(first) > 1 else "best")
    several = any(len(line.finished) > 1 for line in table)
    return {line.label: _cell(column, readings.get(line.label), marks.get(line.label, ""), several) for line in table}


def _cell(column: Column, reading: Reading | None, mark: str, several: bool) -> Cell:
    if reading is None:
        return Cell("–")
    finite = math.isfinite(reading.value)
    of = f" {reading.kind}" if reading.kind and column.group != "Cost" else ""
    hints = [f"{'tied for ' if mark == 'tie' else ''}best{of}"] if mark else []
    hints += [reading.kind] if column.group == "Cost" and reading.kind else []
    hints += [f"± {number(reading.error, reading.error)}"] if reading.error and column.group != "Cost" else []
    hints += [f"floor {number(reading.floor)}"] if reading.floor is not None else []
    hints += [reading.note] if column.key == "at_end" and reading.note else []
    hints += [f"load {reading.value:.1f}"] if column.key == "threads" else []
    text = column.show(reading, several or column.always_error)
    value = reading.value if finite else None
    return Cell(text, value, mark, ", ".join(hints), reading.error if finite else 0.0, reading.kind)


def floors(table: list[Line], chosen: list[Column]) -> dict[str, float]:
    """By column the floor: the same measure between training and held-out data."""
    found = {}
    for column in chosen:
        values = [r.floor for line in table if (r := line.reading(column)) is not None and r.floor is not None]
        if values:
            found[column.key] = float(np.mean(values))
    return found
