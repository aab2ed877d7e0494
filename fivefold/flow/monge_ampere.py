"""Monge-Ampere flow: a continuous flow along the gradient of a fixed potential."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.flow._continuous import PotentialSystem
from fivefold.nets.potential import Potential, PotentialVelocity
from fivefold.space import Space
from fivefold.system import Density


class MongeAmpere(PotentialSystem):
    """Monge-Ampere flow (survey 6.6.1; Zhang et al., 2018).

    The velocity is the gradient of a potential phi(x) that does not change with the time: each instant is an
    infinitesimal solution of the Monge-Ampere equation of optimal transport. The log-density changes by phi's
    Laplacian, which has a formula; fixed steps of Runge-Kutta's method solve both. There is no penalty.

    Args:
        space: of the examples.
        hidden: width of the potential's network.
        layers: of that network: the first, and residual ones; the paper has one.
        steps: of the solver in training.
        scoring_steps: of the solver when scoring.
        sampling_steps: of the solver when sampling.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
    """

    densities = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    sampling = "iterative"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"lr": 1e-2, "ema": 0.99, "clip": 5.0, "evaluations": 6}}

    def __init__(
        self,
        space: Space,
        *,
        hidden: int = 256,
        layers: int = 1,
        steps: int = 8,
        scoring_steps: int = 8,
        sampling_steps: int = 8,
        margin: float = 0.003,
        score_samples: int = 16,
        temperature: float = 1.0,
    ) -> None:
        def velocity(dims: int, condition: int) -> PotentialVelocity:
            phi = Potential(dims, hidden, layers, timed=False, activation="softplus", condition=condition)
            return PotentialVelocity(phi)

        super().__init__(space, velocity, steps, scoring_steps, sampling_steps, margin, score_samples, temperature)
