"""Paired differences: their errors against repeated draws, what is told apart and how often."""

import numpy as np
import pytest
import torch

from fivefold.report import pairs
from fivefold.report.columns import QUALITY, Line, Reading, apart, better
from fivefold.report.pairs import Difference, Seeds, Shared, Side
from fivefold.tools.metrics import cubic_kernel, frechet, frechet_distance, kernel_distance
from fivefold.tools.resampling import smooth

FRECHET = next(column for column in QUALITY if column.key == "frechet")


def draw(n, d, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    return torch.randn(n, d, dtype=torch.float64, generator=generator) @ mix + shift


def moments(x, weight):
    mean = weight @ x
    return mean, (x - mean).T @ (weight[:, None] * (x - mean)) * len(x) / (len(x) - 1)


def root(c):
    values, vectors = torch.linalg.eigh(c)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def weighted_frechet(x, y, p, q):
    (mx, cx), (my, cy) = moments(x, p), moments(y, q)
    r = root(cy)
    return (mx - my).square().sum() + cx.trace() + cy.trace() - 2 * torch.linalg.eigvalsh(r @ cx @ r).sqrt().sum()


def weighted_kernel(x, y, p, q):
    """With the diagonals left out, as an unbiased estimate does."""
    xx, xy, yy = cubic_kernel(x, x), cubic_kernel(x, y), cubic_kernel(y, y)
    apart = [w @ (k - k.diag().diag()) @ w / (1 - w.square().sum()) for w, k in ((p, xx), (q, yy))]
    return apart[0] + apart[1] - 2 * p @ xy @ q


def kernel(x, y):
    return kernel_distance(cubic_kernel(x, x), cubic_kernel(x, y), cubic_kernel(y, y))


@pytest.mark.parametrize(
    ("score", "statistic", "near"), [(frechet, weighted_frechet, 1e-6), (kernel, weighted_kernel, 0.08)]
)
def test_influence_is_the_derivative_in_an_example_s_weight(score, statistic, near):
    x, y = draw(40, 3, 0), 1.4 * draw(30, 3, 1, shift=0.5)
    weights = [torch.full((len(part),), 1 / len(part), dtype=torch.float64, requires_grad=True) for part in (x, y)]
    gradients = torch.autograd.grad(statistic(x, y, *weights), weights)
    for found, gradient in zip(score(x, y)[1:], gradients, strict=True):
        expected = gradient - gradient.mean()
        torch.testing.assert_close(found, expected, rtol=near, atol=near / 4 * float(expected.std()))


def test_influences_of_few_examples_are_finite():
    x, y = draw(20, 32, 0), draw(25, 32, 1)
    assert all(part.isfinite().all() for part in frechet(x, y))


def side(x, y):
    [found] = smooth(lambda i, j: [frechet(x[i], y[j])], len(x), len(y))
    return Side(found.estimate.error, Shared(np.arange(len(y)), found.reference.numpy(), found.own_error))


def test_the_error_of_a_difference_of_distances_is_its_spread():
    """Two samplers on one reference, 80 times: the printed error, and that of unpaired ones, beside the spread."""
    differences, paired, unpaired = [], [], []
    for trial in range(80):
        y = draw(270, 4, 3 * trial)
        samples = draw(250, 4, 3 * trial + 1, shift=0.8), 1.1 * draw(250, 4, 3 * trial + 2, shift=0.8)
        differences.append(float(frechet_distance(samples[0], y) - frechet_distance(samples[1], y)))
        a, b = (side(x, y) for x in samples)
        paired.append(pairs.difference(a, b).error)
        unpaired.append(np.hypot(a.error, b.error))
    spread = np.std(differences)
    assert 0.8 < np.mean(paired) / spread < 1.25  # the spread of 80 is known to 8 %
    assert np.mean(unpaired) > 1.15 * np.mean(paired)


def runs(generator, systems, seeds, between, m=270):
    """Scores `(systems, seeds, m)`: examples are hard or easy for all alike; runs differ as a whole and in examples."""
    hard = 3 * generator.normal(size=m)
    whole = between * generator.normal(size=(systems, seeds, 1))
    return hard + whole + generator.normal(size=(systems, seeds, m))


def line(scores):
    """The reading of a table's line of runs with these scores."""
    rows = tuple(
        {"label": "a", "status": "ok", "density": {"kind": "exact", "nats": float(s.mean()), "own_error": 0.0,
         "standard_error": float(s.std() / len(s) ** 0.5)},
         "shared": {"log_prob": Shared(np.arange(len(s)), s)}} for s in scores
    )  # fmt: skip
    from fivefold.report.columns import NATS

    return NATS, Line("a", rows).reading(NATS)


@pytest.mark.parametrize(("seeds", "between"), [(1, 0.0), (2, 0.0), (2, 0.3), (3, 0.3), (3, 0.05), (5, 1.0)])
def test_two_of_one_system_are_seldom_called_different(seeds, between):
    """At most 5 % of 200 pairs."""
    generator = np.random.default_rng(0)
    called = 0
    for _ in range(200):
        (column, a), (_, b) = map(line, runs(generator, 2, seeds, between))
        called += apart(column, a, b)
    assert called <= 10


def test_one_seed_alone_would_call_runs_of_one_system_different():
    """Which is why the words are about runs: a spread between seeds of three paired errors is not in one run."""
    generator = np.random.default_rng(0)
    found = [map(line, runs(generator, 2, 1, 0.3)) for _ in range(100)]
    assert sum(apart(column, a, b) for (column, a), (_, b) in found) > 50


def test_what_is_different_is_told_apart_the_more_so_in_pairs():
    generator = np.random.default_rng(0)
    scores = runs(generator, 2, 3, 0.0)
    scores[0] += 0.4  # seven paired errors, one unpaired
    (column, a), (_, b) = map(line, scores)
    assert better(column, a, b)
    assert not better(column, b, a)
    others = b._replace(shared=b.shared._replace(examples=b.shared.examples + 1))
    assert not apart(column, a, others)


@pytest.mark.parametrize(
    ("freedom", "times", "level"), [(np.inf, 1, 2.0), (1, 1, 13.968), (10, 1, 2.284), (np.inf, 40, 3.255)]
)
def test_levels_are_quantiles(freedom, times, level):
    """The same tail as two errors of a Gaussian (2.275 %), shared among comparisons (0.0569 % for 40)."""
    assert Difference(1.0, freedom).level(times) == pytest.approx(level, rel=2e-3)


def test_one_run_beside_several_is_granted_their_spread():
    several = Side(0.1, None, Seeds(4.0, 4))
    found = pairs.difference(several, Side(0.1))
    assert found.error == pytest.approx((4.0 / 4 + 4.0) ** 0.5)
    assert found.freedom == 3


def test_a_floor_still_ranks():
    low, high = Reading(0.1, 0.01, floor=0.3), Reading(0.29, 0.01, floor=0.3)
    assert not apart(FRECHET, low, high)
    assert better(FRECHET, low, Reading(0.5, 0.01, floor=0.3))
