"""How large a network and a batch a training gets: one rule for every system, in place of numbers.

What a system declares is its full size. Depths shrink by a fourth root of two at a time, widths by a root of that:

1. until there are at most `PER_NUMBER` parameters for each number of the training data (`FREE` are always allowed);
2. where the budget is a time, until it holds `FEWEST` steps, as long as that pays: where a smaller network is hardly
   quicker (many small operations, each of which takes its time), fewer steps of the larger one learn more.

The batch is the largest power of two of which the budget holds `MANY` steps, from the least that the system says to
`USUAL` (or to a twentieth of the training examples, at most `LARGEST`), and halved only where that pays too. Nothing is
dropped out where the budget sees the data fewer than `NEW` times, and the whole share from `KNOWN` times on. How long
steps take is measured in a rehearsal, whose time counts; a budget in steps or epochs, and several processes, use the
rule without the clock. What is given, by an option or a preset, stays.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fivefold import catalog
from fivefold.data import Data
from fivefold.errors import FivefoldError
from fivefold.machine import PIECE, fastest_threads, keep_freed_memory
from fivefold.options import Option, Slot, class_in, options_of, slot_of
from fivefold.system import System, part_options
from fivefold.training import ranks
from fivefold.training.budget import Budget
from fivefold.training.options import Settings
from fivefold.training.trainer import USUAL_BATCH, Trainer

PER_NUMBER, FREE = 32, 2**17  # parameters for each number of the training data, and in any case
FEWEST, MANY = 2000, 4000  # steps
USUAL, LARGEST = USUAL_BATCH, 256  # examples of a batch; the least are the system's
HALF_PAYS, SMALLER_PAYS = 0.75, 0.7  # half a batch, or a size less, where steps take at most this share of the time
NEW, KNOWN = 5, 15  # passes through the data: until and from which they are learnt by heart, unless there is dropout
SCALES = tuple(2 ** (-step / 4) for step in range(41))  # of depths; of widths their roots
MOST, COUNTED = 0.07, 0.25  # of the budget: no rehearsal begins later, and all together take no more of it
REHEARSED = 0.005  # of the budget: how long steps of one size are repeated, a second at most

Arguments = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """What the rule chose.

    `scale` is the share of the declared depths (of widths its root), `steps` about what the budget holds, `passes` how
    often it sees the training data (None: not known in advance), `seconds` what the rehearsals took.
    """

    scale: float
    batch_size: int
    steps: int | None = None
    seconds: float = 0.0
    passes: float | None = None

    def __str__(self) -> str:
        size = (
            "full size"
            if self.scale == 1
            else f"{self.scale:.2f} of the full depth and {math.sqrt(self.scale):.2f} of the width"
        )
        steps = "" if self.steps is None else f", about {self.steps:,} steps ({self.seconds:.1f} s to find out)"
        return f"{size}, batches of {self.batch_size}{steps}"


def choose(cls: type[System], arguments: Arguments, data: Data, device: torch.device) -> Sizes:
    """The sizes of a training whose given arguments are `arguments`; deterministic unless the budget is a time."""
    settings = Settings(**arguments["fit"])
    budget = Budget.parse(settings.sized_for or settings.budget)
    search = _Search(cls, arguments, data, device)
    if budget.unit == "seconds" and ranks.world() == 1 and not (search.given_batch and search.fixed):
        return search.by_clock(budget.amount)
    batch = search.given_batch or USUAL
    passes = {"steps": budget.amount * batch / len(data.train), "epochs": budget.amount}.get(budget.unit)
    return Sizes(search.by_data(), batch, passes=passes)


def apply(cls: type[System], arguments: Arguments, sizes: Sizes) -> Arguments:
    """The arguments with what `sizes` say of all that was not given."""
    passes = math.inf if sizes.passes is None else sizes.passes
    return {
        "system": shrunk(cls, arguments["system"], sizes.scale, passes),
        "fit": {**arguments["fit"], "batch_size": sizes.batch_size},
    }


def shrunk(
    cls: Any, given: Mapping[str, Any], scale: float, passes: float, values: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Options of a class at a share of its size: those given, and those that the rule changes, slots' parts included.

    Args:
        cls: of a system or of a slot's part.
        given: stays as it is.
        scale: of depths; of widths its root.
        passes: through the training data.
        values: that stand in place of the declared defaults.
    """
    found = dict(given)
    for name, option in options_of(cls).items():
        default = values.get(name, option.default)
        if option.needs is not None:
            found |= _shrunk_part(name, option, given, default, scale, passes)
        elif option.scales and name not in given:
            found[name] = _SCALED[option.scales](option, default, scale, passes)
    return {name: value for name, value in found.items() if name in given or value != options_of(cls)[name].default}


def _shrunk_part(
    name: str, option: Option, given: Mapping[str, Any], default: Any, scale: float, passes: float
) -> dict[str, Any]:
    """The slot's content with its part shrunk; what was typed of it stays."""
    content: Slot = slot_of(given.get(name, default))
    part = class_in(content, option.needs)
    said = part_options(part, content)
    inner = shrunk(part, said if name in given else {}, scale, passes, {} if name in given else said)
    changed = {key: value for key, value in inner.items() if value != said.get(key)}
    return {name: replace(content, options={**content.options, **changed})}


def _narrower(option: Option, value: int, scale: float, passes: float) -> int:
    """In multiples of 8 from 16 on (of 4 below), as heads and groups need it; no less than it may be tuned to."""
    wanted = value * math.sqrt(scale)
    step = 8 if wanted >= 16 else 4
    return value if scale == 1 else max(min(value, option.tune[0]), step * round(wanted / step))


def _shallower(option: Option, value: int, scale: float, passes: float) -> int:
    return max(min(value, option.tune[0]), round(value * scale))


def _dropped(value: float, passes: float) -> float:
    return round(value * max(passes - NEW, 0) / (KNOWN - NEW), 2)


_SCALED: dict[str, Any] = {
    "width": _narrower,
    "depth": _shallower,
    "extra": lambda option, value, scale, passes: value and scale > 0.5,
    "passes": lambda option, value, scale, passes: value if passes >= KNOWN else _dropped(value, passes),
}


class _Rehearsal(Trainer):
    """A trainer whose steps only take time: what they do to untrained networks need not be finite."""

    def _check_finite(self, player: nn.Module, loss: Tensor, norm: Tensor) -> None:
        pass


def rehearse(system: System, data: Data, settings: Mapping[str, Any], spend: float) -> tuple[int, float]:
    """With how many threads a step at the end of training takes the fewest seconds, and how many; steps are made.

    Args:
        system: where it is to be trained.
        data: to train on.
        settings: of `fit`.
        spend: seconds with each number of threads, about.
    """
    settings = {**settings, "compile": False, "graphs": False, "tensorboard": False}
    trainer = _Rehearsal(system, data, None, lambda event: None, **settings)
    system.train()
    trainer.progress = 1.0  # what grows is largest at the end
    return fastest_threads(trainer._iterate, spend)


class _Search:
    """Builds and rehearses a training at one size after another."""

    def __init__(self, cls: type[System], arguments: Arguments, data: Data, device: torch.device) -> None:
        self.cls, self.arguments, self.data, self.device = cls, arguments, data, device
        self.given_batch: int | None = arguments["fit"].get("batch_size")
        full, least = (shrunk(cls, arguments["system"], scale, math.inf) for scale in (SCALES[0], SCALES[-1]))
        self.fixed = full == least  # whether all that could shrink is given, as by a preset
        self.started, self.spend = time.perf_counter(), PIECE
        if device.type == "cpu":
            keep_freed_memory()  # as training does: steps are quicker

    def build(self, scale: float) -> System:
        options = shrunk(self.cls, self.arguments["system"], scale, math.inf)
        return catalog.build(self.cls, self.data.space, **options).to(self.device)

    def by_data(self) -> float:
        """The largest scale whose parameters the data warrant."""
        if self.fixed:
            return SCALES[0]
        most = max(FREE, PER_NUMBER * len(self.data.train) * self.data.space.dims)
        scale, parameters = SCALES[0], _parameters(self.build(SCALES[0]))
        while parameters > most and scale > SCALES[-1]:
            scale = _below(scale, scale * math.sqrt(most / parameters))
            parameters = _parameters(self.build(scale))
        return scale

    def by_clock(self, budget: float) -> Sizes:
        scale, self.spend = self.by_data(), min(max(PIECE, REHEARSED * budget), 1.0)
        batch, seconds = self.batch(scale, budget)
        while budget < FEWEST * seconds and scale > SCALES[-1] and not self.late(budget):
            wanted = scale * math.sqrt(budget / (FEWEST * seconds))  # the work of a size falls by its square
            smaller = _below(scale, wanted)
            quicker = self.step_seconds(smaller, batch)
            if quicker > seconds * SMALLER_PAYS ** (2 * math.log2(scale / smaller)):
                break
            scale, seconds = smaller, quicker
        spent = min(time.perf_counter() - self.started, COUNTED * budget)
        steps = int((budget - spent) / seconds)
        return Sizes(scale, batch, steps, spent, steps * batch / len(self.data.train))

    def batch(self, scale: float, budget: float) -> tuple[int, float]:
        """The batch of that scale, and the seconds of its steps; small ones first, which are rehearsed sooner."""
        batch = self.given_batch or self.cls.least_batch
        seconds = self.step_seconds(scale, batch)
        twentieth = 2 ** int(math.log2(max(1, len(self.data.train) // 20)))
        most = batch if self.given_batch else max(USUAL, min(twentieth, LARGEST))
        while batch < most and not self.late(budget):
            doubled = self.step_seconds(scale, 2 * batch)
            free = doubled * HALF_PAYS < seconds and batch < USUAL
            if MANY * doubled > budget and not free:
                break
            batch, seconds = 2 * batch, doubled
        return batch, seconds

    def late(self, budget: float) -> bool:
        return time.perf_counter() - self.started > MOST * budget

    def step_seconds(self, scale: float, batch: int) -> float:
        """Of a step at the end of training."""
        try:
            settings = {**self.arguments["fit"], "batch_size": batch}
            return rehearse(self.build(scale), self.data, settings, self.spend)[1]
        except FivefoldError:
            if scale == SCALES[0]:
                raise
            return math.inf


def _below(scale: float, wanted: float) -> float:
    """The next smaller scale, or the largest that is about as small as is wanted."""
    return next((s for s in SCALES if s < scale and s <= 1.1 * wanted), SCALES[-1])


def _parameters(system: System) -> int:
    return sum(p.numel() for p in system.parameters())
