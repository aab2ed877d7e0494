"""Stochastic differential equations against closed forms: marginals, samplers and densities of Gaussian data."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import MultivariateNormal

from fivefold.system import seeded
from fivefold.tools import sde as equations
from fivefold.tools.diffusion import SCHEDULES, alpha_bars

MEAN, COVARIANCE = torch.tensor([0.5, -1.0]).double(), torch.tensor([[1.0, 0.6], [0.6, 0.8]]).double()
DATA = MultivariateNormal(MEAN, COVARIANCE)
EQUATIONS = {name: make(*equations.RANGES[name]) for name, make in equations.SDES.items()}
EQUATIONS["ve"] = equations.variance_exploding(0.01, 20.0)
N = 20_000


def marginal(sde, t, mean=MEAN):
    a, s = sde.signal(t)[..., None], sde.noise(t)[..., None, None]
    return MultivariateNormal(a * mean, a[..., None] ** 2 * COVARIANCE + s**2 * torch.eye(2))


def score(sde, mean=MEAN):
    """Of N(mean, COVARIANCE) diffused, in closed form."""

    def of(x, at):
        law = marginal(sde, at.t, mean)
        return -((x - law.mean)[:, None] @ law.precision_matrix)[:, 0]

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
        draws = sde.at(one.expand(N)).diffuse(many, torch.randn_like(many))
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


def denoiser(sde):
    """Of the data, in closed form."""
    exact = score(sde)
    return equations.Denoiser(sde, lambda x, at: -equations.rows(at.noise, x) * exact(x, at))


PLANS = {
    "predictor-corrector": equations.Plan(1e-3, 150, corrections=1, signal_to_noise=0.1),
    "ancestral": equations.Plan(1e-3, 200),
    "ddim": equations.Plan(1e-3, 400),
    "euler-maruyama": equations.Plan(1e-3, 1000),
    "probability-flow": equations.Plan(1e-3, 1, tolerance=1e-5),
    "annealed-langevin": equations.Plan(1e-3, 200, corrections=8),
    "adaptive-sde": equations.Plan(1e-3, 1, tolerance=0.03),
}


@pytest.mark.parametrize("name", equations.SAMPLERS)
def test_samples_of_the_exact_score_follow_the_data(sde, name):
    if sde is EQUATIONS["ve"] and name == "ddim":
        pytest.skip("even steps in t are too coarse near the data for a deterministic first-order sampler")
    with seeded(0):
        start = sde.prior((N, 2), torch.device("cpu")).double()
        x = equations.SAMPLERS[name](denoiser(sde), start, PLANS[name]).state
    torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=0.035)
    torch.testing.assert_close(x.T.cov(), COVARIANCE, rtol=0, atol=0.05)


@pytest.mark.parametrize("name", ["ancestral", "euler-maruyama"])
def test_samplers_end_in_the_mean_of_the_data_given_where_they_stop(name):
    """Stopped early, their covariance is that of E[x_0 | x_t], less than the data's and far from the marginal's."""
    sde, first = EQUATIONS["vp"], 0.3
    with seeded(0):
        start = sde.prior((N, 2), torch.device("cpu")).double()
        x = equations.SAMPLERS[name](denoiser(sde), start, equations.Plan(first, 300)).state
    a, law = sde.signal(torch.tensor(first).double()), marginal(sde, torch.tensor(first).double())
    expected = a**2 * COVARIANCE @ law.precision_matrix @ COVARIANCE
    torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=0.035)
    torch.testing.assert_close(x.T.cov(), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("name", equations.SAMPLERS)
def test_samplers_count_their_evaluations(name):
    """Of an example: where their steps are their own, the mean."""
    rows, exact = [], denoiser(EQUATIONS["vp"])
    counting = exact._replace(noise=lambda x, at: rows.append(len(x)) or exact.noise(x, at))
    drawn = equations.SAMPLERS[name](counting, torch.randn(5, 2).double(), equations.Plan(1e-2, 7, corrections=2))
    assert drawn.evaluations == math.ceil(sum(rows) / 5)
    assert (len(set(rows)) > 1) == (name == "adaptive-sde")
    stated = {"predictor-corrector": 19, "annealed-langevin": 13}
    if name not in ("probability-flow", "adaptive-sde"):
        assert drawn.evaluations == stated.get(name, 7)


@pytest.mark.parametrize(("eta", "draws"), [(0.0, False), (0.5, True), (1.0, True)])
def test_steps_keep_the_marginal_whatever_their_noise(sde, eta, draws):
    """q(x_s) from q(x_t) and the true x_0, which DDIM's equation 7 promises for every deviation."""
    at, to = (sde.at(torch.tensor([time]).double()) for time in (0.7, 0.4))
    clean = torch.full((N, 1), 0.7).double()
    with seeded(0):
        before = at.diffuse(clean, torch.randn_like(clean))
        x = equations.step(before, clean, at, to, eta)
    assert x.mean().item() == pytest.approx(0.7 * to.signal.item(), abs=4 * to.noise.item() / N**0.5)
    assert x.std().item() == pytest.approx(to.noise.item(), rel=4 / (2 * N) ** 0.5)
    again = equations.step(before, clean, at, to, eta)
    assert torch.equal(x, again) != draws


@pytest.mark.parametrize("name", equations.PREDICTIONS)
def test_predictions_are_of_the_unit_noise(sde, name):
    """From the output that each names, the noise that was added; and from nothing a standard normal's optimum."""
    x_0, noise, t = torch.randn(50, 3).double(), torch.randn(50, 3).double(), torch.linspace(0.05, 0.95, 50).double()
    at = sde.at(t)
    x = at.diffuse(x_0, noise)
    a, s, total = (equations.rows(part, x) for part in at[1:])
    output = {
        "noise": noise, "clean": x_0, "residual": noise - s / total**2 * x, "velocity": (a * noise - s * x_0) / total,
    }[name]  # fmt: skip
    torch.testing.assert_close(equations.PREDICTIONS[name](at, x, output), noise)
    if name in ("residual", "velocity"):
        optimum = s * x / total**2  # E[noise | x_t] of x_0 ~ N(0, 1)
        torch.testing.assert_close(equations.PREDICTIONS[name](at, x, torch.zeros_like(x)), optimum)


@pytest.mark.parametrize("steps", [10, 1000])
def test_a_chain_made_continuous_keeps_its_steps(steps):
    """Its marginals at k / T are the chain's; the equation and its clock hold between them too."""
    bars = alpha_bars(SCHEDULES["cosine"], steps, 0.05)
    sde, t = equations.in_steps(bars), torch.arange(steps + 1).double() / steps
    torch.testing.assert_close(sde.signal(t) ** 2, bars)
    torch.testing.assert_close(sde.noise(t) ** 2, 1 - bars)
    between = torch.linspace(0.0133, 0.9873, 40).double()
    torch.testing.assert_close(sde.time(sde.noise(between) / sde.signal(between)), between)
    slope = (sde.signal(between + 1e-6) - sde.signal(between - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, -sde.rate(between) * sde.signal(between), rtol=1e-4, atol=1e-6)


def test_the_corrector_brings_a_wrong_start_to_the_law():
    """Langevin steps alone sample the marginal at a time: what the predictor got wrong, they mend."""
    sde, t = EQUATIONS["vp"], torch.tensor([0.3]).double()
    x = torch.zeros(N, 2).double()
    with seeded(0):
        for _ in range(300):
            x = equations.langevin(score(sde), x, sde.at(t), 0.1)
    law = marginal(sde, t[0])
    torch.testing.assert_close(x.mean(0), law.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(x.T.cov(), law.covariance_matrix, rtol=0, atol=0.04)


def test_few_steps_are_better_corrected():
    sde, errors = EQUATIONS["vp"], {}
    for corrections in (0, 4):
        with seeded(0):
            start = sde.prior((N, 2), torch.device("cpu")).double()
            plan = equations.Plan(1e-3, 17, corrections=corrections, signal_to_noise=0.25)
            x = equations.SAMPLERS["predictor-corrector"](denoiser(sde), start, plan).state
        errors[corrections] = (x.T.cov() - COVARIANCE).norm().item()
    assert errors[4] < 0.5 * errors[0]


@pytest.mark.parametrize("exact", [True, False])
def test_the_flows_density_is_the_datas(sde, exact):
    """Exactly by the exact divergence; by Hutchinson's on average, and with an error that is not zero."""
    first, zero = 1e-3, torch.zeros(2).double()  # of mean 0, or the prior's would be off by the signal left at time 1
    truth = marginal(sde, torch.tensor(first).double(), zero)
    with seeded(0):
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


# --- ddim in closed form ----------------------------------------------------------------------------

VALUES, VECTORS = torch.linalg.eigh(COVARIANCE)


def by_clock(sde, steps):
    """Times at which the logarithm of noise / signal falls evenly, of vp from 5 to -4.6."""
    ends = [sde.noise(t) / sde.signal(t) for t in (torch.tensor(1.0).double(), torch.tensor(1e-3).double())]
    ratios = torch.linspace(ends[0].log(), ends[1].log(), steps).double().exp()
    times = sde.time(ratios).clamp(max=1)
    return equations.Plan(1e-3, steps, path=tuple(times.tolist()))


def along_axes(at, to):
    """What a step multiplies x - signal m by, along each axis of N(m, v)."""
    return (to.signal * at.signal * VALUES + to.noise * at.noise) / (at.signal**2 * VALUES + at.noise**2)


@pytest.mark.parametrize("steps", [4, 400])
def test_ddim_is_the_closed_form_map_of_gaussian_data(sde, steps):
    """Of so many steps exactly; many of them give the flow's sqrt of the variances."""
    plan, x = by_clock(sde, steps), sde.prior((50, 2), torch.device("cpu")).double()
    moments = plan.moments(sde, x)
    factor = torch.stack([along_axes(at, to) for at, to in pairwise(moments)]).prod(0)
    first, last = moments[0], moments[-1]
    gone = ((x - first.signal * MEAN) @ VECTORS) * factor
    there = MEAN + (last.signal * VALUES / (last.signal**2 * VALUES + last.noise**2) * gone) @ VECTORS.T
    torch.testing.assert_close(equations.SAMPLERS["ddim"](denoiser(sde), x, plan).state, there)
    if steps == 400:
        total = ((last.signal**2 * VALUES + last.noise**2) / (first.signal**2 * VALUES + first.noise**2)).sqrt()
        torch.testing.assert_close(factor, total, rtol=0.01, atol=0)


def test_ddim_there_and_back(sde):
    """Its steps taken upwards give codes, from which its steps downwards give the examples again, to 1e-3 by many.

    Along an axis both multiply by less than 1, by an amount that many steps make as small as one likes.
    """
    exact, start = denoiser(sde), DATA.sample((100,))
    down, x = by_clock(sde, 300).moments(sde, start), start
    for at, to in pairwise(down[::-1]):
        x = equations.step(x, exact.clean(x, at), at, to, 0.0)
    assert (x.std(0) / down[0].noise - 1).abs().max() < 0.35
    for at, to in pairwise(down):
        x = equations.step(x, exact.clean(x, at), at, to, 0.0)
    both = torch.stack([along_axes(at, to) * along_axes(to, at) for at, to in pairwise(down)]).prod(0)
    centre = down[-1].signal * MEAN
    torch.testing.assert_close(x, centre + ((start - centre) @ VECTORS * both) @ VECTORS.T)
    many = by_clock(sde, 60_000).times(start)[:, None]
    at, to = (sde.at(part) for part in (many[:-1], many[1:]))
    both = (along_axes(at, to) * along_axes(to, at)).log().sum(0).exp()
    assert ((start - centre) @ VECTORS * (1 - both)).abs().max() < 1e-3


# --- steps whose size is each example's own ------------------------------------------------------------


def test_adaptive_steps_take_fewer_evaluations_for_the_same_error():
    """Than Euler and Maruyama's even ones, where data are narrow in one direction: here less than a third of them.

    (Where one width is all there is even steps do well, and no adaptive ones are needed.)
    """
    sde, variances = EQUATIONS["vp"], torch.tensor([1.0, 0.03]).double() ** 2

    def noise(x, at):
        a, s = (equations.rows(part**2, x) for part in (at.signal, at.noise))
        return s.sqrt() * x / (a * variances + s)

    with seeded(0):
        start, exact = sde.prior((N // 2, 2), torch.device("cpu")).double(), equations.Denoiser(sde, noise)
        ours = equations.SAMPLERS["adaptive-sde"](exact, start, equations.Plan(1e-4, 1, tolerance=0.1))
        plan = equations.Plan(1e-4, 3 * ours.evaluations)
        theirs = equations.SAMPLERS["euler-maruyama"](exact, start, plan)
    errors = [(x.state.var(0) / variances - 1).abs().max().item() for x in (ours, theirs)]
    assert errors[0] < 0.2
    assert errors[0] < errors[1]
    assert ours.evaluations < 100


def test_finer_tolerances_are_nearer_and_dearer():
    sde, found = EQUATIONS["vp"], []
    for tolerance in (1.0, 0.03):
        with seeded(0):
            start = sde.prior((N // 2, 2), torch.device("cpu")).double()
            plan = equations.Plan(1e-3, 1, tolerance=tolerance)
            x, evaluations = equations.SAMPLERS["adaptive-sde"](denoiser(sde), start, plan)
        found.append(((x.T.cov() - COVARIANCE).norm().item(), evaluations))
    assert found[1][0] < 0.2 * found[0][0]
    assert found[1][1] > 2 * found[0][1]
