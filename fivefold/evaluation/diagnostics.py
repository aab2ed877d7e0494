"""What fits a family: quality as a system's dials turn, and rate against distortion over a hierarchy's levels.

Truncation trades a GAN's diversity for quality, the number of evaluations a diffusion's time, temperature an
autoregressive or hierarchical model's variety; a hierarchy's levels say where its nats go.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fivefold.data import Data
from fivefold.errors import TooFew
from fivefold.evaluation.evaluate import Row, affordable, conditions, recoded
from fivefold.evaluation.features import Features, fit_features, gaps_shown
from fivefold.machine import fastest_threads, using
from fivefold.system import LatentSystem, System
from fivefold.tools.metrics import measure

SAMPLES = 250  # at each value, at most: fewer than a row's, so that distances are comparable within a curve alone
SECONDS = 4.0  # for the samples of one value
LEVEL_EXAMPLES = 128
MEASURED = ("frechet", "precision", "recall")


def diagnose(system: System, data: Data, features: Features | None = None) -> Row:
    """`dials`: by name a point for each value; `levels`: a hierarchy's, top first. Empty where there are none.

    A point has the `value`, the `evaluations` of one sample and what of `MEASURED` can be had; a level the `nats`
    of its code and the `distortion` (mean squared error, in levels or in encoded units) with it and those above.
    """
    features = features or fit_features(data)
    dials = {name: [_point(system, data, features, name, value) for value in system.dials[name]]
             for name in system.dials}  # fmt: skip
    return {"dials": {name: found for name, points in dials.items() if (found := [p for p in points if p])},
            "levels": _levels(system, data)}  # fmt: skip


def _point(system: System, data: Data, features: Features, name: str, value: float) -> dict[str, Any] | None:
    """None where too few samples can be drawn in the time."""

    def draw(n: int) -> Tensor:
        return system.sample_encoded(n, conditions(system, data, n), seed=0).cpu()

    with system.turned(**{name: value}), using(fastest_threads(lambda: draw(8))[0]):
        n = affordable(draw, min(SAMPLES, len(data.train)), SECONDS)
        x, evaluations = recoded(draw(n), system.data_space, data.space), system.sample_evaluations
    real, training = features(data.test.spread(SAMPLES).x), features.of(data.train, 5000)
    try:
        values = measure(features(x), real, training)
    except TooFew:
        return None
    return {"value": value, "evaluations": evaluations, "samples": n} | {
        key: values[key]._asdict() for key in MEASURED if key in values
    }


def _levels(system: System, data: Data) -> list[dict[str, float]]:
    if not isinstance(system, LatentSystem):
        return []
    n = min(LEVEL_EXAMPLES, len(data.test))
    x = recoded(data.test.spread(n).x, data.space, system.data_space).to(system.device)
    real = gaps_shown(x, system.data_space)
    made = system.rate_distortion(x, conditions(system, data, n))
    return [
        {
            "nats": nats.mean().item(),
            "distortion": (gaps_shown(again.to(x), system.data_space) - real).double().square().mean().item(),
        }
        for nats, again in made
    ]
