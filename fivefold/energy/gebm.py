"""Generalised energies: a generator, whose support is all there is, tilted by an energy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.energy._system import ChainSystem
from fivefold.nets.adversarial import generator_net
from fivefold.options import fixed, option, width_option
from fivefold.system import Batch, Density, Update
from fivefold.tools.games import r1_penalty
from fivefold.tools.mcmc import Move


class GEBM(ChainSystem):
    """Generalised energy-based model (survey 2.4.1; Arbel et al., 2021).

    A generator x(z) makes a base law that may lie on a surface, where no density exists; an energy tilts it, exp(-E(x))
    over the base's mean of that (survey Eq. 9). Both learn from KALE, a lower bound on the divergence from the data,
    -E_data E(x) - ln E_base exp(-E(x)), which the energy makes large and the generator small: unlike a GAN's critic
    the energy is a part of the model, and mends at the end what the generator still gets wrong. Samples are chains in
    the generator's latent space, by exp(-E(x(z))) p(z).

    There is no density of examples; the generalised log-likelihood, KALE on held-out data, is in the monitor.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.NONE, "table": Density.NONE}
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sample_steps": (0, 10, 30, 100)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.99, "clip": 10.0}}
    least_batch: ClassVar[int] = 64

    objective: Any = fixed(None)
    latent: int = option(64, "width of codes", least=1, tune=(2, 128), log=True)
    generator_width: int = width_option(32, "of the generator's largest features", tune=(8, 256))
    energy_steps: int = option(2, "steps of the energy for one of the generator", least=1)
    penalty: float = option(1.0, "weight of the energy's squared slope on data", least=0)
    step_size: float = option(0.02, "of the chains in the latent space", above=0)
    sampler = "metropolis-langevin"
    sample_steps = 30
    lr = 1e-3
    beta1 = 0.5

    def build(self) -> None:
        super().build()
        self.generator = generator_net(self.space, self.latent, self.generator_width, True)
        self.energy = self.energy_net()
        self.learn_by_objective()

    # --- training ---------------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        data = self.enter(batch.x)
        for _ in range(self.energy_steps):
            x = data.detach().requires_grad_()
            with torch.no_grad():
                made = self.generator(self.fresh(len(x)), batch.condition)
            on_data = self.energy(x, batch.condition)
            kale = lower_bound(on_data, self.energy(made, batch.condition))
            loss = self.penalty / 2 * r1_penalty(on_data, x) - kale
            yield Update(self.energy, loss, {"kale": kale.detach()})
        made = self.energy(self.generator(self.fresh(len(data)), batch.condition), batch.condition)
        yield Update(self.generator, lower_bound(made.new_zeros(1), made))

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """Adam for both players."""
        return {
            player: torch.optim.Adam(player.parameters(), self.lr, (self.beta1, 0.999), fused=True)
            for player in (self.energy, self.generator)
        }

    # --- chains -------------------------------------------------------------------------------------

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (self.latent,)

    def fresh(self, n: int) -> Tensor:
        return torch.randn(n, self.latent, device=self.device)

    def move(self) -> Move:
        return Move(self.step_size)

    def examples(self, state: Tensor, condition: Tensor | None) -> Tensor:
        return self.generator(state, condition)

    def potential(self, state: Tensor, condition: Tensor | None) -> Tensor:
        """E(x(z)) + |z|^2 / 2."""
        return super().potential(state, condition) + 0.5 * state.square().sum(1)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """The generalised log-likelihood, in nats, and how far the energy tells data from the base."""
        made = self.energy(self.generator(self.fresh(len(batch.x)), batch.condition), batch.condition)
        on_data = self.energy(self.enter(batch.x), batch.condition)
        gap = on_data.mean() - made.mean()
        return {"kale": lower_bound(on_data, made).item(), "energy_gap": gap.item(), **self.mixing}


def lower_bound(on_data: Tensor, on_base: Tensor) -> Tensor:
    """-E E(x) over data less ln E exp(-E(x)) over the base: at best their divergence (Arbel et al., 2021, Eq. 7)."""
    return -on_data.mean() - (torch.logsumexp(-on_base, 0) - math.log(len(on_base)))
