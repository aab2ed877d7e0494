"""Linear maps across channels (survey 6.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Bijection


class LULinear(Bijection):
    """y = L U x + b across channels: a 1x1 convolution on images (Kingma and Dhariwal, 2018), the identity at first.

    L is lower triangular with a unit diagonal and U upper triangular with a positive one, so the
    log-determinant is a sum and the inverse two substitutions.

    Args:
        channels: of `(B, C, ...)`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lower = nn.Parameter(torch.zeros(channels, channels))
        self.upper = nn.Parameter(torch.zeros(channels, channels))
        self.log_diagonal = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels, 1))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        y = (lower @ upper) @ x.flatten(2) + self.bias if x.dim() > 2 else x @ (lower @ upper).T + self.bias[:, 0]
        return y.view_as(x), self._log_det(x)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        columns = y.unsqueeze(2).flatten(2) - self.bias
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, columns, upper=True).view_as(y), -self._log_det(y)

    def _factors(self) -> tuple[Tensor, Tensor]:
        identity = torch.eye(len(self.log_diagonal), dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + identity, self.upper.triu(1) + self.log_diagonal.exp().diag()

    def _log_det(self, x: Tensor) -> Tensor:
        positions = x[0, 0].numel()
        return (positions * self.log_diagonal.sum()).expand(len(x))
