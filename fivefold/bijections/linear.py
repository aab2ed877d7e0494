"""Linear maps across channels (survey 6.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Bijection
from fivefold.nets import norm


class ActNorm(Bijection):
    """y = exp(s) (x + b) for every channel, started by the first batch in training (Kingma and Dhariwal, 2018, 3.1).

    Args:
        channels: of `(B, C, ...)`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm.ActNorm(channels)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.norm(x), self._log_det(x)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.norm.inverse(y), -self._log_det(y)

    def _log_det(self, x: Tensor) -> Tensor:
        return (x[0, 0].numel() * self.norm.log_scale.sum()).expand(len(x))


class LULinear(Bijection):
    """y = P L U x + b across channels: a 1x1 convolution on images (Kingma and Dhariwal, 2018, 3.2).

    P is a fixed permutation, L lower triangular with a unit diagonal and U upper triangular with a diagonal of fixed
    signs, so the log-determinant is a sum and the inverse two substitutions.

    Args:
        channels: of `(B, C, ...)`.
        rotation: whether the map is a random rotation at first, else the identity.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int, rotation: bool = False) -> None:
        super().__init__()
        start = torch.eye(channels, device="cpu")
        if rotation:
            start = torch.linalg.qr(torch.randn(channels, channels, device="cpu"))[0]
        permutation, lower, upper = torch.linalg.lu(start)
        self.lower, self.upper = nn.Parameter(lower.tril(-1)), nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(upper.diag().abs().log())
        self.bias = nn.Parameter(torch.zeros(channels, 1))
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", upper.diag().sign())

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        weight = self.permutation @ lower @ upper
        y = weight @ x.flatten(2) + self.bias if x.dim() > 2 else x @ weight.T + self.bias[:, 0]
        return y.view_as(x), self._log_det(x)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        columns = self.permutation.T @ (y.unsqueeze(2).flatten(2) - self.bias)
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, columns, upper=True).view_as(y), -self._log_det(y)

    def _factors(self) -> tuple[Tensor, Tensor]:
        identity = torch.eye(len(self.log_diagonal), dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + identity, self.upper.triu(1) + (self.sign * self.log_diagonal.exp()).diag()

    def _log_det(self, x: Tensor) -> Tensor:
        positions = x[0, 0].numel()
        return (positions * self.log_diagonal.sum()).expand(len(x))
