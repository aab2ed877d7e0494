"""Monotone functions of one variable with parameters from elsewhere: the h of coupling layers (survey Table 3).

Parameters come first, `(P, ...)`: each is then an array of its own, which sums and compares quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fivefold.bijections.base import Exactness

ONE = torch.ones((), device="cpu")  # a number would be twice as slow to begin a sum with


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

    def inverse(self, y: Tensor, parameters: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The other way, with its own ln |derivative|; an iterative one may begin at `start`, of y's shape."""


@dataclass(frozen=True)
class Affine:
    """y = exp(s) x + t (survey Eq. 32), s squashed smoothly to (-bound, bound) for stability.

    Args:
        bound: of the log-scale.
    """

    iterative: ClassVar[bool] = False
    bound: float = 5.0

    @property
    def size(self) -> int:
        return 2

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._split(parameters)
        return torch.addcmul(shift, x, log_scale.exp()), log_scale

    def inverse(self, y: Tensor, parameters: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
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

    def inverse(self, y: Tensor, parameters: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y - parameters[0], torch.zeros_like(y)


def inverse_exactness(transform: Transform) -> Exactness:
    """Of a layer whose network speaks for one direction at once, and whose inverse is the transform's."""
    return Exactness(inverse="iterative" if transform.iterative else "exact")


def soft_clamp(x: Tensor, bound: float) -> Tensor:
    """`x`, squashed to (-bound, bound) with a continuous slope; without gradients in a third of a tanh's time."""
    return x / torch.add(ONE, x.abs(), alpha=1 / bound)
