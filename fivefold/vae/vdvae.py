"""Very deep variational autoencoder."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.coders import zero
from fivefold.nets.colours import ColourMixture
from fivefold.nets.condition import ConditionEmbedding, with_maps
from fivefold.options import depth_option, option, width_option
from fivefold.space import Space
from fivefold.system import Density
from fivefold.tools.distributions import standard_normal_log_prob
from fivefold.tools.scaling import centre
from fivefold.tools.schedule import warm_cosine
from fivefold.vae._ladder import Gaussian, LadderSystem, grids_of

CONDITION_WIDTH = 32
FLAT = 2  # sides up to which convolutions see one position only
MOST_BIASED = 64  # sides up to which a grid has a learnt start at each position


class VDVAE(LadderSystem):
    """Very deep variational autoencoder (survey 3.1.1; Child, 2021).

    A hierarchy of Gaussian codes as deep as the decoder: on grids from one position up to full size, each of many
    top-down blocks draws a code z given all above it and adds it to a residual stream, p(z) = prod p(z_l|z_<l).
    The posterior q(z_l|z_<l, x) shares the stream and sees what a bottom-up encoder found on the same grid. What
    ends a residual block is scaled by 1/sqrt(number of blocks), grids are enlarged by repetition and steps with a
    large gradient are left out (the trainer's `skip`): so at the paper's sizes it trains without warming the divergence
    up.

    The loss is the evidence lower bound with every divergence in closed form, in nats per dimension; `log_prob` is
    importance-weighted, at least as tight. `temperature` scales the deviation of every prior that is sampled.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.998, "clip": 200.0, "skip": 400.0},
        "cifar10": {
            "width": 384, "bottleneck": 0.25, "latent": 16, "warmup": 0.0,
            "encoder_blocks": "12,7,7,4,3", "decoder_blocks": "1,3,6,11,22",
            "batch_size": 32, "lr": 2e-4, "weight_decay": 0.01, "ema": 0.9999, "clip": 200.0, "skip": 400.0,
        },
        "imagenet32": {
            "width": 512, "bottleneck": 0.25, "latent": 16, "warmup": 0.0,
            "encoder_blocks": "16,10,9,7,6", "decoder_blocks": "2,5,10,20,41",
            "batch_size": 256, "lr": 1.5e-4, "weight_decay": 0.01, "ema": 0.999, "clip": 200.0, "skip": 300.0,
        },
        "imagenet64": {
            "width": 512, "bottleneck": 0.25, "latent": 16, "warmup": 0.0,
            "encoder_blocks": "12,21,10,9,8,5", "decoder_blocks": "2,4,8,16,32,13",
            "batch_size": 128, "lr": 1.5e-4, "weight_decay": 0.01, "ema": 0.999, "clip": 220.0, "skip": 380.0,
        },
        "ffhq256": {
            "width": 512, "bottleneck": 0.25, "latent": 16, "warmup": 0.0,
            "encoder_blocks": "4,9,13,18,8,6,6,4", "decoder_blocks": "2,4,5,10,22,14,8,1",
            "batch_size": 32, "lr": 1.5e-4, "weight_decay": 0.01, "ema": 0.999, "clip": 130.0, "skip": 180.0,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "cifar10": (39e6, "Child 2021, table 1 and the authors' released model"),
        "imagenet32": (119e6, "Child 2021, table 1 and the authors' released model"),
        "imagenet64": (125e6, "Child 2021, table 1 and the authors' released model"),
        "ffhq256": (115e6, "Child 2021, table 1 and the authors' released model"),
    }

    head: ColourMixture

    warmup = 0.2  # without, as in the paper, small images get by with the codes of one grid
    lr = 8e-3
    betas: ClassVar[tuple[float, float]] = (0.9, 0.9)  # the paper's
    width: int = width_option(32, "channels of the residual stream", tune=(16, 128))
    bottleneck: float = option(0.5, "share of them in the middle of a block", above=0, most=1)
    latent: int = option(8, "channels of each code", least=1, tune=(4, 32), log=True)
    blocks: int = depth_option(
        2, "on each grid either way, one on the largest and the smallest; where the next two do not say", tune=(1, 4)
    )
    encoder_blocks: str = option("", "bottom-up blocks on each grid, largest first: 12,7,7,4,3")
    decoder_blocks: str = option("", "top-down blocks on each grid, smallest first: 1,3,6,11,22")
    mixtures: int = option(10, "components of the mixture of logistics", least=1, tune=(3, 10))

    def build(self) -> None:
        width, self.grids = self.width, grids_of(*self.space.shape[1:])
        counts = [self.arguments["blocks"]] * len(self.grids)
        counts[0] = counts[-1] = 1
        up = _counts("encoder_blocks", self.encoder_blocks, counts)
        down = _counts("decoder_blocks", self.decoder_blocks, counts)
        middle = max(1, int(width * self.bottleneck))
        self.embed = ConditionEmbedding(self.space.condition, CONDITION_WIDTH)
        self.head = ColourMixture(self.space, self.mixtures)
        self.encoder = _BottomUp(self.space, self.embed.width, width, middle, self.grids[::-1], up)
        self.context = nn.ModuleList(nn.Linear(self.embed.width, width) for _ in self.grids if self.space.condition)
        self.starts = nn.ParameterList(
            nn.Parameter(torch.zeros(width, *grid)) for grid in self.grids if max(grid) <= MOST_BIASED
        )
        self.levels = [level for level, count in enumerate(down) for _ in range(count)]  # of every block
        self.rungs = nn.ModuleList(
            _TopDown(width, middle, self.latent, max(self.grids[level]) > FLAT, len(self.levels))
            for level in self.levels
        )
        self.gain, self.bias = nn.Parameter(torch.ones(width, 1, 1)), nn.Parameter(torch.zeros(width, 1, 1))
        self.last = zero(nn.Conv2d(width, self.head.width, 1))

    def features(self, x: Tensor, condition: Tensor | None) -> list[Tensor]:
        return self.encoder(with_maps(centre(x, self.space), self.embed(condition)))[::-1]

    def start(self, n: int) -> Tensor:
        return self.gain.new_zeros(n, len(self.gain), 1, 1)

    def enlarge(self, h: Tensor, level: int, embedding: Tensor | None) -> Tensor:
        """Repeated (nearest neighbours), plus what is learnt of each position."""
        h = F.interpolate(h, self.grids[level], mode="nearest")
        if level < len(self.starts):
            h = h + self.starts[level]
        return h if embedding is None else h + self.context[level](embedding)[:, :, None, None]

    def finish(self, h: Tensor) -> Tensor:
        return self.last(h * self.gain + self.bias)

    @property
    def noise_dims(self) -> int:
        """Of what `push` takes: the codes' numbers and the pixels'."""
        return sum(math.prod(shape) for shape in self.code_shapes) + self.space.dims

    def noise(self, n: int) -> Tensor:
        """Draws of what `push` takes."""
        return torch.randn(n, self.noise_dims, device=self.device)

    def noise_log_prob(self, noise: Tensor) -> Tensor:
        """Nats `(B,)` of those."""
        return standard_normal_log_prob(noise)

    def push(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        """Centred images of noise `(B, noise_dims)`, differentiably: of standard normal noise, draws from the model.

        With several components of the likelihood only the heaviest is used, which is not the model's law.
        """
        codes, rest = noise.tensor_split([noise.shape[1] - self.space.dims], 1)
        return self.head.push(self.generate(codes, condition), rest.view(-1, *self.space.shape))

    def learning_rate(self, progress: float) -> float:
        """Warmed up over a hundredth of the budget, constant for half of it, then down along a cosine."""
        return warm_cosine(progress, level=0.5)


class _Residual(nn.Module):
    """1x1, two 3x3 and 1x1 convolutions, each behind a GELU: the paper's block, without its identity.

    Args:
        inputs: channels in.
        middle: channels of the 3x3 convolutions.
        outputs: channels out.
        spatial: whether those see neighbours; else they are 1x1.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, spatial: bool) -> None:
        super().__init__()
        size = 3 if spatial else 1
        between = (nn.Conv2d(middle, middle, size, padding=size // 2) for _ in range(2))
        self.layers = nn.ModuleList([nn.Conv2d(inputs, middle, 1), *between, nn.Conv2d(middle, outputs, 1)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(F.gelu(x))
        return x


class _BottomUp(nn.Module):
    """Images `(B, C + condition, H, W)` to features `(B, width, h, w)` on every grid, largest first.

    The last block on a grid ends in the mean over the patches that make the next one.
    """

    def __init__(
        self, space: Space, condition: int, width: int, middle: int, grids: list[tuple[int, int]], counts: list[int]
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(space.shape[0] + condition, width, 3, padding=1)
        places = [level for level, count in enumerate(counts) for _ in range(count)]
        self.blocks = nn.ModuleList(_Residual(width, middle, width, max(grids[level]) > FLAT) for level in places)
        self.pools = [grids[b] if a != b else None for a, b in pairwise(places)]  # after each block but the last
        for block in self.blocks:
            shrink(block.layers[-1], len(places))  # type: ignore[index, arg-type]

    def forward(self, x: Tensor) -> list[Tensor]:
        found, h = list[Tensor](), self.first(x)
        for block, grid in zip(self.blocks, [*self.pools, None], strict=True):
            onward = h + block(h)
            if grid is not None:
                found.append(h)
                onward = F.adaptive_avg_pool2d(onward, grid)
            h = onward
        return [*found, h]


class _TopDown(nn.Module):
    """One code: its prior and posterior from the stream, and its way into it.

    Args:
        width: channels of the stream.
        middle: channels within blocks.
        latent: channels of the code.
        spatial: whether blocks see neighbours.
        depth: how many such blocks there are; what they add to the stream is scaled by 1/sqrt of it.
    """

    def __init__(self, width: int, middle: int, latent: int, spatial: bool, depth: int) -> None:
        super().__init__()
        self.latent = latent
        self.posterior = _Residual(2 * width, middle, 2 * latent, spatial)
        self.prior = _Residual(width, middle, 2 * latent + width, spatial)
        zero(self.prior.layers[-1])
        self.project = shrink(nn.Conv2d(latent, width, 1), depth)
        self.residual = _Residual(width, middle, width, spatial)
        shrink(self.residual.layers[-1], depth)  # type: ignore[arg-type]

    def prior_of(self, h: Tensor) -> tuple[Gaussian, Tensor]:
        mean, log_scale, more = self.prior(h).split([self.latent, self.latent, h.shape[1]], 1)
        return Gaussian(mean.float(), log_scale.float()), h + more

    def posterior_of(self, h: Tensor, found: Tensor, prior: Gaussian) -> Gaussian:
        return Gaussian(*self.posterior(torch.cat([h, found], 1)).float().chunk(2, 1))

    def merge(self, h: Tensor, z: Tensor) -> Tensor:
        h = h + self.project(z)
        return h + self.residual(h)


def shrink(layer: nn.Conv2d, depth: int) -> nn.Conv2d:
    """The layer with its weights scaled by 1/sqrt(depth), so that a stream of so many sums keeps its variance."""
    with torch.no_grad():
        layer.weight.mul_(depth**-0.5)
    return layer


def _counts(name: str, text: str, default: list[int]) -> list[int]:
    """Blocks on each grid, as `text` says them or by default."""
    counts = [int(part) for part in text.split(",")] if text else default
    if len(counts) != len(default) or min(counts) < 1:
        grids, given = len(default), text or f"blocks={min(default)}"
        raise ValueError(f"{name} needs {grids} counts of at least 1 for these images (2,3,...), got {given}")
    return counts
