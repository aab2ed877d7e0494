"""Norms of linear maps by power iteration, on the map itself and never on a reshaped weight."""

from __future__ import annotations

import math
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
        if self.stride != (1, 1):
            return conv2d_input((len(y), *self.shape[1:]), weight, y, self.stride, self.padding)
        around = [size - 1 - padding for size, padding in zip(weight.shape[2:], self.padding, strict=True)]
        return F.conv2d(y, weight.flip(2, 3).transpose(0, 1), padding=around)  # several times faster on CPUs


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


Order = float | Tensor  # of a p-norm, in [1, inf]


def induced_norm(
    linear: LinearMap, weight: Tensor, orders: tuple[Order, Order], right: Tensor, steps: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """The largest |W x|_q of |x|_p = 1 (Chen et al., 2019, 3.3), and the starts for the next search `(S, ...)`.

    From p = 1, and to q = inf, by the columns' or rows' norms, exactly (for a convolution from 1 to inf the largest
    weight, which is a bound). Between other orders by the power method of Boyd (1974), which goes up to a maximum that
    need not be the largest unless p = q = 2: hence from several starts, and without a certificate. It can be
    differentiated in the weight and in the orders.

    Args:
        linear: the map.
        weight: its weight.
        orders: p and q.
        right: where to start, a batch of inputs `(S, ...)`.
        steps: at most.
        tolerance: relative gain of the norm below which the search ends.
    """
    p, q = orders
    if isinstance(p, float) and isinstance(q, float) and (p == 1 or q == math.inf):
        return _by_sums(linear, weight, p, q), right
    with torch.no_grad():
        right = right / p_norm(right, p).view(-1, *[1] * (right.dim() - 1))
        best = torch.zeros((), dtype=weight.dtype, device=weight.device)
        for _ in range(steps):
            image = linear.apply(weight, right)
            norm = p_norm(image, q).max()
            if norm <= best * (1 + tolerance):
                break
            best = norm
            right = _dual(linear.adjoint(weight, _dual(image, q)), _conjugate(p))
    norms = p_norm(linear.apply(weight, right), q) / p_norm(right, p)
    return norms.max(), right


def p_norm(x: Tensor, order: Order) -> Tensor:
    """(sum |x|^p)^(1/p) of every row, `(B,)`."""
    x = x.flatten(1).abs()
    largest = x.amax(1).clamp(min=torch.finfo(x.dtype).tiny)
    if isinstance(order, float) and order == math.inf:
        return largest
    return largest * ((x / largest[:, None]) ** order).sum(1) ** (1 / order)


def _dual(x: Tensor, order: Order) -> Tensor:
    """What of conjugate norm 1 has the largest product with a row `x`: its p-norm, p being `order`."""
    largest = x.flatten(1).abs().amax(1).clamp(min=torch.finfo(x.dtype).tiny).view(-1, *[1] * (x.dim() - 1))
    size = (x / largest).abs()
    size = (size == 1).to(x.dtype) if isinstance(order, float) and order == math.inf else size ** (order - 1)
    y = x.sign() * size
    return y / p_norm(y, _conjugate(order)).view(largest.shape)


def _conjugate(order: Order) -> Order:
    if isinstance(order, float) and order in (1, math.inf):
        return math.inf if order == 1 else 1.0
    return order / (order - 1)


def _by_sums(linear: LinearMap, weight: Tensor, p: float, q: float) -> Tensor:
    size = weight.abs()
    if p == 1 and q == math.inf:
        return size.max()
    ones = torch.ones(linear.shape, dtype=weight.dtype, device=weight.device)
    if q == math.inf:
        power = _conjugate(p)
        return linear.apply(size**power, ones).max() ** (1 / power)
    return linear.adjoint(size**q, torch.ones_like(linear.apply(weight, ones))).max() ** (1 / q)
