"""What Boltzmann machines share: units and their biases, contrastive divergence, the partition function, samples."""

from __future__ import annotations

import math
import zlib
from abc import abstractmethod
from collections.abc import Generator
from typing import ClassVar

import torch
from torch import Tensor, nn

from fivefold.errors import Unfit
from fivefold.nets.condition import ConditionEmbedding
from fivefold.nets.visible import VisibleUnits
from fivefold.options import option, width_option
from fivefold.space import Batch, Space
from fivefold.system import Density, System, Update, seeded
from fivefold.tools.ais import LogPartition, every_state, log_partition
from fivefold.tools.particles import near

MOST_LEVELS = 1024  # of a binomial unit
MOST_CONDITIONS = 1000  # each has a partition function of its own
MOST_UNITS = 16.0  # binary ones, whose states are summed over one by one


class BoltzmannSystem(System):
    """Base of machines of visible and binary hidden units with symmetric weights between them (survey 2.1).

    A state is what their chains move: flat and float `(B, state_dims)`, the visible units first. Gradients compare the
    data, their hidden units explained, with where chains end. ln Z is summed over all states where these are few;
    else annealed importance sampling estimates it, once for each state of the parameters.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.ESTIMATE, "table": Density.ESTIMATE}
    sampling: ClassVar[str] = "mcmc"

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
        self._refuse_unfit()
        self.units = VisibleUnits(self.space)
        self.weight = nn.Parameter(0.01 * torch.randn(self.units.width, self.hidden))
        self.visible_bias = nn.Parameter(torch.zeros(self.units.width))
        self.hidden_bias = nn.Parameter(torch.zeros(self.hidden))
        self.embed = ConditionEmbedding(self.space.condition, 32)
        self.shift = nn.Linear(self.embed.width, self.units.width + self.hidden) if self.space.condition else None
        given = self.space.condition
        self.register_buffer("conditions", every_state(given.dim_levels if given else ()), persistent=False)
        self.register_buffer("offset", torch.zeros(self.units.width))  # of centred visible units
        self.register_buffer("mean", torch.zeros(self.units.width))  # running mean of the data's statistics
        self.register_buffer("updated", torch.tensor(0))
        count = len(self.conditions)
        start = self.start(torch.zeros(count * self.chains if self.persistent else 0, self.units.width))
        self.register_buffer("chain", start.view(count, -1, start.shape[1]).detach())
        self.register_buffer("log_z", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("log_z_error", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("log_z_of", torch.tensor(-1))  # fingerprint of the parameters that log_z belongs to
        if self.summed + math.log2(count) <= MOST_UNITS:
            self.density = Density.EXACT

    def _refuse_unfit(self) -> None:
        """Raise `Unfit`, by name, for what has no unit or no countable partition function."""
        name, condition = type(self).__name__, self.space.condition
        if max((levels or 0 for levels in self.space.dim_levels), default=0) > MOST_LEVELS:
            most = max(levels or 0 for levels in self.space.dim_levels)
            raise Unfit(f"{name} has units of at most {MOST_LEVELS} levels, not {most}")
        if condition and (not condition.discrete or math.prod(n or 0 for n in condition.dim_levels) > MOST_CONDITIONS):
            raise Unfit(
                f"{name} needs a partition function for every condition, so at most {MOST_CONDITIONS} of them and no "
                f"real ones, not {condition.describe()}"
            )

    @property
    def density_note(self) -> str:
        if self.density is Density.EXACT:
            return "log Z summed over all states"
        return f"log Z by AIS, {self.ais_chains} chains, {self.ais_steps} temperatures"

    # --- what a leaf writes: states (B, state_dims), v flat and float (B, D) -------------------------

    @property
    @abstractmethod
    def summed(self) -> float:
        """How many binary units' states an exact ln Z is a sum over."""

    @abstractmethod
    def exact_log_z(self, condition: Tensor | None) -> Tensor:
        """ln Z, a number, by that sum; `condition` is one, `(1, ...)`."""

    @abstractmethod
    def start(self, natural: Tensor) -> Tensor:
        """States `(n, state_dims)` of independent units, the visible ones with natural parameters `(n, width)`."""

    @abstractmethod
    def explained(self, v: Tensor, condition: Tensor | None) -> Tensor:
        """States whose visible units are v, the hidden ones drawn given them."""

    @abstractmethod
    def energy(self, state: Tensor, condition: Tensor | None) -> Tensor:
        """Nats `(B,)`, whose mean falls on data and rises on chains in training."""

    @abstractmethod
    def gibbs(self, state: Tensor, condition: Tensor | None, steps: int, known: Tensor | None = None) -> Tensor:
        """`steps` of Gibbs sampling from `state`; visible units that are `known` `(B, D)` stay."""

    @abstractmethod
    def anneal(self, n: int, condition: Tensor | None, temperatures: int) -> tuple[Tensor, Tensor]:
        """`n` chains from independent units of the data's mean to the model, and their log weights."""

    @abstractmethod
    def unnormalised(self, v: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """ln p(v) + ln Z, nats `(B,)`, and its standard error."""

    @abstractmethod
    def activity(self, state: Tensor, condition: Tensor | None) -> Tensor:
        """The chance that a hidden unit is on given the rest of the state, `(B, hidden)`."""

    # --- parameters -------------------------------------------------------------------------------

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

    # --- training -------------------------------------------------------------------------------

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """Stochastic gradient descent."""
        return {self: torch.optim.SGD(self.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay)}

    def learning_rate(self, progress: float) -> float:
        """Linear decay, which persistent chains need to catch up with the model."""
        return 1 - 0.99 * progress

    def updates(self, batch: Batch, progress: float) -> Generator[Update, dict[str, Tensor] | None, None]:
        """The gradient of mean E(data) - mean E(chain) is that of contrastive divergence (Hinton 2002, Eq. 5)."""
        v = batch.x.flatten(1).float()
        place = self._chain_places(batch.condition, len(v)) if self.persistent else None
        with torch.no_grad():
            data = self.explained(v, batch.condition)
            end = self.gibbs(data if place is None else self.chain[place], batch.condition, self.k)
        loss = self.energy(data, batch.condition).mean() - self.energy(end, batch.condition).mean()
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
        """ln p of the examples and its standard error, nats `(B,)`; that of ln Z is common to all."""
        self.update_log_z()
        index = self._condition_index(condition, len(x))
        value, error = self.unnormalised(x.flatten(1).float(), condition)
        common = self.log_z_error[index]
        return value.double() - self.log_z[index], torch.hypot(common, torch.as_tensor(error).to(common))

    @torch.no_grad()
    def update_log_z(self) -> None:
        """ln Z where the parameters have changed; the same for the same parameters."""
        now = self._fingerprint()
        if now == self.log_z_of.item():
            return
        if self.density is Density.EXACT:
            given = self.conditions.split(1) if self.space.condition else [None]
            self.log_z.copy_(torch.stack([self.exact_log_z(condition) for condition in given]))
        else:
            with seeded(0, self.device):
                given = self.conditions.repeat_interleave(self.ais_chains, 0) if self.space.condition else None
                steps = max(self.ais_steps // 2, 1), self.ais_steps
                half, full = (self._estimate_log_z(given, count) for count in steps)
            self.log_z.copy_(full.value)
            # Chains that all miss a mode agree with each other: what slower annealing changes tells what they miss.
            self.log_z_error.copy_(torch.hypot(full.error, full.value - half.value))
        self.log_z_of.fill_(now)

    def _estimate_log_z(self, given: Tensor | None, temperatures: int) -> LogPartition:
        """ln Z of every condition by that many temperatures."""
        _, log_weight = self.anneal(len(self.conditions) * self.ais_chains, given, temperatures)
        return log_partition(log_weight.view(-1, self.ais_chains).T, self._base_log_z())

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
        start = (
            self.chain[self._chain_places(condition, n)] if annealed == 0 else self.anneal(n, condition, annealed)[0]
        )
        return self.examples(self.gibbs(start, condition, self.sampling_steps - annealed))

    def examples(self, state: Tensor) -> Tensor:
        """Encoded examples of states."""
        x = state[:, : self.space.dims].view(-1, *self.space.shape)
        return x.long() if self.space.kind == "image" and self.space.levels else x

    @property
    def filling(self) -> str:
        return "Gibbs sampling with what is known held: exact in the limit of many steps"

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        """Gibbs sampling from samples near what is known, whose units stay."""
        v = torch.where(known, x, near(self._starts, self.space, x, known, condition)).flatten(1).float()
        state = self.explained(v, condition)
        return self.examples(self.gibbs(state, condition, self.fill_steps, known.flatten(1))).view_as(x)

    def _starts(self, n: int, condition: Tensor | None) -> Tensor:
        """Where persistent chains stand, or else samples."""
        if not self.persistent:
            return self._sample(n, condition)
        return self.examples(self.chain[self._chain_places(condition, n)])

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Of the chains: their energy above the data's, units that one Gibbs step changes, hidden activity."""
        data = self.explained(batch.x.flatten(1).float(), batch.condition)
        place = self._chain_places(batch.condition, len(data)) if self.persistent else None
        chain = self.gibbs(data, batch.condition, self.k) if place is None else self.chain[place]
        moved, active = self.gibbs(chain, batch.condition, 1), self.activity(data, batch.condition)
        gap = self.energy(chain, batch.condition).mean() - self.energy(data, batch.condition).mean()
        return {
            "chain_energy_gap": gap.item(),
            "chain_flip_rate": (moved != chain).float().mean().item(),
            "hidden_mean": active.mean().item(),
            "hidden_saturated": ((active < 0.01) | (active > 0.99)).float().mean().item(),
        }


def hidden_units(space: Space, width: int) -> Space:
    """The space of so many binary units, given the condition of another."""
    return Space("image", (1, 1, width), levels=2, condition=space.condition)
