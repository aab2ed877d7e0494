"""Coupling layers: one part of the dimensions is transformed given the other (survey Eq. 31, 32)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from itertools import chain, groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Bijection, Chain, Exactness, Layer, sum_dims, total, weakest
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


class _Couplings(Bijection):
    """Couplings of channels one after another; what is reordered between two of them is so at once.

    Vectors are turned, so that each column is an array of its own `(B,)`: so are then the parameters.
    """

    reorders: nn.ModuleList  # before each coupling, and after the last

    @property
    @abstractmethod
    def couplings(self) -> list[Coupling]:
        """In the order in which `forward` applies them."""

    def _reorders(self) -> nn.ModuleList:
        """From one coupling's order of the channels to the next one's, from and to the usual one at the ends."""
        orders = [part.parted for part in self.couplings]
        usual = torch.arange(len(orders[0]), device="cpu")
        return nn.ModuleList(Reorder(before.argsort()[after]) for before, after in pairwise([usual, *orders, usual]))

    @property
    def exactness(self) -> Exactness:
        return weakest(*self.couplings)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(x, condition, inverse=False)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(y, condition, inverse=True)

    def _couple(self, x: Tensor, condition: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        is_vector = x.dim() == 2
        x = x.T.contiguous() if is_vector else x
        step = -1 if inverse else 1
        first, *others = list(self.reorders)[::step]
        x, log_derivatives = first(x, inverse), []
        for part, reorder in zip(self.couplings[::step], others, strict=True):
            x, log_derivative = part.couple_parted(x, condition, inverse)
            x = reorder(x, inverse)
            log_derivatives.append(log_derivative)
        if is_vector:
            return x.T, torch.cat(log_derivatives).sum(0)
        return x, total([sum_dims(log_derivative) for log_derivative in log_derivatives])


class Coupling(_Couplings):
    """Transforms some channels (or columns) given the others: y_t = h(x_t; net(x_rest, condition)).

    Args:
        mask: channels `(C,)` that are transformed.
        transform: the h of each element.
        net: the kept channels `(B, C - n, ...)` and the condition to the parameters `(B, P n, ...)` of the n
            transformed ones; of vectors its method `by_units`, if there is one, `(C - n, B)` to `(P n, B)`.
    """

    def __init__(self, mask: Tensor, transform: Transform, net: nn.Module) -> None:
        super().__init__()
        self.transform = transform
        self.net = net
        self.parted = torch.argsort(mask.byte(), stable=True)  # what is kept comes first
        self.sizes = [int((~mask).sum()), int(mask.sum())]
        self.reorders = self._reorders()
        self.goes_by_units = hasattr(net, "by_units")

    @property
    def couplings(self) -> list[Coupling]:
        return [self]

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

    def couple_parted(self, x: Tensor, condition: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """Of what is kept, then what is transformed, vectors as `(C, B)`: the image and the log-derivatives."""
        axis = _channel_axis(x)
        kept, changed = torch.split_with_sizes(x, self.sizes, axis)
        if axis == 1:
            parameters = self.net(kept, condition).unflatten(1, (self.transform.size, -1)).transpose(0, 1)
        else:
            if self.goes_by_units:
                parameters = self.net.by_units(kept, condition)  # type: ignore[operator]
            else:
                parameters = self.net(kept.T, condition).T.contiguous()
            parameters = parameters.view(self.transform.size, *changed.shape)
        changed, log_derivative = (self.transform.inverse if inverse else self.transform.forward)(changed, parameters)
        return torch.cat([kept, changed], axis), log_derivative


class CouplingRow(_Couplings):
    """Couplings of the same channels one after another, as by `Chain` in less time.

    Args:
        parts: in the order in which `forward` applies them.
    """

    def __init__(self, *parts: Coupling) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.reorders = self._reorders()

    @property
    def couplings(self) -> list[Coupling]:
        return list(self.parts)  # type: ignore[arg-type]


def in_a_row(parts: Iterable[Layer]) -> Chain:
    """One after another; couplings of channels that follow one another are a `CouplingRow`."""
    groups = [list(group) for _, group in groupby(parts, lambda part: isinstance(part, Coupling))]
    rows = [[CouplingRow(*group)] if isinstance(group[0], Coupling) else group for group in groups]  # type: ignore[arg-type]
    return Chain(*chain.from_iterable(rows))


class Reorder(nn.Module):
    """Channels in another order: x_order, vectors as `(C, B)`.

    Args:
        order: a permutation of the channels `(C,)`.
    """

    order: Tensor
    back: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        turns = (order - torch.arange(len(order), device="cpu")) % len(order)
        self.shift = int(turns[0]) if bool((turns == turns[0]).all()) else None  # 0: they stay as they are

    def forward(self, x: Tensor, inverse: bool) -> Tensor:
        axis = _channel_axis(x)
        if self.shift is not None:
            return x if self.shift == 0 else x.roll(self.shift if inverse else -self.shift, axis)
        there, back = (self.back, self.order) if inverse else (self.order, self.back)
        if torch.compiler.is_compiling():  # in plain code calling back into Python costs more than it spares
            return _Permute.apply(x, axis, there, back)
        return x.index_select(axis, there)


def _channel_axis(x: Tensor) -> int:
    """Of turned vectors `(C, B)` or maps `(B, C, H, W)`."""
    return 0 if x.dim() == 2 else 1


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


Alternate = Callable[[int, tuple[int, ...], Transform, MakeNet], Layer]  # the functions that follow


def alternate_channels(layer: int, shape: tuple[int, ...], transform: Transform, make_net: MakeNet) -> Layer:
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


def alternate_pixels(layer: int, shape: tuple[int, ...], transform: Transform, make_net: MakeNet) -> Layer:
    """As `alternate_channels`, by the two colours of a checkerboard; of channels where there is one pixel."""
    if math.prod(shape[1:]) == 1:
        return alternate_channels(layer, shape, transform, make_net)
    mask = checkerboard_mask(shape[1], shape[2], odd=layer % 2 == 1)
    return MaskedCoupling(mask, transform, make_net(shape[0], shape[0] * transform.size, shape[1:]))
