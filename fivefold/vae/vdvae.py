"""Very deep variational autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.coders import zero
from fivefold.nets.colours import ColourMixture
from fivefold.nets.condition import ConditionEmbedding, with_maps
from fivefold.space import Batch, Space
from fivefold.system import Density, LatentSystem, Update
from fivefold.tools.distributions import gaussian_log_prob
from fivefold.tools.scaling import centre, log_mean_exp
from fivefold.tools.schedule import warm_cosine
from fivefold.vae.vae import kl_to_standard_normal

CONDITION_WIDTH = 32
COARSE = 4  # sides up to which a grid is not halved but followed by one of a single position
FLAT = 2  # sides up to which convolutions see one position only
MOST_BIASED = 64  # sides up to which a grid has a learnt start at each position
MOST_NUMBERS = 2**22  # features of full size held at once when scoring

Choose = Callable[[int, Tensor, Tensor, Tensor], Tensor]
Posterior = Callable[[int, Tensor], tuple[Tensor, Tensor]]


class VDVAE(LatentSystem):
    """Very deep variational autoencoder (survey 3.1.1; Child, 2021).

    A hierarchy of Gaussian codes as deep as the decoder: on grids from one position up to full size, each of many
    top-down blocks draws a code z given all above it and adds it to a residual stream, p(z) = prod p(z_l|z_<l).
    The posterior q(z_l|z_<l, x) shares the stream and sees what a bottom-up encoder found on the same grid. What
    ends a residual block is scaled by 1/sqrt(number of blocks), grids are enlarged by repetition and steps with a
    large gradient are left out (the trainer's `skip`): so it trains without warming the divergence up.

    The loss is the evidence lower bound with every divergence in closed form, in nats per dimension; `log_prob` is
    importance-weighted, at least as tight. `temperature` scales the deviation of every prior that is sampled.

    Args:
        space: what one example is.
        width: channels of the residual stream.
        bottleneck: share of them in the middle of a block.
        latent: channels of each code.
        blocks: top-down and bottom-up blocks on each grid, but one on the largest, where they cost the most, and at
            the single position; where the next two do not say.
        encoder_blocks: bottom-up blocks on each grid, largest first: 12,7,7,4,3.
        decoder_blocks: top-down blocks on each grid, smallest first: 1,3,6,11,22.
        mixtures: components of the mixture of logistics.
        warmup: share of the budget over which the weight of the divergence rises to 1, so that codes are used early;
            the paper does without.
        temperature: of the codes that are sampled; 1 is the model's own.
        score_samples: of all codes for each example in the importance-weighted bound.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND}
    free_form: ClassVar[bool] = True
    sampling: ClassVar[str] = "direct"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.6, 0.8, 0.9, 1.0)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"lr": 8e-3, "batch_size": 32, "ema": 0.998, "clip": 200.0, "skip": 400.0},
        "cifar10": {
            "width": 384, "bottleneck": 0.25, "latent": 16,
            "encoder_blocks": "12,7,7,4,3", "decoder_blocks": "1,3,6,11,22",
            "batch_size": 32, "lr": 2e-4, "weight_decay": 0.01, "ema": 0.9999, "clip": 200.0, "skip": 400.0,
        },
        "imagenet32": {
            "width": 512, "bottleneck": 0.25, "latent": 16,
            "encoder_blocks": "16,10,9,7,6", "decoder_blocks": "2,5,10,20,41",
            "batch_size": 256, "lr": 1.5e-4, "weight_decay": 0.01, "ema": 0.999, "clip": 200.0, "skip": 300.0,
        },
        "imagenet64": {
            "width": 512, "bottleneck": 0.25, "latent": 16,
            "encoder_blocks": "12,21,10,9,8,5", "decoder_blocks": "2,4,8,16,32,13",
            "batch_size": 128, "lr": 1.5e-4, "weight_decay": 0.01, "ema": 0.999, "clip": 220.0, "skip": 380.0,
        },
        "ffhq256": {
            "width": 512, "bottleneck": 0.25, "latent": 16,
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

    def __init__(
        self,
        space: Space,
        *,
        width: int = 32,
        bottleneck: float = 0.5,
        latent: int = 8,
        blocks: int = 2,
        encoder_blocks: str = "",
        decoder_blocks: str = "",
        mixtures: int = 10,
        warmup: float = 0.0,
        temperature: float = 1.0,
        score_samples: int = 16,
    ) -> None:
        super().__init__(space)
        self.warmup, self.temperature, self.score_samples = warmup, temperature, score_samples
        self.grids = _grids(*space.shape[1:])
        counts = [blocks] * len(self.grids)
        counts[0] = counts[-1] = 1
        up = _counts("encoder_blocks", encoder_blocks, counts)
        down = _counts("decoder_blocks", decoder_blocks, counts[::-1])
        middle = max(1, int(width * bottleneck))
        self.embed = ConditionEmbedding(space.condition, CONDITION_WIDTH)
        self.head = ColourMixture(space, mixtures)
        self.encoder = _BottomUp(space, self.embed.width, width, middle, self.grids, up)
        self.grids = self.grids[::-1]  # from here on smallest first
        self.context = nn.ModuleList(nn.Linear(self.embed.width, width) for _ in self.grids if space.condition)
        self.starts = nn.ParameterList(
            nn.Parameter(torch.zeros(width, *grid)) for grid in self.grids if max(grid) <= MOST_BIASED
        )
        self.levels = [level for level, count in enumerate(down) for _ in range(count)]  # of every block
        self.blocks = nn.ModuleList(
            _TopDown(width, middle, latent, max(self.grids[level]) > FLAT, len(self.levels)) for level in self.levels
        )
        self.gain, self.bias = nn.Parameter(torch.ones(width, 1, 1)), nn.Parameter(torch.zeros(width, 1, 1))
        self.last = zero(nn.Conv2d(width, self.head.width, 1))

    @property
    def density_note(self) -> str:  # type: ignore[override]
        return f"{self.score_samples} samples"

    # --- one way down, whoever chooses the codes -------------------------------------------------

    def _descend(self, n: int, condition: Tensor | None, choose: Choose) -> Tensor:
        """Parameters of the likelihood; `choose` gives each block's code `(n, latent, h, w)`.

        It is given the number of the block, the stream and the prior's mean and log-scale.
        """
        embedding, h = self.embed(condition), self.gain.new_zeros(n, len(self.gain), 1, 1)
        level = -1
        for number, block in enumerate(self._blocks):
            if self.levels[number] != level:
                level = self.levels[number]
                h = self._enlarge(h, level, embedding)
            mean, log_scale, onward = block.prior_of(h)
            h = block.merge(onward, choose(number, h, mean, log_scale))
        return self.last(h * self.gain + self.bias)

    def _enlarge(self, h: Tensor, level: int, embedding: Tensor | None) -> Tensor:
        """The stream on the next grid: repeated (nearest neighbours), plus what is learnt of each position."""
        h = F.interpolate(h, self.grids[level], mode="nearest")
        if level < len(self.starts):
            h = h + self.starts[level]
        return h if embedding is None else h + self.context[level](embedding)[:, :, None, None]

    @property
    def _blocks(self) -> list[_TopDown]:
        return list(self.blocks)  # type: ignore[arg-type]

    def posteriors(self, x: Tensor, condition: Tensor | None) -> Posterior:
        """The encoder's work done once: a function of a block's number and its stream to mean and log-scale."""
        found = self.encoder(with_maps(centre(x, self.space), self.embed(condition)))[::-1]

        def posterior(number: int, h: Tensor) -> tuple[Tensor, Tensor]:
            at = found[self.levels[number]]
            return self._blocks[number].posterior_of(h, at.repeat(len(h) // len(at), 1, 1, 1))

        return posterior

    def terms(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """With one draw of each code: ln p(x|z) `(B,)` and the divergence of each block `(blocks, B)`, in nats."""
        posterior, kls = self.posteriors(x, condition), []

        def choose(number: int, h: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
            q_mean, q_log_scale = posterior(number, h)
            kls.append(gaussian_kl(q_mean, q_log_scale, mean, log_scale).flatten(1).sum(1))
            return _draw(q_mean, q_log_scale)

        maps = self._descend(len(x), condition, choose)
        return self.head.log_prob(maps, x), torch.stack(kls)

    def elbo(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The evidence lower bound of encoded examples, with one draw of each code: nats `(B,)`."""
        log_likelihood, kls = self.terms(x, condition)
        return log_likelihood - kls.sum(0)

    # --- training -------------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        log_likelihood, kls = self.terms(*batch)
        weight = min(1.0, progress / self.warmup) if self.warmup else 1.0
        loss = (weight * kls.sum(0) - log_likelihood).mean() / self.space.dims  # thresholds are of this scale
        yield Update(self, loss, {"kl": kls.sum(0).mean()})

    def optimizers(self, lr: float = 1e-3, weight_decay: float = 0.01) -> dict[nn.Module, torch.optim.Optimizer]:
        """AdamW with the paper's moments.

        Args:
            lr: learning rate.
            weight_decay: decoupled from the gradient; it is multiplied by the learning rate.
        """
        params = self.parameters()
        return {self: torch.optim.AdamW(params, lr, (0.9, 0.9), weight_decay=weight_decay, fused=True)}

    def learning_rate(self, progress: float) -> float:
        """Warmed up over a hundredth of the budget, constant for half of it, then down along a cosine."""
        return warm_cosine(progress, level=0.5)

    # --- density, samples, codes ----------------------------------------------------------------

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ln of the mean over `score_samples` of p(x, z) / q(z|x), and its standard error; the encoder runs once."""
        posterior = self.posteriors(x, condition)
        size = max(1, MOST_NUMBERS // (len(x) * len(self.gain) * math.prod(self.grids[-1])))
        counts = [min(size, self.score_samples - i) for i in range(0, self.score_samples, size)]
        return log_mean_exp(torch.cat([self._log_weights(k, x, condition, posterior) for k in counts]))

    def _log_weights(self, k: int, x: Tensor, condition: Tensor | None, posterior: Posterior) -> Tensor:
        """ln p(x, z) / q(z|x) `(k, B)` for k draws of all codes."""
        ratios = []

        def choose(number: int, h: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
            q_mean, q_log_scale = posterior(number, h)
            z = _draw(q_mean, q_log_scale)
            ratio = gaussian_log_prob(z, mean, log_scale) - gaussian_log_prob(z, q_mean, q_log_scale)
            ratios.append(ratio.flatten(1).sum(1))
            return z

        x, condition = x.repeat(k, 1, 1, 1), None if condition is None else condition.repeat(k, 1)
        maps = self._descend(len(x), condition, choose)
        return (self.head.log_prob(maps, x) + torch.stack(ratios).sum(0)).view(k, -1)

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        def choose(number: int, h: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
            return mean + self.temperature * log_scale.exp() * torch.randn_like(mean)

        return self.head.sample(self._descend(n, condition, choose))

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The posterior's mean of every code, one after another: `(B, codes)`."""
        posterior, codes = self.posteriors(x, condition), list[Tensor]()

        def choose(number: int, h: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
            codes.append(posterior(number, h)[0])
            return codes[-1]

        self._descend(len(x), condition, choose)
        return torch.cat([code.flatten(1) for code in codes], 1)

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        codes = self._split(z)
        return self.head.mode(self._descend(len(z), condition, lambda i, *_: codes[i]))

    @property
    def code_shapes(self) -> list[tuple[int, int, int]]:
        """Of each block's code."""
        return [(self._blocks[0].latent, *self.grids[level]) for level in self.levels]

    def _split(self, z: Tensor) -> list[Tensor]:
        """The codes of each block, which lie one after another in `z` `(B, codes)`."""
        shapes = self.code_shapes
        parts = z.split([math.prod(shape) for shape in shapes], 1)
        return [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]

    def generate(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        """Parameters of the likelihood of codes that are the prior's means plus deviations times `noise` `(B, codes)`.

        Standard normal noise gives draws from the prior; it can be differentiated.
        """
        parts = self._split(noise)
        return self._descend(len(noise), condition, lambda i, h, mean, log_scale: mean + log_scale.exp() * parts[i])

    def _rate_distortion(self, x: Tensor, condition: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Of each grid, smallest first; the codes below are the prior's means."""
        nats, posterior = self._nats_of_grids(self.terms(x, condition)[1]), self.posteriors(x, condition)

        def upto(deepest: int) -> Tensor:
            def choose(number: int, h: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
                return posterior(number, h)[0] if self.levels[number] <= deepest else mean

            return self.head.mode(self._descend(len(x), condition, choose))

        return [(nats[level], upto(level)) for level in range(len(self.grids))]

    def _nats_of_grids(self, kls: Tensor) -> Tensor:
        """`(grids, B)` of the blocks' `(blocks, B)`."""
        index = torch.tensor(self.levels, device=kls.device)
        return kls.new_zeros(len(self.grids), kls.shape[1]).index_add_(0, index, kls)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Against unused codes: the divergence on each grid; and the evidence lower bound."""
        log_likelihood, kls = self.terms(*batch)
        by_grid = self._nats_of_grids(kls).mean(1)
        return {
            "elbo": (log_likelihood - kls.sum(0)).mean().item() + self.space.log_det,
            "kl": by_grid.sum().item(),
            "least_block": kls.mean(1).min().item(),
            **{f"kl_{h}x{w}": nats.item() for (h, w), nats in zip(self.grids, by_grid, strict=True)},
        }

    def networks(self) -> list[nn.Module]:
        return [self.encoder]


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

    def prior_of(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log-scale of p(z|h) `(B, latent, h, w)`, and the stream with what the prior adds to it."""
        mean, log_scale, more = self.prior(h).split([self.latent, self.latent, h.shape[1]], 1)
        return mean.float(), log_scale.float(), h + more

    def posterior_of(self, h: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of q(z|h, x), of what the encoder found on this grid."""
        mean, log_scale = self.posterior(torch.cat([h, found], 1)).float().chunk(2, 1)
        return mean, log_scale

    def merge(self, h: Tensor, z: Tensor) -> Tensor:
        h = h + self.project(z)
        return h + self.residual(h)


def gaussian_kl(mean: Tensor, log_scale: Tensor, prior_mean: Tensor, prior_log_scale: Tensor) -> Tensor:
    """KL(N(mean, scale^2) || N(prior_mean, prior_scale^2)) elementwise, in nats: that to N(0, 1) in its units."""
    return kl_to_standard_normal((mean - prior_mean) * torch.exp(-prior_log_scale), log_scale - prior_log_scale)


def shrink(layer: nn.Conv2d, depth: int) -> nn.Conv2d:
    """The layer with its weights scaled by 1/sqrt(depth), so that a stream of so many sums keeps its variance."""
    with torch.no_grad():
        layer.weight.mul_(depth**-0.5)
    return layer


def _draw(mean: Tensor, log_scale: Tensor) -> Tensor:
    return mean + log_scale.exp() * torch.randn_like(mean)


def _grids(height: int, width: int) -> list[tuple[int, int]]:
    """Halved, rounding up, until neither side exceeds 4, then one position."""
    grids = [(height, width)]
    while max(grids[-1]) > COARSE:
        grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
    return grids if grids[-1] == (1, 1) else [*grids, (1, 1)]


def _counts(name: str, text: str, default: list[int]) -> list[int]:
    """Blocks on each grid, as `text` says them or by default."""
    counts = [int(part) for part in text.split(",")] if text else default
    if len(counts) != len(default) or min(counts) < 1:
        grids, given = len(default), text or f"blocks={min(default)}"
        raise ValueError(f"{name} needs {grids} counts of at least 1 for these images (2,3,...), got {given}")
    return counts
