"""Convolution exponentials in Glow."""

from __future__ import annotations

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.convolution import ConvExp
from fivefold.bijections.linear import LULinear
from fivefold.flow._glow import GlowSystem
from fivefold.system import Density

KERNEL = 3


class ConvExpFlow(GlowSystem):
    """Convolution exponential (survey 6.2; Hoogeboom et al., 2020).

    Glow whose 1x1 convolutions are followed by the exponential of a 3x3 one, summed as a series. Whatever the kernel,
    it is invertible, its inverse is the exponential of the kernel's negative, and its log-determinant a trace.
    """

    densities = {"image": Density.LOWER_BOUND}
    presets = {
        # The paper's resolutions and steps; its coupling networks are densely connected, these are Glow's.
        "cifar10": {
            "layers": 10, "scales": 2, "hidden": 512, "margin": 0.0, "warmup": 0.01, "batch_size": 256, "lr": 1e-3,
        },
    }  # fmt: skip

    def _mixing(self, channels: int) -> Layer:
        return Chain(LULinear(channels, rotation=True), ConvExp(channels, KERNEL))
