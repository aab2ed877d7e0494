"""Weighted particles: how even their weights are, and drawing among them (sequential Monte Carlo)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fivefold.space import Space
from fivefold.tools.scaling import centre


def effective(log_weight: Tensor) -> Tensor:
    """How many of K particles count, `(n,)`: 1 / the sum of squared weights `(n, K)` of sum 1 (Liu and Chen, 1995)."""
    return 1 / log_weight.softmax(1).square().sum(1)


def systematic(log_weight: Tensor) -> Tensor:
    """K particles' numbers `(n, K)` by their weights `(n, K)`, from one uniform draw a row (Kitagawa, 1996)."""
    n, count = log_weight.shape
    place = (torch.arange(count, device=log_weight.device) + torch.rand(n, 1, device=log_weight.device)) / count
    below = log_weight.double().softmax(1).cumsum(1)
    return torch.searchsorted(below, place.double()).clamp(max=count - 1)


POOL, AMONG = 1000, 32  # samples for all examples, and how many of them each sees
EACH = 8  # samples for an example that has a condition of its own


def nearest(pool: Tensor, x: Tensor, known: Tensor) -> Tensor:
    """Numbers `(B,)` of samples near each example: of `AMONG` chosen at random the nearest in what is known.

    Args:
        pool: samples `(M, D)`, real-valued.
        x: examples `(B, D)`.
        known: which of their numbers count, of x's shape.
    """
    weight = known.to(x)
    distance = (weight * x.square()).sum(1, keepdim=True) - 2 * (weight * x) @ pool.T + weight @ pool.square().T
    chosen = torch.rand_like(distance).topk(min(AMONG, len(pool)), 1).indices
    return chosen.gather(1, distance.gather(1, chosen).argmin(1, keepdim=True)).squeeze(1)


def near(
    sample: Callable[[int, Tensor | None], Tensor], space: Space, x: Tensor, known: Tensor, condition: Tensor | None
) -> Tensor:
    """Samples of a model `(B, *shape)`, encoded, that are near what is known of examples: where chains start.

    Args:
        sample: draws so many, given a condition.
        space: of the examples.
        x: examples `(B, *shape)`, encoded.
        known: which of their numbers are known.
        condition: of each, encoded, or None.
    """
    if condition is None:
        pool = sample(min(POOL, AMONG * len(x)), None)
        return pool[nearest(centre(pool, space).flatten(1), centre(x, space).flatten(1), known.flatten(1))]
    pool = sample(EACH * len(x), condition.repeat_interleave(EACH, 0))
    gap = (centre(pool, space) - centre(x, space).repeat_interleave(EACH, 0)).square()
    distance = (gap * known.repeat_interleave(EACH, 0)).flatten(1).sum(1).view(-1, EACH)
    return pool[torch.arange(0, len(pool), EACH, device=x.device) + distance.argmin(1)]
