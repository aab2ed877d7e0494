"""First-order influences: how much each example moves a distance between two samples.

A smooth statistic of two samples moves by the mean over the examples of either of their influences, so
their variances give its error, and examples that two distances share give the error of their difference
(von Mises, 1947; Efron, 1982, chapter 6). Each function gives the influences of the rows of `x` `(n, D)` and of
`y` `(m, D)`, float64 and of mean 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fivefold.tools.metrics import cubic_kernel

Influences = tuple[Tensor, Tensor]


def frechet_influence(x: Tensor, y: Tensor) -> Influences:
    """Of the squared 2-Wasserstein distance between Gaussians fitted to `x` and `y`, `(n,)` and `(m,)`.

    Its gradient in the mean of y is -2 (mean_x - mean_y), and in the covariance of y it is I - T with T the optimal
    map from y's Gaussian to x's (Malagò et al., 2018). With centred rows Q F and F_y F_x' = U S V' a row's v' T v is
    that of U S U' in the coordinates Q: no inverse, and right where a covariance is singular.
    """
    x, y = x.double(), y.double()
    (q_x, f_x), (q_y, f_y) = _factors(x), _factors(y)
    u, s, v = torch.linalg.svd(f_y @ f_x.T, full_matrices=False)
    apart = 2 * (x.mean(0) - y.mean(0))
    of_x, of_y = _moved(x, apart, q_x @ v.T, s), _moved(y, -apart, q_y @ u, s)
    return of_x - of_x.mean(), of_y - of_y.mean()


def _factors(x: Tensor) -> tuple[Tensor, Tensor]:
    """Q and F with (n - 1)^(1/2) Q F the centred rows, F'F their covariance."""
    q, r = torch.linalg.qr((x - x.mean(0)) / math.sqrt(len(x) - 1))
    return q, r


def _moved(x: Tensor, slope: Tensor, coordinates: Tensor, s: Tensor) -> Tensor:
    """slope' v + v' (I - T) v of the centred rows v of `x`."""
    centred = x - x.mean(0)
    return centred @ slope + centred.square().sum(1) - (len(x) - 1) * coordinates.square() @ s


def kernel_influence(x: Tensor, y: Tensor) -> Influences:
    """Of the unbiased squared maximum mean discrepancy with the cubic kernel, `(n,)` and `(m,)`."""
    xx, xy, yy = cubic_kernel(x, x), cubic_kernel(x, y), cubic_kernel(y, y)
    of_x, of_y = 2 * (_others(xx) - xy.mean(1)), 2 * (_others(yy) - xy.mean(0))
    return of_x - of_x.mean(), of_y - of_y.mean()


def _others(kernel: Tensor) -> Tensor:
    """Each row's mean over the other rows."""
    return (kernel.sum(1) - kernel.diagonal()) / (len(kernel) - 1)


INFLUENCES: dict[str, Callable[[Tensor, Tensor], Influences]] = {  # by the name of the measure
    "frechet": frechet_influence,
    "kernel": kernel_influence,
}
