"""What autoregressive networks keep while they are sampled, so that nothing is computed twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor


class States(Protocol):
    """Of a convolution, a recurrence, attention or units of a masked layer, for `n` examples at once.

    Dimensions are asked for and added in the order of the factorisation, each before the next.
    """

    def params(self, dim: int) -> Tensor:
        """Parameters `(n, width)` of a flattened dimension, all before it having been added."""

    def add(self, dim: int, value: Tensor) -> None:
        """The encoded value `(n,)` that was drawn there."""


class Recomputed:
    """Only the examples so far, `x` `(n, D)`, are kept: all parameters, `(n, D, width)`, are computed each time."""

    def __init__(self, conditionals: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.conditionals, self.x = conditionals, x

    def params(self, dim: int) -> Tensor:
        return self.conditionals(self.x)[:, dim]

    def add(self, dim: int, value: Tensor) -> None:
        self.x[:, dim] = value


def fill(states: States, order: Iterable[int], x: Tensor, draw: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Draw all dimensions in order.

    Args:
        states: before the first dimension.
        order: of the flattened dimensions.
        x: examples `(n, D)`, filled in place.
        draw: values `(n,)` of a dimension from its parameters `(n, width)`.
    """
    for dim in order:
        x[:, dim] = draw(dim, states.params(dim))
        states.add(dim, x[:, dim])
    return x
