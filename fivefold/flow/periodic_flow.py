"""Periodic convolutions in Glow."""

from __future__ import annotations

from fivefold.bijections.base import Layer
from fivefold.bijections.convolution import PeriodicConv
from fivefold.flow._glow import GlowSystem
from fivefold.system import Density

KERNEL = 3


class PeriodicFlow(GlowSystem):
    """Periodic convolutions (survey 6.2; Hoogeboom et al., 2019).

    Glow with 3x3 convolutions on a torus in place of the 1x1 ones: Fourier's transform decouples them into a matrix
    of channels at each frequency, whose determinants multiply and whose inverses are solved for. What leaves an image
    comes back at the other side, which suits textures and the sky rather than objects.
    """

    densities = {"image": Density.LOWER_BOUND}
    presets = {
        "default": {"ema": 0.99, "clip": 5.0, "lr": 2e-3},  # 5e-3, as of the others, learns digits more slowly
        # What the paper had for galaxies of 32 x 32 pixels.
        "galaxies": {
            "layers": 8, "scales": 2, "hidden": 512, "margin": 0.0, "warmup": 0.01, "batch_size": 512, "lr": 1e-3,
        },
    }  # fmt: skip

    def _mixing(self, channels: int) -> Layer:
        return PeriodicConv(channels, KERNEL, rotation=True)
