"""Implicit generation and generalisation in energy-based models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fivefold.nets.norm import frozen, spectral_norm
from fivefold.nets.residual import ConvEnergy, MLPEnergy
from fivefold.options import option
from fivefold.system import Batch, Density, System, Update
from fivefold.tools.games import duplicate_rate
from fivefold.tools.mcmc import energy_gradient, sgld
from fivefold.tools.scaling import centre, uncentre

REACH = 10.0  # standard deviations: real dimensions are confined to a box, or exp(-E) might have no integral


class Langevin(NamedTuple):
    """How chains move in centred space: drift step_size / 2 df/dx, each component of df/dx clamped, and noise."""

    step_size: float
    noise: float
    clamp: float


LANGEVIN = {"image": Langevin(20.0, 0.03, 0.01), "table": Langevin(1.0, 0.1, 1.0)}
NETS = {"image": ConvEnergy, "table": MLPEnergy}


class IGEBM(System):
    """Implicit generation with an energy model (survey 2.2; Du and Mordatch, 2019).

    A spectrally normalised residual network f learns by contrastive divergence: its value falls on
    data and rises where Langevin chains (survey Eq. 4) end. The chains persist in a replay buffer from
    one step to the next. With noise of variance `noise`^2 beside a drift of `step_size` / 2 df/dx they
    follow p(x) = exp(-E(x)) / Z with E = f step_size / noise^2, and that E is the density's energy,
    Z unknown; clamping the gradient and stopping early make it approximate.

    It works on centred examples: discrete dimensions in [-1, 1], with noise of up to half a level on
    the data; categories are taken in their order.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.UNNORMALISED, "table": Density.UNNORMALISED}
    sampling: ClassVar[str] = "mcmc"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sample_steps": (0, 20, 60, 120)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.99},
        # Unconditional; the paper's step of 10, noise of 0.005 and clamp of 0.01 are of images in [0, 1].
        "cifar10": {
            "width": 128, "depth": 3, "chain_steps": 60, "step_size": 80.0, "noise": 0.01, "clamp": 0.005,
            "buffer_size": 10_000, "regularisation": 1.0, "batch_size": 128, "lr": 1e-4, "ema": 0.0,
        },
        "imagenet32": {
            "width": 256, "depth": 3, "chain_steps": 60, "step_size": 80.0, "noise": 0.01, "clamp": 0.005,
            "buffer_size": 10_000, "regularisation": 1.0, "batch_size": 32, "lr": 1e-4, "ema": 0.0,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "cifar10": (18_606_727, "the authors' program, unconditional: its weights, counted from their shapes")
    }

    chains: Tensor
    conditions: Tensor
    ages: Tensor
    reach: Tensor

    width: int = option(
        16, "channels at full resolution (units of a layer on tables)", least=1, tune=(8, 256), log=True
    )
    blocks: int = option(3, "widths on images, each twice the one before at half the sides", least=1, tune=(1, 8))
    depth: int = option(
        1, "residual blocks of each width (on tables: of one width, `blocks` times as many)", least=1, tune=(1, 8)
    )
    chain_steps: int = option(20, "Langevin steps for one training step", least=1)
    step_size: float = option(0.0, "of the drift, in units of f; 0 for the usual one on this kind of data", least=0)
    noise: float = option(0.0, "standard deviation of the noise; 0 for the usual one on this kind of data", least=0)
    clamp: float = option(
        0.0, "largest component of df/dx that moves a chain; 0 for the usual one on this kind of data", least=0
    )
    buffer_size: int = option(1024, "chains in the replay buffer", least=1)
    reset_rate: float = option(0.05, "share of chains that start from noise again when they are drawn", least=0, most=1)
    regularisation: float = option(0.1, "weight of E_data^2 + E_chains^2, which keeps f near 0", least=0)
    start: Literal["buffer", "noise"] = option("buffer", "where sampling starts")
    sample_steps: int = option(60, "Langevin steps for a sample; 0 gives where it starts", least=0)
    lr = 1e-3
    beta1: float = option(0.0, "decay of Adam's mean of gradients", least=0, section="optimizers")

    def build(self) -> None:
        super().build()
        usual = LANGEVIN[self.space.kind]
        self.langevin = Langevin(
            self.step_size or usual.step_size, self.noise or usual.noise, self.clamp or usual.clamp
        )
        self.from_noise = self.start == "noise"
        self.f = NETS[self.space.kind](self.space, self.width, spectral_norm, self.blocks, self.depth)
        condition_shape = self.space.condition.shape if self.space.condition else (0,)
        reach = torch.tensor([REACH if levels is None else 1.0 for levels in self.space.dim_levels])
        self.register_buffer("reach", reach.view(self.space.shape), persistent=False)
        self.register_buffer("chains", torch.zeros(self.buffer_size, *self.space.shape))
        self.register_buffer("conditions", torch.zeros(self.buffer_size, *condition_shape))
        self.register_buffer("ages", torch.full((self.buffer_size,), -1))  # in training steps; -1: never used

    @property
    def temperature(self) -> float:
        """f / E: the chains' noise variance over their step size."""
        return self.langevin.noise**2 / self.langevin.step_size

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        data = self._dequantise(batch.x)
        slots = torch.randperm(len(self.chains), device=data.device)[: len(data)]
        start, condition, ages = self._draw(slots, batch.condition)
        chains = self._run(start, condition, self.chain_steps)
        yield self._contrast(data, batch.condition, chains, condition)
        self.chains[slots], self.ages[slots] = chains, ages + 1
        if condition is not None:
            self.conditions[slots] = condition.to(self.conditions)

    def _draw(self, slots: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Chains of the buffer with their conditions and ages; new ones from noise where they are reset."""
        ages, count = self.ages[slots], len(slots)
        fresh = (torch.rand(count, device=slots.device) < self.reset_rate) | (ages < 0)
        chains = _where(fresh, self._noise(count), self.chains[slots])
        if condition is not None:
            condition = _where(fresh, condition[:count].to(self.conditions), self.conditions[slots]).to(condition)
        return chains, condition, ages.masked_fill(fresh, 0)

    def _contrast(self, data: Tensor, given: Tensor | None, chains: Tensor, kept: Tensor | None) -> Update:
        """Contrastive divergence, and both values held near 0; one pass, so one power iteration."""
        condition = None if given is None or kept is None else torch.cat([given, kept])
        on_data, on_chains = self.f(torch.cat([data, chains]), condition).split([len(data), len(chains)])
        gap = on_data.mean() - on_chains.mean()
        held = (on_data**2).mean() + (on_chains**2).mean()
        return Update(self, gap + self.regularisation * held, {"gap": gap, "chains": on_chains.mean()})

    def _run(self, x: Tensor, condition: Tensor | None, steps: int) -> Tensor:
        """`steps` of Langevin dynamics from `x`, the network's weights held fixed."""
        with frozen(self.f):
            gradient = energy_gradient(lambda y: self.f(y, condition))
            step_size, noise, clamp = self.langevin
            return sgld(gradient, x, steps, step_size, noise, clamp, (-self.reach, self.reach))

    def _noise(self, n: int) -> Tensor:
        """Where chains start: uniform in discrete dimensions, standard normal in real ones."""
        uniform = 2 * torch.rand(n, *self.space.shape, device=self.device) - 1
        return torch.where(self.reach > 1, torch.randn_like(uniform), uniform)

    def _dequantise(self, x: Tensor) -> Tensor:
        """Centred examples with uniform noise of up to half a level on discrete dimensions."""
        levels = torch.tensor([n or 0 for n in self.space.dim_levels], device=x.device).view(self.space.shape)
        half = torch.where(levels > 1, 1 / (levels - 1), 0.0)
        y = centre(x, self.space)
        return (y + half * (2 * torch.rand_like(y) - 1)).clamp(-self.reach, self.reach)

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """Adam."""
        return {self: torch.optim.Adam(self.parameters(), self.lr, (self.beta1, 0.999), fused=True)}

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """-E, up to the unknown -ln Z, in nats `(B,)`."""
        return -self.f(centre(x, self.space), condition) / self.temperature

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        """Ends of chains that go on from the buffer (of equal condition where there is one) or start from noise."""
        start = self._noise(n)
        if not self.from_noise:
            start = self._from_buffer(start, condition)
        return uncentre(self._run(start, condition, self.sample_steps), self.space)

    def _from_buffer(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        """Random chains of the buffer, each of the wanted condition; noise where the buffer has none."""
        fits = (self.ages > 0).expand(len(noise), -1)
        if condition is not None:
            wanted = condition.to(self.conditions).flatten(1)
            fits = fits & (wanted[:, None] == self.conditions.flatten(1)).all(2)
        found = fits.any(1)
        slots = torch.multinomial(torch.where(found[:, None], fits, True).float(), 1).squeeze(1)
        return _where(found, self.chains[slots], noise)

    @property
    def sample_evaluations(self) -> int:
        """Langevin steps of one sample; the buffer's chains have many more behind them."""
        return self.sample_steps

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Statistics of the chains: energies of data and chains in nats, saturation, age and duplicates."""
        used = self.ages > 0
        if not used.any():
            return {}
        chains, data = self.chains[used], centre(batch.x, self.space)
        condition = self.conditions[used].to(batch.condition) if batch.condition is not None else None
        on_data = self.f(data, batch.condition).mean().item() / self.temperature
        on_chains = self.f(chains, condition).mean().item() / self.temperature
        return {
            "energy_data": on_data,
            "energy_chains": on_chains,
            "energy_gap": on_data - on_chains,
            "saturated": (chains.abs() >= self.reach).float().mean().item(),
            "chain_age": self.ages[used].float().mean().item(),
            "duplicates": duplicate_rate(chains[:512], data).item(),
        }


def _where(mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Rows of x where `mask` `(B,)`, of y elsewhere."""
    return torch.where(mask.view(-1, *[1] * (x.dim() - 1)), x, y)
