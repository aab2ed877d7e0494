"""Bijections that only move numbers: squeeze, permutation, factor-out (survey 6.1, Fig. 8)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.bijections.base import Bijection, Chain, Exactness, Layer

Shape = tuple[int, ...]


class Squeeze(Bijection):
    """Space to depth: `(B, C, 2H, 2W)` to `(B, 4C, H, W)`; channel 4c + 2y + x is pixel (y, x) of each block."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_shuffle(y, 2), y.new_zeros(len(y))


class Checkerboard(Bijection):
    """The colours of a checkerboard as channels: `(B, C, H, 2W)` to `(B, 2C, H, W)`, those of one colour first."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.cat(self._exchanged(x[..., ::2], x[..., 1::2]), 1), x.new_zeros(len(x))

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.stack(self._exchanged(*y.chunk(2, 1)), -1).flatten(-2), y.new_zeros(len(y))

    @staticmethod
    def _exchanged(even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        """Both with every other row exchanged, which is its own inverse."""
        row = torch.arange(even.shape[2], device=even.device).unsqueeze(1) % 2 == 1
        return torch.where(row, odd, even), torch.where(row, even, odd)


class Permutation(Bijection):
    """Reorders channels (or columns): y_i = x_order[i].

    Args:
        order: a permutation of the channels `(C,)`.
    """

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())
        self.order: Tensor
        self.back: Tensor

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.index_select(1, self.order), x.new_zeros(len(x))

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y.index_select(1, self.back), y.new_zeros(len(y))


class Flatten(Bijection):
    """`(B, *shape)` to `(B, D)`.

    Args:
        shape: of one example.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y.unflatten(1, self.shape), y.new_zeros(len(y))


class FactorOut(Layer):
    """Multi-scale: the first channels go on through `rest`, the others are finished (Dinh et al., 2017; survey Fig. 8).

    Args:
        shape: (C, H, W) of the input.
        keep: how many channels go on.
        rest: what they go through, `(B, keep, H, W)` to `(B, keep H W)`.

    The result is `(B, C H W)`: what `rest` gave, then the finished channels.
    """

    def __init__(self, shape: tuple[int, ...], keep: int, rest: Layer) -> None:
        super().__init__()
        self.finished_shape = (shape[0] - keep, *shape[1:])
        self.keep = keep
        self.rest = rest

    @property
    def exactness(self) -> Exactness:
        return self.rest.exactness

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, log_det = self.rest(x[:, : self.keep], condition)
        return torch.cat([kept, x[:, self.keep :].flatten(1)], 1), log_det

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        finished = math.prod(self.finished_shape)
        kept, log_det = self.rest.inverse(y[:, :-finished], condition)
        return torch.cat([kept, y[:, -finished:].unflatten(1, self.finished_shape)], 1), log_det


def multi_scale(
    shape: Shape,
    steps: Callable[[Shape], Layer],
    law: Callable[[Shape, int], Layer] | None = None,
    scales: int | None = None,
    odd: Callable[[Shape], Layer] | None = None,
) -> Layer:
    """Squeeze, steps, and half of the channels factored out, again and again (Kingma and Dhariwal, 2018, Figure 2b).

    From images `(B, *shape)` to `(B, D)`. Where a side is odd, the last steps come without a squeeze.

    Args:
        shape: (C, H, W) of an image.
        steps: makes the layers of one scale, of maps of this shape.
        law: makes a layer that moves the channels from a number on, given those before: the ones that leave.
        scales: the most resolutions; None for as many as the sides allow.
        odd: makes the last layers where they come without a squeeze; None for `steps`.
    """
    channels, height, width = shape
    if scales == 0 or height % 2 or width % 2:
        return Chain((odd or steps)(shape), Flatten(shape))
    shape, last = (4 * channels, height // 2, width // 2), scales == 1
    kept = 0 if last else 2 * channels
    parts = [Squeeze(), steps(shape), *([] if law is None else [law(shape, kept)])]
    if last:
        return Chain(*parts, Flatten(shape))
    rest = multi_scale((kept, *shape[1:]), steps, law, None if scales is None else scales - 1, odd)
    return Chain(*parts, FactorOut(shape, kept, rest))
