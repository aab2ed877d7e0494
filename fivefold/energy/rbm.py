"""Restricted Boltzmann machines: one visible and one hidden layer, no weights within a layer."""

from __future__ import annotations

import math
import zlib
from collections.abc import Generator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.errors import Unfit
from fivefold.nets.condition import ConditionEmbedding
from fivefold.nets.visible import VisibleUnits, bernoulli
from fivefold.options import option, width_option
from fivefold.space import Batch, Space
from fivefold.system import Density, System, Update, seeded
from fivefold.tools.ais import LogPartition, anneal, block_gibbs, log_partition
from fivefold.tools.particles import near

MOST_LEVELS = 1024  # of a binomial unit
MOST_CONDITIONS = 1000  # each has a partition function of its own


class RBM(System):
    """Restricted Boltzmann machine (survey 2.1.2; Hinton, 2002; Tieleman, 2008).

    Binary hidden units explain the visible ones by a product of experts. Gradients compare data with a Markov
    chain, which is simple and fast to train; samples take a long chain, and the density is known up to a
    constant that is estimated.

    E(v, h) = -ln base(v) - a.s(v) - b.h - s(v)'W h with the statistics s of binary, binomial (more levels),
    Gaussian (reals) or softmax (categories) visible units. ln Z is estimated by annealed importance sampling,
    once for each state of the parameters: its error is common to all examples, so it does not average out over
    them, and differences between examples are exact.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.ESTIMATE, "table": Density.ESTIMATE}
    sampling: ClassVar[str] = "mcmc"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.999},
        "mnist": {"hidden": 500, "batch_size": 128, "ais_steps": 5000},
    }

    log_z: Tensor
    log_z_error: Tensor
    log_z_of: Tensor
    conditions: Tensor
    offset: Tensor
    mean: Tensor
    updated: Tensor
    chain: Tensor

    hidden: int = width_option(256, "hidden units", tune=(16, 512))
    k: int = option(1, "Gibbs steps of the chain at each update (CD-k)", least=1, tune=(1, 10))
    persistent: bool = option(
        True, "chains go on from update to update (persistent CD) instead of starting at the data"
    )
    chains: int = option(128, "persistent chains, of each condition where there is one", least=1)
    centred: bool = option(
        True, "biases belong to centred units, which conditions the gradient (Montavon and Müller 2012)"
    )
    sampling_steps: int = option(
        500, "Gibbs steps a sample takes from where a persistent chain stands; without chains from independent units, "
        "the first half of them annealed", least=1,
    )  # fmt: skip
    ais_steps: int = option(
        4000, "temperatures of annealed importance sampling; its standard error includes the change from half as many",
        least=1,
    )  # fmt: skip
    ais_chains: int = option(100, "its chains", least=1)
    fill_steps = 500
    lr = 0.1
    momentum: float = option(0.5, "of the gradient", least=0, section="optimizers")
    weight_decay: float = option(1e-5, "pulls the parameters to 0", least=0, section="optimizers")

    def build(self) -> None:
        super().build()
        _refuse_unfit(self.space)
        self.units = VisibleUnits(self.space)
        self.weight = nn.Parameter(0.01 * torch.randn(self.units.width, self.hidden))
        self.visible_bias = nn.Parameter(torch.zeros(self.units.width))
        self.hidden_bias = nn.Parameter(torch.zeros(self.hidden))
        self.embed = ConditionEmbedding(self.space.condition, 32)
        self.shift = nn.Linear(self.embed.width, self.units.width + self.hidden) if self.space.condition else None
        self.register_buffer("conditions", _all_conditions(self.space.condition), persistent=False)
        self.register_buffer("offset", torch.zeros(self.units.width))  # of centred visible units
        self.register_buffer("mean", torch.zeros(self.units.width))  # running mean of the data's statistics
        self.register_buffer("updated", torch.tensor(0))
        count = len(self.conditions)
        start = self.units.sample(torch.zeros(count * self.chains if self.persistent else 0, self.units.width))
        self.register_buffer("chain", start.view(count, -1, self.space.dims).detach())
        self.register_buffer("log_z", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("log_z_error", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("log_z_of", torch.tensor(-1))  # fingerprint of the parameters that log_z belongs to

    @property
    def density_note(self) -> str:
        return f"log Z by AIS, {self.ais_chains} chains, {self.ais_steps} temperatures"

    # --- the model: v flat and float (B, D), h (B, hidden) ---------------------------------------

    def biases(self, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of visible and hidden units, `(width,)` and `(hidden,)`, with a row for each condition where there is one."""
        a: Tensor = self.visible_bias
        b: Tensor = self.hidden_bias
        if self.shift is not None:
            shift_a, shift_b = self.shift(self.embed(condition)).split([len(a), len(b)], 1)
            a, b = a + shift_a, b + shift_b
        if self.centred:  # s'W h with s - offset and h - 1/2 instead, up to a constant
            a, b = a - 0.5 * self.weight.sum(1), b - self.offset @ self.weight
        return a, b

    def free_energy(self, v: Tensor, condition: Tensor | None = None) -> Tensor:
        """F(v) = -ln sum over h of exp(-E(v, h)), nats `(B,)`: ln p(v) = -F(v) - ln Z."""
        a, b = self.biases(condition)
        s = self.units.statistic(v)
        return -self.units.log_base(v) - (a * s).sum(1) - F.softplus(s @ self.weight + b).sum(1)

    def gibbs(self, v: Tensor, condition: Tensor | None, steps: int) -> Tensor:
        """`steps` of block Gibbs sampling from `v`."""
        a, b = self.biases(condition)

        def hidden(v: Tensor) -> Tensor:
            return bernoulli(self.units.statistic(v) @ self.weight + b)

        return block_gibbs(v, hidden, lambda h: self.units.sample(a + h @ self.weight.T), steps)

    # --- training -------------------------------------------------------------------------------

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """Stochastic gradient descent."""
        return {self: torch.optim.SGD(self.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay)}

    def learning_rate(self, progress: float) -> float:
        """Linear decay, which persistent chains need to catch up with the model."""
        return 1 - 0.99 * progress

    def updates(self, batch: Batch, progress: float) -> Generator[Update, dict[str, Tensor] | None, None]:
        """The gradient of mean F(data) - mean F(chain) is that of contrastive divergence (Hinton 2002, Eq. 5)."""
        v = batch.x.flatten(1).float()
        place = self._chain_places(batch.condition, len(v)) if self.persistent else None
        with torch.no_grad():
            end = self.gibbs(v if place is None else self.chain[place], batch.condition, self.k)
        loss = self.free_energy(v, batch.condition).mean() - self.free_energy(end, batch.condition).mean()
        mean = self.units.statistic(v).detach().mean(0)
        total = yield Update(self, loss, {"mean": mean, "parts": torch.ones((), device=mean.device)})
        if total is not None:
            self._after_step(total["mean"] / total["parts"], place, end)

    @torch.no_grad()
    def _after_step(self, mean: Tensor, place: tuple[Tensor, Tensor] | None, end: Tensor) -> None:
        """Put the chains back; follow the data's mean, which starts the biases and the annealing."""
        if place is not None:
            self.chain[place] = end
        if self.updated == 0:
            self.visible_bias.copy_(self.units.natural(mean))
            self.offset.copy_(mean)
        self.updated += 1
        self.mean.lerp_(mean, 1 / self.updated.clamp(max=1000))

    def _chain_places(self, condition: Tensor | None, n: int) -> tuple[Tensor, Tensor]:
        """For each of `n` examples a chain of its condition: indices of `chain`'s first two dimensions."""
        slots = self.chain.shape[1]
        slot = (torch.arange(n) + torch.randint(slots, ())) % slots
        return self._condition_index(condition, n), slot.to(self.device)

    def _condition_index(self, condition: Tensor | None, n: int) -> Tensor:
        """The rows of `conditions` that these are `(n,)`."""
        if condition is None:
            return torch.zeros(n, dtype=torch.long, device=self.device)
        return (condition.float()[:, None] == self.conditions).all(2).long().argmax(1)

    # --- density --------------------------------------------------------------------------------

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ln p of the examples and its standard error, nats `(B,)`: the error of ln Z, common to all."""
        self._update_log_z()
        index = self._condition_index(condition, len(x))
        value = -self.free_energy(x.flatten(1).float(), condition).double() - self.log_z[index]
        return value, self.log_z_error[index]

    def _update_log_z(self) -> None:
        """Annealed importance sampling where the parameters have changed; the same for the same parameters."""
        now = self._fingerprint()
        if now == self.log_z_of.item():
            return
        with seeded(0, self.device):
            given = self.conditions.repeat_interleave(self.ais_chains, 0) if self.space.condition else None
            half, full = (self._estimate_log_z(given, steps) for steps in (max(self.ais_steps // 2, 1), self.ais_steps))
        self.log_z.copy_(full.value)
        # Chains that all miss a mode agree with each other: what slower annealing changes tells what they miss.
        self.log_z_error.copy_(torch.hypot(full.error, full.value - half.value))
        self.log_z_of.fill_(now)

    def _estimate_log_z(self, given: Tensor | None, temperatures: int) -> LogPartition:
        """ln Z of every condition by that many temperatures."""
        _, log_weight = self.anneal(len(self.conditions) * self.ais_chains, given, temperatures)
        return log_partition(log_weight.view(-1, self.ais_chains).T, self._base_log_z())

    def anneal(self, n: int, condition: Tensor | None, temperatures: int) -> tuple[Tensor, Tensor]:
        """`n` chains from independent units of the data's mean to the model, and their log weights.

        The path is that of Salakhutdinov and Murray (2008): f_beta(v) sums exp(-E) over h with weights and
        hidden biases times beta, visible biases between the data's and the model's.
        """
        a, b = self.biases(condition)
        base = self.units.natural(self.mean)

        def step(v: Tensor, beta: float, next_beta: float) -> tuple[Tensor, Tensor]:
            s = self.units.statistic(v)
            x = s @ self.weight + b
            log_ratio = (next_beta - beta) * (s * (a - base)).sum(1)
            log_ratio = log_ratio + (F.softplus(next_beta * x) - F.softplus(beta * x)).sum(1)
            h = bernoulli(next_beta * x)
            return log_ratio, self.units.sample(torch.lerp(base, a, next_beta) + next_beta * (h @ self.weight.T))

        return anneal(self.units.sample(base.expand(n, -1)), step, temperatures)

    def _base_log_z(self) -> Tensor:
        """ln Z of the annealing's start, the independent units: of the visible ones, and ln 2 a hidden one."""
        natural = self.units.natural(self.mean).double()
        return self.units.log_normaliser(natural) + len(self.hidden_bias) * math.log(2)

    def _fingerprint(self) -> int:
        """Of all that ln Z depends on."""
        code = 0
        for tensor in [*self.parameters(), self.offset, self.mean]:
            code = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), code)
        return code

    # --- sampling -------------------------------------------------------------------------------

    @property
    def sample_evaluations(self) -> int:
        return self.sampling_steps

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        """From chains where there are: they had time to find modes that annealing misses and steps seldom reach."""
        annealed = 0 if self.persistent else self.sampling_steps - self.sampling_steps // 2
        v = self.chain[self._chain_places(condition, n)] if self.persistent else self.anneal(n, condition, annealed)[0]
        v = self.gibbs(v, condition, self.sampling_steps - annealed).view(n, *self.space.shape)
        return v.long() if self.space.kind == "image" and self.space.levels else v

    @property
    def filling(self) -> str:
        return "Gibbs sampling with what is known held: exact in the limit of many steps"

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        """Block Gibbs sampling from samples near what is known, whose units are put back after every step."""
        a, b = self.biases(condition)
        given, held = x.flatten(1).float(), known.flatten(1)

        def hidden(v: Tensor) -> Tensor:
            return bernoulli(self.units.statistic(v) @ self.weight + b)

        def visible(h: Tensor) -> Tensor:
            return torch.where(held, given, self.units.sample(a + h @ self.weight.T))

        start = near(self._starts, self.space, x, known, condition).flatten(1).float()
        return block_gibbs(torch.where(held, given, start), hidden, visible, self.fill_steps).view_as(x)

    def _starts(self, n: int, condition: Tensor | None) -> Tensor:
        """Where persistent chains stand, or else samples."""
        if not self.persistent:
            return self._sample(n, condition)
        return self.chain[self._chain_places(condition, n)].view(n, *self.space.shape)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Of the chains: their energy above the data's, units that one Gibbs step changes, hidden activity."""
        v = batch.x.flatten(1).float()
        place = self._chain_places(batch.condition, len(v)) if self.persistent else None
        chain = self.gibbs(v, batch.condition, self.k) if place is None else self.chain[place]
        moved = self.gibbs(chain, batch.condition, 1)
        active = (self.units.statistic(v) @ self.weight + self.biases(batch.condition)[1]).sigmoid()
        gap = self.free_energy(chain, batch.condition).mean() - self.free_energy(v, batch.condition).mean()
        return {
            "chain_energy_gap": gap.item(),
            "chain_flip_rate": (moved != chain).float().mean().item(),
            "hidden_mean": active.mean().item(),
            "hidden_saturated": ((active < 0.01) | (active > 0.99)).float().mean().item(),
        }


def _refuse_unfit(space: Space) -> None:
    """Raise `Unfit`, by name, for what has no unit or no countable partition function."""
    if max((levels or 0 for levels in space.dim_levels), default=0) > MOST_LEVELS:
        raise Unfit(f"RBM has units of at most {MOST_LEVELS} levels, not {max(n or 0 for n in space.dim_levels)}")
    condition = space.condition
    if condition is None:
        return
    if not condition.discrete or math.prod(n or 0 for n in condition.dim_levels) > MOST_CONDITIONS:
        raise Unfit(
            f"RBM needs a partition function for every condition, so at most {MOST_CONDITIONS} of them and no "
            f"real ones, not {condition.describe()}"
        )


def _all_conditions(space: Space | None) -> Tensor:
    """Every encoded condition there is, `(N, D)`; one row of nothing where there is none."""
    if space is None:
        return torch.zeros(1, 0)
    return torch.cartesian_prod(*[torch.arange(float(levels or 0)) for levels in space.dim_levels]).view(-1, space.dims)
