"""The base of energies: the network, where its chains start, how they move, and what it learns from their ends."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fivefold.nets.norm import frozen
from fivefold.nets.residual import ConvEnergy, MLPEnergy
from fivefold.options import depth_option, option, width_option
from fivefold.system import Batch, Density, System, Update
from fivefold.tools.games import duplicate_rate
from fivefold.tools.mcmc import KERNELS, Move
from fivefold.tools.scaling import centre, uncentre

NETS: dict[str, Callable[..., nn.Module]] = {"image": ConvEnergy, "table": MLPEnergy}


class EnergySystem(System):
    """Base of systems whose density is that of an energy, p(x) = exp(-E(x)) / Z (survey Eq. 1): they have its network.

    Every layer of it can be wrapped, as by spectral norm.
    """

    points: ClassVar[bool] = True
    densities: ClassVar[dict[str, Density]] = {"image": Density.UNNORMALISED, "table": Density.UNNORMALISED}
    least_batch: ClassVar[int] = 32  # a contrast of means of fewer is noisy

    width: int = width_option(16, "channels at full resolution (units of a layer on tables)", tune=(8, 256))
    blocks: int = option(3, "widths on images, each twice the one before at half the sides", least=1, tune=(1, 4))
    depth: int = depth_option(
        1, "residual blocks of each width (on tables: of one width, `blocks` times as many)", tune=(1, 8)
    )

    def energy_net(self, wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> nn.Module:
        """A network of examples `(B, *shape)` and a condition to one number each, `(B,)`."""
        return NETS[self.space.kind](self.space, self.width, wrap, self.blocks, self.depth)


class ChainSystem(EnergySystem):
    """Base of energies that learn from where Markov chains end (survey 2.2).

    By contrastive divergence the energy falls on data and rises on the chains' ends. Chains move in a space of states
    (examples themselves unless a leaf says otherwise) and persist in a buffer from one step to the next, with their
    conditions.
    """

    sampling: ClassVar[str] = "mcmc"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sample_steps": (0, 20, 60, 120)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.99}}
    far: ClassVar[float] = math.inf  # a chain with a number beyond it starts afresh
    temperature: float = 1.0  # the network's value in nats is it over this

    chain_start: Literal["buffer", "noise", "data"] = option(
        "buffer", "where chains start in training: where earlier ones ended, from noise, or from the data"
    )
    reset_rate: float = option(
        0.05, "share of chains that start from noise again when they are drawn from the buffer", least=0, most=1
    )
    buffer_size: int = option(1024, "chains in the buffer", least=1)
    kernel: str = option(
        "langevin", "how chains move: Langevin steps, or those that Metropolis accepts", choices=tuple(KERNELS)
    )
    chain_steps: int = option(20, "steps of the chains for one training step", least=1)
    sample_steps: int = option(60, "steps for a sample; 0 gives where it starts", least=0)
    beta1: float = option(0.0, "decay of the energy's mean of gradients", least=0, below=1, section="optimizers")

    def set_up_chains(self, shape: tuple[int, ...]) -> None:
        """Make the buffer of states `(*shape,)`."""
        self.buffer = ReplayBuffer(
            self.buffer_size, shape, self.space.condition.shape if self.space.condition else (0,)
        )

    # --- what a leaf writes -----------------------------------------------------------------------

    @abstractmethod
    def fresh(self, n: int) -> Tensor:
        """States `(n, ...)` at which chains start that do not go on."""

    @abstractmethod
    def move(self) -> Move:
        """Of the chains: a step's size, and its bounds."""

    @abstractmethod
    def energies(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The network's values `(B,)` of centred examples."""

    def examples(self, state: Tensor, condition: Tensor | None) -> Tensor:
        """The centred examples of states."""
        return state

    def potential(self, state: Tensor, condition: Tensor | None) -> Tensor:
        """What chains go down, `(B,)`: at the temperature of `move` minus the logarithm of their law."""
        return self.energies(self.examples(state, condition), condition)

    def data(self, x: Tensor) -> Tensor:
        """Encoded examples as the energy is trained on them: centred."""
        return centre(x, self.space)

    def held(self, on_data: Tensor, on_chains: Tensor) -> Tensor:
        """What is added to the contrast of both values, so that they stay where they are of use."""
        return on_data.new_zeros(())

    # --- training ---------------------------------------------------------------------------------

    def contrast(self, player: nn.Module, batch: Batch) -> Iterator[Update]:
        """One step of contrastive divergence: down on data, up on where short chains end (survey Eq. 2)."""
        data, n = self.data(batch.x), len(batch.x)
        slots = torch.randperm(len(self.buffer), device=data.device)[:n]
        start, condition, ages = self._starts(slots, data, batch.condition)
        state = self.run(start, condition, self.chain_steps)
        chains = self.examples(state, condition).detach()
        both = None if batch.condition is None or condition is None else torch.cat([batch.condition, condition])
        on_data, on_chains = self.energies(torch.cat([data, chains]), both).split([n, n])  # one pass
        gap = on_data.mean() - on_chains.mean()
        stats = {"gap": gap.detach(), "chains": on_chains.mean().detach()}
        yield Update(player, gap + self.held(on_data, on_chains), stats)
        self.buffer.put(slots, state, condition, ages + 1)

    def _starts(self, slots: Tensor, data: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """States, conditions and ages of as many chains as there are data."""
        ages = torch.zeros(len(slots), dtype=torch.long, device=data.device)
        if self.chain_start == "data":
            return data, condition, ages
        fresh = self.fresh(len(data))
        if self.chain_start == "noise":
            return fresh, condition, ages
        return self.buffer.draw(slots, fresh, condition, self.reset_rate, self.far)

    def run(self, state: Tensor, condition: Tensor | None, steps: int) -> Tensor:
        """`steps` of the chains from `state`, the weights held fixed."""
        with frozen(self):
            return KERNELS[self.kernel](lambda y: self.potential(y, condition), state, steps, self.move()).state

    def shards(self) -> list[nn.Module]:
        """None: chains hold the network's normalised weights fixed, outside of its `forward`."""
        return []

    # --- samples ------------------------------------------------------------------------------------

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        state = self.run(self.sample_start(n, condition), condition, self.sample_steps)
        return uncentre(self.examples(state, condition), self.space)

    def sample_start(self, n: int, condition: Tensor | None) -> Tensor:
        """States at which sampling starts."""
        return self.fresh(n)

    @property
    def sample_evaluations(self) -> int:
        """Steps of one sample; the buffer's chains have many more behind them."""
        return self.sample_steps

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Statistics of the buffer's chains: energies in nats of data and chains, age and duplicates."""
        used = self.buffer.ages > 0
        if not used.any():
            return {}
        state, data = self.buffer.chains[used][:512], centre(batch.x, self.space)
        condition = self.buffer.conditions[used][:512].to(batch.condition) if batch.condition is not None else None
        chains = self.examples(state, condition)
        on_data = self.energies(data, batch.condition).mean().item() / self.temperature
        on_chains = self.energies(chains, condition).mean().item() / self.temperature
        return {
            "energy_data": on_data,
            "energy_chains": on_chains,
            "energy_gap": on_data - on_chains,
            "chain_age": self.buffer.ages[used].float().mean().item(),
            "duplicates": duplicate_rate(chains, data).item(),
        }


class ReplayBuffer(nn.Module):
    """Where chains ended, with their conditions and ages in training steps (-1: none yet).

    Args:
        size: how many.
        shape: of a state.
        condition: shape of a condition; (0,) for none.
    """

    chains: Tensor
    conditions: Tensor
    ages: Tensor

    def __init__(self, size: int, shape: tuple[int, ...], condition: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("chains", torch.zeros(size, *shape))
        self.register_buffer("conditions", torch.zeros(size, *condition))
        self.register_buffer("ages", torch.full((size,), -1))

    def __len__(self) -> int:
        return len(self.ages)

    def draw(
        self, slots: Tensor, fresh: Tensor, condition: Tensor | None, reset_rate: float, reach: float = math.inf
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """States `(n, ...)`, conditions and ages `(slots,)`: of the slots, and `fresh` ones for the rest and the reset.

        Args:
            slots: whose chains go on; not more than `fresh`.
            fresh: states `(n, ...)`.
            condition: of the fresh ones, `(n, ...)`.
            reset_rate: share of the slots that start afresh.
            reach: a chain with a number beyond it starts afresh.
        """
        count = len(slots)
        gone = self.chains[slots].flatten(1).abs().amax(1) > reach
        reset = (torch.rand(count, device=slots.device) < reset_rate) | (self.ages[slots] < 0) | gone
        chains = torch.cat([rows_where(reset, fresh[:count], self.chains[slots]), fresh[count:]])
        if condition is not None:
            kept = rows_where(reset, condition[:count].to(self.conditions), self.conditions[slots]).to(condition)
            condition = torch.cat([kept, condition[count:]])
        return chains, condition, self.ages[slots].masked_fill(reset, 0)

    def put(self, slots: Tensor, chains: Tensor, condition: Tensor | None, ages: Tensor) -> None:
        """Write back what the slots' chains, the first of all, have become."""
        self.chains[slots], self.ages[slots] = chains[: len(slots)], ages
        if condition is not None:
            self.conditions[slots] = condition[: len(slots)].to(self.conditions)

    def like(self, fresh: Tensor, condition: Tensor | None) -> Tensor:
        """Random chains `(n, ...)`, each of the wanted condition; the `fresh` one where there is none."""
        fits = (self.ages > 0).expand(len(fresh), -1)
        if condition is not None:
            wanted = condition.to(self.conditions).flatten(1)
            fits = fits & (wanted[:, None] == self.conditions.flatten(1)).all(2)
        found = fits.any(1)
        slots = torch.multinomial(torch.where(found[:, None], fits, True).float(), 1).squeeze(1)
        return rows_where(found, self.chains[slots], fresh)


def rows_where(mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Rows of x where `mask` `(B,)`, of y elsewhere."""
    return torch.where(mask.view(-1, *[1] * (x.dim() - 1)), x, y)
