"""RealNVP: affine coupling."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from fivefold.bijections.base import Bijection, Chain
from fivefold.bijections.coupling import Alternate, alternate_channels, alternate_pixels, in_a_row
from fivefold.bijections.shape import FactorOut, Flatten, Squeeze
from fivefold.bijections.transforms import Affine
from fivefold.flow._system import Dequantisation, FlowSystem
from fivefold.nets.conditioner import Conditioner
from fivefold.space import Space
from fivefold.system import Density

CONDITION_WIDTH = 32


class RealNVP(FlowSystem):
    """RealNVP (survey 6.1.1; Dinh et al., 2017).

    Affine coupling layers: one part of the dimensions is scaled and shifted by functions of the other,
    so both directions take one pass. On images multi-scale: checkerboards, squeeze, channels, and half
    of the variables factored out at each resolution.

    Args:
        space: of the examples.
        layers: couplings in a row between two changes of shape (on tables: half as many as in all).
        scales: the most resolutions of an image, the last with one coupling more; 0 goes on until a side is odd.
        hidden: width of the coupling networks.
        widen: whether `hidden` doubles with every halving of an image.
        blocks: residual blocks of a coupling network.
        skips: coupling networks whose last layer sees every block, in place of a bias at each position.
        dropout: probability in the coupling networks.
        margin: how far the logit of discrete images keeps from 0 and 1.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
        dequantisation: of discrete dimensions, uniform or variational (by a flow given the example).
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "direct"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.99, "clip": 5.0},
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
        "imagenet32": (46_220_359, "the authors' program: its variables, counted from their shapes"),
    }

    def __init__(
        self,
        space: Space,
        *,
        layers: int = 3,
        scales: int = 0,
        hidden: int = 48,
        widen: bool = False,
        blocks: int = 1,
        skips: bool = False,
        dropout: float = 0.0,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
        dequantisation: Dequantisation = "uniform",
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature, dequantisation)
        self.layers, self.widen = layers, widen
        self.transform = Affine()
        self.make_net = partial(
            Conditioner, blocks=blocks, condition=self.embedding.width, dropout=dropout, skips=skips, hidden=hidden
        )
        flow = self._image_flow(space.shape, scales, hidden) if space.kind == "image" else self._table_flow(space.shape)
        self.flow = self._onto_line(flow, margin)

    def _table_flow(self, shape: tuple[int, ...]) -> Bijection:
        return in_a_row(
            alternate_channels(layer, shape, self.transform, self.make_net) for layer in range(2 * self.layers)
        )

    def _image_flow(self, shape: tuple[int, ...], scales: int, hidden: int) -> Bijection:
        """One scale (Dinh et al., 2017, 3.6), and the next within it; an odd size is the last."""
        channels, height, width = shape
        by_pixels = self._row(alternate_pixels, shape, self.layers + (scales == 1), hidden)
        if scales == 1 or height % 2 or width % 2:
            return Chain(by_pixels, Flatten(shape))
        shape, kept, wider = (4 * channels, height // 2, width // 2), 2 * channels, hidden * (1 + self.widen)
        by_channels = self._row(alternate_channels, shape, self.layers, wider)
        rest = self._image_flow((kept, *shape[1:]), max(scales - 1, 0), wider)
        return Chain(by_pixels, Squeeze(), by_channels, FactorOut(shape, kept, rest))

    def _row(self, coupling: Alternate, shape: tuple[int, ...], count: int, hidden: int) -> Bijection:
        make_net = partial(self.make_net, hidden=hidden)
        return in_a_row(coupling(i, shape, self.transform, make_net) for i in range(count))
