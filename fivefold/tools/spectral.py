"""The largest singular value of a linear map by power iteration, on the map itself and never on a reshaped weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input


class LinearMap(Protocol):
    """A family of linear maps, one for each weight."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an input, with a batch of one."""

    def apply(self, weight: Tensor, x: Tensor) -> Tensor:
        """The map of `x`."""

    def adjoint(self, weight: Tensor, y: Tensor) -> Tensor:
        """The map's transpose of `y`."""


@dataclass(frozen=True)
class Matrix:
    """x to W x.

    Args:
        shape: (1, inputs).
    """

    shape: tuple[int, ...]

    def apply(self, weight: Tensor, x: Tensor) -> Tensor:
        return F.linear(x, weight)

    def adjoint(self, weight: Tensor, y: Tensor) -> Tensor:
        return F.linear(y, weight.T)


@dataclass(frozen=True)
class Convolution:
    """A convolution with zeros around images of one size: its norm differs from the reshaped kernel's.

    Args:
        shape: (1, C, H, W) of the images.
        stride: of the convolution.
        padding: on every side.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)

    def apply(self, weight: Tensor, x: Tensor) -> Tensor:
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)

    def adjoint(self, weight: Tensor, y: Tensor) -> Tensor:
        return conv2d_input(self.shape, weight, y, self.stride, self.padding)


class Singular(NamedTuple):
    """An approximate largest singular triple: unit vectors, and how much the norm may exceed left . W right."""

    left: Tensor
    right: Tensor
    excess: float  # a factor of at least 1


@torch.no_grad()
def power_iteration(linear: LinearMap, weight: Tensor, right: Tensor, steps: int, tolerance: float) -> Singular:
    """Iterates `right` to (W^T W) right, normalised, until the norm is known to within `tolerance`, relative.

    The iteration finds the norm from below. W^T W has an eigenvalue no further from |W right|^2 than the residual
    |W^T W right - |W right|^2 right|; the excess takes it at its upper end, so the norm that it gives is a bound once
    the iteration has found its way to the largest.

    Args:
        linear: the map.
        weight: its weight.
        right: where to start, of the shape of an input.
        steps: at least 1, and at most so many.
        tolerance: of excess - 1.
    """
    tiny, right = torch.finfo(weight.dtype).tiny, right / right.norm()
    for _ in range(steps):
        image = linear.apply(weight, right)
        norm = image.norm().clamp(min=tiny)
        left = image / norm
        back = linear.adjoint(weight, left)
        excess = (1 + (back - norm * right).norm() / norm).sqrt().item()
        found = Singular(left, right, excess)
        if excess - 1 <= tolerance:
            break
        right = back / back.norm().clamp(min=tiny)
    return found
