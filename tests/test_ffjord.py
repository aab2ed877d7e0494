"""Continuous flows against closed forms and autograd; FFJORD's trace, probe, evaluations and kinds of density."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fivefold.bijections import ode
from fivefold.bijections.ode import ContinuousFlow
from fivefold.flow._continuous import Solver
from fivefold.flow.ffjord import FFJORD
from fivefold.nets.velocity import ConcatLayer, SquashLayer, Velocity
from fivefold.space import Batch, Column, Space, label_space
from fivefold.system import Density, seeded
from fivefold.tools.divergence import with_divergence, with_jacobian
from fivefold.tools.ode import runge_kutta

MATRIX = torch.tensor([[0.3, 1.2, 0.0], [-0.7, -0.5, 0.4], [0.2, 0.0, 0.9]], dtype=torch.float64)
PLANE = Space("table", (2,), columns=(Column("x"), Column("y", scale=3.0)))
IMAGE = Space("image", (1, 8, 8), levels=17)
SMALL = {"hidden": 16, "channels": 8}


class Linear(nn.Module):
    def forward(self, time, x, condition=None):
        return x @ MATRIX.T


class Expanding(nn.Module):
    def __init__(self, velocity):
        super().__init__()
        self.velocity = velocity

    def forward(self, time, x, condition=None):
        return self.velocity(time, x, condition) + 0.2 * x


def velocity(shape=(3,), condition=0, time_layer="concatsquash", spread=0.5):
    """A small network whose parameters were moved from their start, where it is 0."""
    torch.manual_seed(0)
    net = Velocity(shape, 8, 2, condition, time_layer).double()
    for parameter in net.parameters():
        parameter.data.add_(spread * torch.randn_like(parameter))
    return net


def build(space=PLANE, spread=0.8, **options):
    torch.manual_seed(0)
    system = FFJORD(space, **{**SMALL, **options}).eval()
    for parameter in system.parameters():
        parameter.data.add_(spread * torch.randn_like(parameter))
    return system


def points(n=5):
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def probes(monkeypatch):
    """The probe of every divergence that is taken."""
    seen = []

    def watched(f, x, probe=None):
        seen.append(probe)
        return with_jacobian(f, x, probe)

    monkeypatch.setattr(ode, "with_jacobian", watched)
    return seen


# --- the bijection ------------------------------------------------------------------------------


def test_a_linear_field_is_the_matrix_exponential_and_its_log_det_the_trace():
    flow, x = ContinuousFlow(Linear(), 1e-9).eval(), points()
    y, log_det = flow(x)
    torch.testing.assert_close(y, x @ torch.linalg.matrix_exp(MATRIX).T)
    torch.testing.assert_close(log_det, MATRIX.trace().expand(5))
    back, back_log_det = flow.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(back_log_det, -log_det)


def test_hutchinsons_trace_is_unbiased_and_has_one_probe_an_example_for_the_whole_way(probes):
    flow, x = ContinuousFlow(Linear(), 1e-6, trace="hutchinson"), points(1).repeat(4000, 1)
    _, log_det = flow(x)
    assert log_det.std() > 0.1
    assert abs(log_det.mean() - MATRIX.trace()) < 4 * log_det.std() / math.sqrt(4000)
    assert len(probes) == flow.evaluations
    assert all(torch.equal(probe, probes[0]) for probe in probes)
    assert probes[0].unique(dim=0).tolist() == [[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]
    flow(x)
    assert not torch.equal(probes[-1], probes[0])  # and another for the next


def test_a_probe_for_each_evaluation_would_cost_the_solver_far_more(monkeypatch):
    flow, x = ContinuousFlow(velocity(), 1e-4, trace="hutchinson"), points()
    flow(x)
    held = flow.evaluations
    fresh = lambda f, x, probe: with_jacobian(f, x, ode.rademacher(x))  # noqa: E731
    monkeypatch.setattr(ode, "with_jacobian", fresh)
    try:
        flow(x)
        assert flow.evaluations > 5 * held
    except RuntimeError as error:
        assert "could not be solved" in str(error)  # noqa: PT017


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("time_layer", ["concat", "concatsquash"])
def test_log_det_is_that_of_autograds_jacobian(time_layer, direction):
    flow, x = ContinuousFlow(velocity(time_layer=time_layer), 1e-8).eval(), points()
    run = getattr(flow, direction)
    _, log_det = run(x)
    jacobians = [torch.autograd.functional.jacobian(lambda row: run(row[None])[0][0], row) for row in x]
    torch.testing.assert_close(log_det, torch.stack([j.slogdet()[1] for j in jacobians]), rtol=1e-5, atol=1e-6)
    assert log_det.abs().min() > 1e-2


def gradients(flow, x, condition, solve=None):
    x, condition = x.clone().requires_grad_(), condition.clone().requires_grad_()
    with seeded(0):
        y, log_det = flow(x, condition * 1.0) if solve is None else solve(x, condition)
    loss = y.sin().sum() + log_det.sum()
    return torch.autograd.grad(loss, [x, condition, *flow.velocity.parameters()])


def test_gradients_direct_and_by_the_adjoint_are_those_of_many_small_steps():
    """Of the state, the condition and the parameters, through the estimated trace."""
    net, x, condition = velocity(condition=2), points(), points()[:, :2].clone()

    def small_steps(x, condition):
        probe = ode.rademacher(x)
        f = lambda t, s: with_divergence(lambda p: net(t, p, condition), s[0], probe)  # noqa: E731
        return runge_kutta(f, (x, x.new_zeros(len(x))), 0, 1, 60).state

    truth = gradients(ContinuousFlow(net), x, condition, small_steps)
    for how in ("direct", "adjoint"):
        flow = ContinuousFlow(net, 1e-8, gradients=how)
        for a, b in zip(truth, gradients(flow, x, condition), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
            assert a.abs().max() > 1e-3


def test_the_adjoint_keeps_no_graph_of_the_steps():
    for how, name in (("direct", "Adjoint"), ("adjoint", "Adjoint")):
        y, _ = ContinuousFlow(velocity(), gradients=how)(points())
        nodes, seen = [y.grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is not None and node not in seen:
                seen.add(node)
                nodes += [after for after, _ in node.next_functions]
        assert any(name in node.name() for node in seen) == (how == "adjoint")
        assert (len(seen) < 30) == (how == "adjoint")


@pytest.mark.parametrize("shape", [(3,), (2, 4, 5)])
@pytest.mark.parametrize("time_layer", ["concat", "concatsquash"])
def test_velocities_depend_on_time_and_condition_and_start_at_zero(shape, time_layer):
    x, one = torch.randn(2, *shape).double(), torch.ones(2, 4).double()
    assert Velocity(shape, 8, 2, 0, time_layer).double()(0.3, x).abs().max() == 0
    net = velocity(shape, 4, time_layer)
    assert not torch.allclose(net(0.1, x, one), net(0.9, x, one))
    assert not torch.allclose(net(0.1, x, one), net(0.1, x, -one))
    assert net(0.1, x, one).shape == x.shape


def test_time_and_condition_gate_and_shift_a_squashed_layer_and_are_channels_of_the_other():
    """Eq. by eq. of the reference: (W x) sigmoid(gate) + shift, and W [x; context] + b."""
    torch.manual_seed(0)
    x, context = torch.randn(5, 3, 4, 4), torch.randn(5, 2)
    squash, concat = SquashLayer(3, 6, 2, spatial=True), ConcatLayer(3, 6, 2, spatial=True)
    gate, shift = squash.modulate(context)[:, :, None, None].chunk(2, 1)
    torch.testing.assert_close(squash(x, context), squash.layer(x) * gate.sigmoid() + shift)
    maps = context[:, :, None, None].expand(-1, -1, 4, 4)
    torch.testing.assert_close(concat(x, context), concat.layer(torch.cat([x, maps], 1)))


def test_flows_of_vectors_come_after_an_actnorm_that_data_start():
    torch.manual_seed(0)
    system, x = FFJORD(PLANE, **SMALL).train(), 5 + 3 * torch.randn(500, 2)
    system.loss(Batch(x))
    z = system.eval().flow(x)[0]  # velocities start at 0
    torch.testing.assert_close(torch.stack([z.mean(0), z.std(0)]), torch.tensor([[0.0, 0], [1, 1]]), atol=0.01, rtol=0)


# --- the system ---------------------------------------------------------------------------------


def total(system):
    """The integral of the density of the plane, by quadrature in the user's units."""
    x, y = torch.linspace(-20, 20, 200), torch.linspace(-60, 60, 200)
    grid = torch.cartesian_prod(x, y).numpy()
    return system.score(grid, batch_size=80_000).log_prob.exp().sum().item() * (x[1] - x[0]) * (y[1] - y[0])


def test_density_integrates_to_one_and_without_the_trace_does_not():
    system = build(tolerance=1e-4)
    (part,) = system._parts()
    part.velocity = Expanding(part.velocity)
    assert system.density is Density.EXACT
    assert total(system) == pytest.approx(1, abs=2e-3)
    with system._solving(Solver(0, 1e-4), "none"):
        assert total(system) < 0.8


def test_trace_is_estimated_in_training_exact_in_evaluation_and_left_out_of_samples(probes):
    system, batch = build(), Batch(torch.randn(4, 2))
    system.loss(batch)
    assert all(probe is None for probe in probes)
    assert probes
    probes.clear()
    system.train().loss(batch)
    assert all(probe is not None for probe in probes)
    assert probes
    probes.clear()
    system.eval().sample(3)
    system.reconstruct(system.sample(3))
    assert not probes


@pytest.mark.parametrize("space", [PLANE, Space("image", (1, 2, 2), levels=3)])
def test_beyond_exact_dims_the_density_is_an_estimate_with_an_error(space):
    system, few = build(space, score_samples=200), build(space, exact_dims=1, score_samples=200)
    discrete = space.levels is not None
    assert few.density is (Density.LOWER_BOUND if discrete else Density.ESTIMATE)
    assert "Hutchinson" in few.density_note
    assert "exact trace" in system.density_note
    x = torch.randint(3, (6, *space.shape)) if discrete else torch.randn(6, *space.shape)
    exact, estimate = system.score_encoded(Batch(x)), few.score_encoded(Batch(x))
    assert (estimate.standard_error > 1e-3).all()
    if discrete:  # the mean of logarithms lies below the logarithm of the mean
        assert (estimate.log_prob < exact.log_prob + 4 * estimate.standard_error).all()
    else:
        assert ((exact.log_prob - estimate.log_prob).abs() < 4 * estimate.standard_error + 0.02).all()
        assert not exact.standard_error.any()


def test_evaluations_are_counted_and_told():
    system, calls = build(), []
    for part in system._parts():
        part.velocity.register_forward_pre_hook(lambda *_: calls.append(1))
    update = next(system.train().updates(Batch(torch.randn(8, 2)), 0.0))
    assert update.stats["evaluations"].item() == len(calls) > 0
    counts = []
    for tolerance in (1e-1, 1e-5):
        calls.clear()
        with system.turned(sampling_tolerance=tolerance):
            system.sample(10, seed=0)
        counts.append(system.sample_evaluations)
        assert counts[-1] == len(calls)
    assert counts[0] < counts[1]


def test_the_dial_moves_samples_and_not_densities():
    system, x = build(), [[0.3, -1.0]]
    density, fine = system.log_prob(x), system.sample(50, seed=0)
    with system.turned(sampling_tolerance=0.3):
        assert torch.equal(system.log_prob(x), density)
        assert abs(system.sample(50, seed=0) - fine).max() > 1e-4


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3])
@pytest.mark.parametrize("dense", [0, 256])
def test_tolerance_bounds_the_measured_error_and_codes_are_undone(tolerance, dense):
    system = build(IMAGE, spread=0.1, tolerance=tolerance, dense_dims=dense, channels=4)
    batch = Batch(torch.randint(17, (3, 1, 8, 8)))
    measured = system.monitor(batch)
    assert 1e-9 < measured["solver_error"] < 50 * tolerance
    assert min(measured["evaluations"], measured["evaluations_sampling"]) >= 8
    z = system._encode(batch.x, None)
    assert z.shape == (3, 64)
    assert (z - system.flow(system.flow.inverse(z)[0])[0]).abs().max() < 20 * tolerance
    assert torch.equal(system._decode(z, None), batch.x)


@pytest.mark.parametrize(
    ("shape", "sides"), [((1, 28, 28), [28, 14, 14, 7, 7]), ((3, 8, 8), [8, 4, 4]), ((2, 9, 6), [9])]
)
def test_images_are_multi_scale_as_in_the_paper(shape, sides):
    """Flows before and after each squeeze; the last scale has one row of them."""
    system = build(Space("image", shape, levels=4), flows=1, dense_dims=0)
    seen = []
    for part in system._parts():
        part.velocity.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[1].shape[1:])))
    system.loss(Batch(torch.randint(4, (2, *shape))))
    assert [size[1] for size in dict.fromkeys(seen)] == sides
    assert system.sample(1).shape[0] == 1


@pytest.mark.parametrize("gradients", ["direct", "adjoint"])
def test_every_parameter_learns_with_a_condition(gradients):
    for space in (PLANE, IMAGE):
        system = build(space.conditioned_on(label_space(("a", "b"))), 0.1, gradients=gradients, dense_dims=0).train()
        x = torch.randint(17, (4, 1, 8, 8)) if space is IMAGE else torch.randn(4, 2)
        system.loss(Batch(x, torch.tensor([[0.0], [1.0], [0.0], [1.0]]))).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in system.parameters())
