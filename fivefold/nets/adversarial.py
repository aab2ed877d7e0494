"""Generators and critics: convolutional by DCGAN's rules, or multi-layer perceptrons (Radford et al., 2016).

`generator_net` and `critic_net` choose by the space. Conditions enter as a vector: beside the latent
code in the generator, as constant feature maps (or columns) beside the example in the critic.
"""

from __future__ import annotations

import itertools
import math

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


def generator_net(space: Space, latent: int, width: int, batch_norm: bool) -> nn.Module:
    """From `(B, latent)` and a condition to `(B, *shape)`, in [-1, 1] where all dimensions have levels."""
    return (ConvGenerator if halvings(space) else MLPGenerator)(space, latent, width, batch_norm)


def critic_net(space: Space, width: int, batch_norm: bool) -> nn.Module:
    """From centred examples `(B, *shape)` and a condition to one number each, `(B,)`."""
    return (ConvCritic if halvings(space) else MLPCritic)(space, width, batch_norm)


def _norm(channels: int, batch_norm: bool) -> nn.Module:
    return BatchNorm(channels) if batch_norm else nn.Identity()


def _squash(space: Space) -> nn.Module:
    return nn.Tanh() if space.discrete else nn.Identity()


class ConvGenerator(nn.Module):
    """Projects the code to a small image of many channels, then doubles its sides and halves its channels.

    Starts at the image's sides halved `halvings` times and rounded up, and crops what that is too much.
    Batch norm (but not after the last layer) and ReLU; a 3x3 convolution ends it.

    Args:
        space: of images.
        latent: width of the code.
        width: channels at full resolution; twice as many at each halving.
        batch_norm: whether there is any.
    """

    def __init__(self, space: Space, latent: int, width: int, batch_norm: bool) -> None:
        super().__init__()
        channels, self.height, self.width = space.shape
        depth = halvings(space)
        widths = [width * 2**i for i in range(depth, 0, -1)] + [width]
        self.start = (widths[0], -(-self.height // 2**depth), -(-self.width // 2**depth))
        self.embed = ConditionEmbedding(space.condition, CONDITION_WIDTH)
        self.project = nn.Linear(latent + self.embed.width, math.prod(self.start), bias=not batch_norm)
        layers: list[nn.Module] = [_norm(widths[0], batch_norm), nn.ReLU()]
        for wide, narrow in itertools.pairwise(widths):
            up = nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=not batch_norm)
            layers += [up, _norm(narrow, batch_norm), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1), _squash(space))
        if batch_norm:
            initialise(self)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        start = self.project(with_maps(z, self.embed(condition))).view(-1, *self.start)
        return self.layers(start)[..., : self.height, : self.width]


class ConvCritic(nn.Module):
    """The generator mirrored: strided convolutions, LeakyReLU, batch norm but not before the second one.

    Args:
        space: of images.
        width: channels at full resolution; twice as many at each halving.
        batch_norm: whether there is any.
    """

    def __init__(self, space: Space, width: int, batch_norm: bool) -> None:
        super().__init__()
        channels, height, across = space.shape
        depth = halvings(space)
        self.embed = ConditionEmbedding(space.condition, CONDITION_WIDTH)
        layers: list[nn.Module] = [nn.Conv2d(channels + self.embed.width, width, 3, padding=1), nn.LeakyReLU(0.2)]
        for i in range(depth):
            narrow, wide = width * 2**i, width * 2 ** (i + 1)
            down = nn.Conv2d(narrow, wide, 4, stride=2, padding=1, bias=not batch_norm)
            layers += [down, _norm(wide, batch_norm), nn.LeakyReLU(0.2)]
        features = width * 2**depth * (height // 2**depth) * (across // 2**depth)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 1))
        if batch_norm:
            initialise(self)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.layers(with_maps(x, self.embed(condition))).squeeze(1)


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
