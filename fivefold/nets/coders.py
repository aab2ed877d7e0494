"""Encoders and decoders of autoencoders, of vectors (MLP) and of images of any size (convolutional).

Decoders give the parameters of a `Head`, `(B, D, head.width)`, and give 0 at first, so that an untrained
one says what the head starts with.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Protocol, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.condition import ConditionEmbedding, with_maps
from fivefold.nets.embedding import DimFeatures
from fivefold.nets.mlp import MLP
from fivefold.space import Space
from fivefold.tools.scaling import centre

CONDITION_WIDTH = 32
UNITS = 16
_Layer = TypeVar("_Layer", bound=nn.Module)


class Output(Protocol):
    """What a decoder's numbers are for: how many a dimension takes, and their order (see `Head`)."""

    width: int

    def from_maps(self, maps: Tensor) -> Tensor: ...


class Maps:
    """Features, `(B, C, H, W)` as they come."""

    width = 1

    def from_maps(self, maps: Tensor) -> Tensor:
        return maps


class MLPEncoder(nn.Module):
    """Encoded examples `(B, *shape)` and their condition to vectors `(B, outputs)`.

    Args:
        space: of the examples.
        outputs: width of the vectors.
        width: a sixteenth of the units of a hidden layer, so that one width suits both kinds of network.
        depth: hidden layers.
        dropout: of hidden units.
    """

    def __init__(self, space: Space, outputs: int, width: int, depth: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = DimFeatures(space)
        self.embed = ConditionEmbedding(space.condition, CONDITION_WIDTH)
        inputs = len(self.features.dim_of_feature) + self.embed.width
        self.net = MLP(inputs, outputs, UNITS * width, depth, dropout=dropout)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.net(with_maps(self.features(x), self.embed(condition)))


class MLPDecoder(nn.Module):
    """Vectors `(B, inputs)` and a condition to parameters `(B, D, head.width)`.

    Args:
        space: of the examples.
        inputs: width of the vectors.
        head: whose parameters are given; `Maps` for features.
        width: a sixteenth of the units of a hidden layer, so that one width suits both kinds of network.
        depth: hidden layers.
        dropout: of hidden units.
    """

    def __init__(self, space: Space, inputs: int, head: Output, width: int, depth: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = ConditionEmbedding(space.condition, CONDITION_WIDTH)
        self.shape = (space.dims, head.width)
        self.net = MLP(inputs + self.embed.width, math.prod(self.shape), UNITS * width, depth, dropout=dropout)
        zero(self.net.net[-1])

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.net(with_maps(z, self.embed(condition))).unflatten(1, self.shape)


class ConvEncoder(nn.Module):
    """`Downsampler`, then a linear layer of all positions and the condition: `(B, C, H, W)` to `(B, outputs)`.

    Args:
        space: of images.
        outputs: width of the vectors.
        width: channels at full size.
        depth: residual blocks at the smallest size.
        dropout: of features.
    """

    def __init__(self, space: Space, outputs: int, width: int, depth: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = ConditionEmbedding(space.condition, CONDITION_WIDTH)
        halvings = halvings_to(space, smallest=4)
        channels = channels_at(width, halvings)[-1]
        self.down = Downsampler(space, channels, width, halvings, depth, dropout)
        self.drop = nn.Dropout(dropout)
        features = channels * math.prod(grid_size(space, halvings))
        self.last = nn.Linear(features + self.embed.width, outputs)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        features = self.drop(F.silu(self.down(x)).flatten(1))
        return self.last(with_maps(features, self.embed(condition)))


class ConvDecoder(nn.Module):
    """The mirror of `ConvEncoder`: `(B, inputs)` and a condition to parameters `(B, D, head.width)`.

    Args:
        space: of images.
        inputs: width of the vectors.
        head: whose parameters are given; `Maps` for features.
        width: channels at full size.
        depth: residual blocks at the smallest size.
        dropout: of features.
    """

    def __init__(self, space: Space, inputs: int, head: Output, width: int, depth: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = ConditionEmbedding(space.condition, CONDITION_WIDTH)
        halvings = halvings_to(space, smallest=4)
        channels = channels_at(width, halvings)[-1]
        self.start = (channels, *grid_size(space, halvings))
        self.first = nn.Linear(inputs + self.embed.width, math.prod(self.start))
        self.drop = nn.Dropout(dropout)
        self.up = Upsampler(space, channels, head, width, halvings, depth, dropout)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        features = self.drop(F.silu(self.first(with_maps(z, self.embed(condition)))))
        return self.up(features.view(-1, *self.start))


class Downsampler(nn.Module):
    """Encoded images `(B, C, H, W)` to `(B, outputs, h, w)`, both sides halved `halvings` times, rounding up.

    Args:
        space: of images.
        outputs: channels out.
        width: channels at full size, doubled at each halving, up to four times.
        halvings: how often the sides are halved.
        depth: residual blocks at the smallest size.
        dropout: of features in the blocks.
    """

    def __init__(
        self, space: Space, outputs: int, width: int, halvings: int, depth: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.space = space
        channels = channels_at(width, halvings)
        layers: list[nn.Module] = [nn.Conv2d(space.shape[0], width, 3, padding=1)]
        for narrow, wide in pairwise(channels):
            layers += [nn.SiLU(), nn.Conv2d(narrow, wide, 3, stride=2, padding=1)]
        layers += [_Residual(channels[-1], dropout) for _ in range(depth)]
        self.net = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(channels[-1], outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(centre(x, self.space))


class Upsampler(nn.Module):
    """The mirror of `Downsampler`: `(B, inputs, h, w)` to parameters `(B, D, head.width)`.

    Args:
        space: of images.
        inputs: channels in.
        head: whose parameters are given; `Maps` for features.
        width: channels at full size.
        halvings: how often the sides were halved.
        depth: residual blocks at the smallest size.
        dropout: of features in the blocks.
    """

    def __init__(
        self, space: Space, inputs: int, head: Output, width: int, halvings: int, depth: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.head = head
        self.sizes = [grid_size(space, i) for i in reversed(range(halvings))]
        channels = channels_at(width, halvings)[::-1]
        blocks = [_Residual(channels[0], dropout) for _ in range(depth)]
        self.first = nn.Sequential(nn.Conv2d(inputs, channels[0], 3, padding=1), *blocks)
        self.doublings = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1) for wide, narrow in pairwise(channels)
        )
        self.last = zero(nn.Conv2d(width, space.shape[0] * head.width, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        h = F.silu(self.first(z))
        for double, (height, width) in zip(self.doublings, self.sizes, strict=True):
            h = F.silu(double(h)[..., :height, :width])  # cropped where the side was odd
        return self.head.from_maps(self.last(h))


class _Residual(nn.Module):
    """Two 3x3 convolutions beside the identity; the identity alone at first."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        first, last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.net = nn.Sequential(nn.SiLU(), first, nn.SiLU(), nn.Dropout(dropout), zero(last))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


def halvings_to(space: Space, smallest: int) -> int:
    """How often the sides of an image can be halved while the shorter one exceeds `smallest`."""
    side, count = min(space.shape[1:]), 0
    while side > smallest:
        side, count = -(-side // 2), count + 1
    return count


def grid_size(space: Space, halvings: int) -> tuple[int, int]:
    """H and W halved, rounding up, so at least 1x1."""
    return -(-space.shape[1] // 2**halvings), -(-space.shape[2] // 2**halvings)


def channels_at(width: int, halvings: int) -> list[int]:
    """Channels at every size: doubled at each halving, at most four times `width`."""
    return [width * min(2**i, 4) for i in range(halvings + 1)]


def zero(layer: _Layer) -> _Layer:
    """The layer with all its parameters 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
