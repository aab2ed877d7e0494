"""MaCow: masked convolutions that see few neighbours, in four directions."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.coupling import Alternate, MakeNet
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.masked_convolution import macow_unit
from fivefold.bijections.shape import FactorOut, Flatten, Shape, Squeeze
from fivefold.flow._coupling import CouplingFlowSystem
from fivefold.flow._glow import couple_halves, couple_last
from fivefold.nets.conditioner import GlowNet
from fivefold.options import depth_option, option, width_option
from fivefold.system import Density

KERNEL = (2, 3)  # rows above, columns
DEPARTURES = 2  # at each resolution, of a quarter of its channels each


class MaCow(CouplingFlowSystem):
    """MaCow (survey 6.2; Ma et al., 2019).

    Masked convolutions transform each row given two rows above it, below it, each column given two to its left, to its
    right; two such units come before every step of Glow. The inverse takes a row, or a column, at a time. Multi-scale
    in finer grains: twice at each resolution a quarter of the channels leaves, after a coupling given the others.
    """

    densities = {"image": Density.LOWER_BOUND}
    presets = {
        "cifar10": {
            "bottom": 4, "narrow": 24, "layers": 12, "scales": 3, "hidden": 512, "margin": 0.0, "warmup": 0.01,
            "batch_size": 512, "lr": 1e-3,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "cifar10": (37_197_547, "the authors' program: its weights, counted from their shapes")
    }

    bottom: int = option(0, "steps before the first squeeze", least=0)
    narrow: int = width_option(24, "width of their coupling networks", tune=(8, 64))
    blocks: int = depth_option(2, "units of four masked convolutions before each of Glow's steps", tune=(1, 8))
    layers: int = depth_option(
        2, "steps before channels leave, which they do twice at each resolution, and at the end", tune=(1, 16)
    )
    scales: int = option(2, "the most resolutions after squeezes; fewer where a side becomes odd", least=0)
    hidden: int = width_option(64, "width of the other coupling networks", tune=(16, 512))

    def body(self) -> Layer:
        start = [self._step(layer, self.space.shape, self.narrow) for layer in range(self.bottom)]
        return Chain(*start, self._resolution(self.space.shape, self.scales))

    def _resolution(self, shape: Shape, scales: int) -> Layer:
        """The next resolution and all after it, or the last steps."""
        channels, height, width = shape
        if scales == 0 or height % 2 or width % 2:
            return Chain(self.steps(shape), Flatten(shape))
        shape = (4 * channels, height // 2, width // 2)
        if scales == 1:
            return Chain(Squeeze(), self.steps(shape), Flatten(shape))
        return Chain(Squeeze(), self._departure(shape, channels, DEPARTURES, scales - 1))

    def _departure(self, shape: Shape, leaving: int, times: int, scales: int) -> Layer:
        """Steps, and so many channels leave; as many times as said, then the next resolution."""
        if times == 0:
            return self._resolution(shape, scales)
        kept = shape[0] - leaving
        law = couple_last(shape, kept, self.transform(), self._net(self.hidden))
        rest = self._departure((kept, *shape[1:]), leaving, times - 1, scales)
        return Chain(self.steps(shape), *_mixed(shape), law, FactorOut(shape, kept, rest))

    def steps(self, shape: Shape, alternate: Alternate = couple_halves) -> Layer:
        return Chain(*[self._step(layer, shape, self.hidden) for layer in range(self.layers)])

    def _step(self, layer: int, shape: Shape, hidden: int) -> Layer:
        units = [
            macow_unit(shape[0], self.transform(), KERNEL, _features(shape[0]), self.embedding.width)
            for _ in range(self.blocks)
        ]
        return Chain(*units, *_mixed(shape), couple_halves(layer, shape, self.transform(), self._net(hidden)))

    def _net(self, hidden: int) -> MakeNet:
        return partial(GlowNet, hidden=hidden, condition=self.embedding.width)


def _mixed(shape: Shape) -> list[Layer]:
    return [ActNorm(shape[0]), LULinear(shape[0], rotation=True)]


def _features(channels: int) -> int:
    """Of a masked convolution."""
    return 4 * channels if channels <= 96 else min(2 * channels, 512)
