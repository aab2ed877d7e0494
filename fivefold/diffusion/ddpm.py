"""Denoising diffusion: learn to remove noise one small step at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fivefold.nets.unet import TimedMLP, UNet
from fivefold.options import option
from fivefold.space import Batch
from fivefold.system import Density, LatentSystem
from fivefold.tools.diffusion import (
    SCHEDULES,
    GaussianDiffusion,
    alpha_bars,
    discretised_gaussian_log_prob,
    quantile,
    spread,
    timestep_grid,
)
from fivefold.tools.distributions import gaussian_log_prob
from fivefold.tools.scaling import centre, uncentre
from fivefold.tools.schedule import warm_cosine

CHUNK = 2**15  # numbers scored at once
REAL_LEVEL = 0.04  # the distance between levels that standardised reals count as having
INVERSIONS = 3  # fixed-point iterations of each step of `encode`

# Deviation of a sampling step as a share of the posterior's.
SAMPLERS = {"ddpm": lambda eta: 1.0, "ddim": lambda eta: eta}
# In what proportion the times 1..T are trained: evenly (the paper's simple loss), or as they weigh in the ELBO.
WEIGHTINGS = {
    "simple": lambda diffusion: torch.ones_like(diffusion.noise_weight),
    "elbo": lambda diffusion: diffusion.noise_weight,
}


class DDPM(LatentSystem):
    """Denoising diffusion (survey 2.3.1; Ho et al., 2020).

    Learns the noise in an example at every strength of noise; samples by removing it from pure noise, step by
    step. Samples are among the best and training is stable; sampling takes many evaluations, and the density
    is a bound, term by term, that the simple loss does not aim at.

    Levels become evenly spaced reals on [-1, 1] (so categories have an order here that means nothing) and the
    last step's decoder gives each level the mass of its cell, so the bound is one on probabilities; real
    columns keep a density. It is the bound of the ancestral sampler with all T steps, also where samples are
    drawn in fewer steps or deterministically. The codes of `encode` are those of the deterministic sampler,
    run backwards.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.LOWER_BOUND}
    sampling: ClassVar[str] = "iterative"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sampling_steps": (5, 10, 20, 50)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # At most of the linear schedule's times, made for larger images, too little is left of small ones.
        "default": {"batch_size": 16, "ema": 0.999, "clip": 1.0, "evaluations": 1},
        "cifar10": {
            "channels": 128, "blocks": 2, "attention": 16, "dropout": 0.1, "sampler": "ddpm", "sampling_steps": 1000,
            "score_steps": 0, "lr": 2e-4, "batch_size": 128, "ema": 0.9999,
        },
        "celebahq256": {
            "channels": 128, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "attention": 16, "sampler": "ddpm",
            "sampling_steps": 1000, "score_steps": 0, "lr": 2e-5, "batch_size": 64, "ema": 0.9999,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "cifar10": (35.7e6, "Ho et al. 2020, appendix B"),
        "celebahq256": (114e6, "Ho et al. 2020, appendix B"),
    }

    half_cell: Tensor
    limit: Tensor
    share: Tensor

    timesteps: int = option(1000, "T, steps of the diffusion", least=1)
    schedule: Literal["linear", "cosine"] = option("cosine", "how the noise grows")
    first_noise: float = option(
        0.25,
        "standard deviation of the first step's noise, in distances between levels (real columns count as having "
        "one every 0.04). More is coarse; less makes the network learn what the decoder knows",
        least=0,
    )
    variance: Literal["forward", "posterior"] = option(
        "forward", "of the reverse steps in the bound: that of the forward steps, or of the posterior given x_0"
    )
    weighting: Literal["simple", "elbo"] = option(
        "simple", "simple (the paper's loss) or elbo (each time as often as it weighs in the bound)"
    )
    sampler: Literal["ddpm", "ddim"] = option("ddim", "ddpm (the ancestral one) or ddim")
    eta: float = option(0.0, "noise of ddim: 0 is deterministic, 1 ancestral", least=0)
    sampling_steps: int = option(50, "network evaluations a sample, at most T", least=1)
    score_steps: int = option(
        64,
        "network evaluations to score an example, drawn in pairs from equal shares of the bound; 0 sums all T terms",
        least=0,
    )
    channels: int = option(24, "of the U-Net at full resolution (images)", least=1, tune=(8, 128), log=True)
    multipliers: tuple[int, ...] = option(
        (1, 2, 2, 2), "of the channels at each resolution, the full one first; as many as there are are used (images)"
    )
    blocks: int = option(1, "residual blocks of the U-Net at each resolution (images)", least=1, tune=(1, 8))
    attention: int = option(0, "resolution whose positions attend to each other; 0 for the lowest (images)", least=0)
    dropout: float = option(0.0, "in the U-Net's blocks (images)", least=0, below=1, tune=(0.0, 0.5))
    hidden: int = option(128, "width of the network (tables)", least=1, tune=(16, 512), log=True)
    layers: int = option(3, "residual layers of the network (tables)", least=1, tune=(1, 16))

    def build(self) -> None:
        super().build()
        self.sampling_steps = min(self.sampling_steps, self.timesteps)
        self.eta = SAMPLERS[self.sampler](self.eta)
        half = torch.tensor([math.nan if n is None else 1 / max(n - 1, 1) for n in self.space.dim_levels]).view(
            self.space.shape
        )
        self.register_buffer("half_cell", half.nan_to_num(0.0), persistent=False)  # half the distance between levels
        self.register_buffer("limit", torch.where(half.isnan(), math.inf, 1.0), persistent=False)
        resolution = min(REAL_LEVEL if n is None else 2 / max(n - 1, 1) for n in self.space.dim_levels)
        noise = min(max(self.first_noise * resolution, 1e-3), 0.5)
        self.diffusion = GaussianDiffusion(alpha_bars(SCHEDULES[self.schedule], self.timesteps, noise), self.variance)
        self.register_buffer("share", WEIGHTINGS[self.weighting](self.diffusion).cumsum(0), persistent=False)
        self.network: nn.Module
        if self.space.kind == "image":
            self.network = UNet(self.space, self.channels, self.multipliers, self.blocks, self.attention, self.dropout)
        else:
            self.network = TimedMLP(self.space, self.hidden, self.layers)

    @property
    def density_note(self) -> str:
        return f"{self.score_steps or self.timesteps} of {self.timesteps} terms"

    # --- training -------------------------------------------------------------------------------

    def learning_rate(self, progress: float) -> float:
        """Warm-up over the first hundredth, then a cosine to a twentieth."""
        return warm_cosine(progress, floor=0.05)

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error of the predicted noise: the simple loss (survey 2.3.1, Ho et al. Eq. 14)."""
        x = centre(batch.x, self.space)
        t = quantile(self.share, spread(len(x), x.device)) + 1
        noise = torch.randn_like(x)
        predicted = self.noise(self.diffusion.diffuse(x, t, noise), t, batch.condition)
        return (noise - predicted).square().mean()

    def noise(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The predicted noise in `x_t` at times `t` `(B,)`, or one for all `(1,)`."""
        # what a standard normal x_0 would make optimal, and the network's correction
        prior = self.diffusion.noise[t].view(-1, *[1] * (x_t.dim() - 1)) * x_t
        return prior + self.network(x_t, t / self.diffusion.timesteps, condition)

    def clean(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The predicted x_0, on [-1, 1] where it is discrete."""
        return self._clip(self.diffusion.clean(x_t, t, self.noise(x_t, t, condition)))

    def _clip(self, x: Tensor) -> Tensor:
        return torch.clamp(x, -self.limit, self.limit)

    # --- density --------------------------------------------------------------------------------

    @torch.no_grad()
    def elbo_terms(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The terms of -ELBO in nats `(B, T + 1)` of encoded examples: L_0, ..., L_T (Ho et al. Eq. 5).

        One draw of noise each. Their sum bounds -ln p(x) from above in expectation.
        """
        y = centre(x, self.space)
        t = torch.arange(1, self.diffusion.timesteps + 1, device=y.device)
        terms = self._terms(y, t[:, None].expand(-1, len(y)), condition)
        return torch.cat([terms.T, self.diffusion.prior_kl(y)[:, None]], 1)

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ELBO and the standard error of its estimate, nats `(B,)`: a bound in expectation."""
        if not self.score_steps or self.score_steps >= self.diffusion.timesteps:
            return self._full_bound(x, condition)
        return self._sampled_bound(centre(x, self.space), condition)

    def _full_bound(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum of all terms. Its error: L_0 drawn twice; the others change so slowly that neighbours do for it."""
        terms = self.elbo_terms(x, condition)
        first = torch.ones(1, len(x), dtype=torch.long, device=x.device)
        again = self._terms(centre(x, self.space), first, condition).T
        differences = torch.cat([terms[:, :1] - again, terms[:, 1:-1].diff(dim=1)], 1)
        return -terms.sum(1), (differences.square().sum(1) / 2).sqrt()

    def _sampled_bound(self, y: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Two draws of L_0 and in each of equal shares of the other terms, by their weight of the noise's error.

        The mean of each two is unbiased whatever the terms are, and their difference tells its error.
        """
        pairs = max(self.score_steps // 2 - 1, 1)
        share = torch.arange(pairs, device=y.device).view(-1, 1, 1)
        weight = self.diffusion.noise_weight[1:]
        index = quantile(weight.cumsum(0), (share + torch.rand(pairs, 2, len(y), device=y.device)) / pairs)
        t = torch.cat([torch.ones_like(index[:1]), index + 2])
        scale = torch.ones(t.shape, dtype=torch.float64, device=y.device)
        scale[1:] = weight.sum() / weight[index] / pairs
        draws = self._terms(y, t.flatten(0, 1), condition).view(t.shape) * scale
        value = draws.mean(1).sum(0) + self.diffusion.prior_kl(y)
        return -value, ((draws[:, 0] - draws[:, 1]).square().sum(0) / 4).sqrt()

    def _terms(self, y: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """L_{t-1} in nats `(K, B)` of centred examples `(B, ...)` at times `t` `(K, B)`."""
        parts = []
        per_part = max(CHUNK // y.numel(), 1)
        for times in t.split(per_part):
            repeats = [len(times), *[1] * (y.dim() - 1)]
            x, t_flat = y.repeat(repeats), times.flatten()
            given = None if condition is None else condition.repeat(len(times), *[1] * (condition.dim() - 1))
            predicted = self.clean(self.diffusion.diffuse(x, t_flat, torch.randn_like(x)), t_flat, given)
            terms, first = self.diffusion.step_kl(x, predicted, t_flat), t_flat == 1
            if first.any():
                terms[first] = -self._decoder_log_prob(x[first], predicted[first])
            parts.append(terms.view(times.shape))
        return torch.cat(parts)

    def _decoder_log_prob(self, y: Tensor, mean: Tensor) -> Tensor:
        """ln p(x_0 | x_1), nats `(B,)`: the mass of the cell of a level, the density of a real column."""
        deviation = math.sqrt(1 - self.diffusion.alpha_bar[1])
        mass = discretised_gaussian_log_prob(y, mean, deviation, self.half_cell.double())
        density = gaussian_log_prob(y.double(), mean.double(), torch.tensor(math.log(deviation)))
        return torch.where(self.limit.isinf(), density, mass).flatten(1).sum(1)

    # --- sampling -------------------------------------------------------------------------------

    @property
    def sample_evaluations(self) -> int:
        return self.sampling_steps

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        x = torch.randn(n, *self.space.shape, device=self.device)
        return uncentre(self._denoise(x, condition, self.eta, self._clip), self.space)

    def _denoise(
        self, x: Tensor, condition: Tensor | None, eta: float, clip: Callable[[Tensor], Tensor] = lambda x: x
    ) -> Tensor:
        """From x_T to x_0 along the grid of sampling steps."""
        for t, s in pairwise(timestep_grid(self.diffusion.timesteps, self.sampling_steps)):
            times = torch.tensor([t], device=x.device)
            x_0 = clip(self.diffusion.clean(x, times, self.noise(x, times, condition)))
            x = self.diffusion.step(x, x_0, t, s, eta * self.diffusion.posterior_deviation(t, s))
        return x

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """x_T from which deterministic sampling gives `x`: each of its steps inverted by fixed-point iteration."""
        z = centre(x, self.space)
        for s, t in pairwise(reversed(timestep_grid(self.diffusion.timesteps, self.sampling_steps))):
            times = torch.tensor([t], device=z.device)
            x_s = z
            for _ in range(INVERSIONS):
                z = self.diffusion.unstep(x_s, self.noise(z, times, condition), t, s)
        return z

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return uncentre(self._denoise(z, condition, eta=0.0), self.space)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Where the bound's bits are: in the decoder L_0, the steps, the prior L_T, in nats an example."""
        y = centre(batch.x, self.space)
        decoder = self._terms(y, torch.ones(1, len(y), dtype=torch.long, device=y.device), batch.condition)
        return {"nats_of_decoder": decoder.mean().item(), "nats_of_prior": self.diffusion.prior_kl(y).mean().item()}
