"""A variational autoencoder corrected by an energy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fivefold.energy._system import ChainSystem
from fivefold.errors import OptionError
from fivefold.nets.norm import frozen
from fivefold.options import Need, option, slot
from fivefold.system import Batch, Density, Update
from fivefold.tools.mcmc import KERNEL, Move, latent_given
from fivefold.tools.scaling import centre, uncentre
from fivefold.tools.schedule import late_fall, second_stage


class VAEBM(ChainSystem):
    """Variational autoencoder and energy-based model (survey 2.4.1 and 3.4; Xiao et al., 2021).

    First a deep VAE, a VDVAE, is trained. Then it stays as it is and an energy tilts it, p(x, z) = p(z) p(x|z)
    exp(-E(x)) / Z (survey Eq. 9): E learns by contrastive divergence to fall on data and rise on what the two
    together generate. Codes and pixels are functions of standard normal noise e, so that Langevin dynamics runs in e,
    by the gradient of E(x(e)) + |e|^2 / 2, and a few steps from the VAE's own samples do.

    The VAE's pixels have one logistic component, so that their noise moves them smoothly; discrete levels are rounded,
    with the gradient of the value before. The energy's layers are held by a penalty on their spectral norms.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.UNNORMALISED}
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sample_steps": (0, 5, 10, 20, 40)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.99, "clip": 200.0, "skip": 400.0},
        "cifar10": {
            "vae.width": 384, "vae.latent": 16, "vae.encoder_blocks": "12,7,7,4,3", "vae.decoder_blocks": "1,3,6,11,22",
            "vae.warmup": 0.3, "width": 128, "blocks": 4, "chain_steps": 10, "sample_steps": 16, "step_size": 8e-5,
            "spectral": 0.2, "buffer_size": 10_000, "batch_size": 32, "lr": 2e-4, "energy_rate": 0.2, "ema": 0.9999,
        },
    }  # fmt: skip

    vae: Any = option(
        slot("vdvae", width=48, bottleneck=0.25, blocks=1, mixtures=1, warmup=0.5),
        "trained first, and tilted by the energy then",
        needs=Need(
            "a bound on the density of images, and images as a function of standard normal noise that can be "
            "differentiated", methods=("push",), densities=("LOWER_BOUND",),
        ),
    )  # fmt: skip
    chain_start: Literal["buffer", "noise"] = option("buffer", "where chains start: where earlier ones ended, or noise")
    first_stage: float = option(0.6, "share of the budget for the VAE", least=0, most=1)
    step_size: float = option(0.1, "of Langevin dynamics; its noise has this variance", above=0)
    spectral: float = option(0.02, "weight of the sum of the layers' spectral norms", least=0)
    energy_rate: float = option(0.5, "learning rate of the energy, as a multiple of the VAE's", least=0)
    reset_rate = 0.5
    chain_steps = 5
    sample_steps = 12
    lr = 4e-3
    far: ClassVar[float] = (
        8.0  # no normal noise is; a chain that came so far goes on without end, if steps are too long
    )

    def build(self) -> None:
        super().build()
        self.vae = self.fill("vae", self.space, lr=self.lr)
        if self.vae.head.mixtures != 1:
            raise OptionError(f"vae.mixtures needs to be 1: noise moves one component, got {self.vae.head.mixtures}")
        self.energy = self.energy_net()
        self.set_up_chains((self.vae.noise_dims,))

    @property
    def density_note(self) -> str:
        return "the VAE's is a bound"

    # --- training -------------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        if progress < self.first_stage:
            yield from self.vae.updates(batch, progress / self.first_stage)
        else:
            yield from self.contrast(self.energy, batch)

    def spectral_norms(self) -> Tensor:
        """The sum of the largest singular values of the energy's layers, each as a matrix of all that enters a unit."""
        weights = [p.flatten(1) for p in self.energy.parameters() if p.dim() > 1]
        return torch.stack([torch.linalg.matrix_norm(weight.float(), 2) for weight in weights]).sum()

    def held(self, on_data: Tensor, on_chains: Tensor) -> Tensor:
        return self.spectral * self.spectral_norms()

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """AdamW for the VAE, Adam for the energy."""
        rate = self.lr * self.energy_rate
        energy = torch.optim.Adam(self.energy.parameters(), rate, (self.beta1, 0.999), fused=True)
        return {**self.vae.optimizers(), self.energy: energy}

    def learning_rate(self, progress: float) -> float:
        """Each stage by its own clock: the VAE's schedule, then constant with a fall over the last half."""
        if progress < self.first_stage:
            return self.vae.learning_rate(progress / self.first_stage)
        return late_fall(second_stage(progress, self.first_stage))

    # --- the joint law in noise: a state is the noise of codes and pixels -------------------------

    def potential(self, state: Tensor, condition: Tensor | None) -> Tensor:
        """E(x(e)) + |e|^2 / 2, nats `(B,)`: minus the logarithm of the noise's law, up to a constant."""
        return super().potential(state, condition) + 0.5 * state.square().sum(1)

    def examples(self, state: Tensor, condition: Tensor | None) -> Tensor:
        """x(e): centred images of noise `(B, noise_dims)`; of standard normal noise, draws from the VAE."""
        return self.vae.push(state, condition)

    def fresh(self, n: int) -> Tensor:
        return torch.randn(n, self.vae.noise_dims, device=self.device)

    def move(self) -> Move:
        return Move(self.step_size)

    def energies(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.energy(x, condition)

    @property
    def filling(self) -> str:
        return (
            "Hamiltonian Monte Carlo over the noise that makes images, those near what is known favoured by a "
            f"Gaussian of deviation {KERNEL:g} (levels on [-1, 1]), and what is known put back: approximate"
        )

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        with frozen(self):
            state = latent_given(
                lambda e: self.examples(e, condition), lambda e: self.potential(e, condition), self.fresh(len(x)),
                centre(x, self.space), known, self.fill_steps,
            )  # fmt: skip
            return uncentre(self.examples(state, condition), self.space)

    # --- density and samples --------------------------------------------------------------------

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ln p_VAE(x) - E(x), up to the unknown -ln Z: nats `(B,)`, with the error of the VAE's bound."""
        value, error = self.vae._log_prob(x, condition)
        return value - self.energy(centre(x, self.space), condition), error

    @property
    def sample_evaluations(self) -> int:
        return self.sample_steps + 1

    def networks(self) -> list[nn.Module]:
        return self.vae.networks()

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Also the energy of the VAE's own samples, and its bound, in nats."""
        made = self.examples(self.fresh(len(batch.x)), batch.condition)
        return {
            **super().monitor(batch),
            "energy_data": self.energies(self.data(batch.x), batch.condition).mean().item(),
            "energy_vae": self.energies(made, batch.condition).mean().item(),
            "elbo": self.vae.terms(batch.x, batch.condition).elbo.mean().item()
            + self.space.log_det(batch.x).mean().item(),
        }
