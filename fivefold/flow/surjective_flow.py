"""Surjective flows: SurVAE flows with an absolute value, a maximum or a slice."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

from fivefold.bijections.base import Bijection, Chain, Layer
from fivefold.bijections.coupling import Alternate, alternate_channels, alternate_pixels
from fivefold.bijections.elementwise import HalfLine
from fivefold.bijections.laws import FlowLaw, conditional_flow
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.shape import Flatten, Squeeze
from fivefold.bijections.splines import Spline
from fivefold.bijections.surjections import Abs, Max, Slice
from fivefold.bijections.transforms import Affine
from fivefold.errors import Unfit
from fivefold.flow._system import Dequantisation, FlowSystem
from fivefold.nets.conditioner import Conditioner
from fivefold.nets.masked import MaskedNet
from fivefold.space import Space
from fivefold.system import Density

CONDITION_WIDTH = 32
BINS, BOUND = 8, 4.0  # of the splines of tables


class SurjectiveFlow(FlowSystem):
    """Surjective flow (survey 6.4; Nielsen et al., 2020).

    Flows with layers that lose something on the way to noise, and draw it on the way back. The law of what is lost
    counts in full (survey Eq. 39), so that the density stays exact though noise has fewer dimensions than data, or lies
    in a part of the space.

    Tables lose the signs of their columns at first, so that modes on both sides of 0 are one for the flow that follows;
    a network gives each sign's chances from all absolute values and the columns before, or they are even and the
    density symmetric. Images lose, at each resolution, all but the largest of every four numbers (a max-pooling), or
    half of the channels.

    Args:
        space: of the examples.
        surjection: of images at each resolution, max or slice.
        scales: the most surjections of an image; fewer where a side becomes odd, and none where one is.
        symmetric: whether signs of columns have even chances.
        layers: coupling layers (at each resolution of an image).
        law_layers: couplings of the law of what images lose.
        hidden: width of all networks.
        blocks: their residual blocks.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
        dequantisation: of discrete dimensions, uniform or variational (by a flow given the example).
    """

    densities = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form = False
    sampling = "direct"
    presets = {"default": {"ema": 0.99, "clip": 5.0}}

    def __init__(
        self,
        space: Space,
        *,
        surjection: Literal["max", "slice"] = "max",
        scales: int = 2,
        symmetric: bool = False,
        layers: int = 4,
        law_layers: int = 4,
        hidden: int = 64,
        blocks: int = 1,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
        dequantisation: Dequantisation = "uniform",
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature, dequantisation)
        if surjection not in KEPT:
            raise Unfit(f"no surjection {surjection!r} of images; there are {', '.join(KEPT)}")
        self.layers, self.law_layers, self.surjection, self.hidden = layers, law_layers, surjection, hidden
        self.make_net = partial(Conditioner, hidden=hidden, blocks=blocks, condition=self.embedding.width)
        self.signs = 0 if symmetric or space.kind == "image" else space.dims  # that come one after another
        if space.kind == "image":
            flow, self.noise_dims = self._image_flow(space.shape, scales)
        else:
            flow = self._table_flow(space.dims, symmetric)
        self.flow = self._onto_line(flow, margin)

    @property
    def sample_evaluations(self) -> int:
        return max(1, self.signs)

    def _table_flow(self, columns: int, symmetric: bool) -> Layer:
        width = self.embedding.width
        gate = None if symmetric else MaskedNet(columns, 1, self.hidden, width, free=columns)
        transform = Spline("rational-quadratic", BINS, BOUND)
        parts: list[Layer] = [Abs(gate), HalfLine()]
        for layer in range(self.layers):
            parts += [LULinear(columns), alternate_channels(layer, (columns,), transform, self.make_net)]
        return Chain(*parts)

    def _image_flow(self, shape: tuple[int, ...], scales: int) -> tuple[Layer, int]:
        """Squeeze, couplings and a surjection, while the sides are even; and the dimensions that are left."""
        channels, height, width = shape
        if scales == 0 or height % 2 or width % 2:
            return Chain(self._couplings(shape, alternate_pixels), Flatten(shape)), math.prod(shape)
        wide = (4 * channels, height // 2, width // 2)
        kept = KEPT[self.surjection] * channels
        rest, dims = self._image_flow((kept, *wide[1:]), scales - 1)
        return Chain(Squeeze(), self._couplings(wide, alternate_channels), self._lose(kept, wide), rest), dims

    def _couplings(self, shape: tuple[int, ...], alternate: Alternate) -> Bijection:
        parts: list[Bijection] = []
        for layer in range(self.layers):
            parts += [ActNorm(shape[0]), alternate(layer, shape, Affine(), self.make_net)]
        return Chain(*parts)

    def _lose(self, kept: int, shape: tuple[int, ...]) -> Layer:
        lost = shape[0] - kept
        law = FlowLaw(lost, conditional_flow(kept, lost, shape[1:], self.law_layers, Affine(), self.make_net))
        return Max(kept, 4, law) if self.surjection == "max" else Slice(kept, law)


KEPT = {"max": 1, "slice": 2}  # of every four channels
