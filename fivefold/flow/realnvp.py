"""RealNVP: affine coupling."""

from __future__ import annotations

from functools import partial

from fivefold.bijections.base import Bijection, Chain
from fivefold.bijections.coupling import alternate_channels, alternate_pixels
from fivefold.bijections.shape import FactorOut, Flatten, Squeeze
from fivefold.bijections.transforms import Affine
from fivefold.flow._system import FlowSystem
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
        hidden: width of the coupling networks.
        blocks: residual blocks of a coupling network.
        dropout: probability in the coupling networks.
        margin: how far the logit of discrete images keeps from 0 and 1.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
    """

    densities = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form = False
    sampling = "direct"
    presets = {
        "default": {"ema": 0.99, "clip": 5.0},
        "small": {"lr": 2e-3, "weight_decay": 10.0, "dropout": 0.3},  # tables of a few hundred rows
    }

    def __init__(
        self,
        space: Space,
        *,
        layers: int = 3,
        hidden: int = 48,
        blocks: int = 1,
        dropout: float = 0.0,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature)
        self.layers = layers
        self.transform = Affine()
        self.make_net = partial(
            Conditioner, hidden=hidden, blocks=blocks, condition=self.embedding.width, dropout=dropout
        )
        flow = self._image_flow(space.shape) if space.kind == "image" else self._table_flow(space.shape)
        self.flow = self._onto_line(flow, margin)

    def _table_flow(self, shape: tuple[int, ...]) -> Bijection:
        return Chain(
            *[alternate_channels(layer, shape, self.transform, self.make_net) for layer in range(2 * self.layers)]
        )

    def _image_flow(self, shape: tuple[int, ...]) -> Bijection:
        """One scale (Dinh et al., 2017, 3.6), and the next within it; an odd size is the last."""
        channels, height, width = shape
        by_pixels = [alternate_pixels(layer, shape, self.transform, self.make_net) for layer in range(self.layers)]
        if height % 2 or width % 2:
            return Chain(*by_pixels, Flatten(shape))
        shape, kept = (4 * channels, height // 2, width // 2), 2 * channels
        by_channels = [alternate_channels(layer, shape, self.transform, self.make_net) for layer in range(self.layers)]
        return Chain(*by_pixels, Squeeze(), *by_channels, FactorOut(shape, kept, self._image_flow((kept, *shape[1:]))))
