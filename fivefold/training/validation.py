"""What training keeps the best weights by, and how far it has come: density and sample distance on validation data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fivefold.data.splits import Data
from fivefold.errors import Unfit
from fivefold.evaluation.features import Features, fit_features, gaps_shown
from fivefold.system import Batch, System, seeded
from fivefold.tools.metrics import frechet, spread
from fivefold.tools.resampling import Estimate, smooth

SAMPLES = 250  # scored and drawn at each validation: a fraction of a second for most systems ...
DIMENSIONS = 200_000  # ... and fewer where examples have many dimensions ...
FEWEST = 50
SHARE = 0.01  # ... or where either would take a larger share of a budget in time


class Measured(NamedTuple):
    """One validation. `value` is what the best weights are chosen by: the smaller, the better the system.

    By the density it is the mean of -ln p in nats (`name` says its kind), else the distance. `density`
    (mean nats) and `distance` are None where there is none, or where it would take too long; `monitor` has the system's
    own signs of collapse.
    """

    value: float
    name: str
    density: Estimate | None
    distance: Estimate | None
    monitor: dict[str, float]


def measure_of(system: System, by: str) -> str:
    """ "density" or "distance": what a system is validated by; Unfit where it has no density that can be averaged."""
    if by == "density" and not system.density.comparable:
        raise Unfit(f"{type(system).__name__} has no density to validate by ({system.density.value}): --by distance")
    return {"auto": "density" if system.density.comparable else "distance"}.get(by, by)


class Validation:
    """Call it with a system for a `Measured`, always of the same examples.

    The distance is Fréchet's between samples and the validation split, in the features that evaluation uses, fitted
    on the training split when they are first needed; rows are ranked by it on the test split. (Linear features would
    not do: on principal components early noise, which has the data's mean and variance, is nearer to the data than
    early digits are.)

    Args:
        data: its validation split is looked at, and its training split where that has too few examples.
        device: of the systems.
        by: "density" or "distance": what the best weights are chosen by.
        seconds: of a budget in time, of which a validation's parts take at most `SHARE` each; None for no limit.
    """

    def __init__(self, data: Data, device: torch.device, by: str, seconds: float | None = None) -> None:
        self.data, self.device, self.by = data, device, by
        self.limit = math.inf if seconds is None else SHARE * seconds
        self.count = min(SAMPLES, max(FEWEST, DIMENSIONS // data.space.dims))
        self.counts: dict[str, int] = {}  # by part how many examples it looks at, known from the first time on
        self.batch = _to(data.valid.spread(self.count), device)

    def __call__(self, system: System) -> Measured:
        density = self._density(system) if system.density.comparable else None
        distance = self._distance(system, needed=self.by == "distance")
        with seeded(0, self.device), system.evaluating():
            monitor = {key: float(value) for key, value in system.monitor(system.lifted(self.batch)).items()}
        if self.by == "density":
            assert density is not None
            return Measured(-density.value, f"nats ({system.density.value})", density, distance, monitor)
        assert distance is not None
        return Measured(distance.value, "fréchet distance", density, distance, monitor)

    def _density(self, system: System) -> Estimate:
        def score(n: int) -> Tensor:
            return system.score_encoded(_some(self.batch, n)).log_prob

        values = score(self._affordable("density", score, len(self.batch.x), FEWEST))
        spread_of = values.std().item() if len(values) > 1 else 0.0
        return Estimate(values.mean().item(), spread_of / math.sqrt(len(values)))

    def _distance(self, system: System, needed: bool) -> Estimate | None:
        """None where fewer than `FEWEST` samples are affordable, unless the choice depends on them."""
        reference = self._reference

        def draw(n: int) -> Tensor:
            return system.sample_encoded(n, _some(reference, n).condition, seed=0)

        n = self._affordable("distance", draw, len(reference.x), FEWEST if needed else 0)
        if n < FEWEST and not needed:
            return None
        samples = draw(n)
        if not gaps_shown(samples, self.data.space).isfinite().all():
            return Estimate(math.inf, 0.0)
        x, y = self._features(samples), self._features(reference.x)
        return smooth(lambda i, j: [frechet(x[i], y[j])], len(x), len(y))[0].estimate

    def _affordable(self, part: str, work: Callable[[int], Any], most: int, fewest: int) -> int:
        if part not in self.counts:
            self.counts[part] = most if math.isinf(self.limit) else self._within_limit(work, most, fewest)
        return self.counts[part]

    def _within_limit(self, work: Callable[[int], Any], most: int, fewest: int) -> int:
        """How many examples take the allowed time, by timing a few; all or `fewest` of them, or in between."""
        few = min(8, most)
        started = time.perf_counter()
        work(few)
        if (time.perf_counter() - started) * most / few <= self.limit:
            return most
        started = time.perf_counter()
        work(few)  # the first was slow, perhaps for being the first
        one = time.perf_counter() - started
        return max(min(most, int(few * self.limit / one)), min(fewest, most))

    @cached_property
    def _reference(self) -> Batch:
        """Validation examples, filled up from the training split where there are few."""
        if len(self.batch.x) >= self.count:
            return self.batch
        more = _to(self.data.train.spread(self.count - len(self.batch.x)), self.device)
        condition = None if more.condition is None else torch.cat([self.batch.condition, more.condition])  # type: ignore[list-item]
        return Batch(torch.cat([self.batch.x, more.x]), condition)

    @cached_property
    def _features(self) -> Features:
        return fit_features(self.data)


def _some(batch: Batch, n: int) -> Batch:
    return Batch(spread(batch.x, n), None if batch.condition is None else spread(batch.condition, n))


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.x.to(device), None if batch.condition is None else batch.condition.to(device))
