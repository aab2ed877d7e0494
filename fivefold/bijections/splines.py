"""Monotone splines of an interval onto itself, with parameters from elsewhere (survey 6.1.2, Table 3).

Parameters come first, `(P, ...)`: each is then an array of its own, which sums and compares quickly. All kinds are
the identity at parameters 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.tools.roots import invert_increasing

MIN_BIN = 1e-3  # share of the interval that every bin keeps, in width and in height
MIN_DERIVATIVE = 1e-3
Kind = Literal["linear", "quadratic", "cubic", "rational-quadratic"]


@dataclass(frozen=True)
class Spline:
    """A monotone spline of [-bound, bound] onto itself, the identity outside.

    Args:
        kind: linear or quadratic (Mueller et al., 2019), cubic (Durkan et al., 2019) or rational-quadratic
            (Durkan et al., 2019).
        bins: number of bins.
        bound: half the width of the interval.
        tails: whether inputs fall outside; then the slope at the ends is 1, so that the identity is met smoothly
            (but by the linear kind, whose slope jumps at every knot, and by the cubic one where the first or the last
            bin rises by less than a third of its width); otherwise it is free.
    """

    kind: Kind = "rational-quadratic"
    bins: int = 8
    bound: float = 3.0
    tails: bool = True

    @property
    def size(self) -> int:
        return _KINDS[self.kind].parameters(self.bins, self.tails)

    @property
    def iterative(self) -> bool:
        return self.kind == "cubic"

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply(x, parameters, inverse=False)

    def inverse(self, y: Tensor, parameters: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._apply(y, parameters, inverse=True)

    def _apply(self, x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        clamped = x.clamp(-self.bound, self.bound)
        parameters = parameters.to(x.dtype)
        y, log_derivative = _KINDS[self.kind].function(clamped, parameters, self, inverse)
        y = y.clamp(-self.bound, self.bound)  # rounding in a steep bin can pass the ends
        if not self.tails:
            return y, log_derivative
        inside = x.abs() < self.bound
        return torch.where(inside, y, x), log_derivative * inside


class _Place:
    """The bin of every x among bins of these sizes `(K, ...)`, which fill [-bound, bound] from the left.

    By comparison: `right` marks the knots below x, both ends among them; their differences the bin of x. The
    sums that follow read each array once, where gathering would scatter in the backward pass.
    """

    def __init__(self, x: Tensor, sizes: Tensor, bound: float) -> None:
        infinite = torch.full_like(x, math.inf)
        # Running sums row by row: `cumsum` is no faster, and compiled code fuses these.
        knots = torch.stack([-infinite, *accumulate(sizes.detach()[:-1].unbind()), infinite])
        self.right = (x.detach() + bound - knots).sign_().clamp_(min=0)  # faster than by way of truth values
        self.bin = self.right[:-1] - self.right[1:]
        self.bound = bound

    def of(self, values: Tensor) -> Tensor:
        """Its value, of one for each bin `(..., K, *x.shape)`."""
        return (self.bin * values).sum(-self.bin.dim())

    def start(self, sizes: Tensor) -> Tensor:
        """Where it starts, of bins of these sizes `(..., K, *x.shape)`."""
        axis = -self.bin.dim()
        return (self.right[1:-1] * sizes.narrow(axis, 0, len(self.bin) - 1)).sum(axis) - self.bound

    def slopes(self, inner: Tensor) -> tuple[Tensor, Tensor]:
        """Values at both of its ends, of one for each inner knot `(K - 1, *x.shape)`; 0 at the ends of all bins."""
        return (self.bin[1:] * inner).sum(0), (self.bin[:-1] * inner).sum(0)


def linear_spline(x: Tensor, parameters: Tensor, options: Spline, inverse: bool) -> tuple[Tensor, Tensor]:
    """Straight lines over bins of equal width; parameters: heights."""
    height = _bins(parameters, options.bound)
    width = torch.full_like(height, 2 * options.bound / options.bins)
    place = _Place(x, height if inverse else width, options.bound)
    left, bottom, w, h = place.start(width), place.start(height), place.of(width), place.of(height)
    log_slope = h.log() - w.log()
    if inverse:
        return left + (x - bottom) * w / h, -log_slope
    return bottom + (x - left) * h / w, log_slope


def quadratic_spline(x: Tensor, parameters: Tensor, options: Spline, inverse: bool) -> tuple[Tensor, Tensor]:
    """The integral of a piecewise linear slope; parameters: widths, logarithms of the slope at the knots."""
    widths, logits = parameters.tensor_split([options.bins])
    width, slopes = _bins(widths, options.bound), (logits - logits.amax(0)).exp()  # their scale is free
    share = width / (2 * options.bound)
    if options.tails:
        between = (share[1:] + share[:-1]) / 2
        slopes = slopes * (1 - (share[0] + share[-1]) / 2) / (slopes * between).sum(0)
        ends = torch.ones_like(slopes[:1])
        slopes = torch.cat([ends, slopes, ends])
    else:
        slopes = slopes / (share * (slopes[1:] + slopes[:-1]) / 2).sum(0)
    slopes = MIN_DERIVATIVE + (1 - MIN_DERIVATIVE) * slopes  # its mean over the interval stays 1
    height = width * (slopes[1:] + slopes[:-1]) / 2
    place = _Place(x, height if inverse else width, options.bound)
    left, bottom, w = place.start(width), place.start(height), place.of(width)
    v0, v1 = place.of(slopes[:-1]), place.of(slopes[1:])
    if inverse:
        rise = (x - bottom) / w
        t = 2 * rise / (v0 + (v0**2 + 2 * (v1 - v0) * rise).clamp(min=0).sqrt())  # a root, in its stable form
        return left + w * t, -(v0 + (v1 - v0) * t).log()
    t = (x - left) / w
    return bottom + w * t * (v0 + (v1 - v0) * t / 2), (v0 + (v1 - v0) * t).log()


def cubic_spline(x: Tensor, parameters: Tensor, options: Spline, inverse: bool) -> tuple[Tensor, Tensor]:
    """Hermite's cubics with Steffen's slopes at the knots, which keep them monotone; parameters: widths, heights.

    Without tails also the slopes at the ends, up to three times those of the first and the last bin.
    """
    widths, heights, ends = parameters.tensor_split([options.bins, 2 * options.bins])
    width, height = _bins(widths, options.bound), _bins(heights, options.bound)
    slope = height / width
    weighted = (slope[:-1] * width[1:] + slope[1:] * width[:-1]) / (width[1:] + width[:-1])
    inner = 2 * torch.minimum(torch.minimum(slope[:-1], slope[1:]), weighted / 2)
    outer = torch.stack([slope[0], slope[-1]])
    outer = (3 * outer).clamp(max=1.0) if options.tails else 3 * outer * torch.sigmoid(ends - math.log(2))
    slopes = torch.cat([outer[:1], inner, outer[1:]])
    place = _Place(x, height if inverse else width, options.bound)
    left, bottom, w, h = place.start(width), place.start(height), place.of(width), place.of(height)
    r0, r1 = w * place.of(slopes[:-1]), w * place.of(slopes[1:])  # what the slopes would rise over the bin

    def f(t: Tensor) -> tuple[Tensor, Tensor]:
        a, b = r0 + r1 - 2 * h, 3 * h - 2 * r0 - r1
        return t * (r0 + t * (b + t * a)), (r0 + t * (2 * b + t * 3 * a)).log()

    if inverse:
        t, log_derivative = invert_increasing(f, x - bottom, torch.zeros_like(x), torch.ones_like(x))
        return left + w * t, log_derivative + w.log()
    rise, log_derivative = f((x - left) / w)
    return bottom + rise, log_derivative - w.log()


def rational_quadratic_spline(x: Tensor, parameters: Tensor, options: Spline, inverse: bool) -> tuple[Tensor, Tensor]:
    """Ratios of quadratics (Durkan et al., 2019, Eq. 4, 5, 6-8); parameters: widths, heights, slopes at the knots."""
    logits, derivatives = parameters.tensor_split([2 * options.bins])
    sizes = _bins(logits.unflatten(0, (2, -1)), options.bound, axis=1)  # of widths and heights
    place = _Place(x, sizes[1 if inverse else 0], options.bound)
    (w, h), (left, bottom) = place.of(sizes), place.start(sizes)
    ends = place.slopes(derivatives) if options.tails else (place.of(derivatives[:-1]), place.of(derivatives[1:]))
    # Offset so that parameters 0 give the identity, and so does the slope at the tails.
    offset = math.log(math.expm1(1 - MIN_DERIVATIVE))
    d0, d1 = MIN_DERIVATIVE + F.softplus(torch.stack(ends) + offset)
    slope = h / w
    t = _solve(x - bottom, h, d0, slope, d0 + d1 - 2 * slope) if inverse else (x - left) / w
    # All that is quadratic in t, by de Casteljau: positive terms alone.
    early, late = torch.lerp(d0, slope, t), torch.lerp(slope, d1, t)
    denominator = torch.lerp(late, early, t)
    log_derivative = (torch.lerp(early, late, t) * (slope / denominator) ** 2).log()
    if inverse:
        return left + w * t, -log_derivative
    return bottom + h * (t * early / denominator), log_derivative


def _solve(rise: Tensor, h: Tensor, d0: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
    """The place t in [0, 1] in its bin where the spline has risen by `rise`: a root, in its stable form."""
    a = h * (slope - d0) + rise * bend
    b = h * d0 - rise * bend
    c = -slope * rise
    return 2 * c / (-b - (b**2 - 4 * a * c).clamp(min=0).sqrt())


def _bins(logits: Tensor, bound: float, axis: int = 0) -> Tensor:
    """Sizes of the bins, which lie along an axis and fill the interval."""
    share = 1 - MIN_BIN * logits.shape[axis]
    return logits.softmax(axis).mul(2 * bound * share).add_(2 * bound * MIN_BIN)


class _Kind(NamedTuple):
    """How many parameters it takes, of bins and whether there are tails; and the function."""

    parameters: Callable[[int, bool], int]
    function: Callable[[Tensor, Tensor, Spline, bool], tuple[Tensor, Tensor]]


_KINDS = {
    "linear": _Kind(lambda bins, tails: bins, linear_spline),
    "quadratic": _Kind(lambda bins, tails: 2 * bins + (-1 if tails else 1), quadratic_spline),
    "cubic": _Kind(lambda bins, tails: 2 * bins + (0 if tails else 2), cubic_spline),
    "rational-quadratic": _Kind(lambda bins, tails: 3 * bins + (-1 if tails else 1), rational_quadratic_spline),
}
