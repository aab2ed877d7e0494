"""Denoising diffusion: learn to remove noise one small step at a time."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fivefold.diffusion._system import DiffusionSystem
from fivefold.nets.unet import UNet
from fivefold.options import option
from fivefold.system import Batch, Density
from fivefold.tools.diffusion import SCHEDULES, GaussianDiffusion, alpha_bars, discretised_gaussian_log_prob
from fivefold.tools.distributions import gaussian_log_prob
from fivefold.tools.importance import paired_sum
from fivefold.tools.sde import in_steps

CHUNK = 2**15  # numbers scored at once
REAL_LEVEL = 0.04  # the distance between levels that standardised reals count as having


class DDPM(DiffusionSystem):
    """Denoising diffusion (survey 2.3.1; Ho et al., 2020).

    Learns the noise in an example at every strength of noise; samples by removing it from pure noise, step by
    step. Samples are among the best and training is stable; sampling takes many evaluations, and the density
    is a bound, term by term, that the simple loss does not aim at.

    Levels become evenly spaced reals on [-1, 1] (so categories have an order here that means nothing) and the
    last step's decoder gives each level the mass of its cell, so the bound is one on probabilities; real
    columns keep a density. It is the bound of the ancestral sampler with all T steps, also where samples are
    drawn in fewer steps, deterministically or by the continuous equation that the steps approach.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.LOWER_BOUND}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar10": {
            "channels": 128, "blocks": 2, "attention": 16, "dropout": 0.1, "sampler": "ancestral",
            "sampling_steps": 1000, "score_steps": 0, "lr": 2e-4, "batch_size": 128, "ema": 0.9999,
        },
        "celebahq256": {
            "channels": 128, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "attention": 16, "sampler": "ancestral",
            "sampling_steps": 1000, "score_steps": 0, "lr": 2e-5, "batch_size": 64, "ema": 0.9999,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "cifar10": (35.7e6, "Ho et al. 2020, appendix B"),
        "celebahq256": (114e6, "Ho et al. 2020, appendix B"),
    }

    half_cell: Tensor

    timesteps: int = option(1000, "T, steps of the diffusion", least=2)
    # at most of the linear schedule's times, made for larger images, too little is left of small ones
    schedule: Literal["linear", "cosine"] = option("cosine", "how the noise grows")
    first_noise: float = option(
        0.25, "standard deviation of the first step's noise, in distances between levels (real columns count as having "
        "one every 0.04). More is coarse; less makes the network learn what the decoder knows", least=0,
    )  # fmt: skip
    variance: Literal["forward", "posterior"] = option(
        "forward", "of the reverse steps in the bound: that of the forward steps, or of the posterior given x_0"
    )
    score_steps: int = option(
        64, "network evaluations to score an example, drawn in pairs from equal shares of the bound; 0 sums all T "
        "terms", least=0,
    )  # fmt: skip
    multipliers: tuple[int, ...] = option(
        (1, 2, 2, 2), "of the channels at each resolution, the full one first; as many as there are are used (images)"
    )
    prediction = "residual"
    sampler = "ddim"
    sampling_steps = 50

    def set_up(self) -> Tensor:
        levels = self.space.dim_levels
        half = torch.tensor([1 / max((n or 2) - 1, 1) for n in levels]).view(self.space.shape)
        self.register_buffer("half_cell", half, persistent=False)  # half the distance between levels; of reals anything
        resolution = min(REAL_LEVEL if n is None else 2 / max(n - 1, 1) for n in levels)
        noise = min(max(self.first_noise * resolution, 1e-3), 0.5)
        alpha_bar = alpha_bars(SCHEDULES[self.schedule], self.timesteps, noise)
        self.equation, self.first = in_steps(alpha_bar), 1 / self.timesteps
        self.diffusion = GaussianDiffusion(alpha_bar, self.variance)
        self.sampling_steps = min(self.sampling_steps, self.timesteps)
        return torch.arange(1, self.timesteps + 1, dtype=torch.float64, device="cpu") / self.timesteps

    def weights(self) -> Tensor:
        """As in the bound of T steps, which differs from the continuous one's."""
        return self.diffusion.noise_weight if self.weighting == "likelihood" else super().weights()

    def image_net(self) -> UNet:
        return UNet(self.space, self.channels, self.multipliers, self.blocks, self.attention, self.dropout)

    @property
    def density_note(self) -> str:
        return f"{self.score_steps or self.timesteps} of {self.timesteps} terms"

    # --- density --------------------------------------------------------------------------------

    @torch.no_grad()
    def elbo_terms(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The terms of -ELBO in nats `(B, T + 1)` of encoded examples: L_0, ..., L_T (Ho et al. Eq. 5).

        One draw of noise each. Their sum bounds -ln p(x) from above in expectation.
        """
        y = self.enter(x)
        t = torch.arange(1, self.timesteps + 1, device=y.device)
        terms = self._terms(y, t[:, None].expand(-1, len(y)), condition)
        return torch.cat([terms.T, self.diffusion.prior_kl(y)[:, None]], 1)

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ELBO and the standard error of its estimate, nats `(B,)`: a bound in expectation."""
        if not self.score_steps or self.score_steps >= self.timesteps:
            return self._full_bound(x, condition)
        return self._sampled_bound(self.enter(x), condition)

    def _full_bound(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum of all terms. Its error: L_0 drawn twice; the others change so slowly that neighbours do for it."""
        terms = self.elbo_terms(x, condition)
        first = torch.ones(1, len(x), dtype=torch.long, device=x.device)
        again = self._terms(self.enter(x), first, condition).T
        differences = torch.cat([terms[:, :1] - again, terms[:, 1:-1].diff(dim=1)], 1)
        return -terms.sum(1), (differences.square().sum(1) / 2).sqrt()

    def _sampled_bound(self, y: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Two draws of L_0 and in each of equal shares of the other terms, by their weight of the noise's error."""
        first = self._terms(y, torch.ones(2, len(y), dtype=torch.long, device=y.device), condition)
        pairs, weight = max(self.score_steps // 2 - 1, 1), self.diffusion.noise_weight[1:]
        others, error = paired_sum(lambda index: self._terms(y, index + 2, condition), weight, pairs, len(y))
        value = first.mean(0) + others + self.diffusion.prior_kl(y)
        return -value, ((first[0] - first[1]).square() / 4 + error.square()).sqrt()

    def _terms(self, y: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """L_{t-1} in nats `(K, B)` of centred examples `(B, ...)` at times `t` `(K, B)`."""
        parts = []
        per_part = max(CHUNK // y.numel(), 1)
        for times in t.split(per_part):
            repeats = [len(times), *[1] * (y.dim() - 1)]
            x, t_flat = y.repeat(repeats), times.flatten()
            given = None if condition is None else condition.repeat(len(times), *[1] * (condition.dim() - 1))
            at = self.equation.at(t_flat.float() / self.timesteps)
            predicted, share = self.denoiser(given).posterior(at.diffuse(x, torch.randn_like(x)), at)
            parts.append(self.terms_of(x, predicted, t_flat, share).view(times.shape))
        return torch.cat(parts)

    def terms_of(self, y: Tensor, predicted: Tensor, t: Tensor, share: Tensor | None) -> Tensor:
        """L_{t-1} in nats `(B,)` of centred examples and those predicted at times `t` `(B,)`, see `Denoiser.both`."""
        terms, first = self.diffusion.step_kl(y, predicted, t, share), t == 1
        if not first.any():
            return terms
        decoded = self._decoder_log_prob(y[first], predicted[first], None if share is None else share[first])
        return terms.index_put((first,), -decoded)

    def _decoder_log_prob(self, y: Tensor, mean: Tensor, share: Tensor | None) -> Tensor:
        """ln p(x_0 | x_1), nats `(B,)`: the mass of the cell of a level, the density of a real column."""
        deviation = self.diffusion.decoder_deviation(share)
        mass = discretised_gaussian_log_prob(y, mean, deviation, self.half_cell.double())
        density = gaussian_log_prob(y.double(), mean.double(), deviation.log())
        return torch.where(self.limit.isinf(), density, mass).flatten(1).sum(1)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """The noise's errors, and where the bound is: in the decoder L_0 and the prior L_T, in nats an example."""
        y = self.enter(batch.x)
        decoder = self._terms(y, torch.ones(1, len(y), dtype=torch.long, device=y.device), batch.condition)
        prior = self.diffusion.prior_kl(y).mean().item()
        return {**super().monitor(batch), "nats_of_decoder": decoder.mean().item(), "nats_of_prior": prior}
