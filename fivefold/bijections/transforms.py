"""Monotone functions of one variable with parameters from elsewhere: the h of coupling layers (survey Table 3).

Parameters come first, `(P, ...)`: each is then an array of its own, which sums and compares quickly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Transform(Protocol):
    """A monotone function of each element of `x`, the identity (or near it) at parameters 0."""

    @property
    def parameters(self) -> int:
        """How many parameters an element takes."""

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """The image and ln |derivative|, both of x's shape; `parameters` `(P, *x.shape)`."""

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """The other way, with its own ln |derivative|."""


@dataclass(frozen=True)
class Affine:
    """y = exp(s) x + t (survey Eq. 32), s squashed smoothly to (-bound, bound) for stability.

    Args:
        bound: of the log-scale.
    """

    bound: float = 3.0

    @property
    def parameters(self) -> int:
        return 2

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._split(parameters)
        return x * log_scale.exp() + shift, log_scale

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._split(parameters)
        return (y - shift) * torch.exp(-log_scale), -log_scale

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self.bound * torch.tanh(parameters[0] / self.bound), parameters[1]


@dataclass(frozen=True)
class RationalQuadratic:
    """Monotone rational-quadratic spline on [-bound, bound] (Durkan et al., 2019), the identity outside.

    Args:
        bins: number of bins.
        bound: half the width of the spline's interval.
        tails: whether inputs fall outside; then the end derivatives are 1, to meet the identity
            smoothly, and otherwise they are free.
    """

    bins: int = 8
    bound: float = 3.0
    tails: bool = True

    @property
    def parameters(self) -> int:
        return 3 * self.bins + (-1 if self.tails else 1)

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply(x, parameters, inverse=False)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply(y, parameters, inverse=True)

    def _apply(self, x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        widths, heights, derivatives = parameters.tensor_split([self.bins, 2 * self.bins])
        clamped = x.clamp(-self.bound, self.bound)
        y, log_derivative = rational_quadratic_spline(clamped, widths, heights, derivatives, self.bound, inverse)
        if not self.tails:
            return y, log_derivative
        inside = x.abs() < self.bound
        return torch.where(inside, y, x), log_derivative * inside


MIN_BIN = 1e-3  # share of the interval that every bin keeps, in width and in height
MIN_DERIVATIVE = 1e-3


def rational_quadratic_spline(
    x: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, bound: float, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Monotone rational-quadratic spline of [-bound, bound] onto itself (Durkan et al., 2019, Eq. 4, 5, 6-8).

    Args:
        x: points `(...)` in the interval.
        widths: unnormalised widths of the K bins `(K, ...)`.
        heights: unnormalised heights `(K, ...)`.
        derivatives: unnormalised derivatives at the knots, `(K+1, ...)`, or `(K-1, ...)` at the inner
            ones alone, with 1 at the ends.
        bound: half the interval's width.
        inverse: apply the inverse function to `x`.

    Returns:
        The image and ln |derivative|, of the shape of `x`.
    """
    width, height = _bins(widths, bound), _bins(heights, bound)
    # Offset so that parameters 0 give the identity.
    slopes = MIN_DERIVATIVE + F.softplus(derivatives + math.log(math.expm1(1 - MIN_DERIVATIVE)))
    if len(derivatives) < len(widths):
        ends = torch.ones_like(slopes[:1])
        slopes = torch.cat([ends, slopes, ends])
    # Selection by comparison: `right` marks the inner knots at or below x, their differences the bin of x.
    # The sums that follow read each array once, where gathering would scatter in the backward pass.
    measured = height if inverse else width
    right = (x >= measured.detach().cumsum(0)[:-1] - bound).to(x.dtype)
    bin_of_x = -torch.diff(right, dim=0, prepend=torch.ones_like(right[:1]), append=torch.zeros_like(right[:1]))
    left, bottom = (right * width[:-1]).sum(0) - bound, (right * height[:-1]).sum(0) - bound
    w, h = (bin_of_x * width).sum(0), (bin_of_x * height).sum(0)
    d0, d1 = (bin_of_x * slopes[:-1]).sum(0), (bin_of_x * slopes[1:]).sum(0)
    slope = h / w
    bend = d0 + d1 - 2 * slope
    t = _solve(x - bottom, h, d0, slope, bend) if inverse else (x - left) / w
    mixed = t * (1 - t)
    denominator = slope + bend * mixed
    log_derivative = 2 * slope.log() + (d1 * t**2 + 2 * slope * mixed + d0 * (1 - t) ** 2).log() - 2 * denominator.log()
    if inverse:
        return left + w * t, -log_derivative
    return bottom + h * (slope * t**2 + d0 * mixed) / denominator, log_derivative


def _bins(logits: Tensor, bound: float) -> Tensor:
    """Sizes of the bins `(K, ...)`, which fill the interval."""
    return 2 * bound * (MIN_BIN + (1 - MIN_BIN * len(logits)) * logits.softmax(0))


def _solve(rise: Tensor, h: Tensor, d0: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
    """The place t in [0, 1] in its bin where the spline has risen by `rise`: a root, in its stable form."""
    a = h * (slope - d0) + rise * bend
    b = h * d0 - rise * bend
    c = -slope * rise
    return 2 * c / (-b - (b**2 - 4 * a * c).clamp(min=0).sqrt())
