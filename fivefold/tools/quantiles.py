"""Quantile regression: a function of tau in (0, 1) that learns the inverse of a distribution function."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def quantile_huber(error: Tensor, tau: Tensor, kappa: float) -> Tensor:
    """|tau - 1[error < 0]| times Huber's loss of `error`, over kappa (Dabney et al. 2018, Eq. 3).

    Its expectation over targets is least where the prediction is their tau-quantile, but for a smoothing of kappa.

    Args:
        error: target minus prediction.
        tau: of the quantiles that are predicted, in (0, 1); broadcasts with `error`.
        kappa: where the loss turns from quadratic to linear, above 0.
    """
    size = error.abs()
    huber = torch.where(size <= kappa, error.square() / (2 * kappa), size - kappa / 2)
    return (tau - (error < 0).to(tau.dtype)).abs() * huber


def cosines(tau: Tensor, count: int) -> Tensor:
    """cos(pi i tau) for i in 0..count-1, `(...)` to `(..., count)` (Dabney et al. 2018, Eq. 4)."""
    return torch.cos(math.pi * torch.arange(count, device=tau.device) * tau.unsqueeze(-1))
