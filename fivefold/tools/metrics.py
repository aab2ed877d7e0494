"""Distances between two samples: float64 features `(n, D)` of generated examples and `(m, D)` of real ones.

Each function is the reference formula in float64; `score` has them all with the influence of every
example, and `measure` with their standard errors (see `fivefold.tools.resampling`). The Fréchet distance is biased
upward, by about tr(C) (D/4 + 1) (1/n + 1/m) where the D features vary alike, and memorisation a little, so they only
mean something beside others of the same sizes: systems that are compared have the same number of samples, and so
does the floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fivefold.errors import TooFew
from fivefold.system import seeded
from fivefold.tools.resampling import Estimate, Score, centred, rough, smooth
from fivefold.tools.table_metrics import Columns, column_pairs, column_shapes, greatest_gap

MINIMUM = 25  # examples on either side; with fewer the errors are guesses too
PAIRED = 2000  # at most, where every pair of examples is looked at
MANIFOLD_NEIGHBOUR = 3  # k of precision and recall, as in Kynkäänniemi et al.
BALL_NEIGHBOUR = 5  # k of density and coverage, as in Naeem et al.
COPY_RATIO = 1 / 2  # a copy is this much nearer to its nearest training example than to the second nearest
FOLDS, CLASSIFIED = 5, 1000  # of the classifier: as many parts, and at most so many examples of either


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
    "memorisation": Measure(
        "Memorisation", 0.5, "accuracy of telling samples from unseen data by lying nearer to the training set"
    ),
    "copies": Measure("Copies", "low", "share of samples twice nearer to one training example than to any other"),
    "column_shapes": Measure(
        "Column shapes", "high", "how alike the distributions of single columns are, 1 for the same"
    ),
    "column_pairs": Measure("Column pairs", "high", "how alike the dependence of two columns is, 1 for the same"),
}


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance between Gaussians fitted to `x` and `y` (Heusel et al. 2017), `()`.

    |mean_x - mean_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)). With C = F'F the trace of the root is the
    sum of the singular values of F_x F_y': no matrix root, and right where C is singular.
    """
    return frechet(x, y).value


def frechet(x: Tensor, y: Tensor) -> Score:
    """`frechet_distance` with the influences of its examples.

    With F = Q R / (n - 1)^(1/2) and R_x R_y' = U S V', an example's weight scales its row of F, so that its influence
    on the sum of S is n/2 times its square in the basis QU, weighted by S, or (n - 1)/2 beside a square that is not
    made unbiased. No inverse is needed here either.
    """
    x, y = x.double(), y.double()
    apart = x.mean(0) - y.mean(0)
    x, y = x - x.mean(0), y - y.mean(0)
    (q_x, r_x), (q_y, r_y) = (torch.linalg.qr(z / math.sqrt(len(z) - 1)) for z in (x, y))
    u, s, v = torch.linalg.svd(r_x @ r_y.T, full_matrices=False)
    value = apart.square().sum() + r_x.square().sum() + r_y.square().sum() - 2 * s.sum()

    def influence(z: Tensor, basis: Tensor, slope: Tensor) -> Tensor:
        return 2 * z @ slope + len(z) * (z.square().sum(1) / (len(z) - 1) - basis.square() @ s)

    return centred(value, influence(x, q_x @ u, apart), influence(y, q_y @ v.T, -apart))


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x'y / D + 1)^3 of all pairs of rows."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def kernel_distance(xx: Tensor, xy: Tensor, yy: Tensor) -> Score:
    """Unbiased squared maximum mean discrepancy of the kernels of all pairs (Bińkowski et al. 2018).

    Over all pairs, so it needs no random subsets; can be below 0.
    """

    def others(k: Tensor) -> Tensor:
        return (k.sum(1) - k.diagonal()) / (len(k) - 1)

    of_x, of_y = others(xx), others(yy)
    value = of_x.mean() + of_y.mean() - 2 * xy.mean()
    return centred(value, 2 * (of_x - xy.mean(1)), 2 * (of_y - xy.mean(0)))


def neighbourhood_scores(xx: Tensor, xy: Tensor, yy: Tensor) -> list[Score]:
    """Precision, recall, density and coverage of samples x against real y, from all distances.

    Precision and recall (Kynkäänniemi et al. 2019): the share of one set inside the other's manifold,
    the union of balls that reach each point's third neighbour. Density and coverage (Naeem et al. 2020):
    how many balls of real points (to the fifth neighbour) hold a sample, over 5; share that hold any.
    Influences are an example's own part, and beside it how much of the other side's it is the reason of.
    """
    in_real = (xy <= _radii(yy, MANIFOLD_NEIGHBOUR)).double()
    in_fake = (xy <= _radii(xx, MANIFOLD_NEIGHBOUR)[:, None]).double()
    radii = _radii(yy, BALL_NEIGHBOUR)
    in_ball = (xy < radii).double()
    caught = in_ball.sum(0)
    # without a real example its ball is gone, and each ball that reaches beyond it grows to the next neighbour
    more = (xy < _radii(yy, BALL_NEIGHBOUR + 1)).sum(0) - caught
    of_y = caught - ((yy <= radii[:, None]).double() - torch.eye(len(yy), dtype=yy.dtype)).T @ more
    own = in_ball.sum(1) / BALL_NEIGHBOUR
    density = centred(own.mean(), own, of_y * (len(yy) / len(xx) / BALL_NEIGHBOUR))
    return [_any(in_real), _swapped(_any(in_fake.T)), density, _swapped(_any(in_ball.T))]


def _any(inside: Tensor) -> Score:
    """The share of rows with any 1; columns share what they are the reason of with the others in the row."""
    n, m = inside.shape
    shared = inside / inside.sum(1, keepdim=True).clamp(min=1)
    own = shared.sum(1)
    return centred(own.mean(), own, shared.sum(0) * (m / n))


def _swapped(score: Score) -> Score:
    return Score(score.value, score.reference, score.sample)


_OWN = ("sample", "reference", "sample", "reference")  # whose own part each of these is the mean of


def _radii(distances: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th neighbour `(n,)`, of all distances `(n, n)`; the 0-th is the point itself."""
    return distances.kthvalue(k + 1, dim=1).values


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances `(n, m)` in float64, by differences: exact 0 for equal rows."""
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def two_sample_accuracy(x: Tensor, y: Tensor, most: int = CLASSIFIED) -> Score:
    """How well a classifier tells samples `x` from real `y` (Lopez-Paz & Oquab 2017): 0.5 where it cannot.

    Ridge regression on the two labels with a Gaussian kernel, as wide as half the median distance.
    Cross-validated, so every example is judged by a classifier that has not seen it; as many of each as
    the smaller set has, at most `most`. Its error counts that other examples make another classifier too.
    """
    n = min(len(x), len(y), most)
    i, j = spread(torch.arange(len(x)), n), spread(torch.arange(len(y)), n)
    apart = distances(joint := torch.cat([x[i], y[j]]), joint)
    kernel = torch.exp(-2 * (apart / apart.median().clamp(min=1e-12)) ** 2)

    def statistic(i: Tensor, j: Tensor) -> list[Score]:
        index = torch.cat([i, n + j])
        of_x, of_y = _told_apart(kernel[index][:, index]).chunk(2)
        return [centred((of_x.mean() + of_y.mean()) / 2, of_x / 2, of_y / 2)]

    return rough(statistic, n, n)[0].among(i, len(x), j, len(y))


def _told_apart(kernel: Tensor) -> Tensor:
    """1 for each of n samples and n real examples that is told for what it is, `(2 n,)`, by their kernel."""
    n = len(kernel) // 2
    label = torch.ones(2 * n, dtype=kernel.dtype).index_fill(0, torch.arange(n), -1)
    fold = torch.arange(2 * n) % n % FOLDS  # pairs (i, n + i) together: folds are balanced
    guess = torch.empty_like(label)
    for unseen in (fold == f for f in range(FOLDS)):
        system = kernel[~unseen][:, ~unseen] + 0.1 * torch.eye(int((~unseen).sum()), dtype=kernel.dtype)
        weight = torch.cholesky_solve(label[~unseen, None], torch.linalg.cholesky(system))
        guess[unseen] = (kernel[unseen][:, ~unseen] @ weight)[:, 0]
    return (guess.sign() == label).double()


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


def memorisation(sample_distances: Tensor, unseen_distances: Tensor) -> Score:
    """How well a sample is told from an unseen example by lying nearer to the training set, 0.5 to 1.

    max_t (1 + P(d <= t) - P(d' <= t)) / 2 for the distances d of a sample and d' of an unseen example to the
    nearest training example: 0.5 where samples are nowhere nearer than unseen data, 1 where all repeat it. The
    mean of ranks (Meehan et al. 2020) says 0.5 of half copies and half noise; this says 0.75.
    """
    gap, of_x, of_y = greatest_gap(sample_distances.double()[None], unseen_distances.double()[None], above=True)
    return centred((1 + gap[0]) / 2, of_x[0] / 2, -of_y[0] / 2)


def copies(nearest: Tensor) -> Tensor:
    """Whether each row of `nearest_two` is a copy of one training example, `(n,)` (Yoon et al. 2023)."""
    return nearest[:, 0] < COPY_RATIO * nearest[:, 1]


def measure(
    x: Tensor, y: Tensor, training: Tensor, *, of_training: bool = False, columns: Columns | None = None
) -> dict[str, Estimate]:
    """The values and errors of `score`."""
    found = score(x, y, training, of_training=of_training, columns=columns)
    return {name: value.estimate for name, value in found.items()}


def score(
    x: Tensor, y: Tensor, training: Tensor, *, of_training: bool = False, columns: Columns | None = None
) -> dict[str, Score]:
    """Every measure in `MEASURES` of samples `x` `(n, D)` against unseen real examples `y` `(m, D)`.

    Two scores against the same `y` have the error of their difference: `resampling.difference_error`.

    Args:
        x: features of the samples.
        y: features of held-out data.
        training: features of the training data, for memorisation.
        of_training: `x` is itself part of `training`: the floor.
        columns: where `x` and `y` are features of tables, these.

    Raises:
        TooFew: fewer than `MINIMUM` of any. The Fréchet distance is left out where there are not more
            samples and held-out examples than features: covariances without full rank are no estimate.
    """
    for name, points in (("samples", x), ("held-out examples", y), ("training examples", training)):
        if len(points) < MINIMUM:
            raise TooFew(f"{len(points)} {name}; sample quality needs at least {MINIMUM}")
    near_x, near_y = nearest_two(x, training, of_training=of_training), nearest_two(y, training)
    copied = copies(near_x).double()
    n = min(len(x), len(y))
    scores = _of_pairs(smooth, cubic_kernel, lambda *pairs: [kernel_distance(*pairs)], x, y)
    # a manifold grows with the number of points it is made of, so as many of each
    scores += _of_pairs(_rough_own, distances, neighbourhood_scores, x, y, n)
    scores += [two_sample_accuracy(x, y)]
    scores += rough(lambda i, j: [memorisation(near_x[i, 0], near_y[j, 0])], len(x), len(y))
    scores += [centred(copied.mean(), copied, torch.zeros(len(y), dtype=torch.float64))]
    found = dict(zip(list(MEASURES)[1:], scores, strict=False))
    if n > x.shape[1]:
        found = {"frechet": smooth(lambda i, j: [frechet(x[i], y[j])], len(x), len(y))[0], **found}
    if columns is not None:
        pairs = column_pairs(columns)
        found |= {"column_shapes": column_shapes(columns)} | ({} if pairs is None else {"column_pairs": pairs})
    return found


def _rough_own(statistic: Callable[[Tensor, Tensor], list[Score]], n: int, m: int) -> list[Score]:
    return rough(statistic, n, m, _OWN)


def _of_pairs(
    errors: Callable[[Callable[[Tensor, Tensor], list[Score]], int, int], list[Score]],
    pair: Callable[[Tensor, Tensor], Tensor],
    statistic: Callable[[Tensor, Tensor, Tensor], list[Score]],
    x: Tensor,
    y: Tensor,
    most: int = PAIRED,
) -> list[Score]:
    """A statistic of matrices over pairs, which are computed once; of at most `PAIRED` examples."""
    i, j = (spread(torch.arange(len(z)), min(most, PAIRED)) for z in (x, y))
    a, b = x[i], y[j]
    xx, xy, yy = pair(a, a), pair(a, b), pair(b, b)
    scores = errors(lambda i, j: statistic(xx[i][:, i], xy[i][:, j], yy[j][:, j]), len(i), len(j))
    return [score.among(i, len(x), j, len(y)) for score in scores]


def principal_components(x: Tensor, k: int = 64) -> tuple[Tensor, Tensor]:
    """Mean `(D,)` of the rows of `x` `(N, D)` and the `min(k, N, D)` directions `(D, k)` of most variance, float64."""
    mean = x.double().mean(0)
    most = min(x.shape)
    with seeded(0, x.device):  # randomised: costs N D k, not D^3
        basis = torch.svd_lowrank(x.double() - mean, q=min(k + 16, most), niter=4)[2]
    return mean, basis[:, : min(k, most)].contiguous()
