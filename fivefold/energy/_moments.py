"""The Gaussian law that data have by their first two moments, collected as training begins."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

WIDENED = 1.1  # deviations over the data's: as noise to tell data from, it must be wherever they are
FLOOR = 0.02  # the least variance, of numbers that never change
MOST_JOINT = 1024  # numbers with a covariance; of more only the variances are kept


class Moments(nn.Module):
    """The mean and the mean products of flat examples so far, float64.

    Args:
        dims: numbers of an example.
    """

    mean: Tensor
    square: Tensor
    seen: Tensor

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.joint = dims <= MOST_JOINT
        self.register_buffer("mean", torch.zeros(dims, dtype=torch.float64))
        self.register_buffer("square", torch.zeros((dims, dims) if self.joint else dims, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def follow(self, x: Tensor) -> None:
        """Examples `(B, ...)` more."""
        x = x.flatten(1).double()
        self.seen += len(x)
        weight = len(x) / self.seen
        self.mean.lerp_(x.mean(0), weight)
        self.square.lerp_(x.T @ x / len(x) if self.joint else x.square().mean(0), weight)

    def law(self) -> Distribution:
        """Of flat examples, somewhat wider than they are."""
        if not self.joint:
            variance = (self.square - self.mean.square()) * WIDENED**2 + FLOOR
            return Independent(Normal(self.mean, variance.sqrt()), 1)
        covariance = (self.square - self.mean.outer(self.mean)) * WIDENED**2
        return MultivariateNormal(self.mean, covariance + FLOOR * torch.eye(len(self.mean)).to(covariance))

    def draw(self, like: Tensor) -> Tensor:
        """As many draws, of the shape of others."""
        return self.law().sample((len(like),)).to(like).view_as(like)
