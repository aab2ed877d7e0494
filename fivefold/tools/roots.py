"""Inverses of increasing functions of one variable that have no closed form."""

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
