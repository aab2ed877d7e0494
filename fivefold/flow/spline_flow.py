"""Neural spline flow."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from fivefold.bijections.autoregressive import masked_autoregressive_flow
from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.coupling import Alternate, alternate_channels, in_a_row
from fivefold.bijections.elementwise import NormalQuantile
from fivefold.bijections.linear import LULinear
from fivefold.bijections.shape import Flatten, Shape
from fivefold.bijections.splines import Kind, Spline
from fivefold.flow._coupling import CouplingFlowSystem
from fivefold.options import option


class SplineFlow(CouplingFlowSystem):
    """Spline flow (survey 6.1.2; Durkan et al., 2019).

    Coupling layers of monotone splines, rational-quadratic ones if nothing else is asked for: an exact density on
    real tables, fast both ways; multi-scale and convolutional on images. Or autoregressive layers, where every
    dimension is transformed given those before it: images are vectors then, and samples come dimension by dimension.

    Discrete images fill the cube [-1, 1]^D once dequantised, and so do the splines, from the cube onto
    itself: no density is lost outside it and its faces can be sharp. Elsewhere splines have linear tails.
    """

    presets = {
        "small": {"lr": 2e-3, "weight_decay": 10.0, "dropout": 0.3}  # tables of a few hundred rows
    }

    kind: Kind = option("rational-quadratic", "of spline: linear, quadratic, cubic or rational-quadratic")
    wrapper: Literal["coupling", "autoregressive"] = option("coupling", "coupling or autoregressive")
    hidden = 64
    bins: int = option(8, "bins of a spline", least=1, tune=(4, 32))
    bound: float = option(4.0, "where the linear tails begin, in standard deviations", above=0)
    dropout: float = option(0.0, "probability in the coupling networks", least=0, below=1, tune=(0.0, 0.5))

    def transform(self) -> Spline:
        fills = self.fills_cube
        return Spline(self.kind, self.bins, 1.0 if fills else self.bound, tails=not fills)

    @property
    def make_net(self) -> partial[Any]:
        return partial(super().make_net, dropout=self.dropout)

    def body(self) -> Layer:
        if self.wrapper == "coupling":
            return super().body()
        dims, width = self.space.dims, self.embedding.width
        flow = masked_autoregressive_flow(dims, self.layers, self.transform(), self.hidden, width)
        return Chain(Flatten(self.space.shape), flow)

    def steps(self, shape: Shape, alternate: Alternate = alternate_channels) -> Layer:
        if self.space.kind != "image":
            return super().steps(shape, alternate)
        return in_a_row(self.couple(layer, shape, alternate) for layer in range(self.layers))

    def step(self, layer: int, shape: Shape, alternate: Alternate) -> list[Layer]:
        return [LULinear(shape[0]), self.couple(layer, shape, alternate)]

    def _onto_line(self, flow: Layer) -> Layer:
        return Chain(flow, NormalQuantile()) if self.fills_cube else flow
