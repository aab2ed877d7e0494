"""Networks of a discrete example under noise and its time, to logits of every dimension's levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fivefold.nets.attention import Attending, TransformerBlock, refuse_dense
from fivefold.nets.coders import zero
from fivefold.nets.embedding import DimEmbedding, DimFeatures
from fivefold.nets.heads import dims_of_maps
from fivefold.nets.unet import TimedMLP, TimeEmbedding, UNet
from fivefold.space import Space


@dataclass(frozen=True)
class Sizes:
    """Of the networks below: a U-Net of images, residual layers of tables, a transformer of text.

    `channels`, `multipliers`, `blocks`, `attention` and `dropout` are the U-Net's, `hidden` and `layers` those of
    tables, `width`, `depth` and `heads` the transformer's.
    """

    channels: int
    multipliers: Sequence[int]
    blocks: int
    attention: int
    dropout: float
    hidden: int
    layers: int
    width: int
    depth: int
    heads: int


def levels_net(space: Space, sizes: Sizes, levels: int) -> nn.Module:
    """From encoded examples `(B, *shape)`, times `(B,)` and a condition to logits `(B, D, levels)`, 0 at first."""
    makers = {"image": LevelMaps, "table": LevelVectors, "text": TimedTransformer}
    return makers[space.kind](space, sizes, levels)


class LevelMaps(nn.Module):
    """Images, their levels one-hot (many are a number), by a U-Net.

    Args:
        space: of the examples.
        sizes: of the network.
        levels: logits of each dimension.
    """

    def __init__(self, space: Space, sizes: Sizes, levels: int) -> None:
        super().__init__()
        self.features = DimFeatures(space)
        colours = space.shape[0]
        self.colours, each = colours, len(self.features.dim_of_feature) // space.dims
        self.net = UNet(
            space, sizes.channels, sizes.multipliers, sizes.blocks, sizes.attention, sizes.dropout,
            inputs=colours * each, outputs=colours * levels,
        )  # fmt: skip

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        maps = self.features(x).view(*x.shape, -1).movedim(-1, 2).flatten(1, 2)
        return dims_of_maps(self.net(maps, time, condition), self.colours)


class LevelVectors(nn.Module):
    """Tables, their levels one-hot (many are a number), by residual layers. Arguments as of `LevelMaps`."""

    def __init__(self, space: Space, sizes: Sizes, levels: int) -> None:
        super().__init__()
        self.features = DimFeatures(space)
        inputs = len(self.features.dim_of_feature)
        self.net = TimedMLP(space, sizes.hidden, sizes.layers, inputs, space.dims * levels)
        self.dims = space.dims

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.net(self.features(x), time, condition).unflatten(1, (self.dims, -1))


class TimedTransformer(nn.Module):
    """Text: every position attends to all, and the time is added before each block. Arguments as of `LevelMaps`."""

    def __init__(self, space: Space, sizes: Sizes, levels: int) -> None:
        super().__init__()
        width, places = sizes.width, space.dims
        refuse_dense(
            "TimedTransformer", [Attending(places, places, sizes.heads)] * sizes.depth, "shorter pieces of text"
        )
        self.embedding = DimEmbedding(space, width, scale=0.3)
        self.position = nn.Parameter(0.3 * torch.randn(places, width))
        self.time = TimeEmbedding(space.condition, width, width)
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in range(sizes.depth))
        self.blocks = nn.ModuleList(TransformerBlock(width, sizes.heads, sizes.dropout) for _ in range(sizes.depth))
        self.norm, self.last = nn.LayerNorm(width), zero(nn.Linear(width, levels))

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        h, now = self.embedding(x) + self.position, self.time(time, condition)
        for shift, block in zip(self.shifts, self.blocks, strict=True):
            h = block(h + shift(now)[:, None])
        return self.last(self.norm(h))
