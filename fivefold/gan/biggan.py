"""BigGAN: class-conditional GANs at scale."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.gan._system import Held, Truncated
from fivefold.nets.adversarial import halvings
from fivefold.nets.attention import Attending, attend, refuse_dense
from fivefold.nets.condition import ConditionEmbedding, with_maps
from fivefold.nets.norm import BatchNorm, spectral_norm
from fivefold.nets.stylegan import widths
from fivefold.options import option, width_option
from fivefold.system import Space
from fivefold.tools import games

EPS = 1e-4  # of batch norm


def _conv(inputs: int, outputs: int, kernel: int = 3, bias: bool = True) -> nn.Module:
    return spectral_norm(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias))


def _attending_level(space: Space, depth: int, side: int) -> int:
    """The first level whose shorter side has so many pixels, or the last one."""
    sides = [min(space.shape[1:]) / 2 ** (depth - i) for i in range(depth + 1)]
    return next((i for i, found in enumerate(sides) if found >= side), depth)


def _attending(sides: Sequence[int]) -> Attending:
    """What `SelfAttention` scores on maps of these sides."""
    return Attending(math.prod(sides), math.prod(side // _pool(sides) for side in sides))


def _pool(sides: Sequence[int]) -> int:
    return 2 if min(sides) > 1 else 1


class SelfAttention(nn.Module):
    """x plus what every position takes from all others, with a learnt weight that starts at 0 (Zhang et al., 2019).

    Keys and values are the largest of 2x2 positions. Every map is spectrally normalised.

    Args:
        channels: C of `(B, C, H, W)`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow, middle = max(1, channels // 8), max(1, channels // 2)
        self.query, self.key = _conv(channels, narrow, 1, False), _conv(channels, narrow, 1, False)
        self.value, self.out = _conv(channels, middle, 1, False), _conv(middle, channels, 1, False)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        def rows(y: Tensor) -> Tensor:
            return y.flatten(2).transpose(1, 2)

        pool = _pool(x.shape[2:])
        key, value = F.max_pool2d(self.key(x), pool), F.max_pool2d(self.value(x), pool)
        found = attend(rows(self.query(x)), rows(key), rows(value), scale=1.0)
        return x + self.weight * self.out(found.transpose(1, 2).reshape(len(x), -1, *x.shape[2:]))


class ConditionalNorm(nn.Module):
    """Batch norm whose scale 1 + a(c) and shift b(c) are linear in a code `(B, code)`.

    Args:
        channels: of what is normalised.
        code: width of the code: a share of the latent one and the embedded class.
    """

    def __init__(self, channels: int, code: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels, eps=EPS, affine=False)
        self.scale = spectral_norm(nn.Linear(code, channels, bias=False))
        self.shift = spectral_norm(nn.Linear(code, channels, bias=False))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        return self.norm(x) * (1 + self.scale(code)[:, :, None, None]) + self.shift(code)[:, :, None, None]


class GeneratorBlock(nn.Module):
    """Twice conditional norm, ReLU, convolution, the sides doubled before the first; beside it a 1x1 convolution.

    Args:
        inputs: channels.
        outputs: channels of the result.
        code: width of the code.
        up: whether the sides are doubled.
    """

    def __init__(self, inputs: int, outputs: int, code: int, up: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = ConditionalNorm(inputs, code), ConditionalNorm(outputs, code)
        self.conv1, self.conv2 = _conv(inputs, outputs), _conv(outputs, outputs)
        self.skip, self.up = _conv(inputs, outputs, 1), 2 if up else 1

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        y = F.interpolate(F.relu(self.norm1(x, code)), scale_factor=self.up)
        y = self.conv2(F.relu(self.norm2(self.conv1(y), code)))
        return y + F.interpolate(self.skip(x), scale_factor=self.up)


class CriticBlock(nn.Module):
    """Twice ReLU and convolution, the sides halved after the second; beside it a 1x1 convolution where needed.

    Args:
        inputs: channels.
        outputs: channels of the result.
        down: whether the sides are halved.
        first: leaves out the first ReLU: it would take from the image.
    """

    def __init__(self, inputs: int, outputs: int, down: bool, first: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(inputs, outputs), _conv(outputs, outputs)
        self.skip = _conv(inputs, outputs, 1) if down or inputs != outputs else nn.Identity()
        self.down, self.first = 2 if down else 1, first

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        return F.avg_pool2d(y, self.down) + self.skip(F.avg_pool2d(x, self.down))


class Generator(nn.Module):
    """From codes `(B, latent)` and a condition to images `(B, *shape)` in [-1, 1].

    The code is split: the first part makes the smallest image, and each block gets one beside the embedded condition,
    which all blocks share.

    Args:
        space: of images.
        latent: width of the code.
        shared: width of the embedded condition.
        channels: of each resolution, smallest first.
        attention: the level that attends to itself.
    """

    def __init__(self, space: Space, latent: int, shared: int, channels: list[int], attention: int) -> None:
        super().__init__()
        colours, self.height, self.width = space.shape
        depth = len(channels) - 1
        pairs = list(itertools.pairwise(channels)) or [(channels[0], channels[0])]
        parts = len(pairs) + 1
        self.parts = [latent // parts + (i < latent % parts) for i in range(parts)]
        self.start = channels[0], -(-self.height // 2**depth), -(-self.width // 2**depth)
        self.embed = ConditionEmbedding(space.condition, shared, layers=0)
        self.dense = spectral_norm(nn.Linear(self.parts[0], math.prod(self.start)))
        self.blocks = nn.ModuleList(
            GeneratorBlock(a, b, part + self.embed.width, up=depth > 0)
            for (a, b), part in zip(pairs, self.parts[1:], strict=True)
        )
        self.attending, self.attention = attention, SelfAttention(channels[attention])
        self.norm, self.out = BatchNorm(channels[-1], eps=EPS), _conv(channels[-1], colours)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        first, *parts = z.split(self.parts, 1)
        x, embedded = self.dense(first).view(-1, *self.start), self.embed(condition)
        for i, (block, part) in enumerate(zip(self.blocks, parts, strict=True)):
            x = block(self.attention(x) if i == self.attending else x, with_maps(part, embedded))
        x = self.attention(x) if self.attending == len(self.blocks) else x
        return self.out(F.relu(self.norm(x))).tanh()[..., : self.height, : self.width]


class Critic(nn.Module):
    """From centred images `(B, *shape)` and a condition to one number each, `(B,)`.

    A condition enters as the inner product of its embedding with the features (projection, Miyato and Koyama, 2018).

    Args:
        space: of images.
        channels: of each resolution, smallest first.
        attention: the level that attends to itself; the highest below the full resolution for that one.
    """

    def __init__(self, space: Space, channels: list[int], attention: int) -> None:
        super().__init__()
        depth, last = len(channels) - 1, channels[0]
        pairs = list(itertools.pairwise([space.shape[0], *reversed(channels)]))
        self.blocks = nn.ModuleList(CriticBlock(a, b, down=i < depth, first=i == 0) for i, (a, b) in enumerate(pairs))
        self.attending = max(0, depth - 1 - attention)
        self.attention = SelfAttention(pairs[self.attending][1])
        self.out = spectral_norm(nn.Linear(last, 1))
        self.embed = ConditionEmbedding(space.condition, last, layers=0)
        for layer in [m for m in self.embed.modules() if isinstance(m, nn.Linear)]:
            spectral_norm(layer)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x)
            x = self.attention(x) if i == self.attending else x
        features, embedded = F.relu(x).sum((2, 3)), self.embed(condition)
        score = self.out(features).squeeze(1)
        return score if embedded is None else score + (embedded * features).sum(1)


class BigGAN(Truncated):
    """BigGAN (survey 4.2; Brock et al., 2019).

    A residual generator whose batch norms are set by the class, in one shared embedding, and by parts of the latent
    code; a residual critic to which the class is projected; spectral norm and self-attention in both; the hinge loss,
    several steps of the critic for one of the generator, large batches (`accumulate` splits them). The generator's
    filters are kept near orthogonal, so that truncated codes, of more typical images, stay within what it has learnt.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.99},
        "cifar10": {
            "latent": 128, "width": 256, "widest": 256, "attention": 32, "critics": 4, "batch_size": 50, "lr": 2e-4,
            "critic_lr": 2e-4, "ema": 0.9999,
        },
        "imagenet128": {
            "latent": 120, "shared": 128, "width": 96, "widest": 1536, "attention": 64, "batch_size": 2048,
            "accumulate": 8, "lr": 5e-5, "critic_lr": 2e-4, "ema": 0.9999,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "imagenet128": (158.3e6, "Brock et al. 2019, Table 1: 158.3 million of both networks")
    }

    game = "hinge"
    latent = 48
    shared: int = option(32, "width of the embedded class", least=0)
    width: int = width_option(32, "channels at full resolution, doubled at each halving", tune=(8, 256))
    widest: int = option(1536, "the most channels that a layer has", least=0)
    attention: int = option(8, "shorter side in pixels from which on the first resolution attends to itself", least=0)
    orthogonal: float = option(1e-4, "weight of the products of different filters of the generator", least=0)
    lr = 1e-3
    critic_lr: float = option(
        4e-3, "learning rate of the critic", above=0, tune=(1e-5, 1e-1), log=True, section="optimizers"
    )

    def players(self) -> tuple[nn.Module, nn.Module]:
        depth = halvings(self.space)
        channels, level = widths(self.width, self.widest, depth), _attending_level(self.space, depth, self.attention)
        made = [-(-side // 2**depth) * 2**level for side in self.space.shape[1:]]
        seen = [side // 2 ** min(max(1, depth - level), depth) for side in self.space.shape[1:]]
        refuse_dense("BigGAN", [_attending(made), _attending(seen)], "a smaller --attention or smaller images (--size)")
        generator = Generator(self.space, self.latent, self.shared, channels, level)
        critic = Critic(self.space, channels, level)
        for weight in [p for player in (generator, critic) for p in player.parameters() if p.dim() > 1]:
            nn.init.orthogonal_(weight)
        return generator, critic

    def generator_penalty(self, n: int, condition: Tensor | None) -> Held:
        """Squared products of different filters, of all weights of the generator but the shared embedding's."""
        normed = [p for name, p in self.generator.named_parameters() if name.endswith("weight.original")]
        overlap = torch.stack([games.orthogonal_penalty(weight) for weight in normed]).sum()
        return self.orthogonal * overlap, {"overlap": overlap.detach()}

    def rates(self) -> dict[nn.Module, float]:
        return {self.generator: self.lr, self.critic: self.critic_lr}
