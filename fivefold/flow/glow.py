"""Glow: invertible 1x1 convolutions."""

from __future__ import annotations

from typing import ClassVar

from fivefold.bijections.base import Layer
from fivefold.bijections.linear import LULinear
from fivefold.flow._glow import GlowSystem


class Glow(GlowSystem):
    """Glow (survey 6.2; Kingma and Dhariwal, 2018).

    Steps of flow, each an actnorm whose start depends on the data, an invertible 1x1 convolution that mixes the
    channels (a learned rotation in place of a permutation) and an affine coupling. Multi-scale on images: squeeze,
    steps, and half of the variables factored out, with a Gaussian law given the other half.
    """

    presets = {
        "cifar10": {
            "layers": 32, "scales": 3, "hidden": 512, "margin": 0.0, "warmup": 0.01, "batch_size": 512, "lr": 1e-3,
        },
        "imagenet32": {
            "layers": 48, "scales": 3, "hidden": 512, "margin": 0.0, "warmup": 0.01, "batch_size": 512, "lr": 1e-3,
        },
        "imagenet64": {
            "layers": 48, "scales": 4, "hidden": 512, "margin": 0.0, "warmup": 0.01, "batch_size": 128, "lr": 1e-3,
        },
        "lsun64": {
            "layers": 48, "scales": 3, "hidden": 512, "margin": 0.0, "warmup": 0.01, "batch_size": 128, "lr": 1e-3,
        },
        "celebahq256": {
            "layers": 32, "scales": 6, "hidden": 512, "margin": 0.0, "warmup": 0.01, "batch_size": 40, "lr": 1e-3,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "cifar10": (44.0e6, "Chen et al. 2019, table 5")
    }

    def _mixing(self, channels: int) -> Layer:
        return LULinear(channels, rotation=True)
