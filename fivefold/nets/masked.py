"""Layers whose masks make a network autoregressive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def degree_mask(inputs: Tensor, outputs: Tensor, strict: bool = False) -> Tensor:
    """Which inputs each output may see, `(outputs, inputs)`: those of no higher degree, or of a lower one if `strict`."""
    return outputs[:, None] > inputs if strict else outputs[:, None] >= inputs


def spread_degrees(units: int, groups: int) -> Tensor:
    """Degrees 0..groups-1 in ascending order, evenly over `units`: `(units,)`."""
    return torch.arange(units) * groups // units


class MaskedLinear(nn.Linear):
    """A linear layer that is given its mask `(outputs, inputs)`, so that one set of weights serves many masks."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return F.linear(x, self.weight * mask, self.bias)


class CausalConv2d(nn.Conv2d):
    """A convolution that sees only what precedes each pixel, within a row or in the rows above it.

    The kernel of `(height, width)` reaches `height - 1` rows up, or `height` without the own row (`above`).
    A `width` that is reached leftwards only (`left`) ends at the pixel itself, where `mask` `(outputs, inputs)`
    says which channels it may use; otherwise the width, odd, is centred.
    """

    mask: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        *,
        above: bool = False,
        mask: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(inputs, outputs, kernel, **options)
        height, width = kernel
        self.above = above
        side = (width - 1, 0) if mask is not None else (width // 2, width // 2)
        self.pad = (*side, height if above else height - 1, 0)
        if mask is not None:
            full = torch.ones(outputs, inputs, *kernel)
            full[:, :, -1, -1] = mask
            mask = full
        self.register_buffer("mask", mask, persistent=False)

    @property
    def masked_weight(self) -> Tensor:
        """`(outputs, inputs, *kernel)`."""
        return self.weight if self.mask is None else self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        if self.above:
            x = x[:, :, :-1]
        return F.conv2d(F.pad(x, self.pad), self.masked_weight, self.bias)
