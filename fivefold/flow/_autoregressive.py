"""What flows with a network for each dimension given those before it share; they differ in h and in the direction."""

from __future__ import annotations

from collections.abc import Callable

from fivefold.bijections.autoregressive import MaskedAutoregressive
from fivefold.bijections.base import Bijection, Chain, Inverse
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.shape import Flatten
from fivefold.bijections.transforms import Transform
from fivefold.flow._system import FlowSystem
from fivefold.space import Space

CONDITION_WIDTH = 32


class AutoregressiveFlowSystem(FlowSystem):
    """y_i = h(x_i; parameters(x_<i)) again and again, forwards and backwards by turns (survey Eq. 34).

    Images are vectors here, as in the papers. Each layer comes after an actnorm.

    Args:
        space: of the examples.
        transform: makes the h of a layer.
        layers: how many.
        hidden: units of each of a network's two hidden layers.
        inverse: whether noise comes in place of x in the networks: fast samples, slow densities (IAF).
        margin: how far the logit of discrete images keeps from 0 and 1.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
    """

    def __init__(
        self,
        space: Space,
        transform: Callable[[], Transform],
        *,
        layers: int,
        hidden: int,
        margin: float,
        score_samples: int,
        temperature: float,
        inverse: bool = False,
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature)

        parts: list[Bijection] = []
        for layer in range(layers):
            backwards = layer % 2 == 1
            flow = MaskedAutoregressive(space.dims, transform(), hidden, self.embedding.width, backwards)
            parts += [ActNorm(space.dims), Inverse(flow) if inverse else flow]
        self.flow = self._onto_line(Chain(Flatten(space.shape), *parts), margin)
