"""What flows with a network for each dimension given those before it share; they differ in h and in the direction."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from fivefold.bijections.autoregressive import MaskedAutoregressive
from fivefold.bijections.base import Chain, Inverse, Layer
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.shape import Flatten
from fivefold.bijections.transforms import Transform
from fivefold.flow._system import FlowSystem
from fivefold.options import depth_option, width_option


class AutoregressiveFlowSystem(FlowSystem):
    """y_i = h(x_i; parameters(x_<i)) again and again, forwards and backwards by turns (survey Eq. 34).

    Images are vectors here, as in the papers. Each layer comes after an actnorm. Subclasses say what h is.
    """

    sampling: ClassVar[str] = "autoregressive"
    inverse: ClassVar[bool] = False  # whether noise comes in place of x in the networks: fast samples, slow densities

    lr = 2e-3
    layers: int = depth_option(2, "autoregressive maps, the order of the dimensions reversed in between", tune=(1, 10))
    hidden: int = width_option(128, "units of each of a network's two hidden layers", tune=(32, 512))

    @abstractmethod
    def transform(self) -> Transform:
        """The h of one layer."""

    def body(self) -> Layer:
        return Chain(Flatten(self.space.shape), *(part for layer in range(self.layers) for part in self._layer(layer)))

    def _layer(self, layer: int) -> tuple[Layer, Layer]:
        width, backwards = self.embedding.width, layer % 2 == 1
        flow = MaskedAutoregressive(self.space.dims, self.transform(), self.hidden, width, backwards)
        return ActNorm(self.space.dims), Inverse(flow) if self.inverse else flow
