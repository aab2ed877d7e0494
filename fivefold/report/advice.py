"""What the numbers recommend, in plain sentences, and where they do not decide."""

from __future__ import annotations

import math
from typing import NamedTuple

from fivefold.report.columns import (
    BITS,
    COST,
    DENSITY,
    NATS,
    QUALITY,
    Column,
    Line,
    Reading,
    Row,
    amount,
    apart,
    by_kind,
    columns,
    leaders,
    lines,
    number,
    score,
    with_error,
)

Readings = dict[str, Reading]
_FRECHET = next(column for column in QUALITY if column.key == "frechet")
_SPEED = next(column for column in COST if column.key == "sample_64")
_COPYING = 0.6  # memorisation from which a sample is said to lie too near the training set
_NEAR = 2.0  # a quality within this factor of the best counts as good in the advice on speed


class Advice(NamedTuple):
    """For a need the systems that serve it best (all that the evidence does not tell apart), and why."""

    need: str
    choice: list[str]
    text: str

    def __str__(self) -> str:
        return f"{self.need}: {listed(self.choice, 'or')}. {self.text}" if self.choice else f"{self.need}: {self.text}"


def recommendation(rows: list[Row]) -> list[Advice]:
    """Advice for a density, for speed of sampling and for sample quality."""
    good = [line for line in lines(rows) if line.finished]
    if not good:
        return [Advice("No recommendation", [], "No system finished.")]
    return [
        Advice("For a density", *_density(good, BITS if BITS in columns(rows) else NATS)),
        Advice("For speed of sampling", *_speed(good)),
        Advice("For sample quality", *_quality(good)),
    ]


def _readings(column: Column, good: list[Line]) -> Readings:
    return {line.label: r for line in good if (r := line.reading(column)) is not None}


def _density(good: list[Line], column: Column) -> tuple[list[str], str]:
    """Exact values and bounds are both guarantees, so the best guarantee leads; the rest is what it leaves open.

    A bound that beats every exact value decides (the truth is better still); an exact value that beats a
    bound does not, since the truth behind the bound may be better. An estimate is no guarantee at all.
    """
    kinds = by_kind({label: r for label, r in _readings(column, good).items() if math.isfinite(r.value)})
    exact, bounds, estimates = (kinds.get(kind, {}) for kind in DENSITY)
    guaranteed = exact | bounds
    if not guaranteed | estimates:
        return [], "No system here has a density that can be compared."
    first = leaders(column, guaranteed or estimates)
    lead = (guaranteed or estimates)[first[0]]
    sentences = [f"{column.title}: {column.show(lead, True)}.{_undecided(first)}"]
    if not guaranteed:
        sentences.append("Only estimates are there, and they can err either way.")
    if lead.kind == "lower bound" and exact:
        sentences.append("That is a bound and yet better than every exact value here: the truth is better still.")
    behind = [label for label in bounds if label not in first]
    if behind:
        sentences.append(f"Not ruled out: {listed(behind)}, of which only a bound is known; the truth may be better.")
    flattered = [label for label, r in estimates.items() if guaranteed and _clearly_better(column, r, lead)]
    if flattered:
        sentences.append(f"The better figure of {listed(flattered)} is an estimate, which can err either way.")
    return first, " ".join(sentences)


def _undecided(first: list[str]) -> str:
    return " They are within error of each other, so the evidence does not decide." if first[1:] else ""


def _clearly_better(column: Column, a: Reading, b: Reading) -> bool:
    difference = score(column, b) - score(column, a)
    return difference > 0 and apart(a, b, difference)


def _speed(good: list[Line]) -> tuple[list[str], str]:
    rates = _readings(_SPEED, good)
    if not rates:
        return [], "Sampling was not timed."
    first = leaders(_SPEED, rates)
    text = f"{amount(rates[first[0]].value)} samples a second, 64 at a time.{_undecided(first)}"
    distances = _readings(_FRECHET, good)
    near = _near_the_best(distances)
    if not near or first[0] in near or first[0] not in distances:
        return first, text
    best = min(r.value for r in distances.values())
    text += f" Yet its samples are far from the best (Fréchet distance {number(distances[first[0]].value)}"
    text += f" against {number(best)})"
    quick = leaders(_SPEED, {label: rates[label] for label in near if label in rates})
    return first, f"{text}; among those near the best, {listed(quick, 'or')} is the fastest." if quick else f"{text}."


def _near_the_best(distances: Readings) -> list[str]:
    """Labels whose distance, over the floor where one is known, is within `_NEAR` times the best or tied with it."""
    if not distances:
        return []
    best = min(score(_FRECHET, r) for r in distances.values())
    tied = leaders(_FRECHET, distances)
    return [label for label, r in distances.items() if score(_FRECHET, r) <= _NEAR * best or label in tied]


def _quality(good: list[Line]) -> tuple[list[str], str]:
    distances = _readings(_FRECHET, good)
    if not distances:
        return [], "Sample quality was not measured."
    first = leaders(_FRECHET, distances)
    best = distances[first[0]]
    sentences = [f"Fréchet distance {with_error(best.value, best.error)}.{_undecided(first)}"]
    if best.floor is not None:
        at_floor = best.value <= best.floor or not apart(best, best, best.value - best.floor)
        sentences.append(
            f"That is at the floor ({number(best.floor)}, real data against real data): it sees no difference."
            if at_floor
            else f"Real data against real data has {number(best.floor)}."
        )
    return first, " ".join(sentences + _dissent(good, first) + _copying(good, first))


def _dissent(good: list[Line], first: list[str]) -> list[str]:
    """Other measures of quality whose best are all systems that the Fréchet distance ranks lower."""
    against = []
    for column in QUALITY:
        if column.key in ("kernel", "recall", "coverage", "two_sample_accuracy"):
            theirs = leaders(column, _readings(column, good))
            if theirs and not set(theirs) & set(first):
                against.append(f"{column.title.lower()} prefers {listed(theirs)}")
    return [f"Not all measures agree: {'; '.join(against)}."] if against else []


def _copying(good: list[Line], first: list[str]) -> list[str]:
    column = next(column for column in QUALITY if column.key == "memorisation")
    readings = {label: r for label, r in _readings(column, good).items() if label in first}
    near = [label for label, r in readings.items() if r.value > _COPYING and apart(r, r, r.value - 0.5)]
    return (
        [f"Samples of {listed(near)} lie nearer to the training set than unseen data do: look for copies."]
        if near
        else []
    )


def listed(names: list[str], word: str = "and") -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
