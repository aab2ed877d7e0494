"""Diffusion recovery likelihood: a sequence of energies, each of slightly less noisy data given noisier ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.energy._system import PointSystem, twice
from fivefold.errors import Unfit
from fivefold.nets.norm import frozen
from fivefold.options import fixed, option
from fivefold.space import Column, Space
from fivefold.system import Batch, Update
from fivefold.tools.diffusion import rows
from fivefold.tools.mcmc import KERNELS, Chains, Move


class DiffusionRecovery(PointSystem):
    """Diffusion recovery likelihood (survey 2.5; Gao et al., 2021).

    Data are noised in a few steps, x_{t+1} = a_t x_t + s_t e, and one network has an energy of each step's y = a_t x_t.
    Given the noisier x_{t+1}, y follows exp(-E_t(y) - |x_{t+1} - y|^2 / (2 s_t^2)): nearly a Gaussian around x_{t+1},
    with one mode, where a short Langevin chain is enough and training by contrastive divergence stable. Samples are
    noise that such chains make less noisy, one step after another. E_0 is the energy of the data themselves, up to a
    constant.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.99, "clip": 10.0}}
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sample_steps": (5, 15, 30, 60)}

    objective: Any = fixed(None)
    steps: int = option(6, "of the noise, T", least=1)
    least_noise: float = option(0.1, "standard deviation of the first step's noise", above=0, below=1)
    stride: float = option(0.2, "of the chains, in units of the noise's variance at their step", above=0)
    regularisation: float = option(1e-3, "weight of the squares of both energies, which keeps them near 0", least=0)
    chain_steps: int = option(15, "Langevin steps of a chain in training", least=1)
    sampler = "metropolis-langevin"
    sample_steps = 15

    scale: Tensor
    noises: Tensor

    def build(self) -> None:
        super().build()
        variances = torch.linspace(math.log(self.least_noise**2), math.log(0.9), self.steps).exp()
        if self.steps == 1:
            variances = torch.tensor([0.9])
        self.register_buffer("noises", variances.sqrt(), persistent=False)  # s_t
        self.register_buffer("scale", (1 - variances).sqrt(), persistent=False)  # a_t

    def make_energy(self) -> nn.Module:
        """Of examples at a step: the step is a condition beside the user's."""
        user = self.space.condition
        if user is not None and not user.columns:
            raise Unfit(f"DiffusionRecovery takes conditions of columns, not {user.describe()}")
        step = Column("step", "categorical", "int64", levels=self.steps, categories=tuple(range(self.steps)))
        columns = (step, *(user.columns if user else ()))
        return self.energy_net(space=self.space.conditioned_on(Space("table", (len(columns),), columns=columns)))

    def energy_at(self, y: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """E_t(y), nats `(B,)`, of points at steps `(B,)`."""
        given = t[:, None].float()
        if condition is not None:
            given = torch.cat([given, condition.float().flatten(1)], 1)
        return self.energy(y, given)

    # --- training ---------------------------------------------------------------------------------

    def noisy(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """A draw of y_t = a_t x_t and of x_{t+1} of centred data `(B, ...)`, at steps `(B,)`."""
        kept = torch.cat([self.scale.new_ones(1), self.scale.cumprod(0)])[t]
        y = rows(self.scale[t], x) * (rows(kept, x) * x + rows((1 - kept.square()).sqrt(), x) * torch.randn_like(x))
        return y, y + rows(self.noises[t], x) * torch.randn_like(x)

    def recover(self, x: Tensor, t: Tensor, condition: Tensor | None, steps: int, keep: int = 0) -> Chains:
        """Chains from x_{t+1} by the law of y_t given it, in units of the step's noise."""
        noise = rows(self.noises[t], x)

        def potential(u: Tensor) -> Tensor:
            return self.energy_at(noise * u, t, condition) + 0.5 * (u - x / noise).square().flatten(1).sum(1)

        with frozen(self):
            ends = KERNELS[self.sampler](potential, x / noise, steps, Move(self.stride, keep=keep))
        return ends._replace(state=noise * ends.state)

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        """Contrastive divergence of the conditional energies, at steps drawn at random (Gao et al., Algorithm 1)."""
        t, condition = torch.randint(self.steps, (len(batch.x),), device=batch.x.device), batch.condition
        y, x = self.noisy(self.data(batch.x), t)
        ends = self.recover(x, t, condition, self.chain_steps).state
        on_data, on_chains = self.energy_at(torch.cat([y, ends]), t.repeat(2), twice(condition)).chunk(2)
        gap = on_data.mean() - on_chains.mean()
        held = self.regularisation * (on_data.square() + on_chains.square()).mean()
        yield Update(self.energy, gap + held, {"gap": gap.detach()})

    # --- samples and density ------------------------------------------------------------------------

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        """From noise, step by step (Gao et al., Algorithm 2)."""
        x = torch.randn(n, *self.space.shape, device=self.device)
        for step in reversed(range(self.steps)):
            t = torch.full((n,), step, device=self.device)
            x = self.recover(x, t, condition, self.sample_steps).state / self.scale[step]
        return self.leave(x)

    @property
    def sample_evaluations(self) -> int:
        return self.steps * self.sample_steps

    def nats(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """E of centred examples: of the first step's y, which is data but for a scale."""
        return self.energy_at(self.scale[0] * x, torch.zeros(len(x), dtype=torch.long, device=x.device), condition)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Of the first and the last step: by how much the energy falls from where chains end to data, in nats."""
        found = {}
        for name, step in (("first", 0), ("last", self.steps - 1)):
            t = torch.full((len(batch.x),), step, device=batch.x.device)
            y, x = self.noisy(self.enter(batch.x), t)
            ends = self.recover(x, t, batch.condition, self.chain_steps).state
            gap = self.energy_at(ends, t, batch.condition) - self.energy_at(y, t, batch.condition)
            found[f"gap_{name}"] = gap.mean().item()
        return found
