"""Monotone functions of one variable with parameters from elsewhere: the h of coupling layers (survey Table 3).

Parameters come first, `(P, ...)`: each is then an array of its own, which sums and compares quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.bijections.base import Exactness
from fivefold.tools.roots import invert_increasing


class Transform(Protocol):
    """A monotone function of each element of `x`, the identity (or near it) at parameters 0."""

    @property
    def size(self) -> int:
        """How many parameters an element takes."""

    @property
    def iterative(self) -> bool:
        """Whether the inverse is found to a tolerance, and not by a formula."""

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

    iterative: ClassVar[bool] = False
    bound: float = 3.0

    @property
    def size(self) -> int:
        return 2

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._split(parameters)
        return torch.addcmul(shift, x, log_scale.exp()), log_scale

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._split(parameters)
        return (y - shift) * torch.exp(-log_scale), -log_scale

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = parameters.unbind()
        return soft_clamp(log_scale, self.bound), shift


@dataclass(frozen=True)
class Additive:
    """y = x + t (Dinh et al., 2015; survey 6.1.2): volumes stay as they are."""

    iterative: ClassVar[bool] = False

    @property
    def size(self) -> int:
        return 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return x + parameters[0], torch.zeros_like(x)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return y - parameters[0], torch.zeros_like(y)


@dataclass(frozen=True)
class MixtureCDF:
    """y = exp(s) logit(F(x)) + t, F the distribution function of a mixture of logistics (Ho et al., 2019, Eq. 15).

    At parameters 0 the components lie apart, so that they learn to differ. The inverse is Newton's within a bracket.

    Args:
        components: of the mixture.
        bound: of the logarithms of all scales.
        tolerance: of the inverse.
    """

    iterative: ClassVar[bool] = True
    components: int = 8
    bound: float = 5.0
    tolerance: float = 1e-6

    @property
    def size(self) -> int:
        return 3 * self.components + 2

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(parameters)
        z, log_derivative = _mixture_logit(x, *self._mixture(parameters))
        return z * log_scale.exp() + shift, log_derivative + log_scale

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(parameters)
        log_weights, means, log_scales = self._mixture(parameters)
        z = (y - shift) * torch.exp(-log_scale)
        # Where all components are below z, or above, so is the mixture.
        ends = means + log_scales.exp() * z
        x, log_derivative = invert_increasing(
            lambda x: _mixture_logit(x, log_weights, means, log_scales), z, ends.amin(0), ends.amax(0), self.tolerance
        )
        return x, log_derivative - log_scale

    def _affine(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return soft_clamp(parameters[0], self.bound), parameters[1]

    def _mixture(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and log-scales `(K, ...)`."""
        logits, means, log_scales = parameters[2:].tensor_split(3)
        apart = torch.linspace(-1.5, 1.5, self.components, dtype=means.dtype, device=means.device)
        means = means + apart.view(-1, *[1] * (means.dim() - 1))
        return logits.log_softmax(0), means, soft_clamp(log_scales, self.bound)


def _mixture_logit(x: Tensor, log_weights: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """ln F(x) - ln(1 - F(x)) of a mixture of logistics and ln of its derivative, from parameters `(K, *x.shape)`."""
    u = (x - means) * torch.exp(-log_scales)
    below, above = F.logsigmoid(u), F.logsigmoid(-u)
    log_cdf, log_rest = (log_weights + below).logsumexp(0), (log_weights + above).logsumexp(0)
    log_density = (log_weights + below + above - log_scales).logsumexp(0)
    return log_cdf - log_rest, log_density - log_cdf - log_rest


@dataclass(frozen=True)
class SumOfSquares:
    """y = t + exp(s) int_0^x 1 + sum_k (sum_l a_kl u^l)^2 du (Jaini et al., 2019, Eq. 8): polynomials that increase.

    The 1, which keeps them increasing everywhere, makes it the identity at parameters 0. The inverse is Newton's.

    Args:
        squares: how many are summed.
        degree: of each polynomial that is squared; the result's is twice that, plus 1.
        bound: of the log-scale.
        tolerance: of the inverse.
    """

    iterative: ClassVar[bool] = True
    squares: int = 2
    degree: int = 2
    bound: float = 5.0
    tolerance: float = 1e-6

    @property
    def size(self) -> int:
        return 2 + self.squares * (self.degree + 1)

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = soft_clamp(parameters[0], self.bound), parameters[1]
        y, log_derivative = _integral(x, self._slope(parameters))
        return y * log_scale.exp() + shift, log_derivative + log_scale

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = soft_clamp(parameters[0], self.bound), parameters[1]
        slope, y = self._slope(parameters), (y - shift) * torch.exp(-log_scale)
        reach = y.abs()  # the slope is at least 1
        x, log_derivative = invert_increasing(lambda x: _integral(x, slope), y, -reach, reach, self.tolerance)
        return x, log_derivative - log_scale

    def _slope(self, parameters: Tensor) -> Tensor:
        """Coefficients of 1 + sum of squares `(2 degree + 1, ...)`, the constant first."""
        a = parameters[2:].unflatten(0, (self.squares, self.degree + 1))
        products = [
            sum(a[:, i] * a[:, n - i] for i in range(max(0, n - self.degree), min(n, self.degree) + 1)).sum(0)
            for n in range(2 * self.degree + 1)
        ]
        return torch.stack([products[0] + 1, *products[1:]])


def _integral(x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """int_0^x of a polynomial with coefficients `(P, *x.shape)`, and its logarithm at x; by Horner's rule."""
    y, value = torch.zeros_like(x), torch.zeros_like(x)
    for power in reversed(range(len(slope))):
        y = y * x + slope[power] / (power + 1)
        value = value * x + slope[power]
    return y * x, value.clamp(min=1.0).log()  # at least 1, but for rounding


def inverse_exactness(transform: Transform) -> Exactness:
    """Of a layer whose network speaks for one direction at once, and whose inverse is the transform's."""
    return Exactness(inverse="iterative" if transform.iterative else "exact")


def soft_clamp(x: Tensor, bound: float) -> Tensor:
    """`x`, squashed smoothly to (-bound, bound)."""
    return bound * torch.tanh(x / bound)
