"""Rational-quadratic neural spline flow."""

from __future__ import annotations

from functools import partial

from fivefold.bijections.base import Bijection, Chain
from fivefold.bijections.coupling import Alternate, alternate_channels, alternate_pixels
from fivefold.bijections.elementwise import NormalQuantile
from fivefold.bijections.linear import LULinear
from fivefold.bijections.shape import multi_scale
from fivefold.bijections.splines import Spline
from fivefold.flow._system import Dequantisation, FlowSystem
from fivefold.nets.conditioner import Conditioner
from fivefold.space import Space
from fivefold.system import Density

CONDITION_WIDTH = 32


class SplineFlow(FlowSystem):
    """Spline flow (survey 6.1.2; Durkan et al., 2019).

    Coupling layers of monotone rational-quadratic splines: an exact density on real tables, fast both
    ways; multi-scale and convolutional on images.

    Discrete images fill the cube [-1, 1]^D once dequantised, and so do the splines, from the cube onto
    itself: no density is lost outside it and its faces can be sharp. Elsewhere splines have linear tails.

    Args:
        space: of the examples.
        layers: coupling layers (at each resolution of an image).
        hidden: width of the coupling networks.
        blocks: residual blocks of a coupling network.
        bins: bins of a spline.
        bound: where the linear tails begin, in standard deviations.
        dropout: probability in the coupling networks.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
        dequantisation: of discrete dimensions, uniform or variational (by a flow given the example).
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
        layers: int = 4,
        hidden: int = 64,
        blocks: int = 1,
        bins: int = 8,
        bound: float = 4.0,
        dropout: float = 0.0,
        score_samples: int = 16,
        temperature: float = 1.0,
        dequantisation: Dequantisation = "uniform",
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature, dequantisation)
        self.layers = layers
        fills_cube = space.kind == "image" and space.levels is not None
        self.transform = Spline("rational-quadratic", bins, 1.0 if fills_cube else bound, tails=not fills_cube)
        self.make_net = partial(
            Conditioner, hidden=hidden, blocks=blocks, condition=self.embedding.width, dropout=dropout
        )
        if space.kind == "image":
            by_pixels = partial(self._couplings, alternate=alternate_pixels)
            flow = multi_scale(space.shape, self._couplings, odd=by_pixels)
        else:
            flow = self._table_flow(space.dims)
        self.flow = Chain(flow, NormalQuantile()) if fills_cube else flow

    def _table_flow(self, columns: int) -> Bijection:
        parts: list[Bijection] = []
        for layer in range(self.layers):
            parts += [LULinear(columns), alternate_channels(layer, (columns,), self.transform, self.make_net)]
        return Chain(*parts)

    def _couplings(self, shape: tuple[int, ...], alternate: Alternate = alternate_channels) -> Bijection:
        return Chain(*[alternate(layer, shape, self.transform, self.make_net) for layer in range(self.layers)])
