"""The base of energies that tilt another model, whose noise their chains move in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.energy._normaliser import by_condition
from fivefold.energy._system import ChainSystem
from fivefold.nets.norm import frozen
from fivefold.options import option, slot
from fivefold.system import Batch, Density, Update, log_mean_exp
from fivefold.tools.given import KERNEL, latent_given
from fivefold.tools.mcmc import Move
from fivefold.tools.schedule import late_fall, second_stage

DRAWS = 2000  # of the base, to estimate the normaliser


class TiltedSystem(ChainSystem):
    """Base of p(x) = q(x) exp(-E(x)) / Z (survey Eq. 9), q a model that makes examples of noise e by a smooth x(e).

    First q is trained, then it stays as it is and E learns to fall on data and to rise on what both together
    generate. A state is the noise: chains go down E(x(e)) - ln p(e), which is far simpler than the law of x, and a few
    steps from the base's own draws do. Z is the base's mean of exp(-E), by its draws.

    A leaf says which part is the `base`; it has `push` (centred examples of noise and a condition), `noise`,
    `noise_log_prob` and `noise_dims`.
    """

    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sample_steps": (0, 5, 10, 20, 40)}
    far: ClassVar[float] = 8.0  # no noise is; a chain that came so far goes on without end, if steps are too long

    objective: Any = slot("contrastive-divergence", reset_rate=0.5, chain_steps=5)
    first_stage: float = option(0.6, "share of the budget for the base", least=0, most=1)
    step_size: float = option(0.1, "of Langevin dynamics; its noise has this variance", above=0)
    energy_rate: float = option(0.5, "learning rate of the energy, as a multiple of the base's", least=0)
    sample_steps = 12

    @property
    def base(self) -> Any:
        """The model that is tilted."""
        raise NotImplementedError

    # --- training -------------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        if progress < self.first_stage:
            yield from self.base.updates(batch, progress / self.first_stage)
        else:
            yield from super().updates(batch, second_stage(progress, self.first_stage))

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """The base's own, Adam for the energy."""
        rate = self.lr * self.energy_rate
        energy = torch.optim.Adam(self.energy.parameters(), rate, (self.beta1, 0.999), fused=True)
        return {**self.base.optimizers(), self.energy: energy, **self.learner.optimizers(self)}

    def learning_rate(self, progress: float) -> float:
        """Each stage by its own clock: the base's schedule, then constant with a fall over the last half."""
        if progress < self.first_stage:
            return self.base.learning_rate(progress / self.first_stage)
        return late_fall(second_stage(progress, self.first_stage))

    # --- the law in noise -------------------------------------------------------------------------

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (self.base.noise_dims,)

    def potential(self, state: Tensor, condition: Tensor | None) -> Tensor:
        """E(x(e)) - ln p(e), nats `(B,)`: minus the logarithm of the noise's law, up to a constant."""
        return super().potential(state, condition) - self.base.noise_log_prob(state)

    def examples(self, state: Tensor, condition: Tensor | None) -> Tensor:
        """x(e), centred, of noise `(B, noise_dims)`; of the noise's own law, draws from the base."""
        return self.base.push(state, condition)

    def fresh(self, n: int) -> Tensor:
        return self.base.noise(n)

    def move(self) -> Move:
        return Move(self.step_size)

    @property
    def filling(self) -> str:
        return (
            "Hamiltonian Monte Carlo over the noise that makes examples, those near what is known favoured by a "
            f"Gaussian of deviation {KERNEL:g} (levels on [-1, 1]), and what is known put back: approximate"
        )

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        with frozen(self):
            state = latent_given(
                lambda e: self.examples(e, condition), lambda e: self.potential(e, condition), self.fresh(len(x)),
                self.enter(x), known, self.fill_steps,
            )  # fmt: skip
            return self.leave(self.examples(state, condition))

    # --- density and samples --------------------------------------------------------------------

    def tilted(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ln q(x) - E(x) of encoded examples, nats `(B,)`, and its standard error."""
        value, error = self.base._log_prob(x, condition)
        return value - self.energy(self.enter(x), condition), error

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        value, error = self.tilted(x, condition)
        log_z, log_z_error = by_condition(self.log_normaliser, condition)
        return value - log_z, torch.hypot(error.double(), log_z_error)

    def log_normaliser(self, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ln of the base's mean of exp(-E), `(1,)`, and its standard error; of one condition where there are any."""
        given = None if condition is None else condition.expand(DRAWS, *condition.shape[1:])
        return log_mean_exp(-self.energies(self.examples(self.fresh(DRAWS), given), given).double().unsqueeze(1))

    @property
    def density_note(self) -> str:
        bound = "; the base's is a bound" if self.base.density is Density.LOWER_BOUND else ""
        return f"normalised by {DRAWS} draws of the base{bound}"

    @property
    def sample_evaluations(self) -> int:
        return super().sample_evaluations + 1

    def networks(self) -> list[nn.Module]:
        return self.base.networks()

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Also the energy of the base's own draws, in nats, and ln Z."""
        made = self.examples(self.fresh(len(batch.x)), batch.condition)
        return {
            **super().monitor(batch),
            "energy_data": self.energies(self.data(batch.x), batch.condition).mean().item(),
            "energy_base": self.energies(made, batch.condition).mean().item(),
        }
