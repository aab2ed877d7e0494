"""A variational autoencoder corrected by an energy."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fivefold.energy._tilted import TiltedSystem
from fivefold.errors import OptionError
from fivefold.options import Need, option, slot
from fivefold.system import Density


class VAEBM(TiltedSystem):
    """Variational autoencoder and energy-based model (survey 2.4.1 and 3.4; Xiao et al., 2021).

    First a deep VAE, a VDVAE, is trained. Then it stays as it is and an energy tilts it, p(x, z) = p(z) p(x|z)
    exp(-E(x)) / Z (survey Eq. 9): E learns by contrastive divergence to fall on data and rise on what the two
    together generate. Codes and pixels are functions of standard normal noise e, so that Langevin dynamics runs in e,
    by the gradient of E(x(e)) + |e|^2 / 2, and a few steps from the VAE's own samples do.

    The VAE's pixels have one logistic component, so that their noise moves them smoothly; discrete levels are rounded,
    with the gradient of the value before. The energy's layers are held by a penalty on their spectral norms.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.99, "clip": 200.0, "skip": 400.0},
        "cifar10": {
            "vae.width": 384, "vae.latent": 16, "vae.encoder_blocks": "12,7,7,4,3", "vae.decoder_blocks": "1,3,6,11,22",
            "vae.warmup": 0.3, "width": 128, "blocks": 4, "objective.chain_steps": 10,
            "objective.buffer_size": 10_000, "sample_steps": 16, "step_size": 8e-5, "spectral": 0.2, "batch_size": 32,
            "lr": 2e-4, "energy_rate": 0.2, "ema": 0.9999,
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
    spectral: float = option(0.02, "weight of the sum of the layers' spectral norms", least=0)
    lr = 4e-3

    def build(self) -> None:
        super().build()
        self.vae = self.fill("vae", self.space, lr=self.lr)
        if self.vae.head.mixtures != 1:
            raise OptionError(f"vae.mixtures needs to be 1: noise moves one component, got {self.vae.head.mixtures}")
        self.energy = self.energy_net()
        self.learn_by_objective()

    @property
    def base(self) -> Any:
        return self.vae

    def spectral_norms(self) -> Tensor:
        """The sum of the largest singular values of the energy's layers, each as a matrix of all that enters a unit."""
        weights = [p.flatten(1) for p in self.energy.parameters() if p.dim() > 1]
        return torch.stack([torch.linalg.matrix_norm(weight.float(), 2) for weight in weights]).sum()

    def held(self, on_data: Tensor, on_chains: Tensor) -> Tensor:
        return self.spectral * self.spectral_norms()
