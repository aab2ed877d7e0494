"""Variational autoencoder."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.vae._system import VAESystem


class VAE(VAESystem):
    """Variational autoencoder (survey 3; Kingma and Welling, 2014).

    An encoder gives q(z|x), a diagonal Gaussian, and a decoder p(x|z) for a standard normal p(z); both
    maximise the evidence lower bound (survey Eq. 12, 13) with the divergence of the Gaussians in closed form. Prior,
    posterior and decoder are slots: flows and autoregressive systems fit.

    `log_prob` is the importance-weighted bound (Burda et al., 2016), at least as tight as the evidence lower
    bound, which `elbo` gives apart. Samples are drawn from the likelihood p(x|z): they have its noise.
    `reconstruct` and `interpolate` give its mode.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.999},
        "mnist": {"network": "mlp", "width": 32, "latent": 40, "lr": 1e-3, "warmup": 0.25, "batch_size": 128},
        # The paper has no convolutions and no CIFAR-10: sizes are ours.
        "cifar10": {
            "network": "conv", "width": 64, "depth": 2, "latent": 128, "dropout": 0.0, "likelihood.mixtures": 5,
            "lr": 1e-3, "batch_size": 128,
        },
    }  # fmt: skip
