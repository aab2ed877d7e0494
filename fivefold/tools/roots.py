"""Inverses that have no closed form: of increasing functions of one variable, and the gradients of triangular maps'."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

MOST_STEPS = 200
Increasing = Callable[[Tensor], tuple[Tensor, Tensor]]  # x to f(x) and ln f'(x), element by element


def invert_increasing(
    f: Increasing, y: Tensor, low: Tensor, high: Tensor, tolerance: float = 1e-6
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
    """
    tolerance = max(tolerance, 4 * torch.finfo(y.dtype).eps)
    with torch.no_grad():
        x, before = (low + high) / 2, high - low
        for _ in range(MOST_STEPS):
            value, log_slope = f(x)
            low, high = torch.where(value <= y, x, low), torch.where(value <= y, high, x)
            newton = x - (value - y) * torch.exp(-log_slope)
            good = (newton >= low) & (newton <= high) & ((newton - x).abs() <= before / 2)
            new = torch.where(good, newton, (low + high) / 2)
            before, x = (new - x).abs(), new
            if bool((before <= tolerance * (1 + x.abs())).all()):
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
