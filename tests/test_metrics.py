"""Sample measures against their reference formulas and brute force, their errors against repeated draws."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.neighbors import NearestNeighbors

from fivefold.space import Column, Space
from fivefold.tools import metrics
from fivefold.tools.baselines import IndependentDims


def draw(n, d, seed, rank=None, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, rank or d, dtype=torch.float64, generator=generator)
    mix = torch.randn(rank or d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    return x @ mix + shift


def frechet_by_scipy(x, y):
    cx, cy = np.cov(x.numpy().T), np.cov(y.numpy().T)
    root = scipy.linalg.sqrtm(cx @ cy).real
    return float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(cx + cy - 2 * root)


@pytest.mark.parametrize(("n", "d"), [(500, 64), (300, 3), (90, 80)])
def test_frechet_is_scipys(n, d):
    x, y = draw(n, d, 0), draw(n - 7, d, 1, shift=0.3) * 1.3
    assert float(metrics.frechet_distance(x, y)) == pytest.approx(frechet_by_scipy(x, y), rel=1e-6)


@pytest.mark.parametrize(("n", "rank"), [(500, 5), (20, None), (33, 32)])
def test_frechet_where_the_covariance_is_singular(n, rank):
    """Against the eigenvalues of C_x C_y, in a basis of the few directions that vary."""
    x, y = draw(n, 32, 0, rank, 1.0), draw(n, 32, 1, rank)
    basis = torch.linalg.svd(torch.cat([x, y]), full_matrices=False).Vh[: 2 * n]
    cx, cy = torch.cov((x @ basis.T).T), torch.cov((y @ basis.T).T)
    root = torch.linalg.eigvals(cx @ cy).real.clamp(min=0).sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + cx.trace() + cy.trace() - 2 * root
    torch.testing.assert_close(metrics.frechet_distance(x, y), expected, rtol=1e-5, atol=0)
    assert abs(float(metrics.frechet_distance(x, x))) < 1e-9


def test_frechet_of_known_gaussians():
    """|m|^2 + sum (s_x - s_y)^2 for independent dimensions."""
    x = torch.randn(200_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.randn(200_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 2
    assert float(metrics.frechet_distance(x, y)) == pytest.approx(2 * 4 + 2 * 4, rel=0.02)


def all_pairs(f, x, y):
    return f(x, x), f(x, y), f(y, y)


def test_kernel_distance_by_loops():
    x, y = draw(12, 3, 0), draw(9, 3, 1)

    def k(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    def pairs(z):
        return [k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]

    expected = np.mean(pairs(x)) + np.mean(pairs(y)) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert float(metrics.kernel_distance(*all_pairs(metrics.cubic_kernel, x, y))) == pytest.approx(expected, rel=1e-10)


def test_neighbourhood_scores_by_brute_force():
    x, y = draw(60, 4, 0, shift=0.5), draw(60, 4, 1)

    def balls(z, k):  # scikit-learn counts the point itself as its first neighbour
        return NearestNeighbors(n_neighbors=k + 1).fit(z).kneighbors(z)[0][:, -1]

    x_radius, y_radius, y_ball = balls(x, 3), balls(y, 3), balls(y, 5)
    d = np.linalg.norm(x.numpy()[:, None] - y.numpy()[None], axis=-1)
    precision = np.mean([any(d[i, j] <= y_radius[j] for j in range(60)) for i in range(60)])
    recall = np.mean([any(d[i, j] <= x_radius[i] for i in range(60)) for j in range(60)])
    density = sum(d[i, j] < y_ball[j] for i in range(60) for j in range(60)) / (5 * 60)
    coverage = np.mean([d[:, j].min() < y_ball[j] for j in range(60)])
    assert 0 < coverage < 1  # the case decides something
    scores = metrics.neighbourhood_scores(*all_pairs(metrics.distances, x, y))
    np.testing.assert_allclose(scores, [precision, recall, density, coverage])


def test_two_sample_accuracy():
    same = metrics.two_sample_accuracy(draw(800, 4, 0), draw(400, 4, 1))
    assert abs(same.value - 0.5) < 3 * same.error
    assert same.error == pytest.approx(0.5 / math.sqrt(800), rel=0.02)
    assert metrics.two_sample_accuracy(draw(200, 4, 0), draw(200, 4, 1, shift=30.0)).value > 0.98


def test_memorisation_counts_pairs():
    a, b = torch.tensor([0.0, 1.0, 1.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])
    expected = np.mean([(x < y) + 0.5 * (x == y) for x in a for y in b])
    assert float(metrics.memorisation(a, b)) == pytest.approx(expected)


def test_memorisation_sees_copies():
    training, unseen, fresh = draw(300, 8, 0), draw(150, 8, 1), draw(150, 8, 2)
    copied = torch.cat([training[:75] + 1e-3, fresh[:75]])
    for x, copies, share in ((fresh, 0.0, 0.5), (copied, 0.5, 0.75)):
        values = metrics.measure(x, unseen, training)
        assert abs(values["memorisation"].value - share) < 3 * values["memorisation"].error
        assert values["copies"].value == copies
    floor = metrics.measure(training[:150], unseen, training, of_training=True)
    assert abs(floor["memorisation"].value - 0.5) < 3 * floor["memorisation"].error


def test_errors_are_the_spread_of_repeated_draws():
    """The jackknife's error, on average, is within half to twice the standard deviation over 60 draws."""
    training = draw(200, 5, 1000)
    draws = [metrics.measure(draw(120, 5, 2 * s, shift=0.4), draw(80, 5, 2 * s + 1), training) for s in range(60)]
    for name in metrics.MEASURES:
        spread = np.std([d[name].value for d in draws])
        error = np.mean([d[name].error for d in draws])
        assert 0.5 * spread <= error <= 2 * spread, (name, spread, error)


@pytest.mark.parametrize("sizes", [(24, 100, 100), (100, 24, 100), (100, 100, 24)])
def test_too_few(sizes):
    with pytest.raises(metrics.TooFew, match=r"24 .* at least 25"):
        metrics.measure(*(draw(n, 4, n) for n in sizes))


def test_no_frechet_distance_without_full_rank():
    assert "frechet" not in metrics.measure(draw(40, 40, 0), draw(60, 40, 1), draw(60, 40, 2))


def test_principal_components():
    """As much variance as the largest eigenvalues of the covariance."""
    x = draw(300, 100, 0).double()
    mean, basis = metrics.principal_components(x, 30)
    largest = torch.linalg.eigvalsh(torch.cov(x.T))[-30:].sum()
    torch.testing.assert_close(((x - mean) @ basis).var(0).sum(), largest, rtol=1e-4, atol=0)
    assert basis.shape == (100, 30)


COLUMNS = (Column("a"), Column("b", "integer", levels=4), Column("c", "categorical", levels=3))


def test_independent_dims():
    """Mass sums to 1 over the discrete dimensions, density is the normal's; samples follow both."""
    space = Space("table", (3,), columns=COLUMNS)
    generator = torch.Generator().manual_seed(0)
    x = torch.stack(
        [torch.randn(4000, generator=generator) * 2 + 1, *(torch.randint(0, n, (4000,)).float() for n in (4, 3))], 1
    )
    baseline = IndependentDims(space, x)
    grid = torch.cartesian_prod(torch.tensor([1.0]), torch.arange(4.0), torch.arange(3.0))
    marginal = torch.distributions.Normal(x[:, 0].double().mean(), x[:, 0].double().std()).log_prob(torch.tensor(1.0))
    torch.testing.assert_close(baseline.log_prob(grid).logsumexp(0), marginal.double(), rtol=1e-5, atol=0)
    samples = baseline.sample(4000, seed=0)
    assert samples.dtype == torch.float32
    torch.testing.assert_close(samples.mean(0), x.mean(0), rtol=0, atol=0.12)
    assert torch.equal(samples, baseline.sample(4000, seed=0))
