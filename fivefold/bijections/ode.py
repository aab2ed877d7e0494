"""Continuous-time flows: the solution of an ordinary differential equation as a bijection (survey 6.6)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Bijection, Exactness, sum_dims
from fivefold.nets.velocity import Rates
from fivefold.tools.divergence import rademacher, with_jacobian
from fivefold.tools.ode import Solution, integrate, integrate_adjoint, runge_kutta

Gradients = Literal["direct", "adjoint"]
Trace = Literal["exact", "hutchinson", "closed", "none"]
State = tuple[Tensor, ...]


class ContinuousFlow(Bijection):
    """x(1) from x(0) = x where dx/dt = f(t, x), and back (survey Eq. 41).

    ln |det| is the integral of tr(df/dx) on the way (survey Eq. 44), solved beside the state. By Hutchinson's
    estimator an example has one probe for the whole way, so that what the adaptive solver sees is a fixed function.
    In training the trace is Hutchinson's where `trace` says exact.

    Args:
        velocity: f, called with a time, points `(B, ...)` and a condition.
        tolerance: of the adaptive solver, absolute and relative.
        trace: exact (by autograd), hutchinson, closed (by the velocity's own formula, its method `rates`), or none,
            which is faster and gives a log-determinant of 0.
        gradients: direct (through the steps that were taken) or adjoint (memory does not grow with the steps).
        steps: equal ones of Runge-Kutta's fourth-order method in place of the adaptive solver's; 0 for none.
    """

    def __init__(
        self,
        velocity: nn.Module,
        tolerance: float = 1e-5,
        trace: Trace = "exact",
        gradients: Gradients = "direct",
        steps: int = 0,
    ) -> None:
        super().__init__()
        self.velocity, self.tolerance, self.trace, self.gradients = velocity, tolerance, trace, gradients
        self.steps = steps
        self.evaluations = 0  # of the velocity, by the last solution
        self.ways: list[Tensor] | None = None  # where `measured` wants the costs

    @property
    def exactness(self) -> Exactness:
        exact = self.trace == "closed" or (self.trace == "exact" and not self.training)
        return Exactness("iterative", "iterative", "exact" if exact else "estimated")

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._solve(x, condition, 0.0, 1.0)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._solve(y, condition, 1.0, 0.0)

    def _solve(self, x: Tensor, condition: Tensor | None, start: float, end: float) -> tuple[Tensor, Tensor]:
        probe = rademacher(x) if self.exactness.log_det == "estimated" else None

        def f(t: float, state: State) -> State:
            return self._rates(t, state[0], condition, probe)[: len(state)]

        costs = [] if self.ways is None else [x.new_zeros(len(x), 2)]
        depends_on = [*self.velocity.parameters(), *([] if condition is None else [condition])]
        solution = self._integrate(f, (x, x.new_zeros(len(x)), *costs), start, end, depends_on)
        (y, log_det, *costs), self.evaluations = solution
        if self.ways is not None:
            self.ways += [(end - start) * cost for cost in costs]  # positive either way
        return y, log_det

    def _rates(self, time: float, x: Tensor, condition: Tensor | None, probe: Tensor | None) -> Rates:
        if self.trace == "none":
            return Rates(self.velocity(time, x, condition), x.new_zeros(len(x)), x.new_zeros(len(x), 2))
        if self.trace == "closed":
            return self.velocity.rates(time, x, condition)  # type: ignore[operator]
        found, divergence, norm = with_jacobian(lambda point: self.velocity(time, point, condition), x, probe)
        return Rates(found, divergence, torch.stack([sum_dims(found.square()), norm], 1))

    def _integrate(
        self, f: Callable[[float, State], State], state: State, start: float, end: float, depends_on: list[Tensor]
    ) -> Solution[State]:
        if self.gradients == "adjoint" and torch.is_grad_enabled():
            return integrate_adjoint(f, state, start, end, self.tolerance, self.tolerance, depends_on, steps=self.steps)
        if self.steps:
            return runge_kutta(f, state, start, end, self.steps)
        return integrate(f, state, start, end, self.tolerance, self.tolerance)


@contextlib.contextmanager
def measured(flows: Iterable[ContinuousFlow]) -> Iterator[list[Tensor]]:
    """While this is open, the costs `(B, 2)` of every way that one of `flows` takes, integrated beside the state.

    The first is the integral of |dx/dt|^2; the second that of what `Rates` says of the velocity (with the trace by
    autograd, the squared Frobenius norm of the Jacobian: exact, or by the trace's probe).
    """
    flows = list(flows)
    ways: list[Tensor] = []
    for flow in flows:
        flow.ways = ways
    try:
        yield ways
    finally:
        for flow in flows:
            flow.ways = None
