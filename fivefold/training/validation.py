"""What training keeps the best weights by: the density where there is one, else the distance of samples."""

from __future__ import annotations

from functools import cached_property

import torch

from fivefold.data.splits import Data
from fivefold.errors import Unfit
from fivefold.evaluation.features import Features, fit_features
from fivefold.system import Batch, System, seeded
from fivefold.tools.metrics import frechet_distance

SAMPLES = 250  # scored or drawn at each validation: a fraction of a second for most systems ...
DIMENSIONS = 200_000  # ... and fewer where examples have many dimensions
FEWEST = 50


def measure_of(system: System, by: str) -> str:
    """ "density" or "distance": what a system is validated by; Unfit where it has no density that can be averaged."""
    if by == "density" and not system.density.comparable:
        raise Unfit(f"{type(system).__name__} has no density to validate by ({system.density.value}): --by distance")
    return {"auto": "density" if system.density.comparable else "distance"}.get(by, by)


class Validation:
    """Call it with a system: `(value, name, monitor)`; the smaller the value, the better the system.

    By the density the value is the mean of -ln p over the validation split, in nats (with its kind in the
    name); by the distance, the Fréchet distance between samples and the validation split in the features that
    evaluation uses, fitted on the training split when they are first needed. Linear features would not do: on principal
    components early noise, which has the data's mean and variance, is nearer to the data than early digits are.
    """

    def __init__(self, data: Data, device: torch.device, by: str) -> None:
        self.data, self.device, self.by = data, device, by
        self.count = min(SAMPLES, max(FEWEST, DIMENSIONS // data.space.dims))
        self.batch = _to(data.valid.spread(self.count), device)

    def __call__(self, system: System) -> tuple[float, str, dict[str, float]]:
        if self.by == "density":
            value = -system.score_encoded(self.batch).log_prob.mean().item()
            name = f"nats ({system.density.value})"
        else:
            value, name = self._distance(system), "fréchet distance"
        with seeded(0, self.device), system.evaluating():
            monitor = {key: float(value) for key, value in system.monitor(self.batch).items()}
        return value, name, monitor

    def _distance(self, system: System) -> float:
        condition = self._reference.condition
        samples = system.sample_encoded(len(self._reference.x), condition, seed=0)
        if not samples.isfinite().all():
            return float("inf")
        return frechet_distance(self._features(samples), self._features(self._reference.x)).item()

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


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.x.to(device), None if batch.condition is None else batch.condition.to(device))
