"""Learned samplers: the law they tend to whatever they learned, their volume terms, and what learning brings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.laws import HARD, LAWS, drawn_funnel, gaussian
from benchmarks.samplers import MOVES as CHOICES
from benchmarks.samplers import best_of
from fivefold.bijections.base import Chain
from fivefold.bijections.linear import LULinear
from fivefold.energy._samplers import LEARNERS
from fivefold.energy._samplers.a_nice_mc import volume_preserving
from fivefold.energy._samplers.entropy_mcmc import GradientProposal, log_ratio, slope_of
from fivefold.energy._samplers.neutra import fit_neutra, pulled_back
from fivefold.energy.igebm import IGEBM
from fivefold.errors import Unfit
from fivefold.options import slot
from fivefold.space import Column, Space, label_space
from fivefold.system import seeded
from fivefold.tools.adaptive import _log_ratio, _offset
from fivefold.tools.mcmc import KERNELS, Move
from tests.moments import check_moments

CHAINS = 2000
SHORT = {  # learning that leaves much to learn: the law may not depend on it
    "neutra": {"steps": 150, "batch": 64, "flow": slot("iaf-flow", layers=2, hidden=16)},
    "a-nice-mc": {"steps": 50, "batch": 32, "hidden": 16},
    "entropy-mcmc": {"steps": 100, "hidden": 16},
    "adaptive-mcmc": {"steps": 200},
}
MOVES = {  # steps and how they are made
    "neutra": (30, Move(0.04, warm_up=30, leapfrog=5)),
    "a-nice-mc": (500, Move(1.0)),
    "entropy-mcmc": (60, Move(1.0)),
    "adaptive-mcmc": (100, Move(1.0)),
}


@pytest.fixture(scope="module")
def learned():
    """By learner and law, each made once."""
    made = {}

    def of(name, law):
        if (name, law) not in made:
            with seeded(0):
                made[name, law] = LEARNERS[name](LAWS[law].energy, LAWS[law].start(200), **SHORT[name])
        return made[name, law]

    return of


# --- laws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", LEARNERS)
def test_moments_within_three_errors(learned, name, law):
    """The funnel's neck takes longer to find than a test has: there chains start in the law, and have to stay."""
    steps, move = MOVES[name]
    sampler = learned(name, law).sample
    with seeded(1):
        start = drawn_funnel(CHAINS) if law == "funnel" else LAWS[law].start(CHAINS)
        ends = sampler(LAWS[law].energy, start, steps, move)
    assert ends.accepted.mean() > 0.02
    assert (ends.state != start).all(1).double().mean() > 0.5
    check_moments(LAWS[law], ends.state)


@pytest.mark.parametrize("name", LEARNERS)
def test_another_energy_at_a_temperature_between_bounds(learned, name):
    """What was learned on one law serves any: x_0 ~ N(0, T) cut at -1 and 2, for states of any shape."""
    sampler = learned(name, "gaussian").sample
    move = Move(0.3, math.sqrt(0.5 * 0.3), bounds=(-1.0, 2.0), warm_up=30, leapfrog=5)
    with seeded(2):
        x = sampler(
            lambda y: 0.5 * (y**2).flatten(1).sum(1), torch.zeros(CHAINS, 2, 1).double(), MOVES[name][0], move
        ).state
    grid = torch.linspace(-1, 2, 10_001).double()
    weight = (-(grid**2) / 2 / 0.5).softmax(0)
    mean = (weight * grid).sum().item()
    variance = (weight * (grid - mean) ** 2).sum().item()
    assert x.shape == (CHAINS, 2, 1)
    assert ((x >= -1) & (x <= 2)).all()
    assert x[:, 0].mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / CHAINS))
    assert x[:, 0].var().item() == pytest.approx(variance, rel=0.08)


@pytest.mark.parametrize("name", LEARNERS)
def test_what_learned_samplers_give(learned, name):
    found, calls = learned(name, "gaussian"), []
    before = torch.random.get_rng_state()

    def energy(x):
        calls.append(len(x))
        return gaussian(x)

    torch.random.set_rng_state(before)
    ends = found.sample(energy, torch.randn(5, 2).double(), 8, Move(0.1, warm_up=4, keep=3))
    assert ends.state.shape == (5, 2)
    assert ends.accepted.shape == (5,)
    assert ((ends.accepted > 0) & (ends.accepted <= 1)).all()
    assert ends.trace.shape == (8, 3, 2)
    torch.testing.assert_close(ends.trace[-1], ends.state[:3])
    assert not ends.state.requires_grad
    assert sum(calls) == 5 * ends.evaluations
    assert found.losses.isfinite().all()


@pytest.mark.parametrize("name", LEARNERS)
def test_learning_counts_its_evaluations_and_leaves_the_energy_alone(name):
    weight, calls = torch.nn.Parameter(torch.ones(()).double()), []

    def energy(x):
        calls.append(len(x))
        return weight * gaussian(x)

    found = LEARNERS[name](energy, torch.randn(20, 2).double(), **SHORT[name] | {"steps": 3})
    assert sum(calls) == found.evaluations
    assert weight.grad is None


# --- volume terms against autograd -----------------------------------------------------------------


def jacobians(f, x):
    return torch.stack([torch.autograd.functional.jacobian(lambda y: f(y[None])[0], row) for row in x])


def test_the_warped_energy_is_that_of_the_changed_variable(learned):
    """E(f(z)) - ln |det df/dz|, of a flow that has learned to scale and bend."""
    with seeded(0):
        system_layer = fit_neutra(LAWS["ring"].energy, torch.randn(50, 2).double(), Chain(LULinear(2)), 50, 50)
        z = torch.randn(4, 2).double()
    layer = Chain(LULinear(2, rotation=True)).double()
    with torch.no_grad():
        layer.parts[0].log_diagonal.add_(torch.tensor([0.5, -1.5]))
    found = pulled_back(gaussian, layer, torch.Size([2]))(z)
    volume = jacobians(lambda y: layer.inverse(y)[0], z).det().abs().log()
    torch.testing.assert_close(found, gaussian(layer.inverse(z)[0]) - volume)
    assert system_layer.losses[-10:].mean() < system_layer.losses[:10].mean()


@pytest.mark.parametrize(("dims", "extra"), [(1, 2), (2, 2), (3, 3)])
def test_volumes_stay_and_the_inverse_leads_back(dims, extra):
    layer = volume_preserving(dims, extra, 16).double()
    x = torch.randn(5, dims + extra).double()
    y = layer(x)[0]
    assert (y != x).all()
    torch.testing.assert_close(layer.inverse(y)[0], x)
    torch.testing.assert_close(jacobians(lambda u: layer(u)[0], x).det(), torch.ones(5).double())


@pytest.mark.parametrize(("dims", "couplings"), [(1, 1), (2, 2), (3, 4)])
def test_the_proposals_density_is_that_of_its_map(dims, couplings):
    with seeded(0):
        net = GradientProposal(dims, couplings, 8).double()
        for parameter in net.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        x, z = torch.randn(2, 6, dims).double()
    slope = slope_of(lambda u: (u**4).sum(1) + u[:, 0])
    offset, log_det = net(x, z, slope)
    volume = torch.stack(
        [jacobians(lambda u, i=i: net(x[i : i + 1], u, slope)[0], z[i : i + 1])[0].det().abs().log() for i in range(6)]
    )
    torch.testing.assert_close(log_det, volume)
    back, back_log_det = net.inverse(x, offset, slope)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(back_log_det, -log_det)
    assert len(torch.unique(log_det)) == 6 or dims == 1
    # the ratio is that of ln q both ways, q the density of z pushed forward
    y, gain, _ = log_ratio(net, x, z, slope)
    again, there, _ = log_ratio(net, y, net.inverse(y, x - y, slope)[0], slope)
    torch.testing.assert_close(again, x)
    torch.testing.assert_close(there, -gain)


def test_the_ratio_of_preconditioned_proposals_is_that_of_two_gaussians():
    with seeded(0):
        root = torch.randn(3, 3).double().tril()
        x, noise = torch.randn(2, 5, 3).double()

    def slope(u):
        return u**3 + 1

    def log_q(at, from_):
        mean = from_ - 0.5 * slope(from_) @ (root @ root.T)
        return torch.distributions.MultivariateNormal(mean, scale_tril=root * root.diag().sign()).log_prob(at)

    y = x + _offset(slope(x), noise, root)
    torch.testing.assert_close(_log_ratio(slope(x), slope(y), noise, root), log_q(x, y) - log_q(y, x))


# --- what is learned -----------------------------------------------------------------------------------


def test_the_covariance_of_a_gaussian_is_found():
    """Of an ill-conditioned one the best proposals have its shape: L L^T is nearly a multiple of the covariance."""
    root = torch.tensor([[3.0, 0.0], [0.25, 0.1]]).double()
    inverse = root.inverse()
    with seeded(0):
        learned = LEARNERS["adaptive-mcmc"](
            lambda x: 0.5 * (x @ inverse.T).square().sum(1), torch.randn(100, 2).double() @ root.T, steps=1000
        )
        ends = learned.sample(lambda x: 0.5 * (x @ inverse.T).square().sum(1), torch.zeros(2, 2).double(), 1, Move(1.0))
    assert ends.evaluations == 2
    found = inverse @ learned_root(learned)
    singular = torch.linalg.svdvals(found)
    assert singular[0] / singular[1] < 1.5  # 94 before
    assert learned.losses[-50:].mean() < learned.losses[:50].mean() - 2


def learned_root(learned):
    return next(
        cell.cell_contents for cell in learned.sample.__closure__ if isinstance(cell.cell_contents, torch.Tensor)
    )


@pytest.mark.parametrize("flow", [slot("nice", hidden=16), slot("spline-flow", layers=2, hidden=16)])
def test_any_flow_of_the_catalogue_warps(flow):
    with seeded(0):
        found = fit_neutra(gaussian, torch.randn(64, 2).double(), flow, steps=60, batch=64)
        ends = found.sample(gaussian, torch.randn(500, 2).double(), 20, Move(0.04, warm_up=20))
    assert found.losses[-10:].mean() < found.losses[:10].mean()
    check_moments(LAWS["gaussian"], ends.state, errors=4)


@pytest.mark.parametrize(("flow", "said"), [("cif", "These fit:.*iaf-flow"), ("vae", "These fit:.*realnvp")])
def test_what_is_no_bijection_does_not_warp(flow, said):
    with pytest.raises(Unfit, match=said):
        fit_neutra(gaussian, torch.randn(8, 2), flow, steps=1)


# --- in a system -----------------------------------------------------------------------------------------


def plane(**options):
    space = Space("table", (2,), columns=(Column("x"), Column("y")))
    return IGEBM(space, width=4, reference=0.8, sample_steps=40, start="noise", **options)


class Level(torch.nn.Module):
    """The same everywhere."""

    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, condition):
        return self.value + 0 * x.sum(1)


def test_a_system_draws_by_a_sampler_that_learned_on_its_energy(monkeypatch):
    """Of a level energy the reference law is left, N(0, 0.8^2). It learns once for the weights that it has."""
    system, taught = plane(learned="adaptive-mcmc"), []
    learn = LEARNERS["adaptive-mcmc"]
    monkeypatch.setitem(LEARNERS, "adaptive-mcmc", lambda *given: taught.append(1) or learn(*given, steps=200))
    system.energy = Level()
    x = system.sample_encoded(1000, seed=0).double()
    assert x.mean().item() == pytest.approx(0, abs=3 * 0.8 / math.sqrt(2000))
    assert x.var().item() == pytest.approx(0.64, abs=3 * 0.64 * math.sqrt(2 / 2000))
    assert torch.equal(system.sample_encoded(1000, seed=0).double(), x)
    assert len(taught) == 1
    with torch.no_grad():
        next(system.energy.parameters()).add_(0.1)
    system.sample_encoded(10, seed=0)
    assert len(taught) == 2


def test_conditions_are_not_learned_on():
    space = replace(plane().space, condition=label_space(("a", "b")))
    with pytest.raises(Unfit, match="learned=none"):
        IGEBM(space, width=4, learned="neutra").sample(2, condition="a")


CLAIMS = [  # beside the best of Hamiltonian Monte Carlo; benchmarks/results/samplers.md has what was measured
    ("neutra", "banana", 5.0),
    ("neutra", "deep funnel", 5.0),
    ("neutra", "funnel", 2.0),
    ("a-nice-mc", "ring", 2.0),
    ("a-nice-mc", "mixture", 5.0),
    ("adaptive-mcmc", "ill-conditioned", 5.0),
    ("entropy-mcmc", "ill-conditioned", 1.3),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "law", "factor"), CLAIMS)
def test_effective_samples_for_each_evaluation_beside_hamiltonian(name, law, factor):
    """The worst number's, or its square's, against the best length of trajectory; learning left out."""
    target = (LAWS | HARD)[law]
    with seeded(0):
        plain = best_of(target, KERNELS["hamiltonian"], CHOICES["hamiltonian"])
        learned = LEARNERS[name](target.energy, target.start(200))
        found = best_of(target, learned.sample, CHOICES.get(name, [Move(1.0)]))
    assert found.r_hat < 1.05
    assert found.each > factor * plain.each
