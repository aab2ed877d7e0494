"""What energies and scores learn by without a chain: score matching, noise contrast, f-divergences, Stein's.

A score is the gradient of ln p, a function of points `(B, ...)` to the same shape; energies are minus ln p up to a
constant, of points to `(B,)`. Every function gives one number for each example, `(B,)`, to be averaged and minimised
unless it says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.tools.divergence import with_divergence

Score = Callable[[Tensor], Tensor]
Energy = Callable[[Tensor], Tensor]


def score_of(energy: Energy) -> Score:
    """-dE/dx, differentiable in the parameters where gradients are enabled."""

    def score(x: Tensor) -> Tensor:
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(-energy(x).sum(), x, create_graph=graph)[0]

    return score


def _sum(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


# --- score matching ---------------------------------------------------------------------------------


def score_matching(score: Score, x: Tensor) -> Tensor:
    """|s|^2 / 2 + tr ds/dx (survey Eq. 6; Hyvärinen, 2005): the Fisher divergence up to a constant.

    The trace is exact, one backward pass a dimension.
    """
    found, trace = with_divergence(score, x)
    return 0.5 * _sum(found.square()) + trace


def sliced_score_matching(score: Score, x: Tensor, direction: Tensor, reduced: bool = True) -> Tensor:
    """As `score_matching` along a random direction v, v ds/dx v + (v s)^2 / 2 (Song et al., 2019, Eq. 8).

    Args:
        score: s.
        x: points.
        direction: v, of x's shape and with E[v v^T] = I.
        reduced: |s|^2 / 2 in place of (v s)^2 / 2, its mean over v, which varies less.
    """
    found, trace = with_divergence(score, x, direction)
    return trace + 0.5 * (_sum(found.square()) if reduced else _sum(found * direction).square())


def finite_difference_score_matching(energy: Energy, x: Tensor, direction: Tensor, step: float) -> Tensor:
    """As `sliced_score_matching` without reduced variance, of differences alone (Pang et al., 2020).

    v ds/dx v is the second difference of ln p along v and v s half the first, both to second order in the step; no
    derivative of a derivative is taken.
    """
    y = step * direction
    after, middle, before = (-energy(torch.cat([x + y, x, x - y]))).chunk(3)
    return ((after - before).square() / 8 + after + before - 2 * middle) / step**2


def denoising_score_matching(score: Score, x: Tensor, noise: Tensor, deviation: float) -> Tensor:
    """|deviation s(x + deviation e) + e|^2 / 2 (survey Eq. 7; Vincent, 2011): at best s is the *noisy* law's score."""
    return 0.5 * _sum((deviation * score(x + deviation * noise) + noise).square())


# --- f-divergences ------------------------------------------------------------------------------------


class Divergence(NamedTuple):
    """D_f(p|q) = E_q f(p / q) as the maximum over u of E_p on_data(u) - E_q on_model(u) (Yu et al., 2020).

    Both are functions of u, at best ln p / q: f'(e^u), and f*(f'(e^u)) = e^u f'(e^u) - f(e^u).
    """

    on_data: Callable[[Tensor], Tensor]
    on_model: Callable[[Tensor], Tensor]


DIVERGENCES: dict[str, Divergence] = {
    "kl": Divergence(lambda u: 1 + u, torch.exp),  # r ln r
    "reverse-kl": Divergence(lambda u: -torch.exp(-u), lambda u: u - 1),  # -ln r
    "jensen-shannon": Divergence(  # r ln r - (r + 1) ln ((r + 1) / 2), twice the usual one
        lambda u: math.log(2) - F.softplus(-u), lambda u: F.softplus(u) - math.log(2)
    ),
    "squared-hellinger": Divergence(lambda u: 1 - torch.exp(-u / 2), lambda u: torch.exp(u / 2) - 1),  # (root r - 1)^2
    "pearson": Divergence(lambda u: 2 * torch.expm1(u), lambda u: torch.expm1(2 * u)),  # (r - 1)^2
}


def f_divergence(
    rules: Divergence, ratio_data: Tensor, ratio_model: Tensor, on_data: Tensor, on_model: Tensor
) -> Tensor:
    """A scalar whose gradient by the energy is that of the divergence, where u is at its best (Yu et al., 2020).

    With u = H + E the energy changes it through u, at data and at draws, and through the law of the draws, by
    -Cov(on_model(u), dE). While H is behind, the two parts through u need not hold each other, and an energy that rose
    everywhere would seem to gain; the model's are scaled so that it does not. For `kl` the gradient then is that of
    maximum likelihood, whatever H is.

    Args:
        rules: which divergence.
        ratio_data: u of data, `(B,)`.
        ratio_model: u of draws of the energy's law.
        on_data: E of those data, with its graph.
        on_model: E of those draws.
    """
    weight_data, weight_model = slope(rules.on_data, ratio_data), slope(rules.on_model, ratio_model)
    value = rules.on_model(ratio_model).detach()
    through = ((weight_model - value + value.mean()) * on_model).mean()
    return (weight_data * on_data).mean() - weight_data.mean() / weight_model.mean() * through


def slope(f: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """f'(u), elementwise, without graph."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        return torch.autograd.grad(f(u).sum(), u)[0]


# --- Stein's discrepancy --------------------------------------------------------------------------------


def stein(score: Score, critic: Score, x: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """s f + tr df/dx, of mean 0 where x follows the law of the score (Stein), and |f|^2 (Grathwohl et al., 2020).

    Args:
        score: s of the model.
        critic: f, a vector field.
        x: data.
        probe: of x's shape, see `divergence.rademacher`, for an estimate of the trace.
    """
    field, trace = with_divergence(critic, x, probe)
    return _sum(score(x) * field) + trace, _sum(field.square())
