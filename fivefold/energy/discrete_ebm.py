"""Energies of discrete examples, whose gradient tells chains what to change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.energy._buffer import ReplayBuffer
from fivefold.nets.discrete import ENERGIES, Independent, QuadraticEnergy
from fivefold.nets.norm import frozen
from fivefold.options import depth_option, option, width_option
from fivefold.space import Space
from fivefold.system import Batch, Density, System, Update
from fivefold.tools.discrete_mcmc import DISCRETE_KERNELS
from fivefold.tools.games import duplicate_rate
from fivefold.tools.mcmc import Chains, Move
from fivefold.tools.particles import near
from fivefold.tools.scaling import centre
from fivefold.tools.schedule import late_fall


class DiscreteEBM(System):
    """Discrete energy-based model (survey 2.2; Grathwohl et al., 2021).

    An energy of images of few or many levels, and of tables of whole numbers and categories. Its gradient at the
    one-hot form of an example says of every number and every value what the change would do, to first order; chains
    propose changes that help and Metropolis accepts them or not (Gibbs with gradients), so that a step costs one
    gradient however many numbers there are.

    p(x) is q(x) exp(-f(x)) / Z: q the independent laws of the data's frequencies, where chains start, and f a residual
    network, or quadratic (an Ising or a Potts model). It learns by contrastive divergence from chains that persist in
    a replay buffer.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.UNNORMALISED, "table": Density.UNNORMALISED}
    sampling: ClassVar[str] = "mcmc"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sample_steps": (0, 100, 300, 1000)}
    least_batch: ClassVar[int] = 32  # a contrast of means of fewer is noisy
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.99, "clip": 10.0}}
    temperature: float = 1.0  # values are in nats

    energy: str = option(
        "network", "of examples: a residual network, or quadratic (Ising, Potts)", choices=tuple(ENERGIES)
    )
    width: int = width_option(16, "channels at full resolution (units of a layer on tables)", tune=(8, 256))
    blocks: int = option(2, "widths on images, each twice the one before at half the sides", least=1, tune=(1, 4))
    depth: int = depth_option(
        1, "residual blocks of each width (on tables: of one width, `blocks` times as many)", tune=(1, 8)
    )
    kernel: str = option(
        "gibbs-with-gradients", "how chains move: plain Gibbs at random or in turn, or led by the gradient",
        choices=tuple(DISCRETE_KERNELS),
    )  # fmt: skip
    chain_steps: int = option(20, "steps of the chains for one training step, each of one number", least=1)
    sample_steps: int = option(300, "steps for a sample; 0 gives where it starts", least=0)
    buffer_size: int = option(256, "chains in the buffer", least=1)
    reset_rate: float = option(
        0.02, "share of chains that start afresh when they are drawn from the buffer", least=0, most=1
    )
    regularisation: float = option(0.01, "weight of f_data^2 + f_chains^2, which keeps f near 0", least=0)
    sparsity: float = option(0.0, "of a quadratic energy: weight of the sum of the couplings' magnitudes", least=0)
    fill_steps = 300
    lr = 1e-3
    beta1: float = option(0.0, "decay of the mean of gradients", least=0, below=1, section="optimizers")

    @classmethod
    def density_on(cls, space: Space) -> Density | None:
        """None where a dimension is real."""
        return super().density_on(space) if space.discrete else None

    def build(self) -> None:
        super().build()
        self.base = Independent(self.space)
        self.f = ENERGIES[self.energy](self.space, self.width, self.blocks, self.depth)
        given = self.space.condition.shape if self.space.condition else (0,)
        self.buffer = ReplayBuffer(self.buffer_size, (self.space.dims,), given)
        self.most = len(self.base.possible[0])
        self.register_buffer("high", self.base.possible.sum(1) - 1, persistent=False)
        self.high: Tensor

    # --- the model: states are whole numbers (B, D) --------------------------------------------------

    def one_hot(self, state: Tensor) -> Tensor:
        return F.one_hot(state.flatten(1).long(), self.most).float()

    def energies(self, state: Tensor, condition: Tensor | None) -> Tensor:
        """E of states or encoded examples, nats `(B,)`: that of the independent laws and f."""
        one_hot = self.one_hot(state)
        return self.base(one_hot) + self.f(one_hot, condition)

    def examples(self, state: Tensor, condition: Tensor | None = None) -> Tensor:
        """Encoded examples of states."""
        x = state.view(-1, *self.space.shape)
        return x.float() if self.space.columns else x

    def fresh(self, n: int) -> Tensor:
        """States by the independent laws, where chains start."""
        return self.base.sample(n)

    def walk(self, state: Tensor, condition: Tensor | None, steps: int, free: Tensor | None = None) -> Chains:
        """`steps` of the chains from `state`, the weights held fixed; numbers that are not `free` stay."""

        def energy(one_hot: Tensor) -> Tensor:
            return self.base(one_hot) + self.f(one_hot, condition)

        kept = {} if free is None else {"free": free}
        with frozen(self):
            return DISCRETE_KERNELS[self.kernel](energy, state.long(), steps, Move(1.0, bounds=(0, self.high)), **kept)

    def run(self, state: Tensor, condition: Tensor | None, steps: int) -> Tensor:
        return self.walk(state, condition, steps).state

    # --- training -----------------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        """One step of contrastive divergence: down on data, up on where short chains end (survey Eq. 2)."""
        data, n = batch.x.flatten(1).long(), len(batch.x)
        slots = torch.randperm(len(self.buffer), device=data.device)[:n]
        start, condition, ages = self.buffer.draw(slots, self.fresh(n), batch.condition, self.reset_rate)
        chains = self.walk(start, condition, self.chain_steps)
        both = None if batch.condition is None or condition is None else torch.cat([batch.condition, condition])
        one_hot = self.one_hot(torch.cat([data, chains.state]))
        f, q = self.f(one_hot, both), self.base(one_hot)
        on_data, on_chains = f.split([n, n])
        held = (on_data**2).mean() + (on_chains**2).mean()
        gap = (f + q)[:n].mean() - (f + q)[n:].mean()
        stats = {
            "gap": gap.detach(), "accepted": chains.accepted.mean(), "parts": torch.ones((), device=data.device),
            "frequency": one_hot[:n].mean(0),
        }  # fmt: skip
        total = yield Update(self, gap + self.regularisation * held + self._sparse(), stats)
        if total is not None:
            self.base.learn(total["frequency"] / total["parts"])
        self.buffer.put(slots, chains.state.float(), condition, ages + 1)

    def _sparse(self) -> Tensor | float:
        if not self.sparsity or not isinstance(self.f, QuadraticEnergy):
            return 0.0
        return self.sparsity * self.f.couplings.abs().sum() / 2

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        return {self: torch.optim.Adam(self.parameters(), self.lr, (self.beta1, 0.999), fused=True)}

    def learning_rate(self, progress: float) -> float:
        return late_fall(progress)

    # --- samples and density ------------------------------------------------------------------------

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        """From chains of the buffer (of equal condition where there is one), or afresh."""
        start = self.buffer.like(self.fresh(n).float(), condition)
        return self.examples(self.run(start, condition, self.sample_steps))

    @property
    def sample_evaluations(self) -> int:
        """Steps of one sample; the buffer's chains have many more behind them."""
        return self.sample_steps

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """-E, up to the unknown -ln Z, in nats `(B,)`."""
        return -self.energies(x, condition)

    @property
    def filling(self) -> str:
        return "the chains that samples come from, what is known held: exact in the limit of many steps"

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        start = torch.where(known, x, near(self._sample, self.space, x, known, condition)).flatten(1)
        return self.examples(self.walk(start, condition, self.fill_steps, ~known.flatten(1)).state)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Statistics of the buffer's chains: energies in nats of data and chains, age, duplicates, acceptance."""
        used = self.buffer.ages > 0
        if not used.any():
            return {}
        chains, given = self.buffer.chains[used][:512], None
        if batch.condition is not None:
            given = self.buffer.conditions[used][:512].to(batch.condition)
        on_data = self.energies(batch.x, batch.condition).mean().item()
        on_chains = self.energies(chains, given).mean().item()
        alike = duplicate_rate(centre(self.examples(chains), self.space), centre(batch.x, self.space))
        return {
            "energy_data": on_data,
            "energy_chains": on_chains,
            "energy_gap": on_data - on_chains,
            "accepted": self.walk(chains, given, 5).accepted.mean().item(),
            "chain_age": self.buffer.ages[used].float().mean().item(),
            "duplicates": alike.item(),
        }
