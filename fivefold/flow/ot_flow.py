"""OT-Flow: a continuous flow down a potential, by optimal transport, with an exact trace."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.flow._continuous import PotentialSystem
from fivefold.nets.potential import Potential, PotentialVelocity
from fivefold.space import Space
from fivefold.system import Density


class OTFlow(PotentialSystem):
    """OT-Flow (survey 6.6.1; Onken et al., 2021).

    The velocity is minus the gradient of a potential Phi(x, t), as optimal transport's is: a residual network and a
    quadratic form. The loss has the transport cost, the integral of |v|^2 / 2, and that of how far Phi violates the
    Hamilton-Jacobi-Bellman equation -dPhi/dt + |grad Phi|^2 / 2 = 0; both make the ways straight, so few fixed steps of
    Runge-Kutta's method are enough. The trace, minus the Laplacian, is exact and in closed form, in training too.

    Args:
        space: of the examples.
        hidden: width of the potential's network.
        layers: of that network: the first, and residual ones.
        rank: of the quadratic form, at most the number of dimensions.
        transport: weight of the transport cost, in nats.
        hjb: weight of the Hamilton-Jacobi-Bellman equation's residual, in nats.
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
        layers: int = 2,
        rank: int = 10,
        transport: float = 0.01,
        hjb: float = 0.05,
        steps: int = 4,
        scoring_steps: int = 8,
        sampling_steps: int = 8,
        margin: float = 0.003,
        score_samples: int = 16,
        temperature: float = 1.0,
    ) -> None:
        def velocity(dims: int, condition: int) -> PotentialVelocity:
            phi = Potential(dims, hidden, layers, min(rank, dims), activation="log-cosh", condition=condition)
            return PotentialVelocity(phi, sign=-1)

        super().__init__(
            space, velocity, steps, scoring_steps, sampling_steps, margin, score_samples, temperature, transport, hjb
        )
