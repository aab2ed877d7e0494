"""Distances between two samples: float64 features `(n, D)` of generated examples and `(m, D)` of real ones.

Each function is the reference formula and returns a float64 tensor; `MEASURES` has them all with a
standard error by the grouped jackknife, except the shares that are binomial. All but
`frechet_distance` are either unbiased or shares. The Fréchet distance is biased upward, by about
tr(C) (D/4 + 1) (1/n + 1/m) where the D features vary alike, so it only means something beside others of
the same sizes: systems that are compared have the same number of samples, and so does the floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fivefold.errors import TooFew
from fivefold.system import seeded

MINIMUM = 25  # examples on either side; with fewer the errors are guesses too
PAIRED = 2000  # at most, where every pair of examples is looked at
MANIFOLD_NEIGHBOUR = 3  # k of precision and recall, as in Kynkäänniemi et al.
BALL_NEIGHBOUR = 5  # k of density and coverage, as in Naeem et al.
COPY_RATIO = 1 / 3  # a copy is this much nearer to its nearest training example than to the second nearest


class Estimate(NamedTuple):
    """A measured value and its standard error."""

    value: float
    error: float


class Measure(NamedTuple):
    """What a value in the table means.

    `best` is "low", "high" or a number that a perfect model reaches; `text` explains it to people.
    """

    title: str
    best: str | float
    text: str


MEASURES = {
    "frechet": Measure("Fréchet distance", "low", "between Gaussians fitted to the features of both"),
    "kernel": Measure("Kernel distance", "low", "squared maximum mean discrepancy, cubic kernel, unbiased"),
    "precision": Measure("Precision", "high", "share of samples that lie within the real examples' manifold"),
    "recall": Measure("Recall", "high", "share of real examples that lie within the samples' manifold"),
    "density": Measure("Density", "high", "real examples' neighbourhoods that a sample lies in, against expectation"),
    "coverage": Measure("Coverage", "high", "share of real examples with a sample in their neighbourhood"),
    "two_sample_accuracy": Measure("Told from real", 0.5, "accuracy of a classifier of samples against real examples"),
    "memorisation": Measure("Memorisation", 0.5, "chance that a sample is nearer to the training set than unseen data"),
    "copies": Measure("Copies", "low", "share of samples three times nearer to one training example than to any other"),
}


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance between Gaussians fitted to `x` and `y` (Heusel et al. 2017), `()`.

    |mean_x - mean_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)). With C = F'F the trace of the root is the
    sum of the singular values of F_x F_y': no matrix root, and right where C is singular.
    """
    x, y = x.double(), y.double()
    factors = _covariance_factor(x), _covariance_factor(y)
    root = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    spread = factors[0].square().sum() + factors[1].square().sum()
    return (x.mean(0) - y.mean(0)).square().sum() + spread - 2 * root


def _covariance_factor(x: Tensor) -> Tensor:
    """F `(min(n, D), D)` with F'F the unbiased covariance of the rows of `x`."""
    centred = (x - x.mean(0)) / math.sqrt(len(x) - 1)
    return centred if len(x) <= x.shape[1] else torch.linalg.qr(centred, mode="r").R


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x'y / D + 1)^3 of all pairs of rows."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def kernel_distance(xx: Tensor, xy: Tensor, yy: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy, `()`, of the kernels of all pairs (Bińkowski et al. 2018).

    Over all pairs, so it needs no random subsets; can be below 0.
    """

    def off_diagonal_mean(k: Tensor) -> Tensor:
        return (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))

    return off_diagonal_mean(xx) + off_diagonal_mean(yy) - 2 * xy.mean()


def neighbourhood_scores(xx: Tensor, xy: Tensor, yy: Tensor) -> Tensor:
    """Precision, recall, density and coverage of samples x against real y, `(4,)`, from all distances.

    Precision and recall (Kynkäänniemi et al. 2019): the share of one set inside the other's manifold,
    the union of balls that reach each point's third neighbour. Density and coverage (Naeem et al. 2020):
    how many balls of real points (to the fifth neighbour) hold a sample, over 5; share that hold any.
    """
    in_real = xy <= _radii(yy, MANIFOLD_NEIGHBOUR)
    in_fake = xy <= _radii(xx, MANIFOLD_NEIGHBOUR)[:, None]
    in_ball = xy < _radii(yy, BALL_NEIGHBOUR)
    scores = in_real.any(1), in_fake.any(0), in_ball.sum(1) / BALL_NEIGHBOUR, in_ball.any(0)
    return torch.stack([score.double().mean() for score in scores])


def _radii(distances: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th neighbour `(n,)`, of all distances `(n, n)`; the 0-th is the point itself."""
    return distances.kthvalue(k + 1, dim=1).values


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances `(n, m)` in float64, by differences: exact 0 for equal rows."""
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def two_sample_accuracy(x: Tensor, y: Tensor, folds: int = 5, most: int = 1000) -> Estimate:
    """How well a classifier tells samples `x` from real `y` (Lopez-Paz & Oquab 2017): 0.5 where it cannot.

    Ridge regression on the two labels with a Gaussian kernel, as wide as half the median distance.
    Cross-validated, so every example is judged by a classifier that has not seen it; as many of each as
    the smaller set has, at most `most`. The error is binomial.
    """
    n = min(len(x), len(y), most)
    apart = distances(joint := torch.cat([spread(x, n), spread(y, n)]), joint)
    kernel = torch.exp(-2 * (apart / apart.median().clamp(min=1e-12)) ** 2)
    label = torch.ones(2 * n, dtype=kernel.dtype).index_fill(0, torch.arange(n), -1)
    fold = torch.arange(2 * n) % n % folds  # pairs (i, n + i) together: folds are balanced
    guess = torch.empty_like(label)
    for unseen in (fold == f for f in range(folds)):
        system = kernel[~unseen][:, ~unseen] + 0.1 * torch.eye(int((~unseen).sum()), dtype=kernel.dtype)
        guess[unseen] = kernel[unseen][:, ~unseen] @ torch.linalg.solve(system, label[~unseen])
    return _share(guess.sign() == label)


def spread(x: Tensor, n: int) -> Tensor:
    """At most `n` rows of `x`, evenly spread over them."""
    return x if n >= len(x) else x[torch.linspace(0, len(x) - 1, n).round().long()]


def nearest_two(x: Tensor, training: Tensor, *, of_training: bool = False, chunk: int = 500) -> Tensor:
    """Distances of `x` `(n, D)` to its nearest and second nearest training example, `(n, 2)`.

    `of_training`: the rows of `x` are themselves in `training`, and are left out once each.
    """
    skip = int(of_training)
    parts = [distances(part, training).topk(2 + skip, largest=False).values[:, skip:] for part in x.split(chunk)]
    return torch.cat(parts)


def memorisation(sample_distances: Tensor, unseen_distances: Tensor) -> Tensor:
    """P(d < d') + P(d = d') / 2 for d of a sample and d' of an unseen example to the training set, `()`.

    The Mann-Whitney statistic of distances to the nearest training example (Meehan et al. 2020): 0.5
    where samples are as near to the training set as unseen data are, towards 1 where they repeat it.
    """
    ordered = torch.sort(unseen_distances.double()).values
    below = torch.searchsorted(ordered, sample_distances.double(), right=False)
    not_above = torch.searchsorted(ordered, sample_distances.double(), right=True)
    return 1 - (below + not_above).double().mean() / (2 * len(ordered))


def copies(nearest: Tensor) -> Tensor:
    """Whether each row of `nearest_two` is a copy of one training example, `(n,)` (Yoon et al. 2023)."""
    return nearest[:, 0] < COPY_RATIO * nearest[:, 1]


def jackknife(statistic: Callable[[Tensor, Tensor], Tensor], n: int, m: int, groups: int = 20) -> list[Estimate]:
    """`statistic` of two samples, each of its values with a standard error: groups of either are left out in turn.

    Args:
        statistic: from the indices that are kept of the first and of the second sample to values `(S,)` or `()`.
        n: size of the first sample.
        m: size of the second sample.
        groups: how many each sample is cut into; interleaved, so that the order of examples hardly matters.
    """
    first, second = torch.arange(n), torch.arange(m)
    value = statistic(first, second).reshape(-1)
    without_first = [statistic(first[keep], second).reshape(-1) for keep in _leave_out(n, groups)]
    without_second = [statistic(first, second[keep]).reshape(-1) for keep in _leave_out(m, groups)]
    parts = [(len(v) - 1) * torch.stack(v).var(0, correction=0) for v in (without_first, without_second)]
    errors = torch.stack(parts).sum(0).sqrt()
    return [Estimate(*pair) for pair in zip(value.tolist(), errors.tolist(), strict=True)]


def _leave_out(n: int, groups: int) -> list[Tensor]:
    groups = min(groups, n)
    return [torch.arange(n) % groups != group for group in range(groups)]


def measure(x: Tensor, y: Tensor, training: Tensor, *, of_training: bool = False) -> dict[str, Estimate]:
    """Every measure in `MEASURES` of samples `x` `(n, D)` against unseen real examples `y` `(m, D)`.

    Args:
        x: features of the samples.
        y: features of held-out data.
        training: features of the training data, for memorisation.
        of_training: `x` is itself part of `training`: the floor.

    Raises:
        TooFew: fewer than `MINIMUM` of any. The Fréchet distance is left out where there are not more
            samples and held-out examples than features: covariances without full rank are no estimate.
    """
    for name, points in (("samples", x), ("held-out examples", y), ("training examples", training)):
        if len(points) < MINIMUM:
            raise TooFew(f"{len(points)} {name}; sample quality needs at least {MINIMUM}")
    near_x, near_y = nearest_two(x, training, of_training=of_training), nearest_two(y, training)
    n = min(len(x), len(y))
    estimates = _of_pairs(cubic_kernel, kernel_distance, x, y)
    # a manifold grows with the number of points it is made of, so as many of each
    estimates += _of_pairs(distances, neighbourhood_scores, spread(x, n), spread(y, n))
    estimates += [two_sample_accuracy(x, y)]
    estimates += jackknife(lambda i, j: memorisation(near_x[i, 0], near_y[j, 0]), len(x), len(y))
    estimates += [_share(copies(near_x))]
    found = dict(zip(list(MEASURES)[1:], estimates, strict=True))
    if n <= x.shape[1]:
        return found
    [frechet] = jackknife(lambda i, j: frechet_distance(x[i], y[j]), len(x), len(y))
    return {"frechet": frechet, **found}


def _of_pairs(
    pair: Callable[[Tensor, Tensor], Tensor],
    statistic: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
) -> list[Estimate]:
    """Jackknife of a statistic of matrices over pairs, which are computed once; of at most `PAIRED` examples."""
    x, y = spread(x, PAIRED), spread(y, PAIRED)
    xx, xy, yy = pair(x, x), pair(x, y), pair(y, y)
    return jackknife(lambda i, j: statistic(xx[i][:, i], xy[i][:, j], yy[j][:, j]), len(x), len(y))


def _share(hits: Tensor) -> Estimate:
    """The share of True, with its binomial error."""
    share = float(hits.double().mean())
    return Estimate(share, math.sqrt(share * (1 - share) / len(hits)))


def principal_components(x: Tensor, k: int = 64) -> tuple[Tensor, Tensor]:
    """Mean `(D,)` of the rows of `x` `(N, D)` and the `min(k, N, D)` directions `(D, k)` of most variance, float64."""
    mean = x.double().mean(0)
    most = min(x.shape)
    with seeded(0, x.device):  # randomised: costs N D k, not D^3
        basis = torch.svd_lowrank(x.double() - mean, q=min(k + 16, most), niter=4)[2]
    return mean, basis[:, : min(k, most)].contiguous()
