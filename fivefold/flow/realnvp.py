"""RealNVP: affine coupling."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.coupling import Alternate, alternate_channels, alternate_pixels, in_a_row
from fivefold.bijections.shape import FactorOut, Flatten, Shape, Squeeze
from fivefold.flow._coupling import CouplingFlowSystem
from fivefold.options import option


class RealNVP(CouplingFlowSystem):
    """RealNVP (survey 6.1.1; Dinh et al., 2017).

    Affine coupling layers: one part of the dimensions is scaled and shifted by functions of the other,
    so both directions take one pass. On images multi-scale: checkerboards, squeeze, channels, and half
    of the variables factored out at each resolution.
    """

    presets = {
        "small": {"lr": 2e-3, "weight_decay": 10.0, "dropout": 0.3},  # tables of a few hundred rows
        # Section 4.1 of the paper, without its batch and weight normalisation; gradients clipped as in its program.
        "cifar10": {
            "scales": 2, "hidden": 64, "blocks": 8, "skips": True, "batch_size": 64, "lr": 1e-3, "weight_decay": 5e-5,
            "ema": 0.0, "clip": 100.0,
        },
        "imagenet32": {
            "scales": 4, "hidden": 32, "widen": True, "blocks": 4, "skips": True, "batch_size": 64, "lr": 1e-3,
            "weight_decay": 5e-5, "ema": 0.0, "clip": 100.0,
        },
        "imagenet64": {
            "scales": 5, "hidden": 32, "widen": True, "blocks": 2, "skips": True, "batch_size": 64, "lr": 1e-3,
            "weight_decay": 5e-5, "ema": 0.0, "clip": 100.0,
        },
        "celeba": {
            "scales": 5, "hidden": 32, "widen": True, "blocks": 2, "skips": True, "batch_size": 64, "lr": 1e-3,
            "weight_decay": 5e-5, "ema": 0.0, "clip": 100.0,
        },
        "lsun64": {
            "scales": 5, "hidden": 32, "widen": True, "blocks": 2, "skips": True, "batch_size": 64, "lr": 1e-3,
            "weight_decay": 5e-5, "ema": 0.0, "clip": 100.0,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "imagenet32": (46_220_359, "the authors' program: its variables, counted from their shapes")
    }

    layers = 3
    scales: int = option(
        0, "the most resolutions of an image, the last with one coupling more; 0 goes on until a side is odd", least=0
    )
    widen: bool = option(False, "whether `hidden` doubles with every halving of an image")
    skips: bool = option(
        False, "coupling networks whose last layer sees every block, in place of a bias at each position"
    )
    dropout: float = option(0.0, "probability in the coupling networks", least=0, below=1, tune=(0.0, 0.5))

    @property
    def make_net(self) -> partial[Any]:
        return partial(super().make_net, dropout=self.dropout, skips=self.skips)

    def body(self) -> Layer:
        if self.space.kind == "image":
            return self._image_flow(self.space.shape, self.scales, self.hidden)
        return self._row(alternate_channels, self.space.shape, 2 * self.layers, self.hidden)

    def _image_flow(self, shape: Shape, scales: int, hidden: int) -> Layer:
        """One scale (Dinh et al., 2017, 3.6), and the next within it; an odd size is the last."""
        channels, height, width = shape
        by_pixels = self._row(alternate_pixels, shape, self.layers + (scales == 1), hidden)
        if scales == 1 or height % 2 or width % 2:
            return Chain(by_pixels, Flatten(shape))
        shape, kept, wider = (4 * channels, height // 2, width // 2), 2 * channels, hidden * (1 + self.widen)
        by_channels = self._row(alternate_channels, shape, self.layers, wider)
        rest = self._image_flow((kept, *shape[1:]), max(scales - 1, 0), wider)
        return Chain(by_pixels, Squeeze(), by_channels, FactorOut(shape, kept, rest))

    def _row(self, coupling: Alternate, shape: Shape, count: int, hidden: int) -> Layer:
        make_net = partial(self.make_net, hidden=hidden)
        return in_a_row(coupling(i, shape, self.transform(), make_net) for i in range(count))
