"""Coupling layers: one part of the dimensions is transformed given the other (survey Eq. 31, 32)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Bijection, Exactness, sum_dims
from fivefold.bijections.transforms import Transform, inverse_exactness


def parity_mask(channels: int, pattern: int) -> Tensor:
    """Channels `(C,)` to transform: those whose index has an odd number of ones where `pattern` has ones.

    Every two channels are parted by half of the patterns, so a few layers let all interact. After
    `Squeeze`, patterns 1, 2 and 3 are alternate columns, alternate rows and a checkerboard of pixels.
    A single channel is always transformed (given the condition alone).
    """
    if channels == 1:
        return torch.ones(1, dtype=torch.bool, device="cpu")
    return torch.tensor([(index & pattern).bit_count() % 2 == 1 for index in range(channels)], device="cpu")


def checkerboard_mask(height: int, width: int, odd: bool = False) -> Tensor:
    """Pixels `(1, H, W)` to transform: those of one colour of a checkerboard, of the other if `odd`.

    A single pixel has both colours.
    """
    rows, columns = torch.arange(height, device="cpu").unsqueeze(1), torch.arange(width, device="cpu")
    mask = (rows + columns) % 2 == int(odd)
    return (mask if height * width > 1 else torch.ones(1, 1, dtype=torch.bool, device="cpu")).unsqueeze(0)


class Coupling(Bijection):
    """Transforms some channels (or columns) given the others: y_t = h(x_t; net(x_rest, condition)).

    Args:
        mask: channels `(C,)` that are transformed.
        transform: the h of each element.
        net: the kept channels `(B, C - n, ...)` and the condition to the parameters `(B, P n, ...)` of
            the n transformed ones; of vectors best as `ByOutput` gives them.
    """

    def __init__(self, mask: Tensor, transform: Transform, net: nn.Module) -> None:
        super().__init__()
        self.transform = transform
        self.net = net
        parted = torch.argsort(mask.byte(), stable=True)  # what is kept comes first
        self.sizes = [int((~mask).sum()), int(mask.sum())]
        self.register_buffer("parted", parted, persistent=False)
        self.register_buffer("order", parted.argsort(), persistent=False)
        self.parted: Tensor
        self.order: Tensor

    @property
    def keep(self) -> Tensor:
        """The channels that stay as they are."""
        return self.parted[: self.sizes[0]]

    @property
    def change(self) -> Tensor:
        """The channels that are transformed."""
        return self.parted[self.sizes[0] :]

    @property
    def exactness(self) -> Exactness:
        return inverse_exactness(self.transform)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(x, condition, inverse=False)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(y, condition, inverse=True)

    def _couple(self, x: Tensor, condition: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        # Of vectors each column is taken as an array of its own `(B,)`: so are then the parameters.
        axis = 0 if x.dim() == 2 else 1
        x = _turn(x)
        kept, changed = _permute(x, axis, self.parted, self.order).split(self.sizes, axis)
        parameters = _turn(self.net(_turn(kept), condition)).contiguous()
        parameters = parameters.unflatten(axis, (self.transform.size, -1)).movedim(axis, 0)
        changed, log_derivative = (self.transform.inverse if inverse else self.transform.forward)(changed, parameters)
        y = _permute(torch.cat([kept, changed], axis), axis, self.order, self.parted)
        return _turn(y), log_derivative.sum(0) if axis == 0 else sum_dims(log_derivative)


def _turn(x: Tensor) -> Tensor:
    """Vectors `(B, n)` as `(n, B)` and back; maps `(B, n, H, W)` as they are."""
    return x.T if x.dim() == 2 else x


class _Permute(torch.autograd.Function):
    """`index_select` by a permutation, whose gradient is that of the inverse one; torch's own adds entry by entry."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.axis = axis
        ctx.save_for_backward(inverse)
        return x.index_select(axis, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient.index_select(ctx.axis, *ctx.saved_tensors), None, None, None


def _permute(x: Tensor, axis: int, order: Tensor, inverse: Tensor) -> Tensor:
    if not torch.compiler.is_compiling():  # then calling back into Python costs more than it spares
        return x.index_select(axis, order)
    return _Permute.apply(x, axis, order, inverse)


class MaskedCoupling(Bijection):
    """A coupling whose parts are pixels, not channels: transforms where `mask`, given the image elsewhere.

    Args:
        mask: pixels `(1, H, W)` that are transformed, in every channel.
        transform: the h of each element.
        net: `(B, C, H, W)`, with zeros in place of the transformed pixels, and the condition, to `(B, P C, H, W)`.
    """

    def __init__(self, mask: Tensor, transform: Transform, net: nn.Module) -> None:
        super().__init__()
        self.transform = transform
        self.net = net
        self.register_buffer("mask", mask, persistent=False)
        self.mask: Tensor

    @property
    def exactness(self) -> Exactness:
        return inverse_exactness(self.transform)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(x, condition, inverse=False)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(y, condition, inverse=True)

    def _couple(self, x: Tensor, condition: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        parameters = self.net(x * ~self.mask, condition)
        parameters = parameters.unflatten(1, (self.transform.size, -1)).transpose(0, 1)
        changed, log_derivative = (self.transform.inverse if inverse else self.transform.forward)(x, parameters)
        return torch.where(self.mask, changed, x), sum_dims(log_derivative * self.mask)


MakeNet = Callable[[int, int, tuple[int, ...]], nn.Module]  # of input channels, output channels and (H, W) or ()


Alternate = Callable[[int, tuple[int, ...], Transform, MakeNet], Bijection]  # the functions that follow


def alternate_channels(layer: int, shape: tuple[int, ...], transform: Transform, make_net: MakeNet) -> Bijection:
    """The `layer`-th of a row of couplings of channels: each parity pattern in turn, then its parts exchanged.

    Args:
        layer: from 0.
        shape: of one example, (C, ...).
        transform: the h of each element.
        make_net: makes the network.
    """
    patterns = (1 << max(1, (shape[0] - 1).bit_length())) - 1
    # The patterns of all bits come first: after `Squeeze` a checkerboard, whose pixels know each other best.
    mask = parity_mask(shape[0], patterns - layer // 2 % patterns)
    mask = ~mask if layer % 2 and shape[0] > 1 else mask
    changed = int(mask.sum())
    return Coupling(mask, transform, make_net(shape[0] - changed, changed * transform.size, shape[1:]))


def alternate_pixels(layer: int, shape: tuple[int, ...], transform: Transform, make_net: MakeNet) -> Bijection:
    """As `alternate_channels`, by the two colours of a checkerboard; of channels where there is one pixel."""
    if math.prod(shape[1:]) == 1:
        return alternate_channels(layer, shape, transform, make_net)
    mask = checkerboard_mask(shape[1], shape[2], odd=layer % 2 == 1)
    return MaskedCoupling(mask, transform, make_net(shape[0], shape[0] * transform.size, shape[1:]))
