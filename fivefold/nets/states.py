"""What autoregressive networks keep while they are sampled, so that nothing is computed twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

from fivefold.tools.particles import effective, systematic


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


def fill_given(
    make: Callable[[], States],
    order: Iterable[int],
    x: Tensor,
    known: Tensor,
    draw: Callable[[int, Tensor], Tensor],
    log_prob: Callable[[int, Tensor, Tensor], Tensor] | None,
    particles: int,
) -> tuple[Tensor, Tensor]:
    """Draw the unknown dimensions in order, K particles for each example, weighted by the known ones' probabilities.

    Sequential Monte Carlo (Gordon et al., 1993): particles are drawn again by their weights where fewer than half of
    them count. Where no known dimension comes after an unknown one all weights are equal, and draws are exact.

    Args:
        make: states before the first dimension, for `n * K` examples.
        order: of the flattened dimensions.
        x: examples `(n * K, D)`, those of one example in a row.
        known: which dimensions are known, of x's shape.
        draw: values of a dimension from its parameters.
        log_prob: nats of a dimension's values under its parameters; None where there are none, and K is 1.
        particles: K.

    Returns:
        One particle of each example, `(n, D)`, and ln of the estimate of what is known's probability, nats `(n,)`.
    """
    x, done, states = x.clone(), list[int](), make()
    first = torch.arange(0, len(x), particles, device=x.device)[:, None]
    even = -math.log(particles)
    log_weight = torch.full((len(first), particles), even, dtype=torch.float64, device=x.device)
    evidence = torch.zeros_like(log_weight[:, 0])
    for dim in order:
        params, given = states.params(dim), known[:, dim]
        x[:, dim] = torch.where(given, x[:, dim], draw(dim, params))
        if log_prob is not None and given.any():
            log_weight += torch.where(given, log_prob(dim, params, x[:, dim]).double(), 0.0).view_as(log_weight)
        done.append(dim)
        poor = effective(log_weight) < particles / 2
        if poor.any():
            evidence[poor] += log_weight[poor].logsumexp(1)
            own = torch.arange(particles, device=x.device)
            x = x[(first + torch.where(poor[:, None], systematic(log_weight), own)).flatten()]
            log_weight[poor] = even
            states = _replayed(make(), done, x)
        else:
            states.add(dim, x[:, dim])
    chosen = torch.multinomial(log_weight.softmax(1), 1)
    return x[(first + chosen).flatten()], evidence + log_weight.logsumexp(1)


def _replayed(states: States, dims: list[int], x: Tensor) -> States:
    """After these dimensions of x; States have to be asked for a dimension before it is added."""
    for dim in dims:
        states.params(dim)
        states.add(dim, x[:, dim])
    return states
