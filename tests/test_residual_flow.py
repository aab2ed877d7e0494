"""Residual flows: series without bias, gradients, norms of layers as maps, inverses and densities against the truth."""

from __future__ import annotations

import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import fivefold
from fivefold.bijections import residual
from fivefold.bijections.residual import Residual, SeriesOptions
from fivefold.bijections.shape import FactorOut
from fivefold.flow.residual_flow import ResidualFlow
from fivefold.nets.lipschitz import ContractiveNet, LipSwish, linearised
from fivefold.nets.norm import NormBound, bounded
from fivefold.space import Batch, Column, Space, label_space
from fivefold.system import Density
from fivefold.tools.divergence import rademacher
from fivefold.tools.fixed_point import fixed_point
from fivefold.tools.roulette import exact_log_det, log_det_series, roulette_weights

IMAGE = Space("image", (2, 5, 4), levels=5)
PLANE = Space("table", (2,), columns=(Column("x"), Column("y", scale=3.0)))


def contraction(shape=(3,), scale=0.5, condition=0):
    """A net of a Lipschitz constant of `scale`^3 at most, and inputs."""
    torch.manual_seed(0)
    net = ContractiveNet(shape, 6, condition, scale, "elu").double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.7)
    return net.eval(), torch.randn(2, *shape, dtype=torch.float64).requires_grad_()


def jacobian_of(f, x):
    """Of one example `(*shape)`."""
    return torch.autograd.functional.jacobian(lambda one: f(one[None])[0].flatten(), x).reshape(-1, x.numel())


def operator_norm(layer, shape):
    return torch.linalg.matrix_norm(jacobian_of(layer, torch.zeros(shape)), 2).item()


def exact(net, x):
    return torch.stack(
        [torch.linalg.slogdet(torch.eye(one.numel()).to(one) + jacobian_of(net, one)).logabsdet for one in x]
    )


def within(draws, truth, errors=4.0):
    error = draws.std(0) / math.sqrt(len(draws))
    return ((draws.mean(0) - truth).abs() < errors * error + 1e-9).all()


def estimate(net, x, weights):
    probe = rademacher(x)
    _, pull, pair = linearised(net, x, None, probe)
    return log_det_series(pull, pair, probe, weights)


def estimates(net, x, weights_of, n=20_000):
    """Draws `(n, B)`, made in one batch: each row has its own probe and end."""
    many = x.detach().repeat(n, 1)
    with torch.no_grad():
        return estimate(net, many, weights_of(len(many))).view(n, -1)


def test_the_roulette_is_unbiased_and_a_cut_series_is_not():
    torch.manual_seed(0)
    axis = nn.functional.normalize(torch.randn(3, 1, dtype=torch.float64), dim=0)
    reflection, x = torch.eye(3).double() - 2 * axis @ axis.T, 0.5 * torch.randn(2, 3, dtype=torch.float64)
    x.requires_grad_()

    def net(x, condition=None):
        return 0.6 * (x @ reflection).sin()

    truth = exact(net, x)
    torch.testing.assert_close(exact_log_det(net(x), x), truth)
    assert within(estimates(net, x, partial(roulette_weights, 2, 0.5)), truth)
    cut = estimates(net, x, lambda n: torch.ones(2, 1))
    assert not within(cut, truth)
    unweighted = estimates(net, x, lambda n: (roulette_weights(2, 0.5, n) > 0).double())
    assert not within(unweighted, truth)


def test_every_terms_weight_has_mean_one():
    weights = roulette_weights(2, 0.4, 50_000)
    assert torch.equal(weights[:3], torch.ones(3, 50_000))  # two exact, and the first of the others
    torch.testing.assert_close(weights[:7].mean(1), torch.ones(7).double(), atol=0.05, rtol=0)
    assert len({len(roulette_weights(2, 0.5)) for _ in range(50)}) > 2
    with pytest.raises(ValueError, match="stop in"):
        roulette_weights(2, 1.0)


def test_training_ends_the_series_once_a_batch_and_scoring_for_each_example(monkeypatch):
    """And only scores may take the whole Jacobian."""
    seen, (net, x) = [], contraction()
    monkeypatch.setattr(residual, "roulette_weights", lambda *given: seen.append(given) or roulette_weights(*given))
    for exact, ends in ((True, [(2, 0.5, 1)]), (False, [(2, 0.5, 1), (10, 0.5, len(x))])):
        block = Residual(net, SeriesOptions(exact, terms=2, score_terms=10, stop=0.5))
        seen.clear()
        block.train()(x), block.eval()(x)
        assert seen == ends


def gradient_draws(net, x, weights_of, draws):
    rows = []
    for _ in range(draws):
        value = estimate(net, x, weights_of()).sum()
        rows.append(torch.cat([d.flatten() for d in torch.autograd.grad(value, (net.layers[0].bias, x))]))
    return torch.stack(rows)


def test_the_neumann_gradient_is_unbiased():
    """By parameters and, through which earlier blocks learn, by the input."""
    net, x = contraction(scale=0.95)
    truth = torch.autograd.grad(exact_log_det(net(x), x).sum(), (net.layers[0].bias, x))
    truth = torch.cat([d.flatten() for d in truth])
    assert truth.abs().max() > 0.01
    assert within(gradient_draws(net, x, lambda: roulette_weights(2, 0.5), 1500), truth)
    assert not within(gradient_draws(net, x, lambda: torch.ones(0, 1), 1500), truth)  # the series' first term alone


def kept_bytes(net, x, terms):
    """Of what the graph of an estimate holds."""
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = estimate(net, x, torch.ones(terms, 1))
    return sum(kept.values()), value


def test_memory_does_not_grow_with_the_terms():
    net, x = contraction()
    few, _ = kept_bytes(net, x, 2)
    many, _ = kept_bytes(net, x, 30)
    assert many <= 1.1 * few


LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "3x3": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 5, 4)),
    "1x1": (lambda: nn.Conv2d(3, 2, 1), (3, 4, 3)),
    "strided": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 6, 5)),
    "one pixel": (lambda: nn.Conv2d(1, 1, 3, padding=1), (1, 1, 1)),
}


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_norms_are_those_of_the_maps_and_stay_bounded_while_training(make, shape):
    torch.manual_seed(1)
    layer = make()
    small = 0.05 * layer.weight.detach().clone()
    nn.init.normal_(layer.weight, std=3.0)
    free = operator_norm(layer_without_bias(layer), shape)
    layer = bounded(layer, 0.98, shape[1:])
    optimizer = torch.optim.SGD(layer.parameters(), 0.05)
    for _ in range(10):
        (-layer(torch.randn(16, *shape)).square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():  # every step's iteration went on from where the last one's ended, at the largest by now
        raw, bound = layer.parametrizations.weight.original, layer.parametrizations.weight[0]
        found = bound.linear.apply(raw, bound.right).norm() / bound.right.norm() * (layer.eval().weight / raw).mean()
    assert found.item() == pytest.approx(0.98, rel=0.02)
    for mode in (layer.train(), layer.eval()):
        assert 0.95 < operator_norm(layer_without_bias(mode), shape) < 0.98
    assert free > 0.98
    with torch.no_grad():  # what is smaller is left alone
        layer.parametrizations.weight.original.copy_(small)
    torch.testing.assert_close(layer.weight, small)


def layer_without_bias(layer):
    return lambda x: layer(x) - layer(torch.zeros_like(x))


def test_lipswish_has_a_slope_of_at_most_one():
    x = torch.linspace(-30, 30, 200_001, dtype=torch.float64, requires_grad=True)
    for raw in (-1.0, 0.5, 4.0):
        activation = LipSwish().double()
        activation.raw.data.fill_(raw)
        slope = torch.autograd.grad(activation(x).sum(), x)[0]
        assert 0.99 < slope.max() <= 1
        assert slope.min() > -1
        beta = nn.functional.softplus(activation.raw)
        torch.testing.assert_close(activation(x), x * torch.sigmoid(beta * x) / 1.1)


@pytest.mark.parametrize("shape", [(6,), (2, 4, 3)], ids=["table", "image"])
def test_a_block_inverts_and_a_condition_moves_it_within_its_bound(shape):
    net, x = contraction(shape, 0.98, condition=3)
    block = Residual(net, SeriesOptions(exact=True, tolerance=1e-12)).eval()
    conditions = torch.randn(2, 3, dtype=torch.float64), 100 * torch.randn(2, 3, dtype=torch.float64)
    outputs = []
    for condition in conditions:
        y, log_det = block(x, condition)
        back, minus = block.inverse(y.detach(), condition)
        torch.testing.assert_close(back, x.detach(), atol=1e-10, rtol=0)
        torch.testing.assert_close(minus, -log_det.detach(), atol=1e-8, rtol=0)
        assert block.error <= 1e-12
        assert block.steps > 3
        for one, c in zip(x, condition, strict=True):
            assert torch.linalg.matrix_norm(jacobian_of(lambda v, c=c: net(v, c[None]), one), 2) < 0.98**3
        outputs.append(y)
    inside = (6, *shape[1:])
    for layer, size in zip(net.float().layers, (shape, inside, inside), strict=True):
        assert operator_norm(layer_without_bias(layer), size) < 0.98
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_the_tolerance_of_the_inverse_is_a_dial():
    """Turned, it bounds every block's last step and takes fewer of them; densities stay, and so does the option."""
    system, found = moved(IMAGE, tolerance=1e-5), {}
    x = system.sample_encoded(8, seed=0)
    before = system.score_encoded(Batch(x)).log_prob
    for tolerance in (0.3, 1e-2, 1e-6):
        with system.turned(tolerance=tolerance):
            system.sample_encoded(8, seed=0)
            assert max(block.error for block in system._residuals()) <= tolerance
            found[tolerance] = system.sample_evaluations
            assert torch.equal(system.score_encoded(Batch(x)).log_prob, before)
    assert found[0.3] < found[1e-2] < found[1e-6]
    system.sample_encoded(1)
    assert {block.options.tolerance for block in system._residuals()} == {1e-5}


def test_an_inverse_that_does_not_converge_is_told(monkeypatch):
    net, x = contraction()
    block = Residual(net, SeriesOptions(exact=True, tolerance=1e-12)).eval()
    monkeypatch.setattr(residual, "MOST_STEPS", 2)
    with pytest.warns(RuntimeWarning, match="did not converge"):
        block.inverse(x.detach())
    assert block.error > 1e-12
    assert fixed_point(lambda v: 2 * v + 1, torch.ones(1), 1e-3, 5).error > 0.1


def moved(space, **options):
    torch.manual_seed(0)
    system = ResidualFlow(space, **{"blocks": 1, "hidden": 8, "layers": 2, "width": 8, **options})
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return system.eval()


@pytest.mark.parametrize("options", [{}, {"factor_out": True, "squeeze_first": True, "activation": "elu"}])
def test_a_flow_comes_back_and_knows_its_determinant(options):
    system = moved(Space("image", (1, 8, 4), levels=5), exact_dims=32, **options)
    x = torch.randint(5, (3, 1, 8, 4))
    y = (2 * (x + 0.5) / 5 - 1).double()
    system.double()
    factored = [part for part in system.modules() if isinstance(part, FactorOut)]
    assert [part.keep for part in factored] == ([8] if options else [])
    z, log_det = system.flow(y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back, _ = system.flow.inverse(z)
    torch.testing.assert_close(back, y, atol=1e-5, rtol=0)
    assert 0 < system.sample_evaluations < 1000
    for one, value in zip(y, log_det, strict=True):
        truth = torch.linalg.slogdet(jacobian_of(lambda v: system.flow(v)[0], one)).logabsdet
        torch.testing.assert_close(value.detach(), truth, atol=1e-6, rtol=0)
    assert system.monitor(Batch(x))["inverse_error"] < 1e-5


REAL = Space("table", (6,), columns=tuple(Column(str(i)) for i in range(6)))


@pytest.mark.parametrize("space", [REAL, Space("image", (1, 2, 3), levels=4)], ids=["real", "discrete"])
def test_scores_by_the_series_agree_with_exact_ones_within_their_error(space):
    """On discrete data both are means of logarithms where the exact one takes one point in a cell at a time."""
    x, discrete = torch.randn(5, 6) if space is REAL else torch.randint(4, (5, 1, 2, 3)), space is not REAL
    exact = moved(space, score_samples=1)
    draws = exact.score_encoded(Batch(x.repeat(1000, *[1] * (x.dim() - 1)))).log_prob.view(1000, 5)
    estimated = moved(space, score_samples=1000, exact_dims=5)
    assert exact.density is (Density.LOWER_BOUND if discrete else Density.EXACT)
    assert estimated.density is (Density.LOWER_BOUND if discrete else Density.ESTIMATE)
    assert bool(draws.std(0).max() > 1e-3) is discrete
    score = estimated.score_encoded(Batch(x))
    assert (score.standard_error > 0).all()
    assert (score.standard_error < 0.2).all()
    error = (score.standard_error**2 + draws.var(0) / len(draws)).sqrt()
    assert ((score.log_prob - draws.mean(0)).abs() < 4 * error).all()


def test_training_moves_everything_and_the_density_integrates_to_one():
    """On the plane, by quadrature in the user's units."""
    system = ResidualFlow(PLANE, blocks=1, layers=2, width=16).train()
    optimizer = torch.optim.Adam(system.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        angle = torch.rand(128, generator=generator) * math.pi
        x = torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(128, 2, generator=generator)
        loss = system.loss(Batch(x))
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in system.parameters())
        optimizer.step()
        optimizer.zero_grad()
    a, b = np.linspace(-12, 12, 400), np.linspace(-36, 36, 400)
    grid = np.stack(np.meshgrid(a, b, indexing="ij"), -1).reshape(-1, 2)
    total = system.score(grid, batch_size=50_000).log_prob.exp().sum().item() * (a[1] - a[0]) * (b[1] - b[0])
    assert total == pytest.approx(1, abs=5e-3)
    samples = torch.as_tensor(np.asarray(system.sample(500, seed=0)) / np.array([1, 3]))
    assert (samples.norm(dim=1) - 1).abs().mean() < 0.5
    for block in (part for part in system.flow.modules() if isinstance(part, Residual)):
        jacobian = jacobian_of(block.net, torch.randn(2))
        assert torch.linalg.matrix_norm(jacobian, 2) < 0.98**3
    assert {NormBound, LipSwish} <= {type(part) for part in system.modules()}


def test_refuses_what_does_not_invert():
    with pytest.raises(ValueError, match="coefficient"):
        ResidualFlow(PLANE, coefficient=1.0)


def test_conditions():
    system = moved(IMAGE.conditioned_on(label_space(("a", "b"))))
    x = system.sample(4, "a", seed=0)
    first, second = (system.score(x, label) for label in "ab")
    assert (first.log_prob - second.log_prob).abs().min() > 1e-3
    assert (x != system.sample(4, "b", seed=0)).any()


@pytest.mark.slow
def test_learns_digits():
    data = fivefold.load_data("digits")
    system = fivefold.fit("residual-flow", data, budget="300steps")
    nats = system.score_encoded(data.test.batch(slice(None))).log_prob.mean()
    assert -nats / data.space.dims / math.log(2) < 3.0
