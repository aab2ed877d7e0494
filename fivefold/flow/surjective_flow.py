"""Surjective flows: SurVAE flows with an absolute value, a maximum or a slice."""

from __future__ import annotations

import math
from typing import Literal

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.coupling import Alternate, alternate_channels, alternate_pixels
from fivefold.bijections.elementwise import HalfLine
from fivefold.bijections.laws import FlowLaw, conditional_flow
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.shape import Flatten, Shape, Squeeze
from fivefold.bijections.splines import Spline
from fivefold.bijections.surjections import Abs, Max, Slice
from fivefold.bijections.transforms import Affine
from fivefold.flow._coupling import CouplingFlowSystem
from fivefold.nets.masked import MaskedNet
from fivefold.options import depth_option, option

BINS, BOUND = 8, 4.0  # of the splines of tables


class SurjectiveFlow(CouplingFlowSystem):
    """Surjective flow (survey 6.4; Nielsen et al., 2020).

    Flows with layers that lose something on the way to noise, and draw it on the way back. The law of what is lost
    counts in full (survey Eq. 39), so that the density stays exact though noise has fewer dimensions than data, or lies
    in a part of the space.

    Tables lose the signs of their columns at first, so that modes on both sides of 0 are one for the flow that follows;
    a network gives each sign's chances from all absolute values and the columns before, or they are even and the
    density symmetric. Images lose, at each resolution, all but the largest of every four numbers (a max-pooling), or
    half of the channels.
    """

    chooses = True
    surjection: Literal["max", "slice"] = option("max", "of images at each resolution, max or slice")
    scales: int = option(
        2, "the most surjections of an image; fewer where a side becomes odd, and none where one is", least=0
    )
    symmetric: bool = option(False, "whether signs of columns have even chances")
    law_layers: int = depth_option(2, "couplings of the law of what images lose", tune=(1, 4))
    hidden = 64

    def body(self) -> Layer:
        image = self.space.kind == "image"
        self.signs = 0 if self.symmetric or image else self.space.dims  # that come one after another
        return self._image_flow(self.space.shape, self.scales) if image else self._table_flow(self.space.dims)

    @property
    def sample_evaluations(self) -> int:
        return max(1, self.signs)

    def _table_flow(self, columns: int) -> Layer:
        width = self.embedding.width
        gate = None if self.symmetric else MaskedNet(columns, 1, self.hidden, width, free=columns)
        transform = Spline("rational-quadratic", BINS, BOUND)
        parts: list[Layer] = [Abs(gate), HalfLine()]
        for layer in range(self.layers):
            parts += [LULinear(columns), alternate_channels(layer, (columns,), transform, self.make_net)]
        return Chain(*parts)

    def _image_flow(self, shape: Shape, scales: int) -> Layer:
        """Squeeze, couplings and a surjection, while the sides are even; what is left is the noise."""
        channels, height, width = shape
        if scales == 0 or height % 2 or width % 2:
            self.noise_dims = math.prod(shape)
            return Chain(self.steps(shape, alternate_pixels), Flatten(shape))
        wide = (4 * channels, height // 2, width // 2)
        kept = KEPT[self.surjection] * channels
        rest = self._image_flow((kept, *wide[1:]), scales - 1)
        return Chain(Squeeze(), self.steps(wide), self._lose(kept, wide), rest)

    def step(self, layer: int, shape: Shape, alternate: Alternate) -> list[Layer]:
        return [ActNorm(shape[0]), self.couple(layer, shape, alternate)]

    def _lose(self, kept: int, shape: tuple[int, ...]) -> Layer:
        lost = shape[0] - kept
        law = FlowLaw(lost, conditional_flow(kept, lost, shape[1:], self.law_layers, Affine(), self.make_net))
        return Max(kept, 4, law) if self.surjection == "max" else Slice(kept, law)


KEPT = {"max": 1, "slice": 2}  # of every four channels
