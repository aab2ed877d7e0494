"""Neural ODE: the first continuous-time flow, with planar dynamics and an exact trace."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.bijections.ode import Gradients
from fivefold.flow._continuous import ClosedFormSystem, Solver
from fivefold.nets.planar import PlanarSum
from fivefold.space import Space
from fivefold.system import Density


class NeuralODE(ClosedFormSystem):
    """Neural ODE (survey 6.6; Chen et al., 2018).

    The paper's continuous normalizing flow: examples become noise along an ordinary differential equation (survey
    Eq. 41) whose velocity is a sum of gated planar functions of the point, their parameters given by a hypernetwork of
    the time. The log-density changes by the trace of its Jacobian (Eq. 44), which here has a formula. An adaptive
    solver takes as many evaluations as the tolerance asks; gradients come from a second equation backwards (Eq. 43).

    Args:
        space: of the examples.
        width: planar functions in the sum.
        hidden: width of the hypernetwork.
        tolerance: of the solver, absolute and relative, when training and scoring.
        sampling_tolerance: of the solver when sampling.
        gradients: adjoint (memory does not grow with the steps) or direct (through the solver's steps).
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
    """

    densities = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    sampling = "iterative"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {
        "temperature": (0.7, 0.85, 1.0),
        "sampling_tolerance": (0.3, 1e-1, 1e-2, 1e-3),
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"lr": 1e-2, "ema": 0.99, "clip": 5.0, "evaluations": 6}}

    def __init__(
        self,
        space: Space,
        *,
        width: int = 64,
        hidden: int = 64,
        tolerance: float = 1e-2,
        sampling_tolerance: float = 1e-3,
        gradients: Gradients = "adjoint",
        margin: float = 0.003,
        score_samples: int = 16,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(
            space,
            lambda dims, condition: PlanarSum(dims, width, hidden, condition),
            training=Solver(0, tolerance),
            scoring=Solver(0, tolerance),
            gradients=gradients,
            margin=margin,
            score_samples=score_samples,
            temperature=temperature,
        )
        self.sampling_tolerance = sampling_tolerance

    @property
    def sampling_solver(self) -> Solver:
        return Solver(0, self.sampling_tolerance)
