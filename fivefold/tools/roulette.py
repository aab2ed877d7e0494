"""Infinite series without bias (Chen et al., 2019): ln det(I + J) of contractions, its gradient, and their inverse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def roulette_weights(exact: int, stop: float, draws: int = 1) -> Tensor:
    """Weights `(K, draws)` of a series' first K terms; every term's weight has mean 1, so no term is lost on average.

    The first `exact` terms always count once. After those N more are taken, N = 1, 2, ... geometric, each weighed by
    one over the chance P(N >= j) = (1 - stop)^(j - 1) that it is reached (Chen et al., 2019, 3.1).

    Args:
        exact: terms that always count.
        stop: probability of stopping after each of the others, in (0, 1).
        draws: independent N, a column each.
    """
    if not 0 < stop < 1 or exact < 0:
        raise ValueError(f"a roulette needs stop in (0, 1) and at least 0 exact terms, got stop={stop}, exact={exact}")
    uniform = 1 - torch.rand(draws, dtype=torch.float64, device="cpu")  # on the host: K is a loop's length
    taken = 1 + (uniform.log() / math.log(1 - stop)).floor()
    j = torch.arange(1, int(taken.max()) + 1, dtype=torch.float64, device="cpu")[:, None]
    return torch.cat([torch.ones(exact, draws, dtype=j.dtype, device="cpu"), (taken >= j) * (1 - stop) ** (1 - j)])


def log_det_series(g: Tensor, x: Tensor, probe: Tensor, weights: Tensor) -> Tensor:
    """ln det(I + dg/dx) of every row, `(B,)`: sum_k weights_k (-1)^(k+1) / k e J^k e.

    Unbiased with roulette's weights and a probe e with E[e e^T] = I, where the norm of J is below 1.

    Where gradients are enabled, the gradient is not the value's but the Neumann series' (Chen et al., 2019, Theorem 2):
    tr((I + J)^-1 dJ) = sum_k weights_k (-1)^k tr(J^k dJ), from k = 0. It too is unbiased, and however many terms there
    are, the graph of one product with the Jacobian is kept.

    Args:
        g: `(B, ...)`, made from `x` with its graph.
        x: of the same shape, requires gradients.
        probe: of the same shape, see `divergence.rademacher`.
        weights: `(K, 1)` or `(K, B)`, of the terms 1 to K.
    """
    weights = weights.to(x)
    product, neumann, value = probe, probe, x.new_zeros(len(x))
    for k, weight in enumerate(weights, 1):
        (product,) = torch.autograd.grad(g, x, product, retain_graph=True)
        value = value + (-1) ** (k + 1) / k * weight * (product * probe).flatten(1).sum(1)
        neumann = neumann + (-1) ** k * weight.view(-1, *[1] * (x.dim() - 1)) * product
    if not torch.is_grad_enabled():
        return value
    (last,) = torch.autograd.grad(g, x, neumann, create_graph=True)
    surrogate = (last * probe).flatten(1).sum(1)
    return value + (surrogate - surrogate.detach())


def exact_log_det(g: Tensor, x: Tensor) -> Tensor:
    """ln |det(I + dg/dx)| of every row, `(B,)`, by one product with the Jacobian a dimension."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        sums = g.flatten(1).sum(0).unbind()
    rows = [torch.autograd.grad(one, x, create_graph=keep, retain_graph=True)[0] for one in sums]
    jacobian = torch.stack([row.flatten(1) for row in rows], 1)
    return torch.linalg.slogdet(jacobian + torch.eye(jacobian.shape[1]).to(x)).logabsdet


class FixedPoint(NamedTuple):
    """Where a fixed-point iteration ended."""

    x: Tensor
    error: float  # of the last step, the largest, relative to 1 + |x|
    steps: int


@torch.no_grad()
def fixed_point(f: Callable[[Tensor], Tensor], x: Tensor, tolerance: float, most: int) -> FixedPoint:
    """x = f(x) of a contraction f by iteration, until a step is below `tolerance` (1 + |x|) or `most` are taken.

    With a Lipschitz constant L the distance to the fixed point is at most the last step times L / (1 - L) (Banach).
    """
    steps, error = 0, math.inf
    while steps < most and not error <= tolerance:
        before, x = x, f(x)
        steps, error = steps + 1, ((x - before).abs() / (1 + x.abs())).max().item()
    return FixedPoint(x, error, steps)
