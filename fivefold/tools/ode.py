"""Ordinary differential equations dy/dt = f(t, y): adaptive and fixed Runge-Kutta, gradients direct or by the adjoint.

A state is a tensor or a tuple of tensors; times are floats and may run either way. The step sizes are constants to
autograd, so `integrate` and `runge_kutta` differentiate exactly what they computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

State = TypeVar("State", Tensor, tuple[Tensor, ...])
Flat = Callable[[float, Tensor], Tensor]
Solve = Callable[[Flat, Tensor, float, float, int], tuple[Tensor, int]]  # the end from a start, and the evaluations

# Dormand and Prince 1980: nodes, stages, and what the fourth-order result has less than the fifth-order one. The last
# stage is taken at the result, so it is the first of the next step.
NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
PROPORTIONAL, INTEGRAL = 0.7 / 5, 0.4 / 5  # of the step control (Hairer and Wanner 1996, IV.2)


class Solution(NamedTuple, Generic[State]):
    """The state at the end and how many times f was evaluated."""

    state: State
    evaluations: int


def integrate(
    f: Callable[[float, State], State],
    y0: State,
    t0: float,
    t1: float,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 100_000,
) -> Solution[State]:
    """y(t1) from y(t0) by Dormand and Prince's 5(4) pair, each step's error held below `atol + rtol |y|`.

    The error is the root mean square over all entries of the state, the batch included: so an example's result
    depends, within the tolerance, on the others of its batch. Gradients flow through the accepted steps.

    Args:
        f: dy/dt at a time and a state, of the state's form.
        y0: the state at `t0`.
        t0: the start.
        t1: the end; before `t0` the equation is solved backwards.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        max_evaluations: of f, before giving up.

    Raises:
        RuntimeError: the steps became too small or too many, or f gave NaN.
    """
    flat, form = _flatten(y0)
    end, evaluations = _dormand_prince(form.flat(f), flat, t0, t1, _Control(rtol, atol, max_evaluations, len(flat)))
    return Solution(form.state(end), evaluations)


def runge_kutta(
    f: Callable[[float, State], State], y0: State, t0: float, t1: float, steps: int = 20
) -> Solution[State]:
    """y(t1) from y(t0) in equal steps of the classical fourth-order method, four evaluations each."""
    flat, form = _flatten(y0)
    end, evaluations = _classical(form.flat(f), flat, t0, t1, steps)
    return Solution(form.state(end), evaluations)


def integrate_adjoint(
    f: Callable[[float, State], State],
    y0: State,
    t0: float,
    t1: float,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    parameters: Sequence[Tensor] = (),
    max_evaluations: int = 100_000,
    steps: int = 0,
) -> Solution[State]:
    """As `integrate` (or `runge_kutta`), in memory that does not grow with the steps.

    Gradients solve a second equation backwards: with a = dL/dy, da/dt = -a df/dy and dL/dparameters is the integral of
    a df/dparameters (Chen et al. 2018). The parameters' integral does not steer the steps (Kidger et al. 2021). They
    are those of the exact solution, so within the tolerance (or the steps' error), and cannot be differentiated again.

    Args:
        f: as of `integrate`; evaluated without gradients on the way there, with them on the way back.
        y0: the state at `t0`.
        t0: the start.
        t1: the end.
        rtol: relative tolerance of a step, there and back.
        atol: absolute tolerance of a step, there and back.
        parameters: what f depends on beside its arguments and what shall have gradients.
        max_evaluations: of f, before giving up.
        steps: equal ones of the classical method, there and back; 0 for those that the tolerance asks.
    """

    def solve(f: Flat, y: Tensor, start: float, end: float, measured: int) -> tuple[Tensor, int]:
        if steps:
            return _classical(f, y, start, end, steps)
        return _dormand_prince(f, y, start, end, _Control(rtol, atol, max_evaluations, measured))

    flat, form = _flatten(y0)
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    end, evaluations = _Adjoint.apply(form.flat(f), solve, (t0, t1), flat, *wanted)
    return Solution(form.state(end), evaluations)


class _Control(NamedTuple):
    rtol: float
    atol: float
    max_evaluations: int
    measured: int  # how many entries of the state, from the first, steer the steps

    def norm(self, error: Tensor, *states: Tensor) -> float:
        """Root mean square of the error over what is allowed: at most 1 is well."""
        n = self.measured
        size = torch.stack([state.detach()[:n].abs() for state in states]).amax(0)
        return (error[:n] / (self.atol + self.rtol * size)).square().mean().sqrt().item() if n else 0.0


def _classical(f: Flat, y: Tensor, t0: float, t1: float, steps: int) -> tuple[Tensor, int]:
    h = (t1 - t0) / steps
    for i in range(steps):
        t = t0 + i * h
        a = f(t, y)
        b = f(t + h / 2, y + h / 2 * a)
        c = f(t + h / 2, y + h / 2 * b)
        d = f(t + h, y + h * c)
        y = y + h / 6 * (a + 2 * b + 2 * c + d)
    return y, 4 * steps


def _dormand_prince(f: Flat, y: Tensor, t0: float, t1: float, control: _Control) -> tuple[Tensor, int]:
    if t0 == t1:
        return y, 0
    t, slope = t0, f(t0, y)
    h, evaluations = _first_step(f, y, t0, t1, slope, control), 2
    before, rejected = 1.0, False
    while t != t1:
        if evaluations >= control.max_evaluations or abs(h) < 1e-14 * abs(t1 - t0):
            raise RuntimeError(
                f"the equation could not be solved: at t = {t:.6g} of {t0:g} to {t1:g}, after "
                f"{evaluations} evaluations, steps are {abs(h):.3g}; "
                "it is stiff or becomes infinite, or the tolerances are too small"
            )
        last = abs(h) >= abs(t1 - t)
        h = t1 - t if last else h
        new, new_slope, error = _step(f, t, y, slope, h)
        evaluations += 6
        ratio = control.norm(error, y, new)
        if ratio <= 1:
            t, y, slope = (t1 if last else t + h), new, new_slope
            factor = SAFETY * max(ratio, 1e-4) ** -PROPORTIONAL * before**INTEGRAL
            h *= min(max(factor, SHRINK), 1.0 if rejected else GROW)
            before, rejected = max(ratio, 1e-4), False
        else:
            h *= max(SAFETY * ratio**-0.2, SHRINK) if math.isfinite(ratio) else SHRINK
            rejected = True
    return y, evaluations


def _step(f: Flat, t: float, y: Tensor, slope: Tensor, h: float) -> tuple[Tensor, Tensor, Tensor]:
    """The state after one step of `h`, its slope, and the (detached) difference from the fourth-order result."""
    slopes = [slope]
    for node, weights in zip(NODES[1:], STAGES, strict=True):
        point = y
        for weight, k in zip(weights, slopes, strict=True):
            point = point.add(k, alpha=h * weight) if weight else point
        slopes.append(f(t + node * h, point))
    error = sum(h * weight * k.detach() for weight, k in zip(ERROR, slopes, strict=True) if weight)
    return point, slopes[-1], cast(Tensor, error)


@torch.no_grad()
def _first_step(f: Flat, y: Tensor, t0: float, t1: float, slope: Tensor, control: _Control) -> float:
    """A first step, signed, that suits a method of order 5 (Hairer, Norsett and Wanner 1993, II.4)."""
    direction = math.copysign(1.0, t1 - t0)
    d0, d1 = control.norm(y, y), control.norm(slope, y)
    h = min(1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1, abs(t1 - t0))
    after = f(t0 + direction * h, y + direction * h * slope)
    d2 = control.norm(after - slope, y) / h
    largest = max(d1, d2)
    second = max(1e-6, 1e-3 * h) if largest <= 1e-15 else (0.01 / largest) ** 0.2
    return direction * min(100 * h, second, abs(t1 - t0)) if math.isfinite(second) else direction * h


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Flat, solve: Solve, limits: tuple[float, float], y: Tensor, *parameters: Tensor) -> Any:
        end, evaluations = solve(f, y, *limits, len(y))
        ctx.f, ctx.solve, ctx.limits = f, solve, limits
        ctx.save_for_backward(end.detach(), *parameters)
        return end.detach(), evaluations

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        end, *parameters = ctx.saved_tensors
        f, (t0, t1), n = ctx.f, ctx.limits, len(end)

        def augmented(t: float, state: Tensor) -> Tensor:
            with torch.enable_grad():
                y = state[:n].detach().requires_grad_()
                slope = f(t, y)
                found = torch.autograd.grad(
                    slope, [y, *parameters], state[n : 2 * n], allow_unused=True, materialize_grads=True
                )
            return torch.cat([slope.detach(), *(-g.reshape(-1) for g in found)])

        zeros = end.new_zeros(sum(parameter.numel() for parameter in parameters))
        start, _ = ctx.solve(augmented, torch.cat([end, gradients[0], zeros]), t1, t0, 2 * n)
        sizes = [parameter.numel() for parameter in parameters]
        parts = zip(start[2 * n :].split(sizes), parameters, strict=True)
        return None, None, None, start[n : 2 * n], *(part.view_as(parameter) for part, parameter in parts)


class _Form(NamedTuple):
    """How a state lies in a flat tensor; None where it is a tensor alone."""

    shapes: list[torch.Size]
    single: bool

    def state(self, flat: Tensor) -> Any:
        if self.single:
            return flat.view(self.shapes[0])
        parts = flat.split([shape.numel() for shape in self.shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, self.shapes, strict=True))

    def flat(self, f: Callable[[float, Any], Any]) -> Flat:
        return lambda t, y: _flatten(f(t, self.state(y)))[0]


def _flatten(state: Any) -> tuple[Tensor, _Form]:
    if isinstance(state, Tensor):
        return state.reshape(-1), _Form([state.shape], True)
    return torch.cat([part.reshape(-1) for part in state]), _Form([part.shape for part in state], False)
