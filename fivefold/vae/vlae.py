"""Variational lossy autoencoder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.autoregressive.gated_pixelcnn import GatedPixelcnn
from fivefold.bijections.autoregressive import AutoregressiveMaps, in_alternating_order, masked_autoregressive_flow
from fivefold.bijections.transforms import Affine
from fivefold.nets.coders import ConvDecoder, ConvEncoder, Downsampler, Maps, Upsampler, grid_size, halvings_to
from fivefold.nets.condition import ConditionEmbedding
from fivefold.nets.heads import Likelihood
from fivefold.space import Batch, Space
from fivefold.system import Density, LatentSystem, Update
from fivefold.tools.distributions import gaussian_log_prob, standard_normal_log_prob
from fivefold.tools.scaling import log_mean_exp
from fivefold.tools.schedule import warm_cosine
from fivefold.vae.vae import ACTIVE

CONDITION_WIDTH = 32
MOST_NUMBERS = 2**24  # features of the decoder's layers held at once when scoring


class VLAE(LatentSystem):
    """Variational lossy autoencoder (survey 3.3.1; Chen et al., 2017).

    The decoder p(x|z) is autoregressive, but each pixel sees only a small window of those before it, so that the
    code must hold whatever reaches further: the decoder takes texture, z what is global. It is a gated PixelCNN
    whose layers after the first are 1x1, on maps that z is decoded to. The prior p(z) is an autoregressive flow.

    Free bits: the divergence costs nothing below `free_bits` nats for each dimension of x, on average over a batch,
    so a code is found before there is a reason to leave it unused. The divergence of q(z|x), a diagonal Gaussian,
    from the flow is estimated by the draw of z that the loss takes anyway.

    Args:
        space: what one example is.
        latent: dimensions of z.
        code_maps: channels of a z that is maps of a quarter of the image's sides, in place of `latent` dimensions; the
            flows of its prior are gated PixelCNNs, and a condition enters the prior alone. 0 for a vector.
        width: channels of encoder and decoder at full size.
        depth: residual blocks at the smallest size.
        maps: channels that z is decoded to, which the autoregressive part sees.
        channels: features of the autoregressive part.
        layers: gated layers of it.
        window: width of the window that a pixel sees, odd; it reaches half of that up and to the left.
        flow_steps: autoregressive maps in the prior, the order of z reversed in between; 0 is a standard normal.
        hidden: units (of maps: features) of the masked layers of each.
        free_bits: nats for each dimension of x that the divergence may cost for nothing.
        dropout: of features in training.
        mixtures: components where an output is a mixture of logistics.
        likelihood: distribution of each dimension: auto | categorical | logistic-mixture | gaussian.
        score_samples: of z for each example in the importance-weighted bound.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND}
    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "autoregressive"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.7, 0.85, 1.0, 1.15)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"lr": 2e-3, "batch_size": 32, "ema": 0.995, "clip": 100.0},
        "mnist": {
            "latent": 64, "width": 32, "depth": 2, "maps": 32, "channels": 64, "layers": 6, "window": 7,
            "flow_steps": 4, "hidden": 640, "dropout": 0.0, "free_bits": 0.01, "batch_size": 64, "ema": 0.999,
        },
        # Appendix B: its code, prior, widths and 7x4 window; blocks at the smallest size alone, the decoder is ours.
        "cifar10": {
            "code_maps": 16, "width": 48, "depth": 3, "maps": 64, "channels": 256, "layers": 6, "window": 7,
            "flow_steps": 6, "hidden": 128, "dropout": 0.0, "free_bits": 0.01, "mixtures": 10, "batch_size": 64,
            "lr": 2e-3, "ema": 0.998,
        },
    }  # fmt: skip

    def __init__(
        self,
        space: Space,
        *,
        latent: int = 16,
        code_maps: int = 0,
        width: int = 16,
        depth: int = 1,
        maps: int = 16,
        channels: int = 32,
        layers: int = 3,
        window: int = 3,
        flow_steps: int = 2,
        hidden: int = 128,
        free_bits: float = 0.05,
        dropout: float = 0.1,
        mixtures: int = 5,
        likelihood: Likelihood = "logistic-mixture",
        score_samples: int = 16,
    ) -> None:
        super().__init__(space)
        self.free_bits, self.score_samples = free_bits, score_samples
        painted = Space("image", (maps, *space.shape[1:]), dtype="float32")  # what z is decoded to
        self.embed = ConditionEmbedding(space.condition, CONDITION_WIDTH)
        if code_maps:
            halvings = min(2, halvings_to(space, smallest=1))
            code = (code_maps, *grid_size(space, halvings))
            self.latent = math.prod(code)
            self.encoder: nn.Module = _Flat(
                space.shape, Downsampler(space, 2 * code_maps, width, halvings, depth, dropout)
            )
            self.painter: nn.Module = _Flat(
                code, Upsampler(painted, code_maps, Maps(), width, halvings, depth, dropout)
            )
            flows = [AutoregressiveMaps(code, Affine(), hidden, self.embed.width) for _ in range(flow_steps)]
            self.prior = in_alternating_order(self.latent, flows)
        else:
            self.latent = latent
            self.encoder = ConvEncoder(space, 2 * latent, width, depth, dropout)
            self.painter = ConvDecoder(painted.conditioned_on(space.condition), latent, Maps(), width, depth, dropout)
            self.prior = masked_autoregressive_flow(latent, flow_steps, Affine(), hidden, self.embed.width)
        self.decoder = GatedPixelcnn(
            space.conditioned_on(painted), channels=channels, layers=layers, kernel=1, first_kernel=window,
            dropout=dropout, mixtures=mixtures, likelihood=likelihood,
        )  # fmt: skip

    @property
    def density_note(self) -> str:  # type: ignore[override]
        return f"{self.score_samples} samples"

    @property
    def temperature(self) -> float:
        """Of the decoder's conditionals that are sampled; 1 is the model's own."""
        return self.decoder.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.decoder.temperature = value

    # --- prior, posterior, likelihood -------------------------------------------------------------

    def posterior(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of q(z|x), each `(B, latent)`."""
        mean, log_scale = self.encoder(x, condition).float().chunk(2, 1)
        return mean, log_scale.clamp(-7.0, 5.0)

    def log_prior(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """ln p(z) in nats `(B,)`: of the flow's noise, and its log-determinant (survey Eq. 29)."""
        noise, log_det = self.prior(z, self.embed(condition))
        return standard_normal_log_prob(noise) + log_det

    def likelihood(self, x: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        """ln p(x|z) in nats `(B,)`."""
        log_prob = self.decoder._log_prob(x, self.maps(z, condition))
        assert isinstance(log_prob, Tensor)  # exact: without a standard error
        return log_prob

    def maps(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """What the decoder sees of z: `(B, maps, H, W)`."""
        shape = (-1, *self.space.shape[1:])
        return self.painter(z, condition).view(len(z), *shape)

    def terms(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """With one draw of z: ln p(x|z), ln p(z) and ln q(z|x), in nats `(B,)`."""
        mean, log_scale = self.posterior(x, condition)
        z = mean + log_scale.exp() * torch.randn_like(mean)
        log_q = gaussian_log_prob(z, mean, log_scale).sum(1)
        return self.likelihood(x, z, condition), self.log_prior(z, condition), log_q

    def elbo(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The evidence lower bound of encoded examples, with one draw of z each: nats `(B,)`."""
        log_likelihood, log_p, log_q = self.terms(x, condition)
        return log_likelihood + log_p - log_q

    # --- training -------------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        log_likelihood, log_p, log_q = self.terms(*batch)
        kl = (log_q - log_p).mean()
        loss = kl.clamp(min=self.free_bits * self.space.dims) - log_likelihood.mean()
        yield Update(self, loss, {"kl": kl})

    def optimizers(self, lr: float = 1e-3, weight_decay: float = 1e-2) -> dict[nn.Module, torch.optim.Optimizer]:
        """AdamW.

        Args:
            lr: learning rate.
            weight_decay: decoupled from the gradient; it is multiplied by the learning rate.
        """
        return {self: torch.optim.AdamW(self.parameters(), lr, weight_decay=weight_decay, fused=True)}

    def learning_rate(self, progress: float) -> float:
        """Warmed up over a hundredth of the budget, then down to a hundredth along a cosine."""
        return warm_cosine(progress)

    # --- density, samples, codes ----------------------------------------------------------------

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ln of the mean over `score_samples` of p(x, z) / q(z|x), and its standard error."""
        mean, log_scale = self.posterior(x, condition)
        size = max(1, MOST_NUMBERS // (len(x) * self.space.dims * 4 * len(self.decoder.net.group)))
        counts = [min(size, self.score_samples - i) for i in range(0, self.score_samples, size)]
        return log_mean_exp(torch.cat([self._log_weights(k, x, mean, log_scale, condition) for k in counts]))

    def _log_weights(self, k: int, x: Tensor, mean: Tensor, log_scale: Tensor, condition: Tensor | None) -> Tensor:
        """ln p(x, z) / q(z|x) `(k, B)` for k draws of z from q."""
        mean, log_scale, x = mean.repeat(k, 1), log_scale.repeat(k, 1), x.repeat(k, 1, 1, 1)
        condition = None if condition is None else condition.repeat(k, 1)
        z = mean + log_scale.exp() * torch.randn_like(mean)
        log_joint = self.likelihood(x, z, condition) + self.log_prior(z, condition)
        return (log_joint - gaussian_log_prob(z, mean, log_scale).sum(1)).view(k, -1)

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        noise = torch.randn(n, self.latent, device=self.device)
        z, _ = self.prior.inverse(noise, self.embed(condition))
        return self.decoder._sample(n, self.maps(z, condition))

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.posterior(x, condition)[0]

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """Pixel by pixel the median of its distribution, given those before it."""
        middle = torch.full((len(z), self.space.dims, 2), 0.5, device=z.device)
        return self.decoder._sample_from(middle, self.maps(z, condition)).view(-1, *self.space.shape)

    def _rate_distortion(self, x: Tensor, condition: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """One level: the divergence (one draw) and the reconstruction."""
        _, log_p, log_q = self.terms(x, condition)
        return [(log_q - log_p, self._decode(self._encode(x, condition), condition))]

    @property
    def sample_evaluations(self) -> int:
        return self.decoder.sample_evaluations + 1

    def networks(self) -> list[nn.Module]:
        return [self.encoder, self.painter]

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Against a code that the decoder ignores: its divergence, units in use; and the evidence lower bound."""
        log_likelihood, log_p, log_q = self.terms(*batch)
        kl = (log_q - log_p).mean().item()
        return {
            "elbo": (log_likelihood + log_p - log_q).mean().item() + self.space.log_det,
            "kl": kl,
            "kl_per_unit": kl / self.latent,
            "active_units": float((self._encode(*batch).var(0, correction=0) > ACTIVE).sum()),
            "units": float(self.latent),
        }


class _Flat(nn.Module):
    """A network of maps, which do not see the condition, as one of vectors.

    Args:
        shape: of the maps that it is given.
        net: from maps to maps.
    """

    def __init__(self, shape: tuple[int, ...], net: nn.Module) -> None:
        super().__init__()
        self.shape, self.net = shape, net

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.net(x.view(-1, *self.shape)).flatten(1)
