"""Potential flow: a continuous flow along the gradient of a potential that obeys the Hamilton-Jacobi equation."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.flow._continuous import PotentialSystem
from fivefold.nets.potential import Potential, PotentialVelocity
from fivefold.space import Space
from fivefold.system import Density


class PotentialFlow(PotentialSystem):
    """Potential flow generator (survey 6.6.1; Yang and Karniadakis, 2020).

    The velocity is the gradient of a potential phi(x, t) of point and time. Optimal transport in the L2 cost obeys the
    Hamilton-Jacobi equation dphi/dt + |grad phi|^2 / 2 = 0: its residual, squared and integrated along the ways, is a
    penalty in the loss, and the only one; where it is 0 every point moves straight on at its first speed. Here the
    generator is trained by its likelihood (the paper's other losses are adversarial).

    Args:
        space: of the examples.
        hidden: width of the potential's network.
        layers: of that network: the first, and residual ones.
        hj: weight of the Hamilton-Jacobi equation's squared residual.
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
        hidden: int = 64,
        layers: int = 3,
        hj: float = 0.01,
        steps: int = 4,
        scoring_steps: int = 8,
        sampling_steps: int = 8,
        margin: float = 0.003,
        score_samples: int = 16,
        temperature: float = 1.0,
    ) -> None:
        def velocity(dims: int, condition: int) -> PotentialVelocity:
            phi = Potential(dims, hidden, layers, activation="tanh", condition=condition)
            return PotentialVelocity(phi, squared=True)

        super().__init__(
            space, velocity, steps, scoring_steps, sampling_steps, margin, score_samples, temperature, residual=hj
        )
