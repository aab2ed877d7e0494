"""Neural spline flow."""

from __future__ import annotations

from functools import partial
from typing import Literal

from fivefold.bijections.autoregressive import masked_autoregressive_flow
from fivefold.bijections.base import Bijection, Chain
from fivefold.bijections.coupling import Alternate, alternate_channels, alternate_pixels, in_a_row
from fivefold.bijections.elementwise import NormalQuantile
from fivefold.bijections.linear import LULinear
from fivefold.bijections.shape import Flatten, multi_scale
from fivefold.bijections.splines import Kind, Spline
from fivefold.flow._system import Dequantisation, FlowSystem
from fivefold.nets.conditioner import Conditioner
from fivefold.space import Space
from fivefold.system import Density

CONDITION_WIDTH = 32


class SplineFlow(FlowSystem):
    """Spline flow (survey 6.1.2; Durkan et al., 2019).

    Coupling layers of monotone splines, rational-quadratic ones if nothing else is asked for: an exact density on
    real tables, fast both ways; multi-scale and convolutional on images. Or autoregressive layers, where every
    dimension is transformed given those before it: images are vectors then, and samples come dimension by dimension.

    Discrete images fill the cube [-1, 1]^D once dequantised, and so do the splines, from the cube onto
    itself: no density is lost outside it and its faces can be sharp. Elsewhere splines have linear tails.

    Args:
        space: of the examples.
        kind: of spline: linear, quadratic, cubic or rational-quadratic.
        wrapper: coupling or autoregressive.
        layers: coupling layers (at each resolution of an image), or autoregressive ones.
        hidden: width of their networks.
        blocks: residual blocks of a coupling network; an autoregressive one has two hidden layers.
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
        kind: Kind = "rational-quadratic",
        wrapper: Literal["coupling", "autoregressive"] = "coupling",
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
        self.transform = Spline(kind, bins, 1.0 if fills_cube else bound, tails=not fills_cube)
        self.make_net = partial(
            Conditioner, hidden=hidden, blocks=blocks, condition=self.embedding.width, dropout=dropout
        )
        if wrapper == "autoregressive":
            flow = self._autoregressive_flow(hidden)
        elif space.kind == "image":
            by_pixels = partial(self._couplings, alternate=alternate_pixels)
            flow = multi_scale(space.shape, self._couplings, odd=by_pixels)
        else:
            flow = self._table_flow(space.dims)
        self.flow = Chain(flow, NormalQuantile()) if fills_cube else flow

    def _autoregressive_flow(self, hidden: int) -> Bijection:
        dims, width = self.space.dims, self.embedding.width
        flow = masked_autoregressive_flow(dims, self.layers, self.transform, hidden, width)
        return Chain(Flatten(self.space.shape), flow)

    def _table_flow(self, columns: int) -> Bijection:
        parts: list[Bijection] = []
        for layer in range(self.layers):
            parts += [LULinear(columns), alternate_channels(layer, (columns,), self.transform, self.make_net)]
        return Chain(*parts)

    def _couplings(self, shape: tuple[int, ...], alternate: Alternate = alternate_channels) -> Bijection:
        return in_a_row(alternate(layer, shape, self.transform, self.make_net) for layer in range(self.layers))
