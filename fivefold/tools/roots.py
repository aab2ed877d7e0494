"""Inverses without a closed form: of increasing functions of one variable, of triangular maps, and their gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MOST_STEPS = 200
Increasing = Callable[[Tensor], tuple[Tensor, Tensor]]  # x to f(x) and ln f'(x), element by element


def invert_increasing(
    f: Increasing, y: Tensor, low: Tensor, high: Tensor, tolerance: float = 1e-6, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The x at which f(x) = y, and ln of the inverse's derivative there, -ln f'(x).

    Newton's method, which near the root doubles the right digits with every step, within a bracket that is halved
    where a step would leave it or does not halve the one before. The result can be differentiated, in y and in what
    f depends on, by the implicit function theorem. Warns where the last step was above `tolerance`.

    Args:
        f: increasing.
        y: its values `(...)`.
        low: f(low) <= y.
        high: f(high) >= y.
        tolerance: of the last step, relative to 1 + |x|; not below what the precision of y allows.
        start: where to begin; None for the middle.
    """
    tolerance = max(tolerance, 4 * torch.finfo(y.dtype).eps)
    with torch.no_grad():
        x, before = (low + high) / 2 if start is None else start.clamp(low, high), high - low
        found = torch.zeros_like(y, dtype=torch.bool)  # these stay: their next steps would be rounding errors
        for _ in range(MOST_STEPS):
            value, log_slope = f(x)
            low, high = torch.where(value <= y, x, low), torch.where(value <= y, high, x)
            newton = x - (value - y) * torch.exp(-log_slope)
            good = (newton >= low) & (newton <= high) & ((newton - x).abs() <= before / 2)
            new = torch.where(found, x, torch.where(good, newton, (low + high) / 2))
            before, x = (new - x).abs(), new
            found = found | (before <= tolerance * (1 + x.abs()))
            if bool(found.all()):
                break
        else:
            warnings.warn(
                f"an inverse did not converge: after {MOST_STEPS} steps the last was {float(before.max()):.1e}, "
                f"the tolerance is {tolerance:.1e} relative to 1 + |x|",
                RuntimeWarning,
                stacklevel=2,
            )
    value, log_slope = f(x)
    x = x - (value - y) * torch.exp(-log_slope).detach()  # the last step carries gradients, and NaN
    return x, -f(x)[1]


def triangular_gradients(f: Increasing, x: Tensor, y: Tensor) -> Tensor:
    """`x`, where f(x) = y, with the gradients of the implicit function theorem in y and in what f depends on.

    f's Jacobian J is triangular in some order of the dimensions. A gradient v by x becomes J^-T v, by u <- u +
    (v - J^T u) / diag J: as many products with J as the dimensions depend on one another in a row, at most D, and in
    practice a few. Cannot be differentiated twice.

    Args:
        f: x `(B, D)` to f(x) and the logarithm of the diagonal of its Jacobian, both `(B, D)`.
        x: the solution.
        y: `(B, D)`.
    """
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        value, log_diagonal = f(point)
        diagonal = log_diagonal.detach().exp()

    def solve(v: Tensor) -> Tensor:
        u, residual = torch.zeros_like(v), v
        size = v.abs().amax()
        for _ in range(v.shape[1]):
            u = u + residual / diagonal
            residual = v - torch.autograd.grad(value, point, u, retain_graph=True)[0]
            if residual.abs().amax() <= 4 * torch.finfo(v.dtype).eps * size:
                break
        return u * diagonal

    # A gradient step of value 0, up to the error of x: what follows sees x, the backward pass -(df - dy) / diag J.
    x = point.detach() - (value - y) / diagonal
    x.register_hook(solve)
    return x


PATIENCE = 6
Triangular = Callable[[Tensor], tuple[Tensor, Tensor]]  # x to f(x) and the diagonal of its Jacobian, above 0


class Solution(NamedTuple):
    """The x of `invert_triangular`, and after how many evaluations it was found."""

    x: Tensor
    steps: int


@torch.no_grad()
def invert_triangular(f: Triangular, y: Tensor, steepest: Tensor, tolerance: float = 1e-6, most: int = 500) -> Solution:
    """The x at which f(x) = y, where f's Jacobian is triangular with a positive diagonal, in whatever order.

    Newton's method with the diagonal alone, x - (f(x) - y) / diagonal (Song et al., 2019, with their step size
    1): all elements at once. Once those before it are right, an element's steps are Newton's on an increasing function
    of one variable. Where f is affine, all are right as soon as the longest chain of dependences has links. Elsewhere
    Newton's method may run in circles: an element whose steps have `PATIENCE` times in a row not halved is kept in a
    bracket from then on, and the bracket halved where a step would leave it or again not halve. So each is right after
    finitely many steps. A bracket is wrong where an element before it moved since: that shows by a residual too large
    for any root in it, by `steepest`, and the bracket is forgotten. Warns where the last step was above `tolerance`.

    Args:
        f: see above.
        y: its values `(...)`.
        steepest: no diagonal is ever above it, `(...)` or broadcastable.
        tolerance: of the last step, relative to 1 + |x|, beyond what rounding makes of it.
        most: evaluations of f.
    """
    precision = 8 * torch.finfo(y.dtype).eps
    x, before, high = y, torch.full_like(y, torch.inf), torch.full_like(y, torch.inf)
    low, slow = -high, torch.zeros_like(y)
    for steps in range(1, most + 1):
        value, slope = f(x)
        excess = value - y
        newton = x - excess / slope
        rounding = precision * (y.abs() + steepest * (1 + x.abs()))  # of f, which says nothing of what is below
        error = ((excess.abs() - rounding) / (slope * (1 + x.abs()))).max()
        if not error > tolerance:
            return Solution(newton, steps)
        kept, halves = slow >= PATIENCE, (newton - x).abs() <= before / 2
        low, high = torch.where(kept & (excess <= 0), x, low), torch.where(kept & (excess >= 0), x, high)
        wrong = excess.abs() > steepest * (high - low)
        low, high = low.masked_fill(wrong, -torch.inf), high.masked_fill(wrong, torch.inf)
        slow = torch.where(kept & ~wrong, slow, torch.where(halves | wrong, 0, slow + 1))
        middle = (low + high) / 2
        good = (newton > low) & (newton < high) & halves
        new = torch.where(good | ~middle.isfinite() | (newton == x), newton, middle)
        before, x = (new - x).abs(), new
    warnings.warn(
        f"the inverse of a triangular map did not converge: after {most} steps the last was {float(error):.1e}, "
        f"the tolerance is {tolerance:.1e} relative to 1 + |x|",
        RuntimeWarning,
        stacklevel=3,
    )
    return Solution(x, most)
