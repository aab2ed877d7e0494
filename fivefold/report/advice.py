"""What the numbers recommend, in plain sentences, and where they do not decide.

Each part is a table of sentences in their order: what a sentence needs to be said, and its words.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from fivefold.report import curves
from fivefold.report.columns import (
    COST,
    DENSITY,
    QUALITY,
    Column,
    Line,
    Reading,
    Row,
    amount,
    better,
    by_kind,
    density_column,
    leaders,
    lines,
    number,
    score,
    with_error,
)
from fivefold.report.pairs import Difference

Readings = dict[str, Reading]
_BY_KEY = {column.key: column for column in (*QUALITY, *COST)}
_FRECHET, _SPEED = _BY_KEY["frechet"], _BY_KEY["sample_64"]
_COPIES, _MEMORISATION = _BY_KEY["copies"], _BY_KEY["memorisation"]
_MILD = ("kernel", "recall")  # measures whose dissent is mentioned
_NEAR_TRAINING = 0.6  # memorisation from which a sample is said to lie too near the training set
_NAMED = 4  # rows, at most, in a sentence about how far the advice goes
_BESIDE = 50  # rows, the best of a measure, that others are held against
_NEAR = 2.0  # a quality within this factor of the best counts as good in the advice on speed
_OBJECTIONS = {  # measures that forbid a recommendation: how they say that `a` is worse than `b`
    "two_sample_accuracy": "{a} is told from real in {x} of cases, {b} in {y}",
    "coverage": "{a} covers {x} of the real examples, {b} {y}",
}

# What fills the words of a sentence; nothing or False where it does not deserve to be said.
Found = str | float | tuple[Any, ...] | bool | None


class Sentence(NamedTuple):
    """`words` are said where `deserved` finds something of the case, which fills them."""

    deserved: Callable[[Any], Found]
    words: str


class Advice(NamedTuple):
    """For a need the systems that serve it best (all that the evidence does not tell apart), and why."""

    need: str
    choice: list[str]
    text: str

    def __str__(self) -> str:
        return f"{self.need}: {listed(self.choice, 'or')}. {self.text}" if self.choice else f"{self.need}: {self.text}"


def recommendation(rows: list[Row]) -> list[Advice]:
    """Advice for a density, for speed of sampling and for sample quality; and how far it goes."""
    good = [line for line in lines(rows) if line.finished]
    if not good:
        return [Advice("No recommendation", [], "No system finished.")]
    density, quality = Density(good, density_column(rows)), Quality(good)
    speed, reach = Speed(good, quality), Reach(good)
    given = [
        Advice("For a density", density.first, said(density, DENSITY_SENTENCES)),
        Advice("For speed of sampling", speed.first, said(speed, SPEED_SENTENCES)),
        Advice("For sample quality", quality.choice, said(quality, QUALITY_SENTENCES)),
        Advice("How far this goes", [], said(reach, REACH_SENTENCES)),
    ]
    return [advice for advice in given if advice.text]


def said(case: Any, sentences: Sequence[Sentence]) -> str:
    """The sentences that a case deserves, filled and in order."""
    parts = []
    for deserved, words in sentences:
        found = deserved(case)
        if found:
            parts.append(words.format(*(found if isinstance(found, tuple) else (found,))))
    return " ".join(parts)


NAMED = 5  # of many names; the others are counted


def listed(names: Sequence[str], word: str = "and") -> str:
    """`a, b and c`; of very many `a, b, c, d, e and 40 others`."""
    *first, last = names if len(names) <= NAMED + 1 else [*names[:NAMED], f"{len(names) - NAMED} others"]
    return f"{', '.join(first)} {word} {last}" if first else last


def _readings(column: Column, good: Iterable[Line]) -> Readings:
    found = {line.label: r for line in good if (r := line.reading(column)) is not None}
    return {label: r for label, r in found.items() if math.isfinite(r.value)}


def _tie(case: Any) -> Found:
    return len(case.first) > 1


def _early(case: Any) -> Found:
    """Who led before, where it is another than at the end."""
    rows = {line.label: line.finished[0] for line in case.good if line.label in case.ranked}
    before = curves.early_leaders(rows, case.curve, case.first)
    return listed([f"after {curves.duration(seconds)} {label} led" for seconds, label in before]) if before else None


TIE = Sentence(_tie, "They are within error of each other, so the evidence does not decide.")
EARLY = Sentence(_early, "It depends on time: {}.")


# --- density ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Density:
    """Exact values and bounds are both guarantees, so the best guarantee leads; the rest is what it leaves open.

    A bound that beats every exact value decides (the truth is better still); an exact value that beats a
    bound does not, since the truth behind the bound may be better. An estimate is no guarantee at all.
    """

    good: list[Line]
    column: Column
    curve = "density"

    @cached_property
    def kinds(self) -> list[Readings]:
        """The exact values, the bounds, the estimates."""
        kinds = by_kind(_readings(self.column, self.good))
        return [kinds.get(kind, {}) for kind in DENSITY]

    @cached_property
    def guaranteed(self) -> Readings:
        return self.kinds[0] | self.kinds[1]

    @cached_property
    def ranked(self) -> Readings:
        return self.guaranteed or self.kinds[2]

    @cached_property
    def first(self) -> list[str]:
        return leaders(self.column, self.ranked)

    @property
    def lead(self) -> Reading:
        return self.ranked[self.first[0]]

    def behind(self) -> Found:
        """Bounds that do not lead."""
        names = [label for label in self.kinds[1] if label not in self.first]
        return bool(self.first and names) and listed(names)

    def flattered(self) -> Found:
        """Estimates that beat the best guarantee."""
        names = [label for label, r in self.kinds[2].items() if self.guaranteed and better(self.column, r, self.lead)]
        return bool(names) and listed(names)


DENSITY_SENTENCES = (
    Sentence(lambda c: not c.first, "No system here has a density that can be compared."),
    Sentence(lambda c: bool(c.first) and (c.column.title, c.column.show(c.lead, True)), "{}: {}."),
    TIE,
    Sentence(lambda c: bool(c.first) and not c.guaranteed, "Only estimates are there, and they can err either way."),
    Sentence(
        lambda c: bool(c.first) and c.lead.kind == "lower bound" and bool(c.kinds[0]),
        "That is a bound and yet better than every exact value here: the truth is better still.",
    ),
    Sentence(Density.behind, "Not ruled out: {}, of which only a bound is known; the truth may be better."),
    Sentence(Density.flattered, "The better figure of {} is an estimate, which can err either way."),
    EARLY,
)


# --- sample quality -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """The Fréchet distance leads, but recommends nothing that copies or that other measures clearly see worse.

    What copies is not held against others either: its samples look real because they are. As many comparisons
    are made as there are pairs of a row and a measure, so each must be the clearer.
    """

    good: list[Line]
    curve = "distance"

    @cached_property
    def ranked(self) -> Readings:
        return _readings(_FRECHET, self.good)

    @cached_property
    def first(self) -> list[str]:
        return leaders(_FRECHET, self.ranked)

    @cached_property
    def copiers(self) -> dict[str, str]:
        """Rows with more copies than unseen data have, and the reason in words."""
        found, readings = {}, _readings(_COPIES, self.good)
        for label, r in readings.items():
            floor = r.floor or 0.0
            if r.value > floor and Difference(r.excess_error).tells(r.value - floor, len(readings)):
                found[label] = f"{number(r.value)} of the samples of {label} are copies, {number(floor)} of real ones"
        return found

    @cached_property
    def objections(self) -> dict[str, str]:
        """Rows that are not to be recommended, and the first reason in words."""
        found = dict(self.copiers)
        for key, words in _OBJECTIONS.items():
            column, readings = _BY_KEY[key], _readings(_BY_KEY[key], self.good)
            honest = {label: r for label, r in readings.items() if label not in self.copiers}
            times = max(1, len(_OBJECTIONS) * (len(honest) - 1))
            scores = {label: score(column, r) for label, r in honest.items()}
            order = sorted(scores, key=scores.__getitem__)[:_BESIDE]
            best = [scores[label] for label in order]
            for label, r in honest.items():
                ahead = order[: bisect.bisect_left(best, scores[label])]
                over = next((other for other in ahead if better(column, honest[other], r, times)), "")
                if over and label not in found:
                    found[label] = words.format(a=label, x=number(r.value), b=over, y=number(honest[over].value))
        return found

    @cached_property
    def choice(self) -> list[str]:
        return [label for label in self.first if label not in self.objections]

    @property
    def lead(self) -> Reading:
        return self.ranked[(self.choice or self.first)[0]]

    def at_floor(self) -> Found:
        """Within one standard error of the floor, whose own error is counted."""
        r = self.lead if self.first else None
        at = r is not None and r.floor is not None and r.value - r.floor <= r.excess_error
        return at and number(self.lead.floor or 0.0)

    def above_floor(self) -> Found:
        above = bool(self.first) and self.lead.floor is not None and not self.at_floor()
        return above and number(self.lead.floor or 0.0)

    def withheld(self) -> Found:
        """Why none of the leaders is recommended."""
        return bool(self.first and not self.choice) and "; ".join(self.objections[label] for label in self.first)

    def instead(self) -> Found:
        """The nearest of those that no measure objects to."""
        free = {label: r for label, r in self.ranked.items() if label not in self.objections}
        if not free or self.choice:
            return None
        names = leaders(_FRECHET, free)
        return listed(names, "or"), with_error(free[names[0]].value, free[names[0]].error)

    def dropped(self) -> Found:
        """Leaders that are not recommended beside those that are."""
        why = [self.objections[label] for label in self.first if label in self.objections]
        return bool(self.choice and why) and "; ".join(why)

    def dissent(self) -> Found:
        """Further measures whose best are all systems that the Fréchet distance ranks lower."""
        against = []
        for column in (_BY_KEY[key] for key in _MILD):
            honest = [line for line in self.good if line.label not in self.copiers]
            theirs = leaders(column, _readings(column, honest))
            if self.choice and theirs and not set(theirs) & set(self.choice):
                against.append(f"{column.title.lower()} prefers {listed(theirs)}")
        return bool(against) and "; ".join(against)

    def near_training(self) -> Found:
        """Leaders that are no copies of single examples and yet nearer to the training set than unseen data are."""
        readings = {label: r for label, r in _readings(_MEMORISATION, self.good).items() if label in self.first}
        near = [label for label, r in readings.items() if label not in self.copiers and r.value > _NEAR_TRAINING
                and Difference(r.excess_error).tells(r.value - (r.floor or 0.5))]  # fmt: skip
        return bool(near) and listed(near)


QUALITY_SENTENCES = (
    Sentence(lambda c: not c.first, "Sample quality was not measured."),
    Sentence(
        lambda c: bool(c.withheld()) and (listed(c.first), c.withheld()),
        "No recommendation. The least Fréchet distance is that of {}, yet other measures see what it does not: {}.",
    ),
    Sentence(Quality.instead, "Of those that none of these speaks against the nearest is {}, at {}."),
    Sentence(lambda c: bool(c.choice) and with_error(c.lead.value, c.lead.error), "Fréchet distance {}."),
    Sentence(lambda c: len(c.choice) > 1, "They are within error of each other, so the evidence does not decide."),
    Sentence(Quality.at_floor, "That is at the floor ({}, real data against real data): it sees no difference."),
    Sentence(Quality.above_floor, "Real data against real data has {}."),
    Sentence(Quality.dropped, "As near by that distance but not recommended: {}."),
    Sentence(Quality.dissent, "Not all measures agree: {}."),
    Sentence(
        Quality.near_training, "Samples of {} lie nearer to the training set than unseen data do: look for copies."
    ),
    EARLY,
)


# --- speed --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """The fastest sampler; and where its samples are poor, the fastest of those near the best."""

    good: list[Line]
    quality: Quality

    @cached_property
    def rates(self) -> Readings:
        return _readings(_SPEED, self.good)

    @cached_property
    def machines(self) -> int:
        """On how many kinds of machine they were timed."""
        return len(by_kind(self.rates))

    @cached_property
    def first(self) -> list[str]:
        return leaders(_SPEED, self.rates) if self.machines == 1 else []

    @cached_property
    def near(self) -> list[str]:
        """Labels whose distance, or its floor where that is more, is within `_NEAR` times the best or tied with it."""
        distances = self.quality.ranked
        best = min((score(_FRECHET, r) for r in distances.values()), default=0.0)
        close = [label for label, r in distances.items() if score(_FRECHET, r) <= _NEAR * best]
        return list(dict.fromkeys([*self.quality.first, *close]))

    def far(self) -> Found:
        """The fastest's distance and the best, where it is far from it."""
        distances = self.quality.ranked
        if not self.first or self.first[0] not in distances or self.first[0] in self.near:
            return None
        return number(distances[self.first[0]].value), number(min(r.value for r in distances.values()))

    def doubted(self) -> Found:
        """What speaks against a fastest that is near."""
        return bool(self.first) and self.first[0] in self.near and self.quality.objections.get(self.first[0])

    def quick(self) -> Found:
        sound = [label for label in self.near if label in self.rates and label not in self.quality.objections]
        if not sound or self.machines > 1 or not (self.far() or self.doubted()):
            return None
        return listed(leaders(_SPEED, {label: self.rates[label] for label in sound}), "or")


SPEED_SENTENCES = (
    Sentence(lambda c: not c.rates, "Sampling was not timed."),
    Sentence(
        lambda c: c.machines > 1 and c.machines,
        "No recommendation: the speeds are of {} kinds of machine; compare --measure-on NODE measures them on one.",
    ),
    Sentence(lambda c: bool(c.first) and amount(c.rates[c.first[0]].value), "{} samples a second, 64 at a time."),
    TIE,
    Sentence(Speed.far, "Yet its samples are far from the best (Fréchet distance {} against {})."),
    Sentence(Speed.doubted, "Yet {}."),
    Sentence(Speed.quick, "Among those near the best that no measure speaks against, {} is the fastest."),
)


# --- how far it goes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Reach:
    """What the comparison is of: runs or systems, at the end or on the way."""

    good: list[Line]

    @cached_property
    def seeds(self) -> int:
        """Of the systems (rows of given samples have none), the fewest."""
        return min((len(line.finished) for line in self.good if line.rows[0].get("system")), default=0)

    def improving(self) -> Found:
        names = [label for label, r in _readings(_BY_KEY["at_end"], self.good).items() if r.value > 0.5]
        few = len(names) <= _NAMED
        return bool(names) and (listed(names) if few else f"{len(names)} of {len(self.good)}, as the table says")


REACH_SENTENCES = (
    Sentence(
        lambda c: c.seeds == 1 and len(c.good) > 1,
        "One run of a system is this run alone: another seed can differ by more than the errors here, which are of "
        "the test examples. Several seeds compare systems.",
    ),
    Sentence(lambda c: c.seeds > 1 and c.seeds, "Differences are told apart beyond the spread of {} seeds or more."),
    Sentence(Reach.improving, "Still improving when the budget ended: {}. With a longer one the order may be another."),
)
