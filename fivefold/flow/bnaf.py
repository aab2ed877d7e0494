"""Block neural autoregressive flow: one masked network is the bijection."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.bijections.autoregressive import in_alternating_order
from fivefold.bijections.base import Chain
from fivefold.bijections.block import BlockAutoregressive
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.shape import Flatten
from fivefold.flow._system import FlowSystem
from fivefold.space import Space
from fivefold.system import Density

CONDITION_WIDTH = 16


class BNAF(FlowSystem):
    """Block neural autoregressive flow (survey 6.1.3; De Cao et al., 2019).

    The autoregressive bijection is a network itself, and needs no other to give its parameters: weights in blocks, one
    row and column of blocks for each dimension, positive on the diagonal and free below, so that every output
    increases in its own input. A gate adds the input, and the order is reversed between flows. A density takes one
    pass, a sample goes dimension by dimension, a scalar root each. Images are flattened.

    Args:
        space: of the examples.
        flows: networks in a row.
        layers: hidden layers of each.
        width: units of each dimension in a hidden layer; fewer where a layer would pass 2^24 weights.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "autoregressive"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.99, "clip": 5.0}}

    def __init__(
        self,
        space: Space,
        *,
        flows: int = 2,
        layers: int = 2,
        width: int = 8,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature)
        blocks = [BlockAutoregressive(space.dims, width, layers, self.embedding.width) for _ in range(flows)]
        flow = Chain(Flatten(space.shape), ActNorm(space.dims), in_alternating_order(space.dims, blocks))
        self.flow = self._onto_line(flow, margin)

    @property
    def sample_evaluations(self) -> int:
        return self.space.dims
