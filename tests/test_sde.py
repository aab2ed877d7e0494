"""Stochastic differential equations against closed forms: marginals, samplers and densities of Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from fivefold.system import seeded
from fivefold.tools import sde as equations

MEAN, COVARIANCE = torch.tensor([0.5, -1.0]).double(), torch.tensor([[1.0, 0.6], [0.6, 0.8]]).double()
DATA = MultivariateNormal(MEAN, COVARIANCE)
EQUATIONS = {name: make(*equations.RANGES[name]) for name, make in equations.SDES.items()}
EQUATIONS["ve"] = equations.variance_exploding(0.01, 20.0)
N = 20_000


def marginal(sde, t, mean=MEAN):
    a, s = sde.signal(t), sde.noise(t)
    return MultivariateNormal(a * mean, a**2 * COVARIANCE + s**2 * torch.eye(2))


def score(sde, mean=MEAN):
    """Of N(mean, COVARIANCE) diffused, in closed form."""

    def of(x, t):
        law = marginal(sde, t[0], mean)
        return -(x - law.mean) @ law.precision_matrix

    return of


@pytest.fixture(params=EQUATIONS)
def sde(request):
    return EQUATIONS[request.param]


def test_marginals_solve_the_equations_of_the_moments(sde):
    """d signal/dt = -rate signal and d noise^2/dt = -2 rate noise^2 + variance, by differences; noise starts at 0."""
    t, h = torch.linspace(0.01, 0.99, 50).double(), 1e-6
    slope = (sde.signal(t + h) - sde.signal(t - h)) / (2 * h)
    torch.testing.assert_close(slope, -sde.rate(t) * sde.signal(t), rtol=1e-5, atol=1e-8)
    slope = (sde.noise(t + h) ** 2 - sde.noise(t - h) ** 2) / (2 * h)
    torch.testing.assert_close(slope, -2 * sde.rate(t) * sde.noise(t) ** 2 + sde.variance(t), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sde.time(sde.noise(t) / sde.signal(t)), t)
    start = torch.zeros(1).double()
    assert (sde.signal(start), sde.noise(start)) == (1, 0)


def test_marginals_are_those_of_simulated_paths(sde):
    x, steps = torch.full((N, 1), 0.7).double(), 1000
    with seeded(0):
        for t in (torch.arange(steps).double() + 0.5) / steps:
            x = x + (sde.drift(x, t) + sde.variance(t).sqrt() * math.sqrt(steps) * torch.randn_like(x)) / steps
    one = torch.ones(()).double()
    a, s = sde.signal(one).item(), sde.noise(one).item()
    assert x.mean().item() == pytest.approx(a * 0.7, abs=3.5 * s / math.sqrt(N))
    assert x.std().item() == pytest.approx(s, rel=3.5 / math.sqrt(2 * N) + 2e-3)
    many = torch.full((N, 1), 0.5).double()
    with seeded(1):
        draws = sde.diffuse(many, one.expand(N), torch.randn_like(many))
    assert draws.std().item() == pytest.approx(s, rel=3.5 / math.sqrt(2 * N))


def test_the_papers_ranges():
    t = torch.ones(()).double()
    assert EQUATIONS["vp"].signal(t).item() == pytest.approx(math.exp(-0.25 * 19.9 - 0.05))
    for name, identity in (("ve", lambda a, s: a), ("vp", lambda a, s: a**2 + s**2), ("sub-vp", lambda a, s: a**2 + s)):
        sde = equations.SDES[name](*equations.RANGES[name])  # what each keeps at 1, at all times
        for time in (0.1, 0.5, 1.0):
            at = torch.tensor(time).double()
            assert identity(sde.signal(at), sde.noise(at)).item() == pytest.approx(1)
    preserving, sub = EQUATIONS["vp"], EQUATIONS["sub-vp"]
    for time in (0.1, 0.5, 1.0):
        at = torch.tensor(time).double()
        assert sub.noise(at).item() == pytest.approx(preserving.noise(at).item() ** 2)  # less noise at all times
    assert EQUATIONS["ve"].noise(t).item() == pytest.approx(20, rel=1e-5)


SAMPLERS = {
    "predictor": lambda e, s, x: equations.predictor_corrector(e, s, x, 1e-3, 200, 0, 0.0),
    "predictor-corrector": lambda e, s, x: equations.predictor_corrector(e, s, x, 1e-3, 100, 1, 0.1),
    "euler-maruyama": lambda e, s, x: equations.euler_maruyama(e, s, x, 1e-3, 1000),
    "probability-flow": lambda e, s, x: equations.probability_flow(e, s, x, 1.0, 1e-3, 1e-5).state,
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_of_the_exact_score_follow_the_data(sde, name):
    with seeded(0):
        x = SAMPLERS[name](sde, score(sde), sde.prior((N, 2), torch.device("cpu")).double())
    torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=0.035)
    torch.testing.assert_close(x.T.cov(), COVARIANCE, rtol=0, atol=0.05)


@pytest.mark.parametrize("name", ["predictor", "euler-maruyama"])
def test_samplers_end_in_the_mean_of_the_data_given_where_they_stop(name):
    """Stopped early, their covariance is that of E[x_0 | x_t], less than the data's and far from the marginal's."""
    sde, first = EQUATIONS["vp"], 0.3
    draw = {
        "predictor": lambda x: equations.predictor_corrector(sde, score(sde), x, first, 200, 0, 0.0),
        "euler-maruyama": lambda x: equations.euler_maruyama(sde, score(sde), x, first, 500),
    }[name]
    with seeded(0):
        x = draw(sde.prior((N, 2), torch.device("cpu")).double())
    a, law = sde.signal(torch.tensor(first).double()), marginal(sde, torch.tensor(first).double())
    expected = a**2 * COVARIANCE @ law.precision_matrix @ COVARIANCE
    torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=0.035)
    torch.testing.assert_close(x.T.cov(), expected, rtol=0, atol=0.03)


def test_the_corrector_brings_a_wrong_start_to_the_law():
    """Langevin steps alone sample the marginal at a time: what the predictor got wrong, they mend."""
    sde, t = EQUATIONS["vp"], torch.full((N,), 0.3).double()
    x = torch.zeros(N, 2).double()
    with seeded(0):
        for _ in range(300):
            x = equations.langevin(score(sde), x, t, 0.1)
    law = marginal(sde, t[0])
    torch.testing.assert_close(x.mean(0), law.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(x.T.cov(), law.covariance_matrix, rtol=0, atol=0.04)


def test_few_steps_are_better_corrected():
    sde, errors = EQUATIONS["vp"], {}
    for corrections in (0, 4):
        with seeded(0):
            start = sde.prior((N, 2), torch.device("cpu")).double()
            x = equations.predictor_corrector(sde, score(sde), start, 1e-3, 16, corrections, 0.25)
        errors[corrections] = (x.T.cov() - COVARIANCE).norm().item()
    assert errors[4] < 0.5 * errors[0]


@pytest.mark.parametrize("exact", [True, False])
def test_the_flows_density_is_the_datas(sde, exact):
    """Exactly by the exact divergence; by Hutchinson's on average, and with an error that is not zero."""
    first, zero = 1e-3, torch.zeros(2).double()  # of mean 0, or the prior's would be off by the signal left at time 1
    truth = marginal(sde, torch.tensor(first).double(), zero)
    points = truth.sample((8,))
    x = points if exact else points.repeat(500, 1)
    with seeded(0):
        value, evaluations = equations.flow_log_prob(sde, score(sde, zero), x, first, 1e-6, exact)
    truth = truth.log_prob(points)
    slack = 0.01 if sde is EQUATIONS["ve"] else 1e-3  # exploding noise of 20 hides data of 1 less well
    if exact:
        torch.testing.assert_close(value, truth, rtol=0, atol=slack)
        assert 30 < evaluations < 3000
        return
    draws = value.view(500, 8)
    assert ((draws.mean(0) - truth).abs() < 4 * draws.std(0) / math.sqrt(500) + slack).all()
    assert (draws.std(0) > 1e-3).all()
