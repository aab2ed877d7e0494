"""Sums over all states, annealed importance sampling and block Gibbs sampling, as functions of what a model knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fivefold.system import log_mean_exp

# (x, beta, next beta) -> ln of f_next(x) / f_beta(x), and x after a move that leaves f_next invariant
Anneal = Callable[[Tensor, float, float], tuple[Tensor, Tensor]]


class LogPartition(NamedTuple):
    """ln Z in nats and its standard error."""

    value: Tensor
    error: Tensor


def anneal(x: Tensor, step: Anneal, temperatures: int) -> tuple[Tensor, Tensor]:
    """Carry draws `x` of f_0 / Z_0 along `temperatures` laws f_beta to f_1 (Neal 2001).

    Returns:
        The ends of the chains and their log importance weights, float64 `(B,)`: the mean of the weights is
        an unbiased estimate of Z_1 / Z_0.
    """
    log_weight = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for beta, next_beta in pairwise(torch.linspace(0, 1, temperatures + 1, dtype=torch.float64).tolist()):
        log_ratio, x = step(x, beta, next_beta)
        log_weight += log_ratio
    return x, log_weight


def log_partition(log_weight: Tensor, base: Tensor | float) -> LogPartition:
    """ln Z_1 from the log weights of K chains, `(K, ...)`, and ln Z_0.

    The mean of the weights is unbiased, so its logarithm is low on average: log-probabilities err on the
    high side, by about half the square of the error, and more where the annealing is too fast.
    """
    value, error = log_mean_exp(log_weight)
    return LogPartition(value + base, error)


def block_gibbs(
    v: Tensor, hidden: Callable[[Tensor], Tensor], visible: Callable[[Tensor], Tensor], steps: int
) -> Tensor:
    """`steps` times draw all hidden units given the visible ones, then all visible ones given the hidden."""
    for _ in range(steps):
        v = visible(hidden(v))
    return v


def every_state(levels: Sequence[int | None]) -> Tensor:
    """Every state of numbers with so many values each, `(N, D)`, float; one of nothing where there are none."""
    if not levels:
        return torch.zeros(1, 0)
    return torch.cartesian_prod(*[torch.arange(float(count or 0)) for count in levels]).view(-1, len(levels))
