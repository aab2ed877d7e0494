"""Surjective and stochastic layers: exact terms against closed forms and integrals, bounds against marginalisation."""

import math
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fivefold.bijections.base import Chain, Inverse
from fivefold.bijections.coupling import Coupling
from fivefold.bijections.elementwise import HalfLine, half_to_line
from fivefold.bijections.laws import FlowLaw, conditional_flow
from fivefold.bijections.shape import Permutation, Squeeze
from fivefold.bijections.stochastic import MarkovChain, Mixture, continuously_indexed
from fivefold.bijections.surjections import Abs, Max, Piecewise, Slice, augment
from fivefold.bijections.transforms import Affine
from fivefold.nets.conditioner import ConditionedLayer, Conditioner
from fivefold.nets.masked import MaskedNet
from fivefold.tools.distributions import standard_normal_log_prob

CONDITION = 3
DRAWS = 4000
net = partial(Conditioner, hidden=8, blocks=1, condition=CONDITION)
lost = torch.tensor([False, True])


def law(given, drawn, spatial=(), layers=2):
    return FlowLaw(drawn, conditional_flow(given, drawn, spatial, layers, Affine(), net))


def signs(dims):
    return MaskedNet(dims, 1, 8, CONDITION, free=dims)


def random(layer, spread=0.2):
    """The layer in float64, its parameters moved from where they start."""
    torch.manual_seed(1)  # not that of their start
    for parameter in layer.parameters():
        with torch.no_grad():
            parameter.add_(spread * torch.randn_like(parameter))
    return layer.double().eval()


def condition(n):
    return torch.tensor([[0.3, -1.0, 0.5]], dtype=torch.float64).expand(n, -1)


# --- surjections from data to noise: exact -------------------------------------------------------

# Of two columns, or of a map: the layer and the shape of its z.
SURJECTIONS = {
    "slice": (lambda: Slice(1, law(1, 1)), (1,)),
    "slice of maps": (lambda: Slice(2, law(2, 3, (2, 3))), (2, 2, 3)),
    "abs": (lambda: Chain(Abs(), HalfLine()), (2,)),
    "abs with a gate": (lambda: Chain(Abs(signs(2)), HalfLine()), (2,)),
    "abs of maps": (lambda: Chain(Abs(), HalfLine()), (2, 2, 3)),
    "max": (lambda: Max(1, 2, law(1, 1)), (1,)),
    "max of four": (lambda: Max(3, 4, law(3, 9)), (3,)),
    "max pooling": (lambda: Chain(Squeeze(), Max(2, 4, law(2, 6, (2, 3)))), (2, 2, 3)),
    **{f"{k} pieces": (lambda k=k: Piecewise(2, k, net(2, 2 * k)), (2,)) for k in (2, 3, 4, 5)},
    "pieces of maps": (lambda: Piecewise(2, 3, net(2, 6, (2, 3))), (2, 2, 3)),
}
PLANAR = ["slice", "abs", "abs with a gate", "max", *[f"{k} pieces" for k in (2, 3, 4, 5)]]


@pytest.mark.parametrize("name", SURJECTIONS)
def test_surjections_bring_back_what_they_keep_and_the_term(name):
    build, shape = SURJECTIONS[name]
    layer = random(build(), 0.05 if "max" in name else 0.2)  # ties of a maximum are below any precision
    assert layer.exactness.forward == "exact"
    assert layer.exactness.inverse == "drawn"
    z = torch.randn(50, *shape, dtype=torch.float64)
    x, minus_term = layer.inverse(z, condition(50))
    again, term = layer(x, condition(50))
    torch.testing.assert_close(again, z, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(term, -minus_term, atol=1e-6, rtol=1e-6)
    assert not torch.equal(layer.inverse(z, condition(50))[0], x)  # what is lost is drawn anew
    exchanged = Inverse(layer)
    assert exchanged.exactness.forward == "drawn"
    assert exchanged.exactness.inverse == "exact"


def log_density(layer, x):
    """ln p(x) where noise is standard normal."""
    with torch.no_grad():
        z, term = layer(x, condition(len(x)))
        return standard_normal_log_prob(z) + term


def plane(cells=60, fine=10, end=9.0):
    steps = torch.arange(cells * fine, dtype=torch.float64)
    lines = (end * (2 * (steps + offset) / (cells * fine) - 1) for offset in (0.25, 0.75))  # no point has ties
    return torch.cartesian_prod(*lines), (2 * end / (cells * fine)) ** 2


@pytest.mark.parametrize("name", PLANAR)
def test_exact_terms_make_densities_that_integrate_to_one_and_that_samples_follow(name):
    build, shape = SURJECTIONS[name]
    layer = random(build(), 0.05 if name == "max" else 0.15)
    x, area = plane()
    mass = (log_density(layer, x).exp() * area).view(60, 10, 60, 10).sum((1, 3)).numpy()
    assert mass.sum() == pytest.approx(1, abs=3e-3)
    with torch.no_grad():
        samples, _ = layer.inverse(torch.randn(6000, *shape, dtype=torch.float64), condition(6000))
    counts, _, _ = np.histogram2d(*samples.T.numpy(), bins=np.linspace(-9, 9, 61))
    often = 6000 * mass > 5
    expected = np.append(6000 * mass[often], 6000 * (1 - mass[often].sum()))
    observed = np.append(counts[often], 6000 - counts[often].sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_signs_with_even_chances_cost_the_logarithm_of_two_each_and_make_half_normal_noise_normal():
    x = torch.randn(9, 3, dtype=torch.float64)
    assert torch.equal(Abs()(x)[1], torch.full((9,), 3 * -math.log(2), dtype=torch.float64))
    torch.testing.assert_close(log_density(Chain(Abs(), HalfLine()), x), standard_normal_log_prob(x))
    gated = random(Abs(signs(3)))
    far, near = (gated(scale * x, condition(9))[1] + 3 * math.log(2) for scale in (1.0, 1e-7))
    assert far.abs().min() > 1e-3
    assert near.abs().max() < 1e-5  # no step at 0


def test_the_chances_of_a_sign_depend_on_all_absolute_values_and_on_the_columns_before_alone():
    layer, x = random(Abs(signs(3))), torch.randn(9, 3, dtype=torch.float64)

    def odds(x, z):
        return layer._log_odds(x, z, condition(9))

    for column in range(3):
        turned = x.clone()
        turned[:, column] *= -1
        differ = (odds(turned, x.abs()) - odds(x, x.abs())).abs().amax(0)
        assert (differ > 1e-3).tolist() == [other > column for other in range(3)]
        longer = x.abs()
        longer[:, column] += 1
        assert ((odds(x, longer) - odds(x, x.abs())).abs().amax(0) > 1e-3).all()


def test_half_normal_noise_becomes_normal_on_a_line_of_any_length():
    x = torch.tensor([1e-5, 0.1, 0.6999, 0.7001, 2.0, 5.9], dtype=torch.float64)
    truth = stats.norm.ppf(2 * stats.norm.cdf(x[:4]) - 1), -stats.norm.ppf(2 * stats.norm.sf(x[4:]))
    torch.testing.assert_close(half_to_line(x)[0], torch.tensor(np.concatenate(truth)), atol=1e-9, rtol=1e-9)
    y, log_slope = half_to_line(torch.tensor([5.99999, 6.0, 6.00001, 1e4], dtype=torch.float64))
    assert (y.diff() > 0).all()
    torch.testing.assert_close(log_slope[1:], log_slope[1].expand(3))
    torch.testing.assert_close(y[1:3].diff(), y[:2].diff(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("pieces", [2, 3, 4, 5])
def test_pieces_cover_noise_each_and_meet_without_a_step(pieces):
    layer = random(Piecewise(1, pieces, net(1, pieces)))
    knots = layer._cuts(torch.zeros(1, 1))[0].flatten()
    assert (knots.diff() > 0).all()
    assert len(knots) == pieces - 1
    below, above = (log_density(layer, knots[:, None] + side).exp() for side in (-1e-5, 1e-5))
    assert (below > 1e-4).all()
    torch.testing.assert_close(below, above, rtol=0.02, atol=0)
    edges = torch.cat([torch.tensor([-9.0]), knots, torch.tensor([9.0])]).double()
    for low, high in pairwise(edges):
        x = low + (high - low) * torch.linspace(1e-4, 1 - 1e-4, 200, dtype=torch.float64)
        z = layer(x[:, None], condition(200))[0].flatten()
        assert z.diff().sign().unique().numel() == 1  # one to one within a piece
        assert z.max() > 2.5
        assert z.min() < -2.5
    z = torch.zeros(500, 1, dtype=torch.float64)  # many to one
    assert layer.inverse(z, condition(500))[0].round(decimals=6).unique().numel() == pieces
    assert not torch.equal(layer._log_chances(z[:1], condition(1)), layer._log_chances(z[:1], None))  # the gate's


# --- layers that draw on the way to noise: bounds -----------------------------------------------

GRID = torch.linspace(-9, 9, 1201, dtype=torch.float64)[:, None]
STEP = 0.015


class Drawn(NamedTuple):
    """A layer of one column, and its true density on `GRID` by marginalisation over what it draws."""

    layer: nn.Module
    truth: torch.Tensor


def pairs(h):
    """Every pair of x on the grid and hidden h: `(N, 1)` each."""
    return GRID.repeat_interleave(len(h), 0), h.repeat(len(GRID), 1)


def normal(x):
    return standard_normal_log_prob(x).exp()


def over_hidden(log_joint):
    """The integral over h of exp(log_joint(x, h)) for every x on the grid."""
    h = GRID[::4]
    x, repeated = pairs(h)
    return log_joint(x, repeated).exp().view(len(GRID), -1).sum(1) * 4 * STEP


def augmented(spread=0.15):
    body = conditional_flow(1, 1, (), 1, Affine(), net)
    body = Chain(body, Coupling(~lost, Affine(), net(1, 2)), Permutation(torch.tensor([1, 0])), body)
    layer = random(Chain(augment(1, law(1, 1)), body), spread)

    def log_joint(x, e):
        z, log_det = body(torch.cat([x, e], 1), condition(len(x)))
        return standard_normal_log_prob(z) + log_det

    return Drawn(layer, over_hidden(log_joint))


def indexed(spread=0.1):
    coupling, prior = Coupling(~lost, Affine(), net(1, 2)), law(1, 1)
    layer = random(continuously_indexed(1, law(1, 1), coupling, prior), spread)

    def log_joint(x, u):
        both, log_det = coupling(torch.cat([x, u], 1), condition(len(x)))
        return standard_normal_log_prob(both[:, :1]) + log_det + prior.log_prob(u, both[:, :1], condition(len(x)))

    return Drawn(layer, over_hidden(log_joint))


def half(spread=0.6):
    return Drawn(
        random(Inverse(Abs(signs(1))), spread), ((GRID > 1e-9).double() + (GRID > -1e-9).double())[:, 0] * normal(GRID)
    )


def mixture(spread=0.2):
    flows = [Coupling(torch.tensor([True]), Affine(), net(0, 2)) for _ in range(3)]
    layer = random(Mixture(flows, ConditionedLayer(0, 3, condition=CONDITION)), spread)
    z, terms = layer.branches(GRID, condition(len(GRID)))
    return Drawn(layer, (standard_normal_log_prob(z.flatten(0, 1)).view(3, -1) + terms).exp().sum(0).detach())


class TwoWells(nn.Module):
    """u(x) of two wells, which a condition tilts."""

    def __init__(self):
        super().__init__()
        self.tilt = nn.Linear(CONDITION, 1)

    def forward(self, x, condition=None):
        tilt = 0.0 if condition is None else self.tilt(condition)[:, 0]
        return (x.square().sum(1) - 1).square() / 2 / (1 + x.square().sum(1)) + tilt * torch.tanh(x.sum(1))


def langevin(spread=0.2):
    layer = random(MarkovChain(TwoWells(), "langevin", steps=2, step_size=0.2), spread)
    points = GRID.clone().requires_grad_()
    slope = torch.autograd.grad(layer.energy(points, condition(len(GRID))).sum(), points)[0]
    size, density = layer.step_size, normal(GRID)
    kernel = torch.distributions.Normal((GRID - size * slope).T, math.sqrt(2 * size)).log_prob(GRID).exp()  # x, z
    return Drawn(layer, kernel @ (kernel @ density * STEP) * STEP)


def interpolated(spread=0.2):
    """Langevin steps by half and then all of the way: to data first the one that is nearer to noise."""
    layer = random(MarkovChain(TwoWells(), "langevin", steps=2, step_size=0.2, interpolated=True), spread)
    points, density = GRID.clone().requires_grad_(), normal(GRID)
    slope = torch.autograd.grad(layer.energy(points, condition(len(GRID))).sum(), points)[0]
    for weight in (0.25, 0.75):
        drift = 0.2 * (weight * slope + (1 - weight) * GRID)
        kernel = torch.distributions.Normal((GRID - drift).T, math.sqrt(0.4)).log_prob(GRID).exp()
        density = kernel @ density * STEP
    return Drawn(layer, density)


def metropolis(spread=0.2):
    layer = random(MarkovChain(TwoWells(), "metropolis", steps=2, step_size=0.2), spread)
    u, size, density = layer.energy(GRID, condition(len(GRID))).detach(), layer.step_size, normal(GRID)
    moves = torch.distributions.Normal(GRID.T, math.sqrt(2 * size)).log_prob(GRID).exp()
    moves = moves * torch.exp(u[None, :] - u[:, None]).clamp(max=1)  # to x (rows) from z
    stays = 1 - moves.sum(0) * STEP
    for _ in range(2):
        density = moves @ density * STEP + stays * density
    return Drawn(layer, density)


DRAWN = [augmented, indexed, half, mixture, langevin, interpolated, metropolis]


@pytest.mark.parametrize("build", DRAWN)
def test_drawn_terms_are_unbiased_of_the_density_and_bounds_of_its_logarithm(build):
    layer, truth = build()
    truth = truth.detach()
    assert layer.exactness.forward == "drawn"
    assert truth.sum() * STEP == pytest.approx(1, abs=5e-3)
    where = [660, 700, 760] if build is half else [480, 580, 630, 690, 740]
    x = GRID[where].repeat(DRAWS, 1)
    torch.manual_seed(1)
    values = log_density(layer, x).view(DRAWS, -1)
    mean, error = values.exp().mean(0), values.exp().std(0) / DRAWS**0.5
    assert ((mean - truth[where]).abs() < 4 * error + 1e-4).all()
    assert (error < 0.15 * truth[where]).all()
    assert (values.mean(0) < truth[where].log()).all()
    # More draws come nearer, from below.
    gaps = [
        truth[where].log() - (values.view(-1, k, len(where)).logsumexp(1) - math.log(k)).mean(0) for k in (1, 10, 100)
    ]
    assert (gaps[0] > gaps[1]).all()
    assert (gaps[1] > gaps[2]).all()
    # And samples follow the truth.
    with torch.no_grad():
        samples = layer.inverse(torch.randn(4000, _noise(layer), dtype=torch.float64), condition(4000))[0][:, 0]
    cdf = np.concatenate([[0], np.cumsum(truth.numpy() * STEP)])
    ends = np.append(GRID[:, 0].numpy() - STEP / 2, GRID[-1, 0] + STEP / 2)
    assert stats.kstest(samples.numpy(), lambda x: np.interp(x, ends, cdf / cdf[-1])).pvalue > 1e-3


def _noise(layer):
    return layer(GRID[:1], condition(1))[0].shape[1]


@pytest.mark.parametrize("build", DRAWN)
def test_the_way_back_gives_minus_the_term_of_its_own_path(build):
    """In expectation over paths from noise, exp(minus term) q-weighted: E_x,z exp(term) p / p is 1."""
    layer, truth = build(spread=0.1)  # where q lies far from p few draws say little
    truth = truth.detach()
    torch.manual_seed(2)
    z = torch.randn(DRAWS, _noise(layer), dtype=torch.float64)
    with torch.no_grad():
        x, minus_term = layer.inverse(z, condition(DRAWS))
    at = ((x[:, 0] + 9) / STEP).round().long().clamp(0, len(GRID) - 1)
    # p(z) p(x|z) against p(x) q(z|x): the mean of their ratio upside down is 1 where q is everywhere that p is.
    ratio = (truth[at].log() - standard_normal_log_prob(z) + minus_term).exp()
    assert ratio.mean().item() == pytest.approx(1, abs=5 * (ratio.std() / DRAWS**0.5).item() + 0.02)


def test_metropolis_steps_leave_their_law_as_it_is_and_langevin_steps_nearly():
    z = torch.randn(20000, 1, dtype=torch.float64)
    for kernel, tolerance in (("metropolis", 0.03), ("langevin", 0.06)):
        torch.manual_seed(0)
        chain = MarkovChain(TwoWells(), kernel, steps=60, step_size=0.15).double()
        torch.nn.init.constant_(chain.energy.tilt.bias, 0.5)
        with torch.no_grad():
            x, _ = chain.inverse(z, torch.zeros(20000, CONDITION, dtype=torch.float64))
            weight = torch.exp(-chain.energy(GRID, torch.zeros(len(GRID), CONDITION, dtype=torch.float64)))
        below = weight[:600].sum() / weight.sum()
        assert (x < 0).double().mean().item() == pytest.approx(below.item(), abs=tolerance)


def test_langevin_terms_carry_gradients_to_energies_without_bias():
    """Of the expected term, against differences of it with the same noise."""
    layer, x = random(MarkovChain(TwoWells(), "langevin", steps=2, step_size=0.2)), GRID[500:700]

    def value():
        torch.manual_seed(3)
        z, term = layer(x, condition(len(x)))
        return (standard_normal_log_prob(z) + term).mean()

    for parameter in (layer.energy.tilt.bias,):
        gradient = torch.autograd.grad(value(), parameter)[0]
        with torch.no_grad():
            parameter += 1e-4
            above = value()
            parameter -= 2e-4
            below = value()
            parameter += 1e-4
        assert gradient.item() == pytest.approx((above - below).item() / 2e-4, rel=1e-4, abs=1e-6)
