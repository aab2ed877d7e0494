"""ln det(I + J) of contractions as a series, ended without bias (Chen et al., 2019) or cut, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

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


def truncation_bound(dims: int, lipschitz: float, terms: int) -> float:
    """How far the first `terms` of the series of ln det(I + J) can be from all of it, in nats.

    Every trace of J^k is within dims lipschitz^k, so that what is cut is within dims times the sum of lipschitz^k / k
    from terms + 1 (Behrmann et al., 2019, Theorem 3).

    Args:
        dims: rows of J.
        lipschitz: bound on J's norm (any induced one), below 1.
        terms: that are kept.
    """
    kept = sum(lipschitz**k / k for k in range(1, terms + 1))
    return max(dims * (-math.log1p(-lipschitz) - kept), 0.0)


def log_det_series(
    pull: Callable[[Tensor], Tensor], pair: Callable[[Tensor], Tensor], probe: Tensor, weights: Tensor
) -> Tensor:
    """ln det(I + J) of every row, `(B,)`: sum_k weights_k (-1)^(k+1) / k e J^k e, J being the Jacobian of g at x.

    Unbiased with roulette's weights and a probe e with E[e e^T] = I, where the norm of J is below 1. With K weights of
    1 the series is cut instead (Behrmann et al., 2019), and its mean is off by at most `truncation_bound`.

    Where gradients are enabled, the gradient is not the value's but the Neumann series' (Chen et al., 2019, Theorem 2):
    tr((I + J)^-1 dJ) = sum_k weights_k (-1)^k tr(J^k dJ), from k = 0. It too is unbiased (or cut one term later than
    the value), and however many terms there are, the graph of one product with the Jacobian is kept.

    Args:
        pull: v to J^T v, both as `probe`; no graph is asked of it.
        pair: v to v J e `(B,)`, e being the probe, with a graph where gradients are enabled.
        probe: `(B, ...)`, see `divergence.rademacher`.
        weights: `(K, 1)` or `(K, B)`, of the terms 1 to K.
    """
    weights = weights.to(probe)
    product, neumann, value = probe, probe, probe.new_zeros(len(probe))
    with torch.no_grad():
        for k, weight in enumerate(weights, 1):
            product = pull(product)
            value = value + (-1) ** (k + 1) / k * weight * (product * probe).flatten(1).sum(1)
            neumann = neumann + (-1) ** k * weight.view(-1, *[1] * (probe.dim() - 1)) * product
    if not torch.is_grad_enabled():
        return value
    surrogate = pair(neumann)
    return value + (surrogate - surrogate.detach())


def differentiated_now(value: Tensor, by: Sequence[Tensor], of: Sequence[Tensor]) -> Tensor:
    """`value` `(B,)` without its graph: its gradient is taken now, and what comes back later scales it.

    So the graph of a log-determinant is gone before the next block begins (Chen et al., 2019, 3.2). All rows must have
    the same gradient then, as in a mean over the batch; RuntimeError where they do not.

    Args:
        value: of every row, with a graph.
        by: what it was made from, none of them from another.
        of: the tensors that get the gradients, one for each.
    """
    return _Now.apply(value.detach(), torch.autograd.grad(value.sum(), by, retain_graph=True, allow_unused=True), *of)


class _Now(torch.autograd.Function):
    """`value` `(B,)`, the gradient of whose sum is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor | None, ...], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("a log-determinant whose gradient was taken early has no second derivatives")
        if not bool((gradient == gradient[0]).all()):
            raise RuntimeError("log-determinants whose gradient was taken early must all weigh alike in the loss")
        return None, None, *(None if one is None else gradient[0] * one for one in ctx.gradients)


def exact_log_det(g: Tensor, x: Tensor) -> Tensor:
    """ln |det(I + dg/dx)| of every row, `(B,)`, by one product with the Jacobian a dimension."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        sums = g.flatten(1).sum(0).unbind()
    rows = [torch.autograd.grad(one, x, create_graph=keep, retain_graph=True)[0] for one in sums]
    jacobian = torch.stack([row.flatten(1) for row in rows], 1)
    return torch.linalg.slogdet(jacobian + torch.eye(jacobian.shape[1]).to(x)).logabsdet
