"""Multinomial diffusion: values that switch to random ones, and a network that guesses what they were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fivefold.errors import Unfit
from fivefold.nets.levels import Sizes, levels_net
from fivefold.options import depth_option, option, width_option
from fivefold.space import Batch, Space
from fivefold.system import Density, System, Update
from fivefold.tools.categorical import NEVER, CategoricalDiffusion, nats_of_chance, step_bars
from fivefold.tools.diffusion import SCHEDULES
from fivefold.tools.distributions import categorical_sample
from fivefold.tools.importance import LossAware, paired_sum
from fivefold.tools.schedule import warm_cosine

CHUNK = 2**19  # logits computed at once when scoring
MOST = 2**22  # logits of an example


class MultinomialDiffusion(System):
    """Multinomial diffusion (survey 2.3.1; Hoogeboom et al., 2021).

    A diffusion of categories: at each step every value is kept or, with a small chance, drawn anew from all alike. A
    network guesses the example from what is left, and Bayes' rule makes of the guess a step back. No order of the
    values is assumed, and nothing is dequantised.

    The density is a bound on the probability, the sum of a divergence for every step, all in closed form. It is that of
    the sampler with all T steps, also where samples are drawn in fewer.
    """

    densities: ClassVar[dict[str, Density]] = {
        "image": Density.LOWER_BOUND, "table": Density.LOWER_BOUND, "text": Density.LOWER_BOUND,
    }  # fmt: skip
    sampling: ClassVar[str] = "iterative"
    noisy_log: ClassVar[bool] = True
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sampling_steps": (5, 10, 20, 50)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.999, "clip": 1.0}}

    timesteps: int = option(1000, "T, steps of the diffusion", least=2)
    schedule: Literal["linear", "cosine"] = option("cosine", "how the chance that a value was drawn anew grows")
    time_sampling: Literal["loss-aware", "uniform"] = option("loss-aware", "which times are trained more often")
    sampling_steps: int = option(50, "in which samples are drawn, at most T", least=1)
    score_steps: int = option(
        64, "network evaluations to score an example, drawn in pairs from equal shares of the bound; 0 takes all T "
        "terms twice", least=0,
    )  # fmt: skip
    channels: int = width_option(24, "of the network at full resolution (images)", tune=(8, 128))
    multipliers: tuple[int, ...] = option(
        (1, 2, 2, 2), "of the channels at each resolution, the full one first; as many as there are are used (images)"
    )
    blocks: int = depth_option(1, "residual blocks at each resolution (images)", tune=(1, 8))
    attention: int = option(
        0, "resolution at which all positions attend to each other, as at the lowest; 0 for no other (images)", least=0
    )
    dropout: float = option(0.0, "in residual blocks (images, text)", least=0, below=1, tune=(0.0, 0.5))
    hidden: int = width_option(128, "width of the network (tables)", tune=(16, 512))
    layers: int = depth_option(3, "residual layers (tables)", tune=(1, 16))
    width: int = width_option(64, "of the features of a position (text)", tune=(16, 512))
    depth: int = depth_option(3, "blocks of attention (text)", tune=(1, 12))
    heads: int = option(4, "of the attention (text)", least=1)

    @classmethod
    def density_on(cls, space: Space) -> Density | None:
        """None where a dimension is real."""
        return super().density_on(space) if space.discrete else None

    def build(self) -> None:
        super().build()
        self.levels = tuple(count or 1 for count in self.space.dim_levels)
        if len(self.levels) * max(self.levels) > MOST:
            raise Unfit(
                f"MultinomialDiffusion gives each of {len(self.levels):,} dimensions {max(self.levels):,} chances; "
                f"at most {MOST:,} in all"
            )
        self.diffusion = CategoricalDiffusion(step_bars(SCHEDULES[self.schedule], self.timesteps), self.levels)
        self.aware = LossAware(self.timesteps)
        sizes = Sizes(
            self.channels, self.multipliers, self.blocks, self.attention, self.dropout, self.hidden, self.layers,
            self.width, self.depth, self.heads,
        )  # fmt: skip
        self.net: nn.Module = levels_net(self.space, sizes, max(self.levels))

    def learning_rate(self, progress: float) -> float:
        """Warm-up over the first hundredth, then a cosine to a twentieth."""
        return warm_cosine(progress, floor=0.05)

    @property
    def density_note(self) -> str:
        return f"{self.score_steps or self.timesteps} of {self.timesteps} terms"

    @property
    def sample_evaluations(self) -> int:
        return min(self.sampling_steps, self.timesteps)

    # --- training and density -----------------------------------------------------------------------

    def guess(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The law of x_0 that is predicted of x_t `(B, D)` at times `(B,)`: logarithms `(B, D, K)`."""
        logits = self.net(self._encoded(x_t), t.float() / self.timesteps, condition)
        return logits.float().masked_fill(~self.diffusion.exists, NEVER).log_softmax(-1)

    def terms(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """L_{t-1} in nats `(B,)` of values `(B, D)` at times t `(B,)` from 1 on, by one draw of x_t each."""
        noisy = self._drawn(self.diffusion.marginal(self.diffusion.certain(x), t))
        return self.diffusion.step_kl(x, noisy, self.guess(noisy, t, condition), t)

    def loss(self, batch: Batch) -> Tensor:
        """The bound in nats a dimension, of times that are all alike."""
        index, _ = self.aware.draw(len(batch.x), uniform=True)
        return self._bounds(batch, index).mean()

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        index, weights = self.aware.draw(len(batch.x), uniform=self.time_sampling == "uniform")
        losses = self._bounds(batch, index)
        found = yield Update(self, (weights * losses).mean(), self.aware.record(index, losses))
        if found is not None:
            self.aware.remember(found)

    def _bounds(self, batch: Batch, index: Tensor) -> Tensor:
        return self.terms(batch.x.flatten(1), index + 1, batch.condition) * (self.timesteps / self.space.dims)

    @torch.no_grad()
    def elbo_terms(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The terms of -ELBO in nats `(B, T + 1)` of encoded examples: L_0, ..., L_T, one draw of noise each."""
        flat, index = x.flatten(1), torch.arange(self.timesteps, device=x.device)
        terms = self._all_terms(flat, index[:, None].expand(-1, len(x)), condition)
        return torch.cat([terms.T, self.diffusion.prior_kl(flat)[:, None]], 1)

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ELBO and the standard error of its estimate, nats `(B,)`: a bound in expectation."""
        flat, pairs, weight = x.flatten(1), self.score_steps // 2, self.aware.chances()
        if not 0 < pairs < self.timesteps:
            pairs, weight = self.timesteps, torch.ones_like(weight)
        value, error = paired_sum(lambda index: self._all_terms(flat, index, condition), weight, pairs, len(x))
        return -value - self.diffusion.prior_kl(flat), error

    def _all_terms(self, x: Tensor, index: Tensor, condition: Tensor | None) -> Tensor:
        """L_index in nats `(N, B)`, float64, of values `(B, D)` and indices of that shape."""
        parts = []
        for some in index.split(max(CHUNK // (x.numel() * max(self.levels)), 1)):
            given = None if condition is None else condition.repeat(len(some), *[1] * (condition.dim() - 1))
            parts.append(self.terms(x.repeat(len(some), 1), some.flatten() + 1, given).double().view(some.shape))
        return torch.cat(parts)

    # --- samples --------------------------------------------------------------------------------

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        x = self._drawn(self.diffusion.log_uniform.expand(n, -1, -1))
        times = torch.linspace(self.timesteps, 0, self.sample_evaluations + 1, device=x.device).round().long()
        for t, s in zip(times[:-1, None].expand(-1, n), times[1:, None].expand(-1, n), strict=True):
            x = self._drawn(self.diffusion.posterior(x, self.guess(x, t, condition), t, s))
        return self._encoded(x)

    @staticmethod
    def _drawn(log_p: Tensor) -> Tensor:
        """Values `(B, D)` of laws `(B, D, K)`."""
        return categorical_sample(log_p, torch.rand(log_p.shape[:-1], device=log_p.device))

    def _encoded(self, x: Tensor) -> Tensor:
        """Values `(B, D)` as encoded examples."""
        return (x.float() if self.space.columns else x).view(-1, *self.space.shape)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """What a guess of the example costs early, half-way and late, as a share of what chance would: 1."""
        x, chance, found = batch.x.flatten(1), nats_of_chance(self.levels) or 1.0, {}
        for name, share in (("early", 0.1), ("half_way", 0.5), ("late", 0.9)):
            t = torch.full((len(x),), max(round(share * self.timesteps), 1), device=x.device)
            noisy = self._drawn(self.diffusion.marginal(self.diffusion.certain(x), t))
            guess = self.guess(noisy, t, batch.condition).gather(2, x.long().unsqueeze(2))
            found[f"guess_{name}"] = -guess.sum((1, 2)).mean().item() / chance
        return found
