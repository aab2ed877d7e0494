"""The network of a coupling layer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Conditioner(nn.Module):
    """`(B, inputs, *spatial)` and a condition `(B, condition)` to `(B, outputs, *spatial)`; 0 at first.

    Pre-activation residual blocks: fully connected where `spatial` is empty, else 3x3 convolutions (1x1
    on a single pixel) with a learned bias at each position. Without batch normalisation, so that an
    example's output is its own.

    Args:
        inputs: channels in; may be 0.
        outputs: channels out.
        spatial: (H, W) of images, () of vectors.
        hidden: channels of the residual stream.
        blocks: how many residual blocks.
        condition: width of the condition, 0 for none.
        dropout: probability within each block.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        spatial: tuple[int, ...] = (),
        hidden: int = 64,
        blocks: int = 2,
        condition: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        wide = _convolution(1 if math.prod(spatial) == 1 else 3) if spatial else nn.Linear
        narrow = _convolution(1) if spatial else nn.Linear
        self.first = wide(inputs, hidden) if inputs else None
        self.position = nn.Parameter(torch.zeros(hidden, *spatial))
        self.condition = nn.Linear(condition, hidden) if condition else None
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), wide(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), wide(hidden, hidden))
            for _ in range(blocks)
        )
        self.activation = nn.ReLU()
        self.last = narrow(hidden, outputs)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.position.expand(len(x), *self.position.shape)
        if self.first is not None:
            h = h + self.first(x)
        if self.condition is not None and condition is not None:
            h = h + self.condition(condition).view(*h.shape[:2], *[1] * (h.dim() - 2))
        for block in self.blocks:
            h = h + block(h)
        return self.last(self.activation(h))


def _convolution(size: int) -> Callable[[int, int], nn.Module]:
    return lambda inputs, outputs: nn.Conv2d(inputs, outputs, size, padding=size // 2)
