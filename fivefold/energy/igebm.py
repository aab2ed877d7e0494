"""Implicit generation and generalisation in energy-based models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fivefold.energy._system import ChainSystem
from fivefold.nets.norm import frozen, spectral_norm
from fivefold.options import option
from fivefold.system import Batch, Update
from fivefold.tools.mcmc import KERNELS, Move
from fivefold.tools.particles import near
from fivefold.tools.scaling import centre, uncentre

REACH = 10.0  # standard deviations: real dimensions are confined to a box, or exp(-E) might have no integral
MOVES = {"image": (20.0, 0.03, 0.01), "table": (1.0, 0.1, 1.0)}  # the usual step size, noise and clamp


class IGEBM(ChainSystem):
    """Implicit generation with an energy model (survey 2.2; Du and Mordatch, 2019).

    A spectrally normalised residual network f learns by contrastive divergence: its value falls on
    data and rises where Langevin chains (survey Eq. 4) end. The chains persist in a replay buffer from
    one step to the next. With noise of variance `noise`^2 beside a drift of `step_size` / 2 df/dx they
    follow p(x) = exp(-E(x)) / Z with E = f step_size / noise^2, and that E is the density's energy,
    Z unknown; clamping the gradient and stopping early make it approximate.

    It works on centred examples: discrete dimensions in [-1, 1], with noise of up to half a level on
    the data; categories are taken in their order.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
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

    reach: Tensor

    fill_steps = 60
    step_size: float = option(0.0, "of the drift, in units of f; 0 for the usual one on this kind of data", least=0)
    noise: float = option(0.0, "standard deviation of the noise; 0 for the usual one on this kind of data", least=0)
    clamp: float = option(
        0.0, "largest component of df/dx that moves a chain; 0 for the usual one on this kind of data", least=0
    )
    regularisation: float = option(0.1, "weight of E_data^2 + E_chains^2, which keeps f near 0", least=0)
    start: Literal["buffer", "noise"] = option("buffer", "where sampling starts")
    lr = 1e-3

    def build(self) -> None:
        super().build()
        self.f = self.energy_net(spectral_norm)
        reach = torch.tensor([REACH if levels is None else 1.0 for levels in self.space.dim_levels])
        self.register_buffer("reach", reach.view(self.space.shape), persistent=False)
        self.set_up_chains(self.space.shape)
        self.step_size, self.noise, self.clamp = (
            given or usual
            for given, usual in zip((self.step_size, self.noise, self.clamp), MOVES[self.space.kind], strict=True)
        )
        self.temperature = self.noise**2 / self.step_size  # f / E

    def move(self) -> Move:
        """Drift step_size / 2 df/dx in centred space, each component of df/dx clamped, and noise."""
        return Move(self.step_size, self.noise, self.clamp, (-self.reach, self.reach))

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        yield from self.contrast(self, batch)

    def energies(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.f(x, condition)

    def held(self, on_data: Tensor, on_chains: Tensor) -> Tensor:
        """Both values near 0."""
        return self.regularisation * ((on_data**2).mean() + (on_chains**2).mean())

    def fresh(self, n: int) -> Tensor:
        """Uniform in discrete dimensions, standard normal in real ones."""
        uniform = 2 * torch.rand(n, *self.space.shape, device=self.device) - 1
        return torch.where(self.reach > 1, torch.randn_like(uniform), uniform)

    def data(self, x: Tensor) -> Tensor:
        """Centred examples with uniform noise of up to half a level on discrete dimensions."""
        levels = torch.tensor([n or 0 for n in self.space.dim_levels], device=x.device).view(self.space.shape)
        half = torch.where(levels > 1, 1 / (levels - 1), 0.0)
        y = centre(x, self.space)
        return (y + half * (2 * torch.rand_like(y) - 1)).clamp(-self.reach, self.reach)

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        return {self: torch.optim.Adam(self.parameters(), self.lr, (self.beta1, 0.999), fused=True)}

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """-E, up to the unknown -ln Z, in nats `(B,)`."""
        return -self.f(centre(x, self.space), condition) / self.temperature

    @property
    def filling(self) -> str:
        limit = "exact" if self.kernel == "metropolis-langevin" else "nearly exact"
        return (
            "the chains that samples come from, started at samples near what is known and that held: approximate as "
            f"samples are; in the limit of many steps {limit} for the energy, which samples do not wait for"
        )

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        """What is known enters the energy as it is; its own numbers in the state go where they like."""
        start = near(lambda n, c: uncentre(self.sample_start(n, c), self.space), self.space, x, known, condition)
        y, wide = centre(torch.where(known, x, start), self.space), torch.where(known, math.inf, self.reach)
        move = self.move()._replace(bounds=(-wide, wide))

        def potential(state: Tensor) -> Tensor:
            return self.potential(torch.where(known, y, state), condition)

        with frozen(self):
            return uncentre(KERNELS[self.kernel](potential, y, self.fill_steps, move).state, self.space)

    def sample_start(self, n: int, condition: Tensor | None) -> Tensor:
        """Chains of the buffer (of equal condition where there is one), or noise."""
        fresh = self.fresh(n)
        return fresh if self.start == "noise" else self.buffer.like(fresh, condition)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Also how much of the chains lies on the border of the box."""
        found = super().monitor(batch)
        if not found:
            return found
        chains = self.buffer.chains[self.buffer.ages > 0]
        return {**found, "saturated": (chains.abs() >= self.reach).float().mean().item()}
