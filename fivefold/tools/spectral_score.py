"""The score of a law that can only be drawn from (survey 2.3, [196]; Shi, Sun and Zhu, 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

KEPT = 0.99  # share of the kernel's spectrum whose eigenfunctions are used


def spectral_score(draws: Tensor, kept: float = KEPT, width: float | None = None) -> Callable[[Tensor], Tensor]:
    """An estimate of d ln p / dx, as a function of points `(B, ...)` to the same shape.

    The score is expanded in eigenfunctions psi_j of a Gaussian kernel under p, which Nyström's method finds from the
    draws; by Stein's identity its coefficients are -E dpsi_j/dx (Eq. 11 to 15 of the paper), which takes no density.

    Args:
        draws: from p, `(M, ...)`, two at least.
        kept: share of the kernel's spectrum, by the sum of eigenvalues: more of it has less bias and more variance.
        width: of the kernel; None takes the median distance between the draws.
    """
    if len(draws) < 2:
        raise ValueError(f"a score is estimated from two draws at least, got {len(draws)}")
    shape, x = draws.shape[1:], draws.flatten(1).double()
    count = len(x)
    width = torch.pdist(x[:2000]).median().item() if width is None else width
    if not width > 0:
        raise ValueError(f"the kernel's width must be above 0, got {width:g}: are all draws the same?")

    def kernel(points: Tensor) -> Tensor:
        distance = torch.cdist(points, x, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.exp(-0.5 * (distance / width).square())

    gram = kernel(x)
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(gram))  # the largest first
    share = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
    terms = int((share < kept).sum()) + 1
    functions = vectors[:, :terms] * (math.sqrt(count) / values[:terms])  # psi_j(y) = sum_m functions_mj k(y, x_m)
    # sum over draws y of dk(y, x_m)/dy = -(y - x_m) k(y, x_m) / width^2
    slopes = (x * gram.sum(1, keepdim=True) - gram @ x) / width**2
    coefficients = -(functions.T @ slopes) / count  # (terms, D)

    def score(points: Tensor) -> Tensor:
        found = kernel(points.flatten(1).double()) @ (functions @ coefficients)
        return found.view(len(points), *shape).to(points)

    return score
