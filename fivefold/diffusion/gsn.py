"""Generative stochastic networks: the chain of a corruption and of a network that undoes it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.nets.condition import ConditionEmbedding
from fivefold.nets.embedding import DimFeatures
from fivefold.nets.heads import LIKELIHOOD, LIKELIHOOD_HELP, Head
from fivefold.nets.mlp import MLP
from fivefold.options import depth_option, option, slot, width_option
from fivefold.system import Batch, Density, System, log_mean_exp
from fivefold.tools.scaling import at_once
from fivefold.tools.schedule import late_fall

MOST_NUMBERS = 2**24  # parameters of distributions that are scored at once


class GSN(System):
    """Generative stochastic network (survey 2.3.1; Alain et al., 2016; Bengio et al., 2013).

    The model is a Markov chain: corrupt what there is, X~ from C(X~ | X), update hidden units with noise in them,
    H from f(X~, noise), and draw X from P(X | H). If P is what the data were given what is seen of them, the chain's
    law is the data's; P takes numbers as independent given H, which small corruptions allow. Training walks the chain
    away from each example and learns to find back to it from every step (walkback), so that no place the chain gets to
    is left unlearnt.

    A sample is the end of a chain of `sample_steps` from noise. Its law is the mean of P(x | H) over the last H, and
    the logarithm of the mean over some chains a lower bound on ln p(x) in expectation (Bengio and Yao, 2013).
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.LOWER_BOUND}
    sampling: ClassVar[str] = "mcmc"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sample_steps": (1, 3, 10, 30, 100)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.995, "clip": 100.0}}

    hidden: int = width_option(256, "hidden units that the chain keeps", tune=(32, 1024))
    depth: int = depth_option(1, "hidden layers between them and what is drawn", tune=(1, 3))
    corruption: float = option(
        0.3, "share of the discrete numbers that are replaced by any value, and deviation of the noise on real ones",
        above=0, most=1, tune=(0.1, 0.7),
    )  # fmt: skip
    noise: float = option(0.5, "deviation of the noise on hidden units, before and after they saturate", least=0)
    walkback: int = option(2, "steps of the chain in training, each of which is to lead back", least=1, tune=(1, 8))
    memory: bool = option(
        False, "whether hidden units depend on those before: chains then never quite forget where they started"
    )
    likelihood: Any = option(slot("auto"), LIKELIHOOD_HELP, needs=LIKELIHOOD)
    sample_steps: int = option(30, "steps of the chain for a sample", least=1)
    score_chains: int = option(1000, "chains that a density is the mean over", least=1)
    fill_steps = 30
    lr = 2e-3

    levels: Tensor

    def build(self) -> None:
        super().build()
        self.head = Head(self.space, self.fill("likelihood", self.space))
        self.features = DimFeatures(self.space)
        inputs = len(self.features.dim_of_feature)
        self.see = nn.Linear(inputs, self.hidden)
        self.keep = nn.Linear(self.hidden, self.hidden, bias=False) if self.memory else None
        self.embed = ConditionEmbedding(self.space.condition, self.hidden)
        self.show = MLP(self.hidden, self.space.dims * self.head.width, self.hidden, self.depth)
        levels = torch.tensor([float(count or 0) for count in self.space.dim_levels])
        self.register_buffer("levels", levels, persistent=False)

    @property
    def density_note(self) -> str:
        return f"{self.score_chains} chains"

    # --- the chain: x flat (B, D), h (B, hidden) ----------------------------------------------------

    def corrupt(self, x: Tensor) -> Tensor:
        """C: discrete numbers are replaced with some probability, by a value that is as likely as any; real ones get
        noise."""
        real = self.levels == 0
        other = torch.where(real, x + self.corruption * torch.randn(x.shape, device=x.device), self.uniform(len(x)))
        chosen = torch.rand(x.shape, device=x.device) < self.corruption
        return torch.where(real | chosen, other, x).to(x.dtype)

    def uniform(self, n: int) -> Tensor:
        """Any value of discrete numbers, standard normal ones of real numbers, `(n, D)`: where chains start."""
        shape = (n, len(self.levels))
        whole = (torch.rand(shape, device=self.device) * self.levels).floor()
        return torch.where(self.levels == 0, torch.randn(shape, device=self.device), whole).to(self.head.dtype)

    def update(self, x: Tensor, h: Tensor, condition: Tensor | None) -> Tensor:
        """H given the one before and what is seen now, corrupted; noise enters before and after it saturates."""
        a, context = self.see(self.features(x)), self.embed(condition)
        a = a if self.keep is None else a + self.keep(h)
        a = a if context is None else a + context
        return torch.tanh(a + self.noise * torch.randn_like(a)) + self.noise * torch.randn_like(a)

    def shown(self, h: Tensor) -> Tensor:
        """Parameters `(B, D, width)` of P(X | H)."""
        return self.show(h).view(len(h), self.space.dims, -1)

    def blank(self, n: int) -> Tensor:
        return torch.zeros(n, self.hidden, device=self.device)

    def step(self, x: Tensor, h: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """X and H after one step."""
        h = self.update(self.corrupt(x), h, condition)
        return self.head.sample(self.shown(h), self.head.noise(len(x))), h

    def chain(self, n: int, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ends of chains from noise, and the H that they were drawn from."""
        x, h = self.uniform(n), self.blank(n)
        for _ in range(self.sample_steps):
            x, h = self.step(x, h, condition)
        return x, h

    # --- training -----------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Tensor:
        """Nats of the example given H, the mean over the steps of a walk that begins at it (walkback)."""
        data = batch.x.flatten(1)
        x, h, total = data, self.blank(len(data)), torch.zeros((), device=data.device)
        for _ in range(self.walkback):
            h = self.update(self.corrupt(x), h, batch.condition)
            params = self.shown(h)
            total = total - self.head.log_prob(params, data).sum(1).mean()
            with torch.no_grad():
                x = self.head.sample(params, self.head.noise(len(x)))
        return total / self.walkback

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        return {self: torch.optim.Adam(self.parameters(), self.lr, fused=True)}

    def learning_rate(self, progress: float) -> float:
        return late_fall(progress)

    # --- samples and density ------------------------------------------------------------------------

    @property
    def sample_evaluations(self) -> int:
        return self.sample_steps

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return self.chain(n, condition)[0].view(n, *self.space.shape)

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ln of the mean of P(x | H) over the ends of chains, the same for all examples of a condition."""
        flat, values = x.flatten(1), x.new_zeros(len(x), dtype=torch.float64)
        errors = torch.zeros_like(values)
        for given, rows in _alike(condition, flat):
            many = None if given is None else given.expand(self.score_chains, *given.shape[1:])
            params = self.shown(self.chain(self.score_chains, many)[1])
            size = at_once(len(rows), params.numel(), MOST_NUMBERS)
            parts = [self._given_each(flat[part], params) for part in rows.split(size)]
            values[rows], errors[rows] = log_mean_exp(torch.cat(parts, 1))
        return values, errors

    def _given_each(self, x: Tensor, params: Tensor) -> Tensor:
        """ln P(x | H) of every H and example, nats `(H, B)`, float64."""
        count, n = len(params), len(x)
        many = x.expand(count, -1, -1).flatten(0, 1)
        return self.head.log_prob(params.repeat_interleave(n, 0), many).sum(1).double().view(count, n)

    @property
    def filling(self) -> str:
        return "its chain with what is known put back at every step: approximate, by what it was trained to undo"

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        given, held = x.flatten(1), known.flatten(1)
        y, h = torch.where(held, given, self.uniform(len(x)).to(given.dtype)), self.blank(len(x))
        for _ in range(self.fill_steps):
            y, h = self.step(y, h, condition)
            y = torch.where(held, given, y.to(given.dtype))
        return y.view_as(x)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """How far the chain goes from the data, as a share of numbers that changed, and the nats that lead back."""
        x, h = batch.x.flatten(1), self.blank(len(batch.x))
        y, found = x, {}
        for step in range(1, self.walkback + 1):
            y, h = self.step(y, h, batch.condition)
            if step in (1, self.walkback):
                found[f"nats_back_{step}"] = -self.head.log_prob(self.shown(h), x).sum(1).mean().item()
                found[f"moved_{step}"] = (y != x).float().mean().item()
        return {**found, "saturated": (h.abs() > 0.95).float().mean().item()}


def _alike(condition: Tensor | None, x: Tensor) -> list[tuple[Tensor | None, Tensor]]:
    """Each different condition `(1, ...)`, and the rows of x that have it."""
    if condition is None:
        return [(None, torch.arange(len(x), device=x.device))]
    every, of = condition.unique(dim=0, return_inverse=True)
    return [(every[i : i + 1], (of == i).nonzero().squeeze(1)) for i in range(len(every))]
