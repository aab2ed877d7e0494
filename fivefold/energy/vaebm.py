"""A variational autoencoder corrected by an energy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.nets.norm import frozen
from fivefold.nets.residual import ConvEnergy
from fivefold.system import Batch, Density, Space, System, Update
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

    Args:
        width: channels of the VAE's residual stream.
        latent: channels of each of its codes.
        blocks: of the VAE on each grid, where the next two do not say.
        encoder_blocks: bottom-up blocks on each grid, largest first: 12,7,7,4,3.
        decoder_blocks: top-down blocks on each grid, smallest first: 1,3,6,11,22.
        channels: of the energy's network at full resolution.
        depth: residual blocks of the energy's network; images are halved between them.
        first_stage: share of the budget for the VAE.
        warmup: share of that over which the weight of the VAE's divergence rises to 1, so that codes are used early.
        chain_steps: Langevin steps for one training step of the energy.
        sample_steps: Langevin steps for a sample; 0 gives the VAE's.
        step_size: of them; their noise has this variance.
        replay: share of a training step's chains that go on from earlier ones; the others start from the VAE.
        buffer_size: how many chains are kept for that.
        spectral: weight of the sum of the layers' spectral norms.
        energy_rate: learning rate of the energy, as a multiple of the VAE's.
        score_samples: of all codes for each example in the VAE's importance-weighted bound.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.UNNORMALISED}
    free_form: ClassVar[bool] = True
    sampling: ClassVar[str] = "mcmc"
    density_note = "the VAE's is a bound"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sample_steps": (0, 5, 10, 20, 40)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"lr": 4e-3, "batch_size": 32, "ema": 0.99, "clip": 200.0, "skip": 400.0},
        "cifar10": {
            "width": 384, "latent": 16, "encoder_blocks": "12,7,7,4,3", "decoder_blocks": "1,3,6,11,22", "warmup": 0.3,
            "channels": 128, "depth": 4, "chain_steps": 10, "sample_steps": 16, "step_size": 8e-5, "spectral": 0.2,
            "buffer_size": 10_000, "batch_size": 32, "lr": 2e-4, "energy_rate": 0.2, "ema": 0.9999,
        },
    }  # fmt: skip

    chains: Tensor
    conditions: Tensor

    def __init__(
        self,
        space: Space,
        *,
        width: int = 48,
        latent: int = 8,
        blocks: int = 1,
        encoder_blocks: str = "",
        decoder_blocks: str = "",
        channels: int = 16,
        depth: int = 3,
        first_stage: float = 0.6,
        warmup: float = 0.5,
        chain_steps: int = 5,
        sample_steps: int = 12,
        step_size: float = 0.1,
        replay: float = 0.5,
        buffer_size: int = 1024,
        spectral: float = 0.02,
        energy_rate: float = 0.5,
        score_samples: int = 16,
    ) -> None:
        super().__init__(space)
        self.first_stage, self.chain_steps, self.sample_steps = first_stage, chain_steps, sample_steps
        self.step_size, self.replay, self.spectral, self.energy_rate = step_size, replay, spectral, energy_rate
        self.vae = VDVAE(
            space, width=width, bottleneck=0.25, latent=latent, blocks=blocks,
            encoder_blocks=encoder_blocks, decoder_blocks=decoder_blocks,
            mixtures=1, warmup=warmup, score_samples=score_samples,
        )  # fmt: skip
        self.energy = ConvEnergy(space, channels, lambda layer: layer, depth)
        self.codes = sum(math.prod(shape) for shape in self.vae.code_shapes)
        condition_shape = space.condition.shape if space.condition else (0,)
        self.register_buffer("chains", torch.randn(buffer_size, self.codes + space.dims))
        self.register_buffer("conditions", torch.full((buffer_size, *condition_shape), math.nan))

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

    def optimizers(
        self, lr: float = 1e-3, weight_decay: float = 0.01, beta1: float = 0.0
    ) -> dict[nn.Module, torch.optim.Optimizer]:
        """AdamW for the VAE, Adam for the energy.

        Args:
            lr: learning rate of the VAE.
            weight_decay: of the VAE, decoupled from the gradient; it is multiplied by the learning rate.
            beta1: decay of the energy's mean of gradients.
        """
        rate = lr * self.energy_rate
        energy = torch.optim.Adam(self.energy.parameters(), rate, (beta1, 0.999), fused=True)
        self.vae.lr, self.vae.weight_decay = lr, weight_decay
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
