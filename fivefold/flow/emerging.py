"""Emerging convolutions in Glow."""

from __future__ import annotations

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.convolution import emerging
from fivefold.bijections.linear import LULinear
from fivefold.flow._glow import GlowSystem
from fivefold.system import Density

KERNEL = 3


class Emerging(GlowSystem):
    """Emerging convolutions (survey 6.2; Hoogeboom et al., 2019).

    Glow whose 1x1 convolutions are followed by 3x3 ones that mix neighbours too: two convolutions with triangular
    matrices, masked in opposite orders, which together see all that a 3x3 kernel sees. Their inverses substitute
    along anti-diagonals.
    """

    densities = {"image": Density.LOWER_BOUND}
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
    }  # fmt: skip

    def _mixing(self, channels: int) -> Layer:
        return Chain(LULinear(channels, rotation=True), emerging(channels, KERNEL))
