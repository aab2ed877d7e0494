"""The times at which a diffusion with few steps is evaluated, by dynamic programming (Watson et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor


def cheapest_path(cost: Tensor, steps: int) -> list[int]:
    """Indices N > ... > 0 of so many steps, the first and last given, with the least sum of costs.

    Args:
        cost: `(N + 1, N + 1)`, of a step from each index (row) to each lower one (column).
        steps: from 1 to N.
    """
    last = len(cost) - 1
    if not 1 <= steps <= last:
        raise ValueError(f"from {last} to 0 there are 1 to {last} steps, not {steps}")
    cost = cost.masked_fill(~torch.ones_like(cost).tril(-1).bool(), torch.inf)
    least, origins = cost[last], []  # of the ways from N to each index in the steps so far
    for _ in range(steps - 1):
        least, origin = (least[:, None] + cost).min(0)
        origins.append(origin)
    path = [0]
    for origin in reversed(origins):
        path.append(int(origin[path[-1]]))
    return [last, *reversed(path)]


def bound_costs(ratio: Tensor, error: Tensor) -> Tensor:
    """What a step adds to a bound on -ln p, in nats a dimension: `(N + 1, N + 1)`, from row to column.

    KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of the posterior's variance, half the difference of the signal-to-noise ratios
    times the squared error of x_0.

    Args:
        ratio: signal^2 / noise^2 at the times `(N + 1,)`, falling.
        error: mean squared error of the unit noise predicted there, `(N + 1,)`.
    """
    return 0.5 * (ratio / ratio[:, None] - 1) * error[:, None]
