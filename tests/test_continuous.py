"""Continuous flows beyond FFJORD: traces and costs against autograd and quadrature, densities, what each adds."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import fivefold
from fivefold.bijections.laws import FlowLaw
from fivefold.bijections.ode import ContinuousFlow, measured
from fivefold.bijections.surjections import augment
from fivefold.catalog import find
from fivefold.nets.planar import PlanarSum
from fivefold.nets.potential import ACTIVATIONS, Potential, PotentialVelocity
from fivefold.nets.velocity import Velocity
from fivefold.space import Batch, Column, Space, label_space
from fivefold.system import Density, seeded
from fivefold.tools.ode import runge_kutta

PLANE = Space("table", (2,), columns=(Column("x"), Column("y", scale=3.0)))
LINE = Space("table", (1,), columns=(Column("x"),))
IMAGE = Space("image", (1, 4, 4), levels=5)
SMALL = {
    "neural-ode": {"width": 8, "hidden": 8},
    "anode": {"hidden": 12, "channels": 6, "extra": 2},
    "rnode": {"hidden": 12, "channels": 6},
    "ot-flow": {"hidden": 12},
    "monge-ampere": {"hidden": 12},
    "potential-flow": {"hidden": 12},
}
POTENTIAL = ["ot-flow", "monge-ampere", "potential-flow"]
COSTLY = {"rnode": ("kinetic", "jacobian"), "ot-flow": ("transport", "hjb"), "potential-flow": ("hj",)}


def moved(net, spread=0.5):
    """In float64, its parameters moved from their start, where it is 0."""
    torch.manual_seed(0)
    for parameter in net.double().parameters():
        parameter.data.add_(spread * torch.randn_like(parameter))
    return net


def points(n=5, dims=3, seed=1):
    return torch.randn(n, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def build(name, space=PLANE, spread=0.4, **options):
    torch.manual_seed(0)
    system = find(name).load()(space, **{**SMALL[name], **options}).eval()
    for parameter in system.parameters():
        parameter.data.add_(spread * torch.randn_like(parameter))
    return system


def jacobians(f, x):
    return torch.stack([torch.autograd.functional.jacobian(lambda row: f(row[None])[0], row) for row in x])


def of_row(condition, i):
    return None if condition is None else condition[i : i + 1]


# --- closed forms against autograd --------------------------------------------------------------


@pytest.mark.parametrize("conditioned", [False, True])
def test_planar_dynamics_are_the_sum_and_their_trace_and_norm_autograds(conditioned):
    net, x = moved(PlanarSum(3, 4, 6, 2 if conditioned else 0)), points()
    condition = points(dims=2, seed=2) if conditioned else None
    velocity, divergence, costs = net.rates(0.3, x, condition)
    assert divergence.abs().min() > 1e-3
    for i in range(len(x)):
        one = of_row(condition, i)
        w, u, b, g = (t[0] for t in net.planes(0.3, x[i : i + 1], one))
        truth = sum(g[n] * u[n] * torch.tanh(w[n] @ x[i] + b[n]) for n in range(4))
        torch.testing.assert_close(velocity[i], truth)
        matrix = torch.autograd.functional.jacobian(lambda row, one=one: net(0.3, row[None], one)[0], x[i])
        torch.testing.assert_close(divergence[i], matrix.trace())
        torch.testing.assert_close(costs[i], torch.stack([truth.square().sum(), matrix.square().sum()]))
    assert not torch.allclose(net(0.9, x, condition), velocity)  # the hypernetwork is of the time
    assert PlanarSum(3, 4, 6)(0.3, x.float()).abs().max() == 0  # at first


KINDS = [
    {"activation": activation, "layers": layers, "rank": rank, "timed": timed}
    for activation, (layers, rank, timed) in product(ACTIVATIONS, [(1, 0, False), (2, 2, True), (4, 1, True)])
]


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_potentials_are_autograds(kind):
    phi, x, condition = moved(Potential(3, 5, condition=2, **kind)), points(), points(dims=2, seed=2)
    found = phi.derivatives(0.3, x, condition)
    for i in range(len(x)):
        one = condition[i : i + 1]
        at = lambda row, one=one: phi(0.3, row[None], one)[0]  # noqa: E731
        torch.testing.assert_close(found.gradient[i], torch.autograd.functional.jacobian(at, x[i]))
        torch.testing.assert_close(found.laplacian[i], torch.autograd.functional.hessian(at, x[i]).trace())
    step = 1e-5
    slope = (phi(0.3 + step, x, condition) - phi(0.3 - step, x, condition)) / (2 * step)
    torch.testing.assert_close(found.slope, slope, rtol=1e-6, atol=1e-7)
    assert (found.slope.abs().max() > 1e-3) == kind["timed"]
    assert not torch.allclose(phi.derivatives(0.3, x).gradient, found.gradient)


def test_otflows_potential_is_that_of_the_paper():
    """w N(s) + s^T A^T A s / 2 + b^T s with u_0 = sigma(K_0 s + b_0) and N = u_0 + sigma(K_1 u_0 + b_1)."""
    (part,) = build("ot-flow")._parts()
    phi, x = part.velocity.potential, points(dims=2).float()
    s = torch.cat([x, torch.full((5, 1), 0.3)], 1)
    sigma = lambda v: torch.log(v.exp() + (-v).exp())  # noqa: E731
    first, second = phi.layers
    u = sigma(s @ first.weight.T + first.bias)
    network = u + sigma(u @ second.weight.T + second.bias)
    quadratic = (s @ phi.root.T @ phi.root * s).sum(1) / 2
    torch.testing.assert_close(phi(0.3, x), network @ phi.weight + quadratic + s @ phi.linear)
    assert phi.root.shape == (2, 3)  # of min(10, D) rows
    torch.testing.assert_close(part.velocity(0.3, x), -phi.derivatives(0.3, x).gradient)


def test_potentials_take_no_pass_of_autograd_for_their_trace(monkeypatch):
    def forbidden(*arguments, **options):
        raise AssertionError("autograd was called")

    batch = Batch(torch.randn(4, 2))
    systems = {name: build(name).train() for name in (*POTENTIAL, "neural-ode", "rnode")}
    monkeypatch.setattr(torch.autograd, "grad", forbidden)
    for name, system in systems.items():
        if name == "rnode":
            with pytest.raises(AssertionError, match="autograd"):
                system.loss(batch)
        else:
            system.loss(batch)
            system.score_encoded(batch)


# --- costs of the way ---------------------------------------------------------------------------


class Timed(nn.Module):
    """A linear velocity that grows with the time."""

    matrix = torch.tensor([[0.3, 1.2, 0.0], [-0.7, -0.5, 0.4], [0.2, 0.0, 0.9]], dtype=torch.float64)

    def forward(self, time, x, condition=None):
        return (1 + time) * x @ self.matrix.T


def simpson(values):
    """The integral over [0, 1] of values at equal distances, an odd number of them."""
    weights = torch.ones(len(values), dtype=values.dtype)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    return torch.einsum("t,tb->b", weights, values) / (3 * (len(values) - 1))


def along(flow, x, steps=40):
    """Times and points of a finely solved way."""
    f, way = flow.velocity, [x]
    for i in range(steps):
        way.append(runge_kutta(f, way[-1], i / steps, (i + 1) / steps, 2).state)
    return [(i / steps, y) for i, y in enumerate(way)]


def second_cost(flow, time, x):
    """By autograd: the Jacobian's squared norm, or the residual of the Hamilton-Jacobi equation."""
    if not isinstance(flow.velocity, PotentialVelocity):
        return jacobians(lambda row: flow.velocity(time, row), x).square()
    value = lambda t, y: flow.velocity.sign * flow.velocity.potential(t, y)  # noqa: E731
    slope = (value(time + 1e-5, x) - value(time - 1e-5, x)) / 2e-5
    gradient = torch.stack([torch.autograd.functional.jacobian(lambda r: value(time, r[None])[0], row) for row in x])
    residual = slope + 0.5 * gradient.square().sum(1)
    return (residual.square() if flow.velocity.squared else residual.abs())[:, None]


def potential_velocity(**options):
    return PotentialVelocity(Potential(3, 5, 2, 2, activation="tanh"), **options)


FLOWS = {
    "linear": lambda: ContinuousFlow(Timed(), 1e-9),
    "free": lambda: ContinuousFlow(moved(Velocity((3,), 8, 2)), 1e-9),
    "free, fixed steps": lambda: ContinuousFlow(moved(Velocity((3,), 8, 2)), steps=60),
    "planar": lambda: ContinuousFlow(moved(PlanarSum(3, 4, 6)), 1e-9, "closed"),
    "down a potential": lambda: ContinuousFlow(moved(potential_velocity(sign=-1)), 1e-9, "closed"),
    "up a potential": lambda: ContinuousFlow(moved(potential_velocity(squared=True)), 1e-9, "closed"),
}


@pytest.mark.parametrize("name", FLOWS)
def test_costs_are_quadratures_along_a_finely_solved_way(name):
    flow, x = FLOWS[name]().eval(), points(4)
    with measured([flow]) as ways:
        y, log_det = flow(x)
        flow.inverse(y)
    way = along(flow, x)
    kinetic = simpson(torch.stack([flow.velocity(t, p).square().sum(1) for t, p in way]))
    second = simpson(torch.stack([second_cost(flow, t, p).flatten(1).sum(1) for t, p in way]).detach())
    kink = {"down a potential": 3e-3, "planar": 1e-3}.get(name, 1e-5)  # an absolute value has one, a steep unit nearly
    for costs in ways:  # there and back
        torch.testing.assert_close(costs, torch.stack([kinetic, second], 1), rtol=kink, atol=kink)
        assert costs.min() > 1e-2
    plain_y, plain_log_det = flow(x)  # the costs beside the state do not move it
    torch.testing.assert_close(y, plain_y, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_det, plain_log_det, rtol=1e-6, atol=1e-6)
    assert len(ways) == 2
    assert flow.ways is None


def test_the_probe_of_the_trace_gives_the_jacobians_norm_without_bias():
    flow, x = ContinuousFlow(Timed(), steps=8), points(1).repeat(4000, 1)
    with measured([flow.eval()]) as exact, torch.no_grad():
        flow(x[:1])
    with measured([flow.train()]) as ways, torch.no_grad():
        flow(x)
    norms = ways[0][:, 1]
    assert norms.std() > 0.1
    assert abs(norms.mean() - exact[0][0, 1]) < 4 * norms.std() / math.sqrt(4000)


@pytest.mark.parametrize("steps", [0, 40])
@pytest.mark.parametrize("kind", ["free", "planar", "potential"])
def test_gradients_by_the_adjoint_are_the_direct_ones(kind, steps):
    """Of the image, the log-determinant and both costs, in the point, the condition and the parameters."""
    net = {
        "free": lambda: Velocity((3,), 6, 1, 2),
        "planar": lambda: PlanarSum(3, 4, 6, 2),
        "potential": lambda: PotentialVelocity(Potential(3, 5, 2, 2, condition=2), squared=True),
    }[kind]()
    net, trace = moved(net, 0.3), "exact" if kind == "free" else "closed"
    weights, found = points(4, 3), []
    for how in ("direct", "adjoint"):
        x, condition = points(4).requires_grad_(), points(4, 2, 5).requires_grad_()
        flow = ContinuousFlow(net, 1e-8, trace, how, steps).eval()
        with seeded(0), measured([flow]) as ways:
            y, log_det = flow(x, condition * 1.0)
        total = (weights * y.sin()).sum() + log_det.sum() + (ways[0] * weights[:, :2]).sum()
        found.append(torch.autograd.grad(total, [x, condition, *net.parameters()]))
    for direct, adjoint in zip(*found, strict=True):
        torch.testing.assert_close(adjoint, direct, rtol=1e-5, atol=2e-6)
        assert direct.abs().max() > 1e-4


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in COSTLY for option in COSTLY[name]])
def test_the_loss_has_each_cost_times_its_weight_and_without_weights_is_the_likelihoods(name, option):
    off = dict.fromkeys(COSTLY[name], 0.0)
    plain, costly = (build(name, **{**off, option: weight}).train() for weight in (0.0, 0.5))
    batch, losses = Batch(torch.randn(16, 2)), []
    for system in (plain, costly):
        with seeded(0):
            losses.append(next(system.updates(batch, 0.0)))
    assert set(losses[0].stats) == {"evaluations"}
    cost = losses[1].stats[costly.costs[1 if option in ("jacobian", "hjb", "hj") else 0]]
    cost = cost / 2 if option == "transport" else cost  # |v|^2 / 2
    assert cost > 1e-3
    torch.testing.assert_close(losses[1].loss - losses[0].loss, 0.5 * cost, rtol=1e-3, atol=1e-4)
    with seeded(0):
        log_prob = plain._point_log_prob(batch.x, None)
    if name != "rnode":  # which has Hutchinson's trace here
        torch.testing.assert_close(losses[0].loss, -log_prob.mean(), rtol=1e-2, atol=1e-2)
    losses[1].loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in costly.parameters())


def test_weights_are_read_from_the_signatures():
    assert build("monge-ampere").weights == (0, 0)
    assert build("neural-ode").weights == (0, 0)
    assert all(min(build(name).weights) >= 0 < max(build(name).weights) for name in COSTLY)
    assert build("ot-flow", transport=0.4, hjb=0.3).weights == (0.2, 0.3)
    (down,), (up,) = build("ot-flow")._parts(), build("potential-flow")._parts()
    assert (down.velocity.sign, down.velocity.squared, up.velocity.sign, up.velocity.squared) == (-1, False, 1, True)


# --- densities ----------------------------------------------------------------------------------


def quadrature(system, span=14.0, cells=120):
    """Points of the plane in the user's units, their density and the area of a cell."""
    x, y = (np.linspace(-span * scale, span * scale, cells) for scale in (1, 3))
    mesh = np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 2)
    return mesh, system.score(mesh, batch_size=20_000).log_prob.exp().numpy(), (x[1] - x[0]) * (y[1] - y[0])


@pytest.mark.parametrize("name", ["neural-ode", "rnode", *POTENTIAL])
def test_densities_of_the_plane_integrate_to_one_and_samples_follow_them(name):
    fine = {"tolerance": 1e-4, "sampling_tolerance": 1e-4} if name in ("neural-ode", "rnode") else {}
    system = build(name, spread=0.3, **fine)
    assert system.density is Density.EXACT
    mesh, density, area = quadrature(system)
    assert density.sum() * area == pytest.approx(1, abs=5e-3)
    samples = system.sample(4000, seed=3)
    for column in (0, 1):  # by the marginal's distribution function
        order = np.unique(mesh[:, column])
        mass = np.array([density[mesh[:, column] == value].sum() for value in order]) * area
        cumulative = lambda v, o=order, m=mass: np.interp(v, o + (o[1] - o[0]) / 2, m.cumsum())  # noqa: E731
        assert stats.kstest(samples[:, column], cumulative).pvalue > 1e-3
    moments = (density[:, None] * mesh).sum(0) * area, (density * mesh.prod(1)).sum() * area
    assert abs(samples.mean(0) - moments[0]).max() < 4 * samples.std(0).max() / 4000**0.5 + 0.02
    products = samples.prod(1)
    assert abs(products.mean() - moments[1]) < 4 * products.std() / 4000**0.5 + 0.05
    with system._solving(system.scoring_solver, "none"):  # without the trace it is no density
        total = system._point_log_prob(torch.tensor(mesh / [1, 3]).float(), None).exp().sum() * area / 3
    assert abs(total - 1) > 0.02


def test_the_augmented_density_is_a_bound_that_tightens_and_samples_follow_the_marginal():
    """p(x) by quadrature of the flow of (x, a) over a."""
    system = build("anode", LINE, spread=0.5, extra=1, tolerance=1e-4, sampling_tolerance=1e-4)
    assert system.density is Density.LOWER_BOUND
    line = torch.linspace(-9, 9, 121)
    grid = torch.cartesian_prod(line, line)
    rest = list(system.flow.parts)[2:]  # after what flattens and what augments
    with torch.no_grad():
        z, log_det = grid, torch.zeros(len(grid))
        for part in rest:
            z, term = part(z)
            log_det = log_det + term
    step = line[1] - line[0]
    joint = (-0.5 * z.square().sum(1) - math.log(2 * math.pi) + log_det).exp().view(121, 121)
    truth = joint.sum(1) * step
    assert truth.sum() * step == pytest.approx(1, abs=1e-3)
    x = line[40:81:4]
    wanted, bounds = truth[40:81:4].double().log(), []
    for draws in (1, 20):
        system.score_samples = draws
        values = system.score_encoded(Batch(x.repeat(4000 // draws)[:, None]), batch_size=50_000).log_prob
        values = values.view(-1, len(x))
        error = values.std(0) / len(values) ** 0.5
        assert (values.mean(0) < wanted + 4 * error).all()
        bounds.append(values.mean(0))
    assert (bounds[1] > bounds[0] - 0.02).all()
    assert (bounds[1] - bounds[0]).mean() > 0.01
    assert (wanted - bounds[1]).mean() < 0.5 * (wanted - bounds[0]).mean()
    cumulative = lambda v: np.interp(v, line + step / 2, (truth * step).cumsum(0))  # noqa: E731
    assert stats.kstest(system.sample(3000, seed=1)[:, 0], cumulative).pvalue > 1e-3


class Turning(nn.Module):
    """By a quarter of a turn, or as much of it as there are dimensions for."""

    def forward(self, time, x, condition=None):
        if x.shape[1] == 1:
            return torch.sin(3 * x) + time
        return math.pi * torch.stack([-x[:, 1], x[:, 0]], 1)


def test_with_a_further_dimension_points_pass_one_another_and_without_they_cannot():
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    flow = ContinuousFlow(Turning(), 1e-8)
    alone, _ = flow(x)
    assert (alone.diff(dim=0) > 0).all()
    noise = FlowLaw(1)
    noise.still = True
    turned, _ = flow(augment(1, noise)(x)[0])
    torch.testing.assert_close(turned[:, :1], -x, rtol=0, atol=1e-6)


def test_the_extra_dimensions_are_standard_noise_whose_density_is_taken_off():
    layer, x = augment(2, FlowLaw(2)), torch.randn(500, 2, 3, 3)
    y, term = layer(x)
    assert y.shape == (500, 4, 3, 3)
    a = y[:, 2:]
    truth = torch.distributions.Normal(0.0, 1.0).log_prob(a).flatten(1).sum(1)
    torch.testing.assert_close(term, -truth)
    back, minus = layer.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(minus, truth)
    assert stats.kstest(a.flatten().numpy(), "norm").pvalue > 1e-3
    other, _ = layer(x)
    assert not torch.equal(other[:, 2:], a)


def test_an_augmented_flow_wants_an_extra_dimension():
    with pytest.raises(ValueError, match="extra"):
        build("anode", extra=0)


def test_a_code_of_the_augmented_flow_starts_at_zeros_and_is_undone():
    for dense in (0, 256):
        system = build("anode", IMAGE, spread=0.1, dense_dims=dense, tolerance=1e-4)
        x = torch.randint(5, (3, 1, 4, 4))
        z = system._encode(x, None)
        assert z.shape == (3, 18 if dense else 48)
        assert torch.equal(z, system._encode(x, None))
        assert torch.equal(system._decode(z, None), x)


# --- solvers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*POTENTIAL, "rnode"])
def test_training_takes_fixed_steps_and_scoring_its_own(name):
    system, calls = build(name, steps=3).train(), []
    (part,) = system._parts()
    rates = part._rates
    part._rates = lambda time, *rest: calls.append(time) or rates(time, *rest)
    update = next(system.updates(Batch(torch.randn(4, 2)), 0.0))
    assert update.stats["evaluations"].item() == len(calls) == 12
    assert sorted(set(calls)) == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1])
    calls.clear()
    system.score_encoded(Batch(torch.randn(4, 2)))
    assert len(calls) == (part.evaluations if name == "rnode" else 32)
    if name != "rnode":
        with system.turned(sampling_steps=2):
            system.sample(3)
            assert system.sample_evaluations == 8
    assert 0 < system.eval().monitor(Batch(torch.randn(9, 2)))["solver_error"] < 0.05


@pytest.mark.parametrize("how", ["adjoint", "direct"])
def test_the_planar_flow_learns_by_the_adjoint(how):
    system = build("neural-ode", **({} if how == "adjoint" else {"gradients": how})).train()
    nodes, seen = [system.loss(Batch(torch.randn(3, 2))).grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [after for after, _ in node.next_functions]
    assert any("Adjoint" in node.name() for node in seen) == (how == "adjoint")


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns_with_a_condition(name):
    for space in (PLANE, IMAGE):
        system = build(name, space.conditioned_on(label_space(("a", "b"))), 0.1).train()
        x = torch.randint(5, (4, 1, 4, 4)) if space is IMAGE else torch.randn(4, 2)
        system.loss(Batch(x, torch.tensor([[0.0], [1.0], [0.0], [1.0]]))).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in system.parameters())


# --- learning -----------------------------------------------------------------------------------


def ways_taken(system, x, tolerance=1e-5):
    """Log-density and evaluations there and back, all by the adaptive solver."""
    for part in system.eval()._parts():
        part.steps, part.tolerance = 0, tolerance
    with torch.no_grad():
        log_prob = system._point_log_prob(x, None).mean().item()
        there = system._taken()
        system.flow.inverse(torch.randn(len(x), 2, generator=torch.Generator().manual_seed(0)))
    return log_prob, there + system._taken()


@pytest.mark.slow
def test_straight_ways_take_fewer_evaluations_at_nearly_equal_likelihood():
    data = fivefold.load_data("moons")
    x, found = data.test.batch(slice(None)).x, {}
    for name in ("ffjord", "rnode", "ot-flow"):
        weights = {"kinetic": 0.1, "jacobian": 0.1} if name == "rnode" else {}
        system = fivefold.fit(name, data, budget="300steps", batch_size=256, evaluations=1, **weights)
        found[name] = ways_taken(system, x)
    for name in ("rnode", "ot-flow"):
        assert found[name][0] > found["ffjord"][0] - 0.05
        assert found[name][1] < found["ffjord"][1]
