"""Continuous-time flows: the solution of an ordinary differential equation as a bijection (survey 6.6)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Bijection, Exactness
from fivefold.tools.divergence import rademacher, with_divergence
from fivefold.tools.ode import integrate, integrate_adjoint

Gradients = Literal["direct", "adjoint"]
Trace = Literal["exact", "hutchinson", "none"]


class ContinuousFlow(Bijection):
    """x(1) from x(0) = x where dx/dt = f(t, x), and back (survey Eq. 41).

    ln |det| is the integral of tr(df/dx) on the way (survey Eq. 44), solved beside the state. By Hutchinson's
    estimator an example has one probe for the whole way, so that what the adaptive solver sees is a fixed function.
    In training the trace is Hutchinson's whatever `trace` says, unless that is none.

    Args:
        velocity: f, called with a time, points `(B, ...)` and a condition.
        tolerance: of the solver, absolute and relative.
        trace: exact, hutchinson, or none, which is faster and gives a log-determinant of 0.
        gradients: direct (through the steps that were taken) or adjoint (memory does not grow with the steps).
    """

    def __init__(
        self, velocity: nn.Module, tolerance: float = 1e-5, trace: Trace = "exact", gradients: Gradients = "direct"
    ) -> None:
        super().__init__()
        self.velocity, self.tolerance, self.trace, self.gradients = velocity, tolerance, trace, gradients
        self.evaluations = 0  # of the velocity, by the last solution

    @property
    def exactness(self) -> Exactness:
        exact = self.trace == "exact" and not self.training
        return Exactness("iterative", "iterative", "exact" if exact else "estimated")

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._solve(x, condition, 0.0, 1.0)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._solve(y, condition, 1.0, 0.0)

    def _solve(self, x: Tensor, condition: Tensor | None, start: float, end: float) -> tuple[Tensor, Tensor]:
        probe = None if self.trace == "exact" and not self.training else rademacher(x)

        def f(t: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if self.trace == "none":
                return self.velocity(t, state[0], condition), torch.zeros_like(state[1])
            return with_divergence(lambda point: self.velocity(t, point, condition), state[0], probe)

        state: tuple[Tensor, ...] = (x, x.new_zeros(len(x)))
        if self.gradients == "adjoint" and torch.is_grad_enabled():
            depends_on = [*self.velocity.parameters(), *([] if condition is None else [condition])]
            solution = integrate_adjoint(f, state, start, end, self.tolerance, self.tolerance, depends_on)
        else:
            solution = integrate(f, state, start, end, self.tolerance, self.tolerance)
        (y, log_det), self.evaluations = solution
        return y, log_det
