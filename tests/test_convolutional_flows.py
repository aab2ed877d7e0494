"""Invertible convolutions against dense matrices, what makes each itself, and their flows as densities of images."""

import numpy as np
import pytest
import torch
from torch.autograd.functional import jacobian
from torch.nn import functional as F

from fivefold.bijections import convolution
from fivefold.bijections.base import Chain
from fivefold.bijections.convolution import AutoregressiveConv, ConvExp, PeriodicConv, Turned, emerging, fronts
from fivefold.bijections.linear import LULinear
from fivefold.bijections.masked_convolution import MaskedConv, MintLayer, macow_unit
from fivefold.bijections.shape import FactorOut
from fivefold.bijections.transforms import Affine
from fivefold.catalog import find
from fivefold.errors import Unfit
from fivefold.space import Batch, Space
from fivefold.system import Density
from fivefold.tools.roots import invert_triangular
from tests import test_flows as flows
from tests.systems import follow

NAMES = ["emerging", "periodic-flow", "conv-exp-flow", "macow", "mintnet"]
IMAGES = {key: space for key, space in flows.SPACES.items() if space.kind == "image"}
SHAPES = [(1, 1, 1), (2, 1, 4), (3, 4, 5), (2, 5, 4)]


def randomised(part, spread=0.3):
    torch.manual_seed(0)
    for parameter in part.double().parameters():
        torch.nn.init.normal_(parameter, std=spread)
    return part


def dense(part, shape, condition=None):
    """The Jacobian `(D, D)` at one random image."""
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64)
    return jacobian(lambda x: part(x[None], condition)[0].flatten(), x).reshape(x.numel(), -1)


def reach(matrix, shape, row, column):
    """Offsets (rows, columns) of the pixels that a pixel depends on, by a Jacobian."""
    grid = matrix.view(*shape, *shape)[:, row, column].abs().sum((0, 1)) > 1e-12
    return {(r - row, c - column) for r, c in grid.nonzero().tolist()}


# --- linear convolutions ------------------------------------------------------------------------

LINEAR = {
    "autoregressive": lambda channels: AutoregressiveConv(channels, 2, right=1),
    "emerging": emerging,
    "periodic": PeriodicConv,
    "exponential": ConvExp,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", LINEAR.values(), ids=LINEAR)
def test_log_determinant_is_that_of_the_dense_matrix(make, shape):
    part = randomised(make(shape[0]))
    matrix = dense(part, shape)
    for found in part(torch.randn(3, *shape, dtype=torch.float64))[1]:
        torch.testing.assert_close(found, torch.linalg.slogdet(matrix).logabsdet)
    y = torch.randn(3, *shape, dtype=torch.float64)
    truth = torch.linalg.solve(matrix, y.flatten(1).T).T.view_as(y)
    torch.testing.assert_close(part.inverse(y)[0], truth, rtol=1e-6, atol=1e-6)


def test_an_inverse_can_be_differentiated():
    part, y = randomised(emerging(2)), torch.randn(1, 2, 2, 3, dtype=torch.float64)
    matrix = jacobian(lambda y: part.inverse(y)[0].flatten(), y).reshape(12, 12)
    torch.testing.assert_close(matrix @ dense(part, (2, 2, 3)), torch.eye(12, dtype=torch.float64))


def test_without_its_mask_a_convolution_is_not_triangular_and_its_log_determinant_wrong():
    part = randomised(AutoregressiveConv(2, 2, right=1))
    part.mask.fill_(1)
    part.mask[:, :, -1, 1] = 0  # the diagonal's own
    error = dense(part, (2, 3, 3)).slogdet().logabsdet - part(torch.zeros(1, 2, 3, 3, dtype=torch.float64))[1]
    assert error.abs() > 0.1


def test_emerging_orders_are_opposite_and_together_see_a_whole_kernel():
    part, shape = randomised(emerging(2)), (2, 5, 5)
    last = torch.arange(50).view(shape).movedim(0, -1).flatten()  # pixels in rows, their channels in turn
    first, second = (dense(one, shape)[last][:, last] for one in part.parts)
    assert first.triu(1).abs().max() == 0
    assert second.tril(-1).abs().max() == 0
    assert (first.tril(-1).abs().max() > 0.1) & (second.triu(1).abs().max() > 0.1)
    assert reach(dense(part, shape), shape, 2, 2) == {(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)}
    same = Chain(part.parts[0], part.parts[0])  # one order twice sees one side alone
    assert (2, 2) not in reach(dense(same, shape), shape, 2, 2)
    assert all(offset <= (0, 0) for offset in reach(dense(same, shape), shape, 2, 2))


@pytest.mark.parametrize("right", [0, 1, 2])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (6, 1), (7, 9)])
def test_fronts_are_few_and_need_only_those_before_them(height, width, right):
    groups = fronts(height, width, right)
    assert len(groups) == (1 + right) * (height - 1) + width
    when = torch.full((height, width), -1)
    for t, (rows, columns) in enumerate(groups):
        assert (when[rows, columns] == -1).all()
        when[rows, columns] = t
    assert (when >= 0).all()
    assert (when[:, 1:] > when[:, :-1]).all()
    for c in range(-2, right + 1):  # of the row above
        here, there = when[1:, max(0, -c) : width - max(0, c)], when[:-1, max(0, c) : width + min(0, c)]
        assert (here > there).all()


def test_an_emerging_inverse_takes_as_many_steps_as_there_are_anti_diagonals(monkeypatch):
    calls, seen = [], convolution._seen
    monkeypatch.setattr(convolution, "_seen", lambda *given: calls.append(1) or seen(*given))
    emerging(2).inverse(torch.zeros(3, 2, 6, 9))
    assert len(calls) == 2 * (6 + 9 - 1)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 4, 4), (1, 2, 1), (2, 1, 6)])
def test_a_periodic_convolution_goes_round_and_counts_every_frequency(shape):
    part, x = randomised(PeriodicConv(shape[0])), torch.randn(2, *shape, dtype=torch.float64)
    round_ = x[:, :, torch.arange(-1, shape[1] + 1) % shape[1]][..., torch.arange(-1, shape[2] + 1) % shape[2]]
    y, log_det = part(x)
    torch.testing.assert_close(y, F.conv2d(round_, part.weight))
    logs = torch.linalg.slogdet(part._matrices(x)).logabsdet
    assert logs.shape == (shape[1], shape[2] // 2 + 1)  # half of them, the others being conjugates
    whole = torch.stack(
        [logs[-u % shape[1], shape[2] - v] for u in range(shape[1]) for v in range(logs.shape[1], shape[2])]
        or [logs.new_zeros(())]
    )
    torch.testing.assert_close(log_det[0], logs.sum() + whole.sum())
    if shape[2] > 2:
        assert (log_det[0] - logs.sum()).abs() > 1e-3


@pytest.mark.parametrize("spread", [0.02, 0.1, 3.0])
def test_the_exponential_is_the_matrix_exponential_by_few_terms(spread, monkeypatch):
    part, shape = randomised(ConvExp(3), spread), (3, 4, 5)
    kernel, norm = part.bounded()
    matrix = jacobian(lambda x: F.conv2d(x[None], kernel, padding=1).flatten(), torch.zeros(shape).double())
    matrix = matrix.reshape(60, 60)
    assert torch.linalg.matrix_norm(matrix, 2) <= norm <= part.limit + 1e-12
    torch.testing.assert_close(dense(part, shape), torch.linalg.matrix_exp(matrix))
    torch.testing.assert_close(part(torch.zeros(1, *shape).double())[1][0], matrix.trace())
    calls, conv = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *given, **options: calls.append(1) or conv(*given, **options))
    x, single = torch.randn(2, *shape), part.float()
    y, _ = single(x)
    assert len(calls) <= {0.02: 12, 0.1: 16, 3.0: 20}[spread]
    torch.testing.assert_close(single.inverse(y)[0], x, rtol=0, atol=1e-5)


# --- masked convolutions ------------------------------------------------------------------------


def test_macow_sees_above_below_left_and_right_and_only_near():
    unit, shape = randomised(macow_unit(1, Affine())), (1, 7, 7)
    masked = [part for part in unit.parts if isinstance(part, Turned)]
    above = {(r, c) for r in (-2, -1) for c in (-1, 0, 1)} | {(0, 0)}
    below = {(-r, c) for r, c in above}
    seen = [reach(dense(part, shape), shape, 3, 3) for part in masked]
    assert seen == [above, below, {(c, r) for r, c in above}, {(c, r) for r, c in below}]
    matrix = dense(unit, shape)
    assert (matrix.triu(1).abs().max() > 1e-3) & (matrix.tril(-1).abs().max() > 1e-3)


def test_a_macow_inverse_takes_a_row_or_a_column_at_a_time(monkeypatch):
    calls, inverse = [], Affine.inverse
    monkeypatch.setattr(Affine, "inverse", lambda *given: calls.append(given[1].shape) or inverse(*given))
    macow_unit(2, Affine()).inverse(torch.zeros(3, 2, 6, 9))
    assert calls == [(3, 2, 1, 6)] * 18 + [(3, 2, 1, 9)] * 12


def test_mint_layers_increase_because_of_their_signs():
    """The slope is never below the scale's part; with signs as they come it is."""
    layer, x = randomised(MintLayer((2, 4, 4), 12), 1.0), 3 * torch.randn(50, 2, 4, 4, dtype=torch.float64)
    slope, least = layer._map(x, None)[1], layer.log_scale.exp()
    assert (slope >= least).all()
    assert (slope > least + 0.1).any()
    own = layer._own()
    layer._own = lambda: (own[0], layer.second.own, own[2])
    assert (layer._map(x, None)[1] < 0).any()


@pytest.mark.parametrize("spread", [0.1, 0.4])
def test_a_mint_inverse_takes_few_steps(spread):
    layer, x = randomised(MintLayer((2, 6, 6), 16), spread), 3 * torch.randn(8, 2, 6, 6, dtype=torch.float64)
    layer.tolerance = 1e-8
    back, _ = layer.inverse(layer(x)[0])
    torch.testing.assert_close(back, x, rtol=0, atol=1e-6)
    assert layer.steps < 2 * 72


def chain(bend):
    """y_i = bend(x_i) + sin(3 x_(i-1)) - x_(i-2) / 2, triangular."""

    def f(x):
        one, two = F.pad(x, (1, 0))[..., :-1], F.pad(x, (2, 0))[..., :-2]
        value, slope = bend(x)
        return value + torch.sin(3 * one) - two / 2, slope

    return f


def test_a_triangular_map_that_is_affine_is_inverted_in_as_many_steps_as_its_chain_has_links():
    torch.manual_seed(0)
    matrix = torch.randn(9, 9, dtype=torch.float64).tril(-1) + torch.diag(torch.rand(9, dtype=torch.float64) + 0.5)
    x = torch.randn(4, 9, dtype=torch.float64)
    diagonal = matrix.diag().expand(4, 9)
    found, steps = invert_triangular(lambda x: (x @ matrix.T, diagonal), x @ matrix.T, diagonal, 1e-12)
    torch.testing.assert_close(found, x)
    assert steps <= 10


def test_a_triangular_map_that_newton_alone_would_leave_is_inverted_within_brackets():
    """Slopes from 0.02 to 20: plain steps jump from one flat part to the other for ever."""

    def bend(x):
        return 0.02 * x + 2 * torch.atan(10 * x), 0.02 + 20 / (1 + 100 * x**2)

    torch.manual_seed(0)
    x = 2 * torch.randn(50, 6, dtype=torch.float64)
    y = chain(bend)(x)[0]
    found, steps = invert_triangular(chain(bend), y, torch.tensor(20.02), 1e-10)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-6)
    assert steps < 200
    plain = y
    for _ in range(steps):
        value, slope = chain(bend)(plain)
        plain = plain - (value - y) / slope
    assert not (plain - x).abs().max() < 1


def test_a_triangular_inverse_that_does_not_converge_says_so():
    f, x = chain(lambda x: (x + x**3, 1 + 3 * x**2)), torch.full((1, 4), 3.0)
    with pytest.warns(RuntimeWarning, match="triangular map did not converge: after 3 steps"):
        invert_triangular(f, f(x)[0], torch.tensor(1e3), most=3)


# --- the systems --------------------------------------------------------------------------------


@pytest.mark.parametrize("space", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_fits_images_of_every_shape(name, space):
    flows.test_fits_every_space(name, space)


@pytest.mark.parametrize("name", NAMES)
def test_is_conditioned(name):
    flows.test_conditions_enter(name, flows.SPACES["odd"])


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_refused(name):
    with pytest.raises(Unfit):
        find(name).load()(flows.PLANE)


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 2, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_density_of_two_real_pixels_is_exact(name, shape):
    """It integrates to 1, and a chi-square test finds the samples in it."""
    system = flows.build(name, Space("image", shape, scale=0.1, dtype="float32"), spread=0.15)
    assert system.density is Density.EXACT
    samples = system.sample_encoded(4000, seed=3).flatten(1).numpy()
    low, high = samples.min(0), samples.max(0)
    edges = [np.linspace(a - 0.4 * (b - a), b + 0.4 * (b - a), 41) for a, b in zip(low, high, strict=True)]
    middles = [e[0] + (e[-1] - e[0]) * (np.arange(320) + 0.5) / 320 for e in edges]
    mesh = np.stack(np.meshgrid(*middles, indexing="ij"), -1).reshape(-1, *shape)
    density = system.score_encoded(Batch(torch.tensor(mesh, dtype=torch.float32)), batch_size=60000).log_prob.exp()
    area = np.prod([0.1 * (e[-1] - e[0]) / 320 for e in edges])
    mass = (density.numpy() * area).reshape(40, 8, 40, 8).sum((1, 3))
    assert mass.sum() == pytest.approx(1, abs=3e-3)
    assert follow(np.histogram2d(*samples.T, bins=edges)[0], len(samples) * mass, 1e-3)


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [("emerging", AutoregressiveConv, 2), ("periodic-flow", PeriodicConv, 1), ("conv-exp-flow", ConvExp, 1)],
)
def test_every_step_of_glow_mixes_neighbours(name, kind, count):
    system = flows.build(name, IMAGES["digits"], spread=0.0)
    parts = [part for part in system.modules() if isinstance(part, kind)]
    assert len(parts) == 3 * 2 * count  # resolutions, steps
    assert len([part for part in system.modules() if isinstance(part, LULinear)]) == (name != "periodic-flow") * 6
    x = torch.rand(2, 1, 8, 8) - 0.5
    before, _ = system.flow(x)
    with torch.no_grad():
        parts[0].weight += 0.1 * torch.randn_like(parts[0].weight)
    assert (system.flow(x)[0] - before).abs().max() > 0.01


def test_macow_lets_a_quarter_of_the_channels_leave_twice_at_each_resolution():
    system = flows.build("macow", IMAGES["digits"], spread=0.0, scales=3, bottom=1, blocks=2, layers=1)
    left = [part.finished_shape for part in system.modules() if isinstance(part, FactorOut)]
    assert left == [(1, 4, 4), (1, 4, 4), (2, 2, 2), (2, 2, 2)]
    masked = [part for part in system.modules() if isinstance(part, MaskedConv)]
    assert len(masked) == 8 * (1 + 2 + 2 + 1)  # two units of four before each step


def test_mintnet_has_no_couplings_leaves_nothing_out_and_its_tolerance_is_a_dial():
    system = flows.build("mintnet", IMAGES["digits"], spread=0.1)
    assert not [part for part in system.modules() if "Coupling" in type(part).__name__ or isinstance(part, FactorOut)]
    assert [part.channels for part in system._mint_layers()] == [1] * 4 + [4] * 4 + [16] * 4
    exact = system.sample_encoded(4, seed=0)
    steps = system.sample_evaluations
    with system.turned(tolerance=0.3):
        system.sample_encoded(4, seed=0)
        assert 12 <= system.sample_evaluations < steps
    assert torch.equal(system.sample_encoded(4, seed=0), exact)
    assert system.monitor(Batch(exact))["inverse_error"] < 1e-3
