"""Sample measures against their reference formulas and brute force, their errors against repeated draws."""

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import scipy.stats
import torch
from sklearn.neighbors import NearestNeighbors

from fivefold.space import Column, Space
from fivefold.tools import metrics
from fivefold.tools.baselines import IndependentDims
from fivefold.tools.resampling import difference_error
from fivefold.tools.table_metrics import Columns, column_pairs, column_shapes


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
    found = metrics.kernel_distance(*all_pairs(metrics.cubic_kernel, x, y))
    assert float(found.value) == pytest.approx(expected, rel=1e-10)


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
    np.testing.assert_allclose([s.value for s in scores], [precision, recall, density, coverage])


def test_two_sample_accuracy():
    same = metrics.two_sample_accuracy(draw(800, 4, 0), draw(400, 4, 1)).estimate
    assert abs(same.value - 0.5) < 3 * same.error
    assert metrics.two_sample_accuracy(draw(200, 4, 0), draw(200, 4, 1, shift=30.0)).value > 0.98


def test_memorisation_is_the_best_thresholds_accuracy():
    a, b = torch.tensor([0.0, 1.0, 1.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])
    expected = max((1 + np.mean([d <= t for d in a]) - np.mean([d <= t for d in b])) / 2 for t in (0, 1, 2, 3, 4))
    assert float(metrics.memorisation(a, b).value) == pytest.approx(expected)
    assert expected == pytest.approx((1 + 3 / 4 - 1 / 3) / 2)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_memorisation_sees_copies(noise):
    """Also where half are copies, with slight noise, and the rest lie farther from the data than unseen ones."""
    training, unseen, fresh = draw(300, 8, 0), draw(150, 8, 1), draw(150, 8, 2)
    copied = training[:75] + noise * draw(75, 8, 3)
    cases = (
        (fresh, 0.0, 0.5),
        (torch.cat([copied, fresh[:75]]), 0.5, 0.75),
        (torch.cat([copied, 3 * fresh[:75]]), 0.5, 0.75),
    )
    floor = metrics.measure(training[:150], unseen, training, of_training=True)
    for x, copies, share in cases:
        values = metrics.measure(x, unseen, training)
        error = values["memorisation"].error  # a greatest difference is too large by chance: by 0.04 of two equal laws
        assert share - 3 * error < values["memorisation"].value < share + 0.04 + 3 * error
        assert abs(values["copies"].value - copies) <= 2 / 150
        assert (values["copies"].value > floor["copies"].value + 3 * values["copies"].error) == (copies > 0)
    assert floor["memorisation"].value < 0.6


STATISTICS = {
    "frechet": metrics.frechet,
    "kernel": lambda x, y: metrics.kernel_distance(*all_pairs(metrics.cubic_kernel, x, y)),
    "density": lambda x, y: metrics.neighbourhood_scores(*all_pairs(metrics.distances, x, y))[2],
}


@pytest.mark.parametrize("name", STATISTICS)
def test_influences_are_what_leaving_out_does(name):
    """n times the change of the value without an example, of either sample; their mean is 0."""
    x, y = draw(150, 3, 0, shift=1.0), draw(120, 3, 1)
    statistic = STATISTICS[name]
    found = statistic(x, y)
    assert abs(float(found.sample.mean())) + abs(float(found.reference.mean())) < 1e-9
    without = [
        [statistic(torch.cat([x[:i], x[i + 1 :]]), y).value for i in range(20)],
        [statistic(x, torch.cat([y[:i], y[i + 1 :]])).value for i in range(20)],
    ]
    for influence, values in zip((found.sample, found.reference), without, strict=True):
        change = len(influence) * (found.value - torch.stack(values))
        residual = influence[:20] - change
        assert float(residual.std()) < 0.1 * float(influence.std())


def table(n, seed, shift=0.0):
    """Two numbers that depend on one another and two categories, one on the first number."""
    x = draw(n, 2, seed) * torch.tensor([1.0, 3.0]) + shift
    other = torch.randint(4, (n,), generator=torch.Generator().manual_seed(seed + 500))
    return torch.stack([x[:, 0], x[:, 1], (x[:, 0] > 0.5).double(), other.double()], 1)


LEVELS = (None, None, 2, 4)


def test_column_scores_by_hand():
    x, y = table(200, 0, shift=0.4), table(130, 1)

    def shares(z, *columns):
        frame = pd.DataFrame(z[:, list(columns)].numpy())
        return frame.value_counts(normalize=True)

    def total_variation(x, y, *columns):
        return shares(x, *columns).sub(shares(y, *columns), fill_value=0).abs().sum() / 2

    distances = [scipy.stats.ks_2samp(x[:, k], y[:, k]).statistic for k in (0, 1)]
    distances += [total_variation(x, y, k) for k in (2, 3)]
    assert float(column_shapes(Columns(x, y, LEVELS)).value) == pytest.approx(1 - np.mean(distances))

    def binned(z):
        edges = [np.linspace(float(y[:, k].min()), float(y[:, k].max()), 11)[1:-1] for k in (0, 1)]
        return torch.cat(
            [torch.stack([torch.from_numpy(np.digitize(z[:, k].numpy(), edges[k])) for k in (0, 1)], 1), z[:, 2:]], 1
        )

    pairs = [abs(np.corrcoef(x[:, :2].numpy().T)[0, 1] - np.corrcoef(y[:, :2].numpy().T)[0, 1]) / 2]
    pairs += [total_variation(binned(x), binned(y), a, b) for a, b in ((0, 2), (0, 3), (1, 2), (1, 3), (2, 3))]
    assert float(column_pairs(Columns(x, y, LEVELS)).value) == pytest.approx(1 - np.mean(pairs))


def test_column_scores_at_their_ends():
    x = table(100, 0)
    for score in (column_shapes, column_pairs):
        same = score(Columns(x, x, LEVELS))
        assert float(same.value) == pytest.approx(1)
    far = x + torch.tensor([1e3, 1e3, 0, 0])
    assert float(column_shapes(Columns(far, x, LEVELS)).value) == pytest.approx(0.5)
    assert column_pairs(Columns(x[:, :1], x[:, :1], LEVELS[:1])) is None
    constant = torch.cat([x[:, :1], torch.ones(100, 1)], 1)
    assert column_pairs(Columns(constant, constant, (None, None))) is None


def test_errors_are_the_spread_of_repeated_draws():
    """Root mean square of the error against the standard deviation of 60 draws, which has an error of 9 %.

    Of the values of a worse and of a perfect sampler, and of their difference against the same real examples.
    """
    training = draw(200, 4, 1000)

    def scores(seed):
        real = table(70, 3 * seed)
        columns = [Columns(table(80, 3 * seed + k, shift), real, LEVELS) for k, shift in ((1, 0.4), (2, 0.0))]
        return [metrics.score(c.sample, real, training, columns=c) for c in columns]

    found = [scores(seed) for seed in range(60)]
    for name in metrics.MEASURES.keys() - {"copies"}:
        for kind in (0, 1):
            each = [pair[kind][name].estimate for pair in found]
            ratio = np.sqrt(np.mean([e.error**2 for e in each])) / np.std([e.value for e in each], ddof=1)
            assert 0.7 < ratio < 1.4, (name, kind, ratio)
        differences = np.std([float(a[name].value - b[name].value) for a, b in found], ddof=1)
        ratio = np.sqrt(np.mean([difference_error(a[name], b[name]) ** 2 for a, b in found])) / differences
        assert 0.7 < ratio < 1.5, (name, "difference", ratio)


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
