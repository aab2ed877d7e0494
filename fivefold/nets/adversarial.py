"""Generators and critics: convolutional by DCGAN's rules, or multi-layer perceptrons (Radford et al., 2016).

`generator_net` and `critic_net` choose by the space. Conditions enter as a vector: beside the latent
code in the generator, as constant feature maps (or columns) beside the example in the critic. Weights and features
of convolutions lie channels last, which takes 4 to 8 % less time on processors.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fivefold.nets.condition import ConditionEmbedding, with_maps
from fivefold.nets.mlp import MLP
from fivefold.nets.norm import BatchNorm
from fivefold.space import Space

CONDITION_WIDTH = 16


def halvings(space: Space, smallest: int = 4) -> int:
    """How often both sides of an image can be halved and keep `smallest` pixels; 0 for anything else."""
    if space.kind != "image":
        return 0
    return max(0, int(math.log2(min(space.shape[1:]) / smallest)))


class Step(NamedTuple):
    """A layer of the generator: its channels out (of all but the last, which are the image's) and its stride."""

    channels: int
    stride: int


def _fine(width: int, depth: int) -> list[Step]:
    return [Step(width * 2**i, 2) for i in reversed(range(depth + 1))] + [Step(0, 1)]


def _strided(width: int, depth: int) -> list[Step]:
    return [Step(width * 2**i, 2) for i in reversed(range(depth))] + [Step(0, 2)]


def _alternating(width: int, depth: int) -> list[Step]:
    pairs = [Step(width * 2**i, stride) for i in reversed(range(depth)) for stride in (1, 2)]
    return [*pairs, Step(0, 1)]


# How layers follow one another from the smallest grid, whose channels are the first step's, to the image, and the
# kernel where they change the sides. `fine` ends with a layer at full size; `strided` has none (Radford et al., 2016,
# Figure 1); `alternating` has one after each doubling, which halves the channels (the paper's 32x32 ImageNet).
LAYOUTS = {"fine": (_fine, 4), "strided": (_strided, 5), "alternating": (_alternating, 3)}


def generator_net(space: Space, latent: int, width: int, batch_norm: bool, layout: str = "fine") -> nn.Module:
    """From `(B, latent)` and a condition to `(B, *shape)`, in [-1, 1] where all dimensions have levels."""
    if halvings(space):
        return ConvGenerator(space, latent, width, batch_norm, layout)
    return MLPGenerator(space, latent, width, batch_norm)


def critic_net(space: Space, width: int, batch_norm: bool, layout: str = "fine") -> nn.Module:
    """From centred examples `(B, *shape)` and a condition to one number each, `(B,)`."""
    if halvings(space):
        return ConvCritic(space, width, batch_norm, layout)
    return MLPCritic(space, width, batch_norm)


def _norm(channels: int, batch_norm: bool) -> nn.Module:
    return BatchNorm(channels) if batch_norm else nn.Identity()


def _squash(space: Space) -> nn.Module:
    return nn.Tanh() if space.discrete else nn.Identity()


class ConvGenerator(nn.Module):
    """Projects the code to a small image of many channels, then doubles its sides and halves its channels.

    Starts at the image's sides halved `halvings` times and rounded up, and crops what that is too much.
    Batch norm (but not after the last layer) and ReLU.

    Args:
        space: of images.
        latent: width of the code.
        width: channels of the largest features, doubled at each halving.
        batch_norm: whether there is any.
        layout: of `LAYOUTS`.
    """

    def __init__(self, space: Space, latent: int, width: int, batch_norm: bool, layout: str = "fine") -> None:
        super().__init__()
        channels, self.height, self.width = space.shape
        (first, *steps), kernel = plan(space, width, layout)
        scale = 2 ** halvings(space)
        self.start = (first.channels, -(-self.height // scale), -(-self.width // scale))
        self.embed = ConditionEmbedding(space.condition, CONDITION_WIDTH)
        self.project = nn.Linear(latent + self.embed.width, math.prod(self.start), bias=not batch_norm)
        layers: list[nn.Module] = [_norm(first.channels, batch_norm), nn.ReLU(inplace=True)]
        for wide, (narrow, stride) in itertools.pairwise([first, *steps]):
            last = narrow == 0
            layers.append(_larger(wide.channels, narrow or channels, stride, kernel, bias=last or not batch_norm))
            layers += [_squash(space)] if last else [_norm(narrow, batch_norm), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        if batch_norm:
            initialise(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        start = self.project(with_maps(z, self.embed(condition))).view(-1, *self.start)
        start = start.contiguous(memory_format=torch.channels_last)
        return self.layers(start)[..., : self.height, : self.width]


class ConvCritic(nn.Module):
    """The generator mirrored: strided convolutions, LeakyReLU, batch norm but not after the first layer.

    Args:
        space: of images.
        width: channels of the largest features, doubled at each halving.
        batch_norm: whether there is any.
        layout: of `LAYOUTS`.
    """

    def __init__(self, space: Space, width: int, batch_norm: bool, layout: str = "fine") -> None:
        super().__init__()
        steps, kernel = plan(space, width, layout)
        self.embed = ConditionEmbedding(space.condition, CONDITION_WIDTH)
        layers: list[nn.Module] = []
        for (narrow, stride), wide in itertools.pairwise(reversed(steps)):
            first = narrow == 0
            inputs = space.shape[0] + self.embed.width if first else narrow
            layers.append(_smaller(inputs, wide.channels, stride, kernel, bias=first or not batch_norm))
            layers += [] if first else [_norm(wide.channels, batch_norm)]
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        scale, odd = 2 ** halvings(space), kernel % 2
        height, breadth = (-(-side // scale) if odd else side // scale for side in space.shape[1:])  # odd round up
        self.layers = nn.Sequential(*layers, nn.Conv2d(steps[0].channels, 1, (height, breadth)))
        if batch_norm:
            initialise(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = with_maps(x, self.embed(condition)).contiguous(memory_format=torch.channels_last)
        return self.layers(x).flatten()


def plan(space: Space, width: int, layout: str) -> tuple[list[Step], int]:
    """The steps of a layout for images of this size, and its kernel; ValueError for a layout that there is not."""
    if layout not in LAYOUTS:
        raise ValueError(f"no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    steps, kernel = LAYOUTS[layout]
    return steps(width, halvings(space)), kernel


def _larger(inputs: int, outputs: int, stride: int, kernel: int, bias: bool) -> nn.Module:
    """Doubles the sides, or keeps them."""
    if stride == 1:
        return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
    padding = (kernel - 1) // 2
    return nn.ConvTranspose2d(inputs, outputs, kernel, 2, padding, output_padding=kernel % 2, bias=bias)


def _smaller(inputs: int, outputs: int, stride: int, kernel: int, bias: bool) -> nn.Module:
    """Halves the sides, or keeps them."""
    size = 3 if stride == 1 else kernel
    return nn.Conv2d(inputs, outputs, size, stride, padding=(size - 1) // 2, bias=bias)


class MLPGenerator(nn.Module):
    """Three hidden layers for tables and images of a few pixels; normalised only as `batch_norm` says.

    Args:
        space: of the examples.
        latent: width of the code.
        width: a quarter of the units of a hidden layer.
        batch_norm: not used: batch statistics blur the modes of low-dimensional data.
    """

    def __init__(self, space: Space, latent: int, width: int, batch_norm: bool = False) -> None:
        super().__init__()
        self.shape = space.shape
        self.embed = ConditionEmbedding(space.condition, CONDITION_WIDTH)
        self.net = MLP(latent + self.embed.width, space.dims, 4 * width, layers=3, activation=nn.ReLU)
        self.squash = _squash(space)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.squash(self.net(with_maps(z, self.embed(condition)))).view(-1, *self.shape)


class MLPCritic(nn.Module):
    """Three hidden layers for tables and images of a few pixels, without normalisation.

    Args:
        space: of the examples.
        width: a quarter of the units of a hidden layer.
        batch_norm: not used: batch statistics blur the modes of low-dimensional data.
    """

    def __init__(self, space: Space, width: int, batch_norm: bool = False) -> None:
        super().__init__()
        self.embed = ConditionEmbedding(space.condition, CONDITION_WIDTH)
        self.net = MLP(space.dims + self.embed.width, 1, 4 * width, layers=3, activation=nn.LeakyReLU)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.net(with_maps(x.flatten(1), self.embed(condition))).squeeze(1)


def initialise(net: nn.Module) -> None:
    """Weights from N(0, 0.02^2), as in the paper; the embedding of a condition is left as it is.

    Only for nets with batch norm: without it so small weights would let the signal die out.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and not name.startswith("embed"):
            nn.init.normal_(module.weight, 0.0, 0.02)
