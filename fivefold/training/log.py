"""What training says as it goes: to `log.jsonl`, whoever tracks it and whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fivefold.run import Run
from fivefold.training import ranks
from fivefold.training.options import Settings
from fivefold.training.tracking import Trackers

if TYPE_CHECKING:
    from fivefold.training.trainer import Trainer

Event = dict[str, Any]


class Log:
    """Means of the losses between log points, to `log.jsonl`, trackers and the watcher."""

    def __init__(self, run: Run | None, settings: Settings, watch: Callable[[Event], None]) -> None:
        self.run, self.watch, self.main = run, watch, ranks.rank() == 0
        self.sums: dict[str, list[float]] = {}
        self.latest: dict[str, float] = {}
        self.last, self.last_seconds, self.last_step, self.started = -1, 0.0, 0, time.monotonic()
        self.trackers = Trackers(settings, run if self.main else None)

    def start(self, trainer: Trainer) -> None:
        """Log from here on: what was before is in the log of the run that is gone on with."""
        self.last, self.last_seconds, self.last_step = int(trainer.progress * 200), trainer.seconds, trainer.step

    def losses(self, player: str, value: float) -> None:
        total = self.sums.setdefault(player, [0.0, 0.0])
        total[0] += value
        total[1] += 1

    def stats(self, stats: dict[str, Tensor]) -> None:
        self.scalars = stats

    def step(self, trainer: Trainer) -> None:
        """A line at each of 200 marks of the budget, and at least every second for the watcher."""
        mark = int(trainer.progress * 200)
        if trainer.step == self.last_step or (mark == self.last and time.monotonic() - self.started < 1):
            return
        self.started = time.monotonic()
        trainer._check(everything=True)
        spent, steps = trainer.seconds - self.last_seconds, trainer.step - self.last_step
        rate = steps * trainer.batches.size / spent if spent > 0 else 0.0
        event = {
            "step": trainer.step,
            "seconds": trainer.seconds,
            "examples": trainer.step * trainer.batches.size,
            "progress": trainer.progress,
            "loss": {name: total / count for name, (total, count) in self.sums.items()},
            "stats": {name: value.item() for name, value in self.scalars.items() if value.numel() == 1},
            "examples_per_second": rate,
        }
        if mark == self.last:  # between marks only the watcher is told
            self.watch(event)
            return
        self.event(event)
        self.last, self.last_seconds, self.last_step = mark, trainer.seconds, trainer.step
        self.sums = {}

    def event(self, event: Event) -> None:
        if not self.main:
            return
        if self.run is not None:
            self.run.append_log(event)
        numbers = dict(_flat(event))
        self.trackers.log(numbers, int(numbers.pop("step")))
        self.watch(event)


def _flat(event: Event, prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in event.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value
