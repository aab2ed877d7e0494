"""MaCow: masked convolutions that see few neighbours, in four directions."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from fivefold.bijections.base import Bijection, Chain
from fivefold.bijections.coupling import MakeNet
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.masked_convolution import macow_unit
from fivefold.bijections.shape import FactorOut, Flatten, Shape, Squeeze
from fivefold.bijections.transforms import Affine
from fivefold.flow._glow import CONDITION_WIDTH, couple_halves, couple_last
from fivefold.flow._system import FlowSystem
from fivefold.nets.conditioner import GlowNet
from fivefold.space import Space
from fivefold.system import Density

KERNEL = (2, 3)  # rows above, columns
DEPARTURES = 2  # at each resolution, of a quarter of its channels each


class MaCow(FlowSystem):
    """MaCow (survey 6.2; Ma et al., 2019).

    Masked convolutions transform each row given two rows above it, below it, each column given two to its left, to its
    right; two such units come before every step of Glow. The inverse takes a row, or a column, at a time. Multi-scale
    in finer grains: twice at each resolution a quarter of the channels leaves, after a coupling given the others.

    Args:
        space: of the examples.
        bottom: steps before the first squeeze.
        narrow: width of their coupling networks.
        blocks: units of four masked convolutions before each of Glow's steps.
        layers: steps before channels leave, which they do twice at each resolution, and at the end.
        scales: the most resolutions after squeezes; fewer where a side becomes odd.
        hidden: width of the other coupling networks.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit, as in the paper.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
        warmup: share of the budget over which the learning rate rises; many couplings diverge at once without.
    """

    densities = {"image": Density.LOWER_BOUND}
    free_form = False
    sampling = "direct"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.99, "clip": 5.0},
        "cifar10": {
            "bottom": 4, "narrow": 24, "layers": 12, "scales": 3, "hidden": 512, "margin": 0.0, "warmup": 0.01,
            "batch_size": 512, "lr": 1e-3,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "cifar10": (37_197_547, "the authors' program: its weights, counted from their shapes"),
    }

    def __init__(
        self,
        space: Space,
        *,
        bottom: int = 0,
        narrow: int = 24,
        blocks: int = 2,
        layers: int = 2,
        scales: int = 2,
        hidden: int = 64,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
        warmup: float = 0.0,
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature)
        self.warmup = warmup
        self.layers, self.blocks, self.hidden, self.transform = layers, blocks, hidden, Affine()
        start = [self._step(layer, space.shape, narrow) for layer in range(bottom)]
        self.flow = self._onto_line(Chain(*start, self._resolution(space.shape, scales)), margin)

    def _resolution(self, shape: Shape, scales: int) -> Bijection:
        """The next resolution and all after it, or the last steps."""
        channels, height, width = shape
        if scales == 0 or height % 2 or width % 2:
            return Chain(self._steps(shape), Flatten(shape))
        shape = (4 * channels, height // 2, width // 2)
        if scales == 1:
            return Chain(Squeeze(), self._steps(shape), Flatten(shape))
        return Chain(Squeeze(), self._departure(shape, channels, DEPARTURES, scales - 1))

    def _departure(self, shape: Shape, leaving: int, times: int, scales: int) -> Bijection:
        """Steps, and so many channels leave; as many times as said, then the next resolution."""
        if times == 0:
            return self._resolution(shape, scales)
        kept = shape[0] - leaving
        law = couple_last(shape, kept, self.transform, self._net(self.hidden))
        rest = self._departure((kept, *shape[1:]), leaving, times - 1, scales)
        return Chain(self._steps(shape), *_mixed(shape), law, FactorOut(shape, kept, rest))

    def _steps(self, shape: Shape) -> Bijection:
        return Chain(*[self._step(layer, shape, self.hidden) for layer in range(self.layers)])

    def _step(self, layer: int, shape: Shape, hidden: int) -> Bijection:
        units = [
            macow_unit(shape[0], self.transform, KERNEL, _features(shape[0]), self.embedding.width)
            for _ in range(self.blocks)
        ]
        return Chain(*units, *_mixed(shape), couple_halves(layer, shape, self.transform, self._net(hidden)))

    def _net(self, hidden: int) -> MakeNet:
        return partial(GlowNet, hidden=hidden, condition=self.embedding.width)


def _mixed(shape: Shape) -> list[Bijection]:
    return [ActNorm(shape[0]), LULinear(shape[0], rotation=True)]


def _features(channels: int) -> int:
    """Of a masked convolution."""
    return 4 * channels if channels <= 96 else min(2 * channels, 512)
