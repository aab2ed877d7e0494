"""Validation over training time: who led when, and who was still getting better at the end.

A row's `curves` hold `density` (mean nats) and `distance` (Fréchet) of the validation split, each as points
[seconds, value, standard error].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fivefold.evaluation.evaluate import Row

SIGNS = {"density": -1.0, "distance": 1.0}  # by curve: times the value, less is better
LATE = 0.8  # of the training time: the mark that the last one is compared with
FAR = 3.0  # times as far behind the best as the middle system: what is farther leaves the plot at its edge
EARLY = (1.0, 10.0, 60.0, 600.0, 3600.0)  # seconds at which leaders are named ...
EARLY_SHARE = 0.5  # ... up to this share of the training time


class Mark(NamedTuple):
    """A validation: when, what, and its standard error."""

    seconds: float
    value: float
    error: float


def marks(row: Row, name: str) -> list[Mark]:
    """The finite points of a curve, in their order."""
    points = [Mark(*point) for point in (row.get("curves") or {}).get(name) or ()]
    return [mark for mark in points if math.isfinite(mark.value)]


def improved(row: Row, name: str) -> bool:
    """Whether the last mark is better than that at about 80 % of the time by more than the error of their difference.

    A fifth of the time is long enough for two validations to lie between at the usual ten, and short
    enough to be about the end. The two are of the same validation examples, so that taking their errors as independent
    makes a claim harder and not easier.
    """
    found = marks(row, name)
    if len(found) < 2:
        return False
    last = found[-1]
    late = min(found[:-1], key=lambda mark: abs(mark.seconds - LATE * last.seconds))
    return SIGNS[name] * (late.value - last.value) > math.hypot(late.error, last.error)


def best_until(row: Row, name: str, seconds: float) -> Mark | None:
    """The best mark so far."""
    known = [mark for mark in marks(row, name) if mark.seconds <= seconds]
    return min(known, key=lambda mark: SIGNS[name] * mark.value, default=None)


def early_leaders(rows: Mapping[str, Row], name: str, final: Sequence[str]) -> list[tuple[float, str]]:
    """(seconds, label) where another than the `final` leaders led, clearly before each of those; changes alone."""
    end = max((found[-1].seconds for row in rows.values() if (found := marks(row, name))), default=0.0)
    changes: list[tuple[float, str]] = []
    for seconds in (at for at in EARLY if at <= EARLY_SHARE * end):
        best = {label: mark for label, row in rows.items() if (mark := best_until(row, name, seconds))}
        first = min(best, key=lambda label, best=best: SIGNS[name] * best[label].value, default="")  # type: ignore[misc]
        ahead = first and first not in final
        ahead = ahead and all(_clear(name, best[first], best[label]) for label in final if label in best)
        if ahead and (not changes or changes[-1][1] != first):
            changes.append((seconds, first))
    return changes


def _clear(name: str, a: Mark, b: Mark) -> bool:
    """Whether `a` is better than `b` by two errors."""
    return SIGNS[name] * (b.value - a.value) > 2 * math.hypot(a.error, b.error)


def duration(seconds: float) -> str:
    """`10 s`, `1 min`, `1 h`."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s"


def drawn(row: Row, name: str) -> list[tuple[float, float]]:
    """The curve as it is drawn, (seconds, value), from the first mark after the start."""
    return [(mark.seconds, mark.value) for mark in marks(row, name) if mark.seconds > 0]


def window(values: Sequence[Sequence[float]], name: str) -> tuple[float, float]:
    """Lowest and highest value worth showing: all ends but those far behind the middle one, and the way to them."""
    loss = [[SIGNS[name] * value for value in one] for one in values]
    ends, best = sorted(one[-1] for one in loss), min(min(one) for one in loss)
    behind, worst = ends[len(ends) // 2] - best, max(max(one) for one in loss)
    worst = min(worst, best + FAR * behind) if behind > 0 else worst
    low, high = sorted((SIGNS[name] * best, SIGNS[name] * worst))
    return low, high


def spreads(points: Sequence[Sequence[tuple[float, float]]]) -> bool:
    """Whether seconds range so far that a logarithmic axis helps."""
    seconds = [at for one in points for at, _ in one]
    return max(seconds) > 5 * min(seconds)
