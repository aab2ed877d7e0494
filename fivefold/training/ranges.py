"""What a trial may change: the ranges of a system's options, around the values that they have."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fivefold.options import Option, class_in, options_of, preset_of, reach_into_slots, slot_of
from fivefold.training.options import options

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from fivefold.system import System

# How far from its usual value a trial takes an option, as a factor: whole numbers are sizes, whose cost grows faster
# than they do; what is on a logarithmic scale is a rate. A declared range is where any system might be.
SIZES, RATES = 4, 10
GRAIN = 8  # of widths: what any usual number of heads divides, and processors like
POINTS = 5  # of a range whose usual value is no number of it: left to a rule, or 0 on a logarithmic scale


@dataclass(frozen=True)
class Range:
    """Where an option is drawn from: numbers from `low` to `high` (whole where both are), or one of `choices`.

    `usual` is its value where nobody tunes it; it is within the range.
    """

    usual: Any
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def short(self, value: Any) -> Any:
        """A value of the range in the digits that matter: three, and wide layers in multiples of eight."""
        if self.choices or value == self.usual:
            return value
        if isinstance(value, float):
            return min(max(float(f"{value:.3g}"), self.low), self.high)
        return min(GRAIN * round(value / GRAIN), self.high) if self.log and value >= 2 * GRAIN else value

    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


def range_of(option: Option, usual: Any) -> Range | None:
    """The range of an option around its usual value; None where it is not to be tuned, or has but one value."""
    if not option.tune:
        return None
    if len(option.tune) != 2 or not all(_is_number(bound) for bound in option.tune):
        return Range(usual, choices=tuple(dict.fromkeys((usual, *option.tune))))
    low, high = option.tune
    whole = int in (typing.get_args(option.type) or (option.type,))
    if not _is_number(usual) or (option.log and usual <= 0):
        return Range(usual, choices=(usual, *_points(low, high, option.log, whole)))
    if (whole or option.log) and usual > 0:
        factor = SIZES if whole else RATES
        low, high = max(low, usual / factor), min(high, usual * factor)
    low, high = min(low, usual), max(high, usual)
    low, high = (math.ceil(low), math.floor(high)) if whole else (float(low), float(high))
    return Range(usual, low, high, option.log) if low < high else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _points(low: float, high: float, log: bool, whole: bool) -> Iterator[float]:
    for i in range(POINTS):
        share = i / (POINTS - 1)
        value = low * (high / low) ** share if log else low + (high - low) * share
        yield round(value) if whole else float(f"{value:.3g}")


def ranges(
    cls: type[System], preset: str | None, given: Mapping[str, Any], sized: Mapping[str, Any] = {}
) -> dict[str, Range]:
    """The ranges of all options of a system's training that are not given, by name.

    What the rule of sizes chose (`sized`) is usual in place of what is declared. Options of a part in a slot are
    there under dotted names (`prior.layers`); what only trains a system that stands alone (its learning rate) is not.
    """
    known = options(cls)
    values = reach_into_slots(preset_of(cls, preset) | dict(given), known) | dict(sized)
    found: dict[str, Range | None] = {}
    for name, option in known.items():
        if option.needs is not None:
            found |= _inside(name, option, values.get(name, option.default), given)
        elif name not in given:
            found[name] = range_of(option, values.get(name, option.default))
    return {name: found_range for name, found_range in found.items() if found_range is not None}


def _inside(slot: str, option: Option, filled: Any, given: Mapping[str, Any]) -> dict[str, Range | None]:
    """The ranges of what fills a slot, what the user said of it left out."""
    content = slot_of(filled)
    part = class_in(content, option.needs)
    values = preset_of(part, content.preset) | dict(content.options)
    said = set(slot_of(given[slot]).options) if slot in given else set()
    inner = {name: one for name, one in options_of(part).items() if one.section == "system" and one.needs is None}
    return {
        f"{slot}.{name}": range_of(one, values.get(name, one.default))
        for name, one in inner.items()
        if name not in said and f"{slot}.{name}" not in given
    }
