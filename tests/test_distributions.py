"""Output distributions against enumeration and quadrature, their samplers against their densities."""

import itertools
import math

import pytest
import torch
from scipy.stats import kstest, truncnorm

from fivefold.errors import Unfit
from fivefold.nets.heads import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    Gaussian,
    GaussianMixture,
    Head,
    Likelihood,
    LogisticMixture,
)
from fivefold.space import Column, Space
from fivefold.tools.distributions import truncated_normal
from tests.systems import follow

SIGNIFICANCE = 1e-4

DISCRETE = [("auto", 1), ("auto", 2), ("auto", 17), ("logistic-mixture", 3), ("logistic-mixture", 17), ("auto", 65536)]
REAL = [("auto", LogisticMixture), ("gaussian", Gaussian), ("gaussian-mixture", GaussianMixture)]


def params_of(output, n=6, spread=1.5):
    torch.manual_seed(0)
    start = torch.tensor(output.start, dtype=torch.float64)
    return start + spread * torch.randn(n, len(start), dtype=torch.float64)


@pytest.mark.parametrize(("likelihood", "levels"), DISCRETE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_levels_sum_to_one(likelihood, levels, dtype):
    output = LIKELIHOODS[likelihood](mixtures=5).output(levels, True)
    params = params_of(output, spread=1.0).to(dtype)
    x = torch.arange(levels)
    total = output.log_prob(params[:, None].expand(-1, levels, -1), x.expand(len(params), -1)).logsumexp(1)
    assert total.abs().max() < (1e-9 if dtype is torch.float64 else 2e-3 if levels > 256 else 1e-5)


@pytest.mark.parametrize(("likelihood", "kind"), REAL)
def test_densities_integrate_to_one(likelihood, kind):
    output = LIKELIHOODS[likelihood](mixtures=5).output(None, True)
    assert isinstance(output, kind)
    params = params_of(output, spread=0.7)
    x = torch.linspace(-80, 80, 400_001, dtype=torch.float64)
    density = output.log_prob(params[:, None], x.expand(len(params), -1)).exp()
    assert (torch.trapezoid(density, x) - 1).abs().max() < 1e-6


@pytest.mark.parametrize(("likelihood", "levels"), DISCRETE[1:-1])
def test_samples_of_levels_follow_their_probabilities(likelihood, levels):
    output = LIKELIHOODS[likelihood](mixtures=3).output(levels, True)
    params = params_of(output, n=1)
    n = 20_000
    samples = output.sample(params.expand(n, -1), torch.rand(n, 2))
    expected = output.log_prob(params.expand(levels, -1), torch.arange(levels)).exp() * n
    assert follow(torch.bincount(samples, minlength=levels).numpy(), expected.numpy(), SIGNIFICANCE)


@pytest.mark.parametrize("likelihood", [name for name, _ in REAL])
def test_real_samples_follow_their_density(likelihood):
    """Cell counts of samples against the density integrated over the cells."""
    output = LIKELIHOODS[likelihood](mixtures=3).output(None, True)
    params = params_of(output, n=1)
    samples = output.sample(params.expand(20_000, -1), torch.rand(20_000, 2)).sort().values
    edges = torch.cat([samples.new_tensor([-1e4]), samples[::1000][1:], samples.new_tensor([1e4])])
    grid = torch.stack([torch.linspace(a, b, 20_001, dtype=torch.float64) for a, b in itertools.pairwise(edges)])
    inner = grid[1:-1]  # the two tails are what remains
    mass = torch.trapezoid(output.log_prob(params.expand(*inner.shape, -1), inner).exp(), inner)
    # Twenty equal sample quantiles: each cell's mass is 1/20 with a standard error of at most sqrt(19)/20/sqrt(n).
    assert ((mass - 0.05).abs() < 5 * (0.05 * 0.95 / 20_000) ** 0.5).all()


def test_mixed_table_has_a_head_per_column():
    columns = (
        Column("a"),
        Column("b", "integer", levels=1000),
        Column("c", "categorical", levels=3, categories=tuple("xyz")),
        Column("d", "categorical", levels=2, categories=tuple("xy")),
        Column("e", "categorical", levels=400, categories=tuple(range(400))),
        Column("f"),
    )
    space = Space("table", (6,), columns=columns)
    head = Head(space, Likelihood(mixtures=3))
    names = [type(output).__name__ for output in head.outputs]
    assert names == [
        "LogisticMixture",
        "DiscretisedLogisticMixture",
        "Categorical",
        "Bernoulli",
        "Categorical",
        "LogisticMixture",
    ]
    params, noise = torch.randn(7, 6, head.width), head.noise(7)
    x = head.sample(params, noise)
    assert x.dtype == torch.float32
    assert head.log_prob(params, x).shape == (7, 6)
    for dim, output in enumerate(head.outputs):
        alone = output.log_prob((params + head.start)[:, dim, : len(output.start)], x[:, dim])
        assert torch.allclose(head.log_prob(params, x)[:, dim], alone)
        assert torch.equal(head.sample_dim(dim, params[:, dim], noise[:, dim]), x[:, dim])
    assert head.mode(params).shape == (7, 6)
    named = [type(output).__name__ for output in Head(space, LIKELIHOODS["gaussian"]()).outputs]
    assert named == ["Gaussian" if name == "LogisticMixture" else name for name in names]


@pytest.mark.parametrize(("likelihood", "levels"), [("gaussian", 3), ("bernoulli", 3), ("categorical", None)])
def test_a_likelihood_that_models_no_dimension_is_refused(likelihood, levels):
    with pytest.raises(Unfit, match=likelihood):
        Head(Space("image", (1, 2, 2), levels=levels), LIKELIHOODS[likelihood]())


def test_maps_become_parameters_pixel_by_pixel():
    head = Head(Space("image", (3, 2, 5), levels=4))
    maps = torch.randn(2, 3 * head.width, 2, 5)
    params = head.from_maps(maps).view(2, 3, 2, 5, head.width)
    assert torch.equal(params[1, 2, 1, 4], maps[1, 2 * head.width : 3 * head.width, 1, 4])
    assert [type(o) for o in head.outputs[:1]] == [Categorical]
    assert isinstance(Head(Space("image", (1, 1, 1), levels=2)).outputs[0], Bernoulli)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_tempered_outputs_are_the_power_of_their_density(temperature):
    """Normalised p^(1/T): in closed form for levels, by quadrature for a Gaussian."""
    logits = torch.randn(7, dtype=torch.float64)
    wanted = logits.softmax(0) ** (1 / temperature)
    assert torch.allclose(Categorical(7).tempered(logits, temperature).softmax(0), wanted / wanted.sum())
    one = torch.tensor([0.8], dtype=torch.float64)
    p, q = (one.sigmoid() ** (1 / temperature), (-one).sigmoid() ** (1 / temperature))
    assert torch.allclose(Bernoulli().tempered(one, temperature).sigmoid(), p / (p + q))
    params, x = torch.tensor([0.3, -0.4], dtype=torch.float64), torch.linspace(-20, 20, 20001, dtype=torch.float64)
    power = (Gaussian().log_prob(params.expand(len(x), 2), x) / temperature).exp()
    density = Gaussian().log_prob(Gaussian().tempered(params, temperature).expand(len(x), 2), x).exp()
    assert torch.allclose(density, power / (power.sum() * (x[1] - x[0])), atol=1e-8)
    mixture = torch.cat([torch.tensor([9.0, -9.0]), torch.zeros(4)])  # one component: only its scale is left to change
    for output in (LogisticMixture(2), GaussianMixture(2)):
        cold = output.tempered(mixture, temperature)
        assert torch.allclose(cold[4:].exp(), torch.tensor(temperature).sqrt().expand(2))


@pytest.mark.parametrize("bound", [0.05, 0.8, 2.0, math.inf])
def test_truncated_normal_values_follow_the_law_within_the_bound(bound):
    """With Z = P(|x| <= b) and k = 2 b phi(b) / Z the variance is 1 - k, the fourth moment 3 - k (b^2 + 3)."""
    n = 100_000
    torch.manual_seed(0)
    x = truncated_normal((n,), bound, torch.device("cpu")).double()
    assert x.abs().max() <= bound
    edge = min(bound, 40.0)
    k = 2 * edge * math.exp(-(edge**2) / 2) / math.sqrt(2 * math.pi) / math.erf(edge / math.sqrt(2))
    variance, fourth = 1 - k, 3 - k * (edge**2 + 3)
    assert abs(x.square().mean().item() - variance) < 4 * math.sqrt((fourth - variance**2) / n)
    assert abs(x.mean().item()) < 4 * math.sqrt(variance / n)
    assert kstest(x.numpy(), truncnorm(-edge, edge).cdf).pvalue > SIGNIFICANCE
    torch.manual_seed(0)
    plain = torch.randn(n)
    inside = plain.abs() <= bound
    assert torch.equal(x[inside].float(), plain[inside])
