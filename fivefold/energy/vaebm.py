"""A variational autoencoder corrected by an energy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.nets.norm import frozen
from fivefold.nets.residual import ConvEnergy
from fivefold.options import option
from fivefold.system import Batch, Density, System, Update
from fivefold.tools.games import duplicate_rate
from fivefold.tools.mcmc import energy_gradient, sgld
from fivefold.tools.scaling import centre, uncentre
from fivefold.tools.schedule import second_stage
from fivefold.vae.vdvae import VDVAE

FAR = 8.0  # no normal noise is; a replayed chain that came so far goes on without end, where steps are too long


class VAEBM(System):
    """Variational autoencoder and energy-based model (survey 2.4.1 and 3.4; Xiao et al., 2021).

    First a deep VAE, a VDVAE, is trained. Then it stays as it is and an energy tilts it, p(x, z) = p(z) p(x|z)
    exp(-E(x)) / Z (survey Eq. 9): E learns by contrastive divergence to fall on data and rise on what the two
    together generate. Codes and pixels are functions of standard normal noise e, so that Langevin dynamics runs in e,
    by the gradient of E(x(e)) + |e|^2 / 2, and a few steps from the VAE's own samples do.

    Each pixel has one logistic component, so that its noise moves it smoothly; discrete levels are rounded, with the
    gradient of the value before. The energy's layers are held by a penalty on their spectral norms.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.UNNORMALISED}
    free_form: ClassVar[bool] = True
    sampling: ClassVar[str] = "mcmc"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sample_steps": (0, 5, 10, 20, 40)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"batch_size": 32, "ema": 0.99, "clip": 200.0, "skip": 400.0},
        "cifar10": {
            "width": 384, "latent": 16, "encoder_blocks": "12,7,7,4,3", "decoder_blocks": "1,3,6,11,22", "warmup": 0.3,
            "channels": 128, "depth": 4, "chain_steps": 10, "sample_steps": 16, "step_size": 8e-5, "spectral": 0.2,
            "buffer_size": 10_000, "batch_size": 32, "lr": 2e-4, "energy_rate": 0.2, "ema": 0.9999,
        },
    }  # fmt: skip

    chains: Tensor
    conditions: Tensor

    width: int = option(48, "channels of the VAE's residual stream", least=1, tune=(8, 256), log=True)
    latent: int = option(8, "channels of each of its codes", least=1, tune=(2, 128), log=True)
    blocks: int = option(1, "of the VAE on each grid, where the next two do not say", least=1, tune=(1, 8))
    encoder_blocks: str = option("", "bottom-up blocks on each grid, largest first: 12,7,7,4,3")
    decoder_blocks: str = option("", "top-down blocks on each grid, smallest first: 1,3,6,11,22")
    channels: int = option(16, "of the energy's network at full resolution", least=1, tune=(8, 128), log=True)
    depth: int = option(
        3, "residual blocks of the energy's network; images are halved between them", least=1, tune=(1, 8)
    )
    first_stage: float = option(0.6, "share of the budget for the VAE", least=0, most=1)
    warmup: float = option(
        0.5,
        "share of that over which the weight of the VAE's divergence rises to 1, so that codes are used early",
        least=0,
        most=1,
    )
    chain_steps: int = option(5, "Langevin steps for one training step of the energy", least=1)
    sample_steps: int = option(12, "Langevin steps for a sample; 0 gives the VAE's", least=0)
    step_size: float = option(0.1, "of them; their noise has this variance", least=0)
    replay: float = option(
        0.5, "share of a training step's chains that go on from earlier ones; the others start from the VAE", least=0
    )
    buffer_size: int = option(1024, "how many chains are kept for that", least=1)
    spectral: float = option(0.02, "weight of the sum of the layers' spectral norms", least=0)
    energy_rate: float = option(0.5, "learning rate of the energy, as a multiple of the VAE's", least=0)
    score_samples: int = option(16, "of all codes for each example in the VAE's importance-weighted bound", least=1)
    lr = 4e-3
    weight_decay: float = option(
        0.01,
        "of the VAE, decoupled from the gradient; it is multiplied by the learning rate",
        least=0,
        section="optimizers",
    )
    beta1: float = option(0.0, "decay of the energy's mean of gradients", least=0, section="optimizers")

    def build(self) -> None:
        super().build()
        self.vae = VDVAE(
            self.space, width=self.width, bottleneck=0.25, latent=self.latent, blocks=self.blocks,
            encoder_blocks=self.encoder_blocks, decoder_blocks=self.decoder_blocks,
            mixtures=1, warmup=self.warmup, score_samples=self.score_samples,
            lr=self.lr, weight_decay=self.weight_decay,
        )  # fmt: skip
        self.energy = ConvEnergy(self.space, self.channels, lambda layer: layer, self.depth)
        self.codes = sum(math.prod(shape) for shape in self.vae.code_shapes)
        condition_shape = self.space.condition.shape if self.space.condition else (0,)
        self.register_buffer("chains", torch.randn(self.buffer_size, self.codes + self.space.dims))
        self.register_buffer("conditions", torch.full((self.buffer_size, *condition_shape), math.nan))

    @property
    def density_note(self) -> str:
        return "the VAE's is a bound"

    # --- training -------------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        if progress < self.first_stage:
            yield from self.vae.updates(batch, progress / self.first_stage)
        else:
            yield from self._tilt(batch)

    def _tilt(self, batch: Batch) -> Iterator[Update]:
        """One step of the energy: down on data, up on where short chains end."""
        n = len(batch.x)
        slots = torch.randperm(len(self.chains), device=self.device)[:n]
        noise, condition = self._start(slots, n, batch.condition)
        noise = self._run(noise, condition, self.chain_steps)
        data, chains = centre(batch.x, self.space), self.pixels(noise, condition).detach()
        energies = self.energy(torch.cat([data, chains]), _both(batch.condition, condition))
        gap = energies[:n].mean() - energies[n:].mean()
        norms = self.spectral_norms()
        yield Update(self.energy, gap + self.spectral * norms, {"gap": gap.detach(), "spectral_norms": norms.detach()})
        self.chains[slots] = noise[: len(slots)]
        if condition is not None:
            self.conditions[slots] = condition[: len(slots)].to(self.conditions)

    def _start(self, slots: Tensor, n: int, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Noise of `n` chains, each from the buffer with its condition there or, with that of the batch, afresh.

        One that ran away always starts afresh.
        """
        noise = torch.randn(n, self.chains.shape[1], device=self.device)
        near = self.chains[slots].abs().amax(1) < FAR
        kept = (near & (torch.rand(len(slots), device=self.device) < self.replay)).unsqueeze(1)
        if condition is not None:
            before = self.conditions[slots]
            kept = kept & before.flatten(1).isfinite().all(1, keepdim=True)
            shaped = kept.view(-1, *[1] * (before.dim() - 1))
            mixed = torch.where(shaped, before, condition[: len(slots)].to(before)).to(condition)
            condition = torch.cat([mixed, condition[len(slots) :]])
        return torch.cat([torch.where(kept, self.chains[slots], noise[: len(slots)]), noise[len(slots) :]]), condition

    def spectral_norms(self) -> Tensor:
        """The sum of the largest singular values of the energy's layers, each as a matrix of all that enters a unit."""
        weights = [p.flatten(1) for p in self.energy.parameters() if p.dim() > 1]
        return torch.stack([torch.linalg.matrix_norm(weight.float(), 2) for weight in weights]).sum()

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """AdamW for the VAE, Adam for the energy."""
        rate = self.lr * self.energy_rate
        energy = torch.optim.Adam(self.energy.parameters(), rate, (self.beta1, 0.999), fused=True)
        return {**self.vae.optimizers(), self.energy: energy}

    def learning_rate(self, progress: float) -> float:
        """Each stage by its own clock: the VAE's schedule, then constant with a fall over the last half."""
        if progress < self.first_stage:
            return self.vae.learning_rate(progress / self.first_stage)
        return 1 - 0.9 * max(0.0, 2 * second_stage(progress, self.first_stage) - 1)

    # --- the joint law in noise -----------------------------------------------------------------

    def pixels(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        """x(e): centred images of noise `(B, codes + dims)`; of standard normal noise, draws from the VAE."""
        codes, rest = noise[:, : self.codes], noise[:, self.codes :]
        return self.vae.head.push(self.vae.generate(codes, condition), rest.view(-1, *self.space.shape))

    def potential(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        """E(x(e)) + |e|^2 / 2, nats `(B,)`: minus the logarithm of the noise's law, up to a constant."""
        return self.energy(self.pixels(noise, condition), condition) + 0.5 * noise.square().sum(1)

    def _run(self, noise: Tensor, condition: Tensor | None, steps: int) -> Tensor:
        """`steps` of Langevin dynamics of the potential."""
        with frozen(self):
            return sgld(energy_gradient(lambda e: self.potential(e, condition)), noise, steps, self.step_size)

    # --- density and samples --------------------------------------------------------------------

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ln p_VAE(x) - E(x), up to the unknown -ln Z: nats `(B,)`, with the error of the VAE's bound."""
        value, error = self.vae._log_prob(x, condition)
        return value - self.energy(centre(x, self.space), condition), error

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        noise = torch.randn(n, self.chains.shape[1], device=self.device)
        noise = self._run(noise, condition, self.sample_steps)
        return uncentre(self.pixels(noise, condition), self.space)

    @property
    def sample_evaluations(self) -> int:
        return self.sample_steps + 1

    def networks(self) -> list[nn.Module]:
        return [self.vae.encoder]

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Energies in nats of data, of the VAE's samples and of chains' ends; near-equal samples; the VAE's bound."""
        start = torch.randn(len(batch.x), self.chains.shape[1], device=self.device)
        before = self.pixels(start, batch.condition)
        after = self.pixels(self._run(start, batch.condition, self.sample_steps), batch.condition)
        data = centre(batch.x, self.space)
        parts = {"energy_data": data, "energy_vae": before, "energy_chains": after}
        return {
            **{name: self.energy(part, batch.condition).mean().item() for name, part in parts.items()},
            "duplicates": duplicate_rate(after[:512], data).item(),
            "elbo": self.vae.elbo(batch.x, batch.condition).mean().item() + self.space.log_det,
        }


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else torch.cat([a, b])
