"""MintNet: masked convolutions with known diagonals, inverted by Newton's method."""

from __future__ import annotations

from typing import ClassVar

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.masked_convolution import MintLayer, mint_pair
from fivefold.bijections.shape import Flatten, Shape, Squeeze
from fivefold.flow._inverted import InvertedFlowSystem
from fivefold.options import depth_option, option, width_option
from fivefold.system import Density


class MintNet(InvertedFlowSystem):
    """MintNet (survey 6.2; Song et al., 2019).

    Networks of masked convolutions whose Jacobians are triangular with a positive diagonal, in pairs of opposite
    orders: no couplings, and nothing is factored out. The log-determinant is exact; the inverse is Newton's method
    with the diagonal alone, all numbers at once, which triangular maps bring to an end.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND}
    presets = {
        "cifar10": {
            "layers": 7, "scales": 3, "hidden": 255, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.0, "ema": 0.0,
        },
        "imagenet32": {
            "layers": 7, "scales": 3, "hidden": 255, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.0, "ema": 0.0,
        },
    }  # fmt: skip

    layers: int = depth_option(3, "pairs at each resolution", tune=(1, 16))
    scales: int = option(3, "the most resolutions; fewer where a side becomes odd", least=0)
    hidden: int = width_option(48, "features within a layer, in all its channels", tune=(16, 512))

    def body(self) -> Layer:
        return Chain(ActNorm(self.space.shape[0]), self._resolution(self.space.shape, self.scales))

    def _resolution(self, shape: Shape, scales: int) -> Layer:
        channels, height, width = shape
        pairs = [mint_pair(shape, self.hidden, self.embedding.width) for _ in range(self.layers)]
        if scales <= 1 or height % 2 or width % 2:
            return Chain(*pairs, Flatten(shape))
        return Chain(*pairs, Squeeze(), self._resolution((4 * channels, height // 2, width // 2), scales - 1))

    def invert_to(self, tolerance: float) -> None:
        for layer in self._mint_layers():
            layer.tolerance = tolerance

    @property
    def sample_evaluations(self) -> int:
        """Evaluations of all layers for the last draw, one after another."""
        return max(sum(layer.steps for layer in self._mint_layers()), 1)

    def _mint_layers(self) -> list[MintLayer]:
        return [part for part in self.flow.modules() if isinstance(part, MintLayer)]
