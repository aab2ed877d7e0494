"""Block neural autoregressive flow: one masked network is the bijection."""

from __future__ import annotations

from typing import ClassVar

from fivefold.bijections.autoregressive import in_alternating_order
from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.block import BlockAutoregressive
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.shape import Flatten
from fivefold.flow._system import FlowSystem
from fivefold.options import depth_option, option, width_option


class BNAF(FlowSystem):
    """Block neural autoregressive flow (survey 6.1.3; De Cao et al., 2019).

    The autoregressive bijection is a network itself, and needs no other to give its parameters: weights in blocks, one
    row and column of blocks for each dimension, positive on the diagonal and free below, so that every output
    increases in its own input. A gate adds the input, and the order is reversed between flows. A density takes one
    pass, a sample goes dimension by dimension, a scalar root each. Images are flattened.
    """

    condition_width: ClassVar[int] = 16
    sampling: ClassVar[str] = "autoregressive"

    flows: int = option(2, "networks in a row", least=1, tune=(1, 6))
    layers: int = depth_option(2, "hidden layers of each", tune=(1, 16))
    width: int = width_option(
        8, "units of each dimension in a hidden layer; fewer where that is past 2^24 weights", tune=(8, 256)
    )

    def body(self) -> Layer:
        dims, condition = self.space.dims, self.embedding.width
        blocks = [BlockAutoregressive(dims, self.width, self.layers, condition) for _ in range(self.flows)]
        return Chain(Flatten(self.space.shape), ActNorm(dims), in_alternating_order(dims, blocks))

    @property
    def sample_evaluations(self) -> int:
        return self.space.dims
