"""Variational autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fivefold.errors import Unfit
from fivefold.nets.coders import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from fivefold.nets.heads import Head, Likelihood
from fivefold.system import Batch, Density, LatentSystem, Space, Update
from fivefold.tools.distributions import gaussian_log_prob, standard_normal_log_prob
from fivefold.tools.scaling import log_mean_exp
from fivefold.tools.schedule import warm_cosine

NETWORKS = {"mlp": (MLPEncoder, MLPDecoder), "conv": (ConvEncoder, ConvDecoder)}
SMALLEST_CONV = 16  # sides of an image from which on convolutions pay
ACTIVE = 0.01  # variance of a unit's posterior mean over the data, above which it is in use (Burda et al., 2016)
MOST_NUMBERS = 2**22  # decoder outputs held at once when scoring


class VAE(LatentSystem):
    """Variational autoencoder (survey 3; Kingma and Welling, 2014).

    An encoder gives q(z|x), a diagonal Gaussian, and a decoder p(x|z) for a standard normal p(z); both
    maximise the evidence lower bound (survey Eq. 12, 13) with the divergence of the Gaussians in closed form.

    `log_prob` is the importance-weighted bound (Burda et al., 2016), at least as tight as the evidence lower
    bound, which `elbo` gives apart. Samples are drawn from the likelihood p(x|z): they have its noise.
    `reconstruct` and `interpolate` give its mode.

    Args:
        space: what one example is.
        network: mlp or conv; auto takes conv for images of at least 16x16 pixels.
        likelihood: logistic-mixture (of ordered levels and real values), categorical, bernoulli (two levels) or
            gaussian (real values). Dimensions that it does not model, such as columns of categories, have the
            one that suits them.
        latent: dimensions of z.
        width: channels at full size, or a sixteenth of the units of a hidden layer.
        depth: hidden layers, or residual blocks at the smallest size.
        dropout: of hidden features in training.
        mixtures: components of a logistic mixture.
        warmup: share of the budget over which the weight of the divergence rises from 0 to 1.
        score_samples: of z for each example in the importance-weighted bound.
    """

    densities: ClassVar[dict[str, Density]] = {
        "image": Density.LOWER_BOUND,
        "table": Density.LOWER_BOUND,
        "text": Density.LOWER_BOUND,
        "audio": Density.LOWER_BOUND,
    }
    free_form: ClassVar[bool] = True
    sampling: ClassVar[str] = "direct"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.999, "lr": 2e-3},
        "mnist": {"network": "mlp", "width": 32, "latent": 40, "lr": 1e-3, "warmup": 0.25, "batch_size": 128},
        # The paper has no convolutions and no CIFAR-10: sizes are ours.
        "cifar10": {
            "network": "conv", "width": 64, "depth": 2, "latent": 128, "dropout": 0.0, "mixtures": 5, "lr": 1e-3,
            "batch_size": 128,
        },
    }  # fmt: skip

    def __init__(
        self,
        space: Space,
        *,
        network: Literal["auto", "mlp", "conv"] = "auto",
        likelihood: Likelihood = "logistic-mixture",
        latent: int = 16,
        width: int = 16,
        depth: int = 2,
        dropout: float = 0.1,
        mixtures: int = 3,
        warmup: float = 0.1,
        score_samples: int = 64,
    ) -> None:
        super().__init__(space)
        encoder, decoder = NETWORKS[_network(network, space)]
        self.latent, self.warmup, self.score_samples = latent, warmup, score_samples
        self.head = Head(space, mixtures, likelihood)
        self.encoder = encoder(space, 2 * latent, width, depth, dropout)
        self.decoder = decoder(space, latent, self.head, width, depth, dropout)

    @property
    def density_note(self) -> str:  # type: ignore[override]
        return f"{self.score_samples} samples"

    def posterior(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of q(z|x), each `(B, latent)`."""
        mean, log_scale = self.encoder(x, condition).float().chunk(2, 1)
        return mean, log_scale.clamp(-7.0, 5.0)

    def likelihood(self, x: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        """ln p(x|z) in nats `(B,)`."""
        return self.head.log_prob(self.decoder(z, condition), x).sum(1)

    def terms(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Eq. 13 with one draw of z: ln p(x|z) `(B,)` and the divergence of each latent unit `(B, latent)`."""
        mean, log_scale = self.posterior(x, condition)
        z = mean + log_scale.exp() * torch.randn_like(mean)
        return self.likelihood(x, z, condition), kl_to_standard_normal(mean, log_scale)

    def elbo(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The evidence lower bound (Eq. 12) of encoded examples, with one draw of z each: nats `(B,)`."""
        log_likelihood, kl = self.terms(x, condition)
        return log_likelihood - kl.sum(1)

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        log_likelihood, kl = self.terms(*batch)
        weight = min(1.0, progress / self.warmup) if self.warmup else 1.0
        loss = weight * kl.sum(1).mean() - log_likelihood.mean()
        yield Update(self, loss, {"kl": kl.sum(1).mean()})

    def optimizers(self, lr: float = 1e-3, weight_decay: float = 1e-2) -> dict[nn.Module, torch.optim.Optimizer]:
        """AdamW.

        Args:
            lr: learning rate.
            weight_decay: decoupled from the gradient; it is multiplied by the learning rate.
        """
        return {self: torch.optim.AdamW(self.parameters(), lr, weight_decay=weight_decay, fused=True)}

    def learning_rate(self, progress: float) -> float:
        """Constant for half the budget, then down to a hundredth along a cosine."""
        return warm_cosine(progress, warmup=0.0, level=0.5)

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ln of the mean over `score_samples` of p(x, z) / q(z|x), and its standard error.

        The encoder runs once; the decoder on many z at once, as memory allows.
        """
        mean, log_scale = self.posterior(x, condition)
        size = max(1, MOST_NUMBERS // (len(x) * self.space.dims * self.head.width))
        counts = [min(size, self.score_samples - i) for i in range(0, self.score_samples, size)]
        return log_mean_exp(torch.cat([self._log_weights(k, x, mean, log_scale, condition) for k in counts]))

    def _log_weights(self, k: int, x: Tensor, mean: Tensor, log_scale: Tensor, condition: Tensor | None) -> Tensor:
        """ln p(x, z) / q(z|x) `(k, B)` for k draws of z from q."""
        mean, log_scale = mean.expand(k, -1, -1).flatten(0, 1), log_scale.expand(k, -1, -1).flatten(0, 1)
        z = mean + log_scale.exp() * torch.randn_like(mean)
        x, condition = _repeat(x, k), None if condition is None else _repeat(condition, k)
        log_joint = self.likelihood(x, z, condition) + standard_normal_log_prob(z)
        return (log_joint - gaussian_log_prob(z, mean, log_scale).sum(1)).view(k, -1)

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        z = torch.randn(n, self.latent, device=self.device)
        x = self.head.sample(self.decoder(z, condition), self.head.noise(n))
        return x.view(n, *self.space.shape)

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.posterior(x, condition)[0]

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return self.head.mode(self.decoder(z, condition)).view(-1, *self.space.shape)

    def _rate_distortion(self, x: Tensor, condition: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """One level: the divergence and the reconstruction."""
        return [(self.terms(x, condition)[1].sum(1), self._decode(self._encode(x, condition), condition))]

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Against posterior collapse: units in use, the divergence by unit; and the evidence lower bound."""
        log_likelihood, kl = self.terms(*batch)
        spread = self._encode(*batch).var(0, correction=0)
        by_unit = kl.mean(0).sort(descending=True).values
        return {
            "elbo": (log_likelihood - kl.sum(1)).mean().item() + self.space.log_det,
            "kl": by_unit.sum().item(),
            "kl_largest_unit": by_unit[0].item(),
            "kl_median_unit": by_unit.median().item(),
            "active_units": float((spread > ACTIVE).sum()),
            "units": float(self.latent),
        }


def kl_to_standard_normal(mean: Tensor, log_scale: Tensor) -> Tensor:
    """KL(N(mean, scale^2) || N(0, 1)) elementwise, in nats (survey Eq. 13)."""
    return 0.5 * (mean**2 + (2 * log_scale).exp() - 1) - log_scale


def _network(name: str, space: Space) -> str:
    if name == "auto":
        return "conv" if space.kind == "image" and min(space.shape[1:]) >= SMALLEST_CONV else "mlp"
    if name not in NETWORKS:
        raise Unfit(f"no network {name!r}; there are auto, {', '.join(NETWORKS)}")
    if name == "conv" and space.kind != "image":
        raise Unfit(f"network 'conv' needs images, not {space.kind}; take 'mlp'")
    return name


def _repeat(x: Tensor, k: int) -> Tensor:
    """`(B, ...)` k times over: `(k * B, ...)`."""
    return x.expand(k, *x.shape).flatten(0, 1)
