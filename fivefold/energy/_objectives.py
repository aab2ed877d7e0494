"""What an energy learns by: chains that persist, score matching, noise contrast, f-divergences, Stein's discrepancy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.energy._buffer import ReplayBuffer
from fivefold.energy._moments import Moments
from fivefold.nets.residual import Field
from fivefold.options import Configured, option
from fivefold.system import Batch, Update
from fivefold.tools import matching
from fivefold.tools.divergence import rademacher
from fivefold.tools.games import duplicate_rate
from fivefold.tools.mcmc import KERNELS, independence_metropolis

if TYPE_CHECKING:  # they are built of these
    from fivefold.energy._system import ChainSystem


class Objective(Configured, nn.Module):
    """What an energy learns by. It may hold players and buffers of its own; the energy is the system's.

    Args:
        system: whose energy exists already.
    """

    smooth: ClassVar[bool] = False  # whether it takes second derivatives of the energy

    def __init__(self, system: ChainSystem, **options: Any) -> None:
        super().__init__()
        self.configure(options)
        self.set_up(system)

    def set_up(self, system: ChainSystem) -> None:
        """Buffers and networks."""

    def updates(self, system: ChainSystem, batch: Batch, progress: float) -> Iterator[Update]:
        """One training step."""
        raise NotImplementedError

    def optimizers(self, system: ChainSystem) -> dict[nn.Module, torch.optim.Optimizer]:
        """Of players beside the energy."""
        return {}

    def starts(self, system: ChainSystem, fresh: Tensor, condition: Tensor | None) -> Tensor:
        """States `(n, ...)` at which sampling starts."""
        return fresh

    def monitor(self, system: ChainSystem, batch: Batch) -> dict[str, float]:
        return {}


class ContrastiveDivergence(Objective):
    """The energy falls on data and rises where short chains end (survey Eq. 2; Hinton, 2002; Tieleman, 2008).

    Chains may persist in a buffer from one step to the next, with their conditions.
    """

    chain_start: Literal["buffer", "noise", "data"] = option(
        "buffer", "where chains start in training: where earlier ones ended, from noise, or from the data"
    )
    reset_rate: float = option(
        0.05, "share of chains that start afresh when they are drawn from the buffer", least=0, most=1
    )
    restart: Literal["noise", "data"] = option("noise", "where chains of the buffer that start afresh do so")
    buffer_size: int = option(1024, "chains in the buffer", least=1)
    kernel: str = option("langevin", "how chains move in training", choices=tuple(KERNELS))
    chain_steps: int = option(20, "steps of the chains for one training step", least=1)

    def set_up(self, system: ChainSystem) -> None:
        condition = system.space.condition.shape if system.space.condition else (0,)
        self.buffer = ReplayBuffer(self.buffer_size, system.state_shape, condition)

    def updates(self, system: ChainSystem, batch: Batch, progress: float) -> Iterator[Update]:
        data, n = system.data(batch.x), len(batch.x)
        slots = torch.randperm(len(self.buffer), device=data.device)[:n]
        start, condition, ages = self._starts(system, slots, data, batch.condition)
        state = system.run(start, condition, self.chain_steps, self.kernel)
        chains = system.examples(state, condition).detach()
        both = None if batch.condition is None or condition is None else torch.cat([batch.condition, condition])
        yield from self.contrast(system, data, chains, both)
        self.buffer.put(slots, state, condition, ages + 1)

    def contrast(self, system: ChainSystem, data: Tensor, chains: Tensor, both: Tensor | None) -> Iterator[Update]:
        """The step, from data and chains `(B, ...)` and the conditions of both, one after the other."""
        yield system.contrast(data, chains, both)

    def _starts(
        self, system: ChainSystem, slots: Tensor, data: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """States, conditions and ages of as many chains as there are data."""
        ages = torch.zeros(len(slots), dtype=torch.long, device=data.device)
        if self.chain_start == "data":
            return data, condition, ages
        fresh = data if self.restart == "data" and self.chain_start == "buffer" else system.fresh(len(data))
        if self.chain_start == "noise":
            return fresh, condition, ages
        return self.buffer.draw(slots, fresh, condition, self.reset_rate, system.far)

    def starts(self, system: ChainSystem, fresh: Tensor, condition: Tensor | None) -> Tensor:
        """Where chains ended (those of equal condition where there is one), unless they start from noise."""
        return fresh if self.chain_start == "noise" else self.buffer.like(fresh, condition)

    def monitor(self, system: ChainSystem, batch: Batch) -> dict[str, float]:
        """Statistics of the buffer's chains: energies in nats of data and chains, age and duplicates."""
        used = self.buffer.ages > 0
        if not used.any():
            return {}
        state, data = self.buffer.chains[used][:512], system.enter(batch.x)
        condition = self.buffer.conditions[used][:512].to(batch.condition) if batch.condition is not None else None
        chains = system.examples(state, condition)
        on_data = system.energies(data, batch.condition).mean().item() / system.temperature
        on_chains = system.energies(chains, condition).mean().item() / system.temperature
        return {
            "energy_data": on_data,
            "energy_chains": on_chains,
            "energy_gap": on_data - on_chains,
            "chain_age": self.buffer.ages[used].float().mean().item(),
            "duplicates": duplicate_rate(chains, data).item(),
        }


# --- without chains -----------------------------------------------------------------------------------


def nats(system: ChainSystem, condition: Tensor | None) -> matching.Energy:
    """E of centred examples under conditions."""
    return lambda x: system.energies(x, condition) / system.temperature


class WithoutChains(Objective):
    """Base of objectives that have no chains: sampling starts at a Gaussian like the data."""

    smooth: ClassVar[bool] = True

    settled: float = option(
        0.1, "share of the budget in which the Gaussian that sampling starts at is fitted to the data", least=0, most=1
    )

    def set_up(self, system: ChainSystem) -> None:
        self.moments = Moments(system.space.dims)

    def updates(self, system: ChainSystem, batch: Batch, progress: float) -> Iterator[Update]:
        x = system.data(batch.x)
        if progress < self.settled or not self.moments.seen:
            self.moments.follow(x)
        yield from self.steps(system, x, batch.condition)

    def steps(self, system: ChainSystem, x: Tensor, condition: Tensor | None) -> Iterator[Update]:
        """One training step on centred examples."""
        yield Update(system.energy, self.losses(system, x, condition).mean() / system.space.dims)

    def losses(self, system: ChainSystem, x: Tensor, condition: Tensor | None) -> Tensor:
        """Of each of the centred examples, `(B,)`, for objectives with one player."""
        raise NotImplementedError

    def starts(self, system: ChainSystem, fresh: Tensor, condition: Tensor | None) -> Tensor:
        return self.moments.draw(fresh) if self.moments.seen else fresh


class ScoreMatching(WithoutChains):
    """The score of the data, by its exact trace: one backward pass a dimension (survey Eq. 6; Hyvärinen, 2005)."""

    def losses(self, system: ChainSystem, x: Tensor, condition: Tensor | None) -> Tensor:
        return system.score_matching(x, condition)


class SlicedScoreMatching(WithoutChains):
    """The score of the data along random directions (Song et al., 2019)."""

    reduced: bool = option(True, "the form of less variance")

    def losses(self, system: ChainSystem, x: Tensor, condition: Tensor | None) -> Tensor:
        score = matching.score_of(nats(system, condition))
        return matching.sliced_score_matching(score, x, rademacher(x), self.reduced)


class FiniteDifferenceScoreMatching(WithoutChains):
    """The score of the data along random directions, by differences of the energy (Pang et al., 2020)."""

    difference: float = option(0.05, "the step, of each number", above=0)

    def losses(self, system: ChainSystem, x: Tensor, condition: Tensor | None) -> Tensor:
        given = None if condition is None else condition.repeat(3, *[1] * (condition.dim() - 1))
        return matching.finite_difference_score_matching(nats(system, given), x, rademacher(x), self.difference)


class DenoisingScoreMatching(WithoutChains):
    """The score of the data with noise of one strength, by removing it (survey Eq. 7; Vincent, 2011)."""

    deviation: float = option(0.2, "of the noise", above=0, tune=(0.05, 1.0))

    def losses(self, system: ChainSystem, x: Tensor, condition: Tensor | None) -> Tensor:
        score = matching.score_of(nats(system, condition))
        return matching.denoising_score_matching(score, x, torch.randn_like(x), self.deviation)


class NoiseContrast(WithoutChains):
    """The energy, ln Z a parameter of it, tells data from a fixed noise law (survey Eq. 10; Gutmann, 2010).

    The noise is the Gaussian with the data's mean and covariance, widened.
    """

    smooth: ClassVar[bool] = False

    times: int = option(4, "draws of the noise for one example", least=1)
    proposals: int = option(100, "draws of the noise that a sample's chain chooses among before it moves", least=0)

    def set_up(self, system: ChainSystem) -> None:
        super().set_up(system)
        system.energy = Normalised(system.energy, system.temperature)
        self.register_buffer("balanced", torch.zeros((), dtype=torch.bool))
        self.balanced: Tensor

    def steps(self, system: ChainSystem, x: Tensor, condition: Tensor | None) -> Iterator[Update]:
        law, flat, count = self.moments.law(), x.flatten(1).double(), len(x)
        if not self.balanced:
            self.balance(system, -nats(system, condition)(x) - law.log_prob(flat).to(x))
        both = torch.cat([flat, law.sample((self.times * count,))])
        if condition is not None:
            condition = condition.repeat(1 + self.times, *[1] * (condition.dim() - 1))
        log_p = -nats(system, condition)(both.to(x).view(-1, *x.shape[1:]))
        # ln of how much likelier data are, of which there are fewer
        ratio = log_p - law.log_prob(both).to(x) - math.log(self.times)
        on_data, on_noise = ratio.split([count, self.times * count])
        loss = F.softplus(-on_data).mean() + self.times * F.softplus(on_noise).mean()
        told = torch.cat([on_data > 0, on_noise < 0]).float().mean()
        yield Update(system.energy, loss, {"told_apart": told})

    def starts(self, system: ChainSystem, fresh: Tensor, condition: Tensor | None) -> Tensor:
        """Ends of chains whose proposals are the noise: the energy is asked where it was trained, and nowhere else."""
        if not self.moments.seen:
            return fresh
        law, energy = self.moments.law(), nats(system, condition)
        return independence_metropolis(
            lambda: self.moments.draw(fresh),
            lambda x: -energy(x) - law.log_prob(x.flatten(1).double()).to(x),
            self.proposals,
        )

    @torch.no_grad()
    def balance(self, system: ChainSystem, ratio: Tensor) -> None:
        """ln Z so that the first examples are told neither way, or it would first have to find tens of nats."""
        system.energy.get_parameter("log_z").add_(ratio.mean())
        self.balanced.fill_(True)

    def monitor(self, system: ChainSystem, batch: Batch) -> dict[str, float]:
        return {"log_z": system.energy.get_parameter("log_z").item()}


class Normalised(nn.Module):
    """An energy that holds its own ln Z as a parameter: `net`, and that at a temperature."""

    def __init__(self, net: nn.Module, temperature: float) -> None:
        super().__init__()
        self.net, self.temperature, self.log_z = net, temperature, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.net(x, condition) + self.temperature * self.log_z


# --- with a critic ------------------------------------------------------------------------------------


class FDivergence(ContrastiveDivergence):
    """An f-divergence from the data in its variational form, minimised over the energy (survey 2.5; Yu et al., 2020).

    A critic H is trained so that H + E is the logarithm of the ratio of both laws; chains give draws of the energy's.
    """

    critic: nn.Module

    divergence: str = option("jensen-shannon", "which", choices=tuple(matching.DIVERGENCES))
    most: float = option(4.0, "bound on the ratio's logarithm, or single examples would be all that counts", above=0)

    def set_up(self, system: ChainSystem) -> None:
        super().set_up(system)
        self.critic = system.energy_net()

    def log_ratio(self, x: Tensor, energies: Tensor, condition: Tensor | None) -> Tensor:
        """H + E, within the bounds, in which it bends smoothly."""
        return self.most * torch.tanh((self.critic(x, condition) + energies) / self.most)

    def contrast(self, system: ChainSystem, data: Tensor, chains: Tensor, both: Tensor | None) -> Iterator[Update]:
        rules, n, x = matching.DIVERGENCES[self.divergence], len(data), torch.cat([data, chains])
        values = system.energies(x, both)
        energies = values / system.temperature
        on_data, on_chains = self.log_ratio(x, energies.detach(), both).split([n, n])
        value = rules.on_data(on_data).mean() - rules.on_model(on_chains).mean()
        yield Update(self.critic, -value, {"divergence": value.detach()})
        with torch.no_grad():
            on_data, on_chains = self.log_ratio(x, energies, both).split([n, n])
        loss = matching.f_divergence(rules, on_data, on_chains, energies[:n], energies[n:])
        yield Update(system.energy, loss + system.held(values[:n], values[n:]))

    def optimizers(self, system: ChainSystem) -> dict[nn.Module, torch.optim.Optimizer]:
        return {self.critic: torch.optim.Adam(self.critic.parameters(), 2 * system.lr, (0.5, 0.999), fused=True)}


class Stein(WithoutChains):
    """Stein's discrepancy of the energy from the data, by a critic that learns to see it (survey 2.5; Grathwohl, 2020).

    No draws of the model are needed, in training at all.
    """

    critic_steps: int = option(3, "steps of the critic for one of the energy", least=1)
    bound: float = option(0.5, "weight of the critic's squared length, which holds it", above=0)

    def set_up(self, system: ChainSystem) -> None:
        super().set_up(system)
        self.critic = Field(system.space, 2 * system.width)

    def steps(self, system: ChainSystem, x: Tensor, condition: Tensor | None) -> Iterator[Update]:
        score = matching.score_of(nats(system, condition))
        fixed = score(x).detach()
        for _ in range(self.critic_steps):
            value, size = matching.stein(lambda _: fixed, lambda y: self.critic(y, condition), x, rademacher(x))
            stats = {"discrepancy": value.mean().detach() / system.space.dims}
            yield Update(self.critic, (self.bound * size - value).mean() / system.space.dims, stats)
        with torch.no_grad():
            field = self.critic(x, condition)
        # the trace of the field does not depend on the energy
        yield Update(system.energy, (score(x) * field).flatten(1).sum(1).mean() / system.space.dims)

    def optimizers(self, system: ChainSystem) -> dict[nn.Module, torch.optim.Optimizer]:
        return {self.critic: torch.optim.Adam(self.critic.parameters(), system.lr, (0.5, 0.9), fused=True)}


OBJECTIVES: dict[str, type[Objective]] = {
    "contrastive-divergence": ContrastiveDivergence,
    "score-matching": ScoreMatching,
    "sliced-score-matching": SlicedScoreMatching,
    "finite-difference-score-matching": FiniteDifferenceScoreMatching,
    "denoising-score-matching": DenoisingScoreMatching,
    "noise-contrast": NoiseContrast,
    "f-divergence": FDivergence,
    "stein": Stein,
}
