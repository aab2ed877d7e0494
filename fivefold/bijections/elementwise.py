"""Fixed functions of each dimension between an interval and the line, their log-determinants counted."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.bijections.base import Bijection, sum_dims


class Logit(Bijection):
    """[-1, 1] to the line: y = logit(a + (1 - 2a) (x + 1) / 2) (Dinh et al., 2017, 4.1, with both ends guarded).

    Args:
        margin: the a that keeps the ends finite.
    """

    def __init__(self, margin: float = 0.05) -> None:
        super().__init__()
        self.slope = (1 - 2 * margin) / 2

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = torch.logit(0.5 + self.slope * x)
        return y, self._log_det(y)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (torch.sigmoid(y) - 0.5) / self.slope, -self._log_det(y)

    def _log_det(self, y: Tensor) -> Tensor:
        # The derivative of logit at p is 1 / (p (1 - p)), and p = sigmoid(y).
        return sum_dims(math.log(self.slope) + F.softplus(y) + F.softplus(-y))


class NormalQuantile(Bijection):
    """[-1, 1] to the line: y = Phi^-1((x + 1) / 2), which takes uniform noise to standard normal noise."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        guard = torch.finfo(x.dtype).eps  # the ends would be infinite
        y = torch.special.ndtri((0.5 + 0.5 * x).clamp(guard, 1 - guard))
        return y, self._log_det(y)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return 2 * torch.special.ndtr(y) - 1, -self._log_det(y)

    def _log_det(self, y: Tensor) -> Tensor:
        return sum_dims(0.5 * y**2 + 0.5 * math.log(2 * math.pi) - math.log(2))


# From here on `half_to_line` is straight: half-normal noise is beyond once in 10^9.
HALF_END = 6.0
LINE_END = -NormalDist().inv_cdf(math.erfc(HALF_END / math.sqrt(2)))
LEAST = 1e-12  # the least number that is told from 0


def half_to_line(x: Tensor) -> tuple[Tensor, Tensor]:
    """Half-normal noise in (0, inf) to normal noise: Phi(y) = 2 Phi(x) - 1. Gives y and ln dy/dx, of x's shape."""
    near = x.clamp(LEAST, HALF_END)
    low = torch.special.ndtri(torch.erf(near.clamp(max=1.0) / math.sqrt(2)))
    high = -torch.special.ndtri(torch.erfc(near.clamp(min=0.5) / math.sqrt(2)))
    y = torch.where(near < 0.7, low, high)  # each is accurate where it is taken
    log_slope = math.log(2) + 0.5 * (y**2 - near**2)
    return y + log_slope.exp() * (x - HALF_END).clamp(min=0), log_slope


def line_to_half(y: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of `half_to_line`, with its own logarithm of the derivative."""
    near = y.clamp(max=LINE_END)
    low = math.sqrt(2) * torch.special.erfinv(0.5 * torch.erfc(-near.clamp(max=0.5) / math.sqrt(2)))
    high = -torch.special.ndtri(0.25 * torch.erfc(near.clamp(min=-0.5) / math.sqrt(2)))
    x = torch.where(near < 0, low, high)
    log_slope = 0.5 * (x**2 - near**2) - math.log(2)
    return x + log_slope.exp() * (y - LINE_END).clamp(min=0), log_slope


class HalfLine(Bijection):
    """(0, inf) to the line by `half_to_line`: a density on the line then need not vanish at 0."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_slope = half_to_line(x)
        return y, sum_dims(log_slope)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_slope = line_to_half(y)
        return x, sum_dims(log_slope)
