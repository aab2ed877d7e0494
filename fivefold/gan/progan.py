"""Progressive growing of GANs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.gan._system import GANSystem, Held
from fivefold.nets.adversarial import halvings
from fivefold.nets.condition import ConditionEmbedding, with_maps
from fivefold.nets.equalised import CriticHead, EqualConv, EqualLinear, leaky, pixel_norm
from fivefold.nets.stylegan import widths
from fivefold.options import option, width_option
from fivefold.system import Batch, Space
from fivefold.tools.scaling import centre


def level_at(progress: float, depth: int, growth: float) -> float:
    """How many times the sides have doubled; between whole numbers the next resolution is faded in.

    Within the share `growth` of training, `depth` times: as long as it is held, as long the next one fades in.
    """
    if progress >= growth:
        return float(depth)
    doublings, phase = divmod(2 * depth * progress / growth, 2)
    return doublings + max(0.0, phase - 1)


def at_level(x: Tensor, level: float, depth: int) -> Tensor:
    """Images at a level's resolution, and while one fades in as blurred as what the generator makes (paper, 2)."""
    upper = math.ceil(level)
    x = F.avg_pool2d(x, 2 ** (depth - upper))
    return x if upper == level else _double(F.avg_pool2d(x, 2)).lerp(x, level - upper + 1)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2)


def _normed(x: Tensor) -> Tensor:
    return pixel_norm(leaky(x))


class TwoConvs(nn.Module):
    """Two convolutions and what follows each of them, at one resolution."""

    def __init__(self, inputs: int, middle: int, outputs: int, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.after = EqualConv(inputs, middle), EqualConv(middle, outputs), after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.second(self.after(self.first(x))))


class GrowingGenerator(nn.Module):
    """From codes `(B, latent)` and a condition to images at a level's resolution, with pixel norm after each layer.

    `truncation` multiplies the code after its own norm, which would undo it, and leaves the condition as it is.

    Args:
        space: of images.
        latent: width of the code.
        channels: of each resolution, smallest first.
    """

    def __init__(self, space: Space, latent: int, channels: list[int]) -> None:
        super().__init__()
        depth, self.latent = len(channels) - 1, latent
        self.start = channels[0], -(-space.shape[1] // 2**depth), -(-space.shape[2] // 2**depth)
        self.embed = ConditionEmbedding(space.condition, latent)
        # the paper's gain: a dense layer counted as a 4x4 convolution
        self.dense = EqualLinear(latent + self.embed.width, math.prod(self.start), gain=1 / 4)
        self.first = EqualConv(channels[0], channels[0])
        pairs = itertools.pairwise(channels)
        self.blocks = nn.ModuleList(TwoConvs(a, b, b, after=_normed) for a, b in pairs)
        self.to_image = nn.ModuleList(EqualConv(c, space.shape[0], 1) for c in channels)

    def forward(self, z: Tensor, condition: Tensor | None, level: float, truncation: float = 1.0) -> Tensor:
        upper = math.ceil(level)
        code, given = pixel_norm(with_maps(z, self.embed(condition))).tensor_split((self.latent,), 1)
        x = self.dense(torch.cat([truncation * code, given], 1)).view(-1, *self.start)
        x = below = _normed(self.first(_normed(x)))
        for block in list(self.blocks)[:upper]:
            below, x = x, block(_double(x))
        image = self.to_image[upper](x)
        return image if upper == level else _double(self.to_image[upper - 1](below)).lerp(image, level - upper + 1)


class GrowingCritic(nn.Module):
    """From images at a level's resolution and a condition to one number each, `(B,)`: the generator mirrored.

    Args:
        space: of images.
        channels: of each resolution, smallest first.
        group: examples that the deviation within the batch is taken over; 1 for none.
    """

    def __init__(self, space: Space, channels: list[int], group: int) -> None:
        super().__init__()
        depth = len(channels) - 1
        self.from_image = nn.ModuleList(EqualConv(space.shape[0], c, 1) for c in channels)
        pairs = itertools.pairwise(channels)
        self.blocks = nn.ModuleList(TwoConvs(b, b, a, after=leaky) for a, b in pairs)
        sides = -(-space.shape[1] // 2**depth), -(-space.shape[2] // 2**depth)
        self.head = CriticHead(space, channels[0], sides, group)

    def forward(self, x: Tensor, condition: Tensor | None, level: float) -> Tensor:
        upper = math.ceil(level)
        y = leaky(self.from_image[upper](x))
        for i in range(upper, 0, -1):
            y = F.avg_pool2d(self.blocks[i - 1](y), 2)
            if i == upper > level:
                y = leaky(self.from_image[i - 1](F.avg_pool2d(x, 2))).lerp(y, level - upper + 1)
        return self.head(y, condition)


class ProGAN(GANSystem):
    """Progressive growing of GANs (survey 4.2; Karras et al., 2018).

    Both players start at about 4x4 pixels and double the sides together: each new resolution is faded in beside what
    the one below makes, on data blurred alike. Wasserstein game with gradient penalty; weights of equal learning
    rates; pixel norm in the generator; the critic sees how much examples differ within the batch.

    BigGAN's truncation would do next to nothing: codes are normed to a sphere, and whatever bound their components had,
    by symmetry they keep mean 0 and covariance I on it. What changes samples is to draw the normed code towards that
    mean, as StyleGAN does with its styles: `truncation` is the share of the way that is left.
    """

    least_batch: ClassVar[int] = 16  # each of its stages needs steps
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.99},
        "cifar10": {"latent": 512, "width": 128, "batch_size": 16, "lr": 1e-3, "ema": 0.999},
        "lsun256": {"latent": 512, "width": 64, "batch_size": 16, "lr": 1e-3, "ema": 0.999},
        "celebahq256": {"latent": 512, "width": 64, "batch_size": 16, "lr": 1e-3, "ema": 0.999},
        "celebahq1024": {"latent": 512, "width": 16, "batch_size": 16, "lr": 1e-3, "ema": 0.999},
    }
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "celebahq1024": (23.1e6, "Karras et al. 2019 (StyleGAN), appendix B: the traditional generator", "generator")
    }
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"truncation": (0.25, 0.5, 0.75, 1.0)}

    generator: GrowingGenerator
    level: Tensor

    game = "wasserstein-gp"
    width: int = width_option(32, "channels at full resolution, doubled at each halving", tune=(8, 256))
    widest: int = option(512, "the most channels that a layer has", least=0)
    growth: float = option(
        0.4, "share of the training in which the resolution grows; 0 starts at the full one", least=0
    )
    group: int = option(4, "examples that the critic's deviation within the batch is taken over; 1 for none", least=0)
    drift: float = option(1e-3, "weight of the critic's squared output on the data, which keeps it near 0", least=0)
    truncation: float = option(
        1.0, "of samples: their normed codes are multiplied by it; 0 gives one image (of a class), 1 all", least=0
    )
    lr = 5e-3
    beta2 = 0.99

    def players(self) -> tuple[nn.Module, nn.Module]:
        self.depth = halvings(self.space)
        channels = widths(self.width, self.widest, self.depth)
        self.register_buffer("level", torch.zeros(()))
        return (GrowingGenerator(self.space, self.latent, channels), GrowingCritic(self.space, channels, self.group))

    def begin(self, progress: float) -> None:
        self.level.fill_(level_at(progress, self.depth, self.growth))

    def seen(self, x: Tensor) -> Tensor:
        return at_level(self._canvas(x), self.level.item(), self.depth)

    def generate(self, n: int, condition: Tensor | None) -> Tensor:
        return self.generator(torch.randn(n, self.latent, device=self.device), condition, self.level.item())

    def judge(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.critic(x, condition, self.level.item())

    def critic_penalty(self, real: Tensor, fake: Tensor, on_real: Tensor, condition: Tensor | None) -> Held:
        penalty, stats = super().critic_penalty(real, fake, on_real, condition)
        return self.drift * on_real.square().mean() + penalty, stats

    def generator_penalty(self, n: int, condition: Tensor | None) -> Held:
        return 0.0, {"level": self.level}

    def _canvas(self, x: Tensor) -> Tensor:
        """Centred images, their last row and column repeated up to sides that can be halved `depth` times."""
        height, width = self.space.shape[1:]
        whole = [side * 2**self.depth for side in self.generator.start[1:]]
        return F.pad(centre(x, self.space), (0, whole[1] - width, 0, whole[0] - height), mode="replicate")

    def networks(self) -> list[nn.Module]:
        """None: what is computed changes with the level, and compiled code has no double backward."""
        return []

    def of_codes(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return self.generator(z, condition, self.level.item(), self.truncation)

    def finish(self, x: Tensor) -> Tensor:
        """At full resolution, without what pads the sides."""
        x = F.interpolate(x, scale_factor=2.0 ** (self.depth - math.ceil(self.level.item())))
        return x[..., : self.space.shape[1], : self.space.shape[2]]

    def monitor(self, batch: Batch) -> dict[str, float]:
        return {**super().monitor(batch), "level": self.level.item()}
