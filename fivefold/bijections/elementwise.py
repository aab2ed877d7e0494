"""Fixed functions of each dimension between an interval and the line, their log-determinants counted."""

from __future__ import annotations

import math

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
