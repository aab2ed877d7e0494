"""Monotone functions of one variable against autograd, quadrature and their formulas, far from the identity."""

import warnings

import pytest
import torch
from torch.nn import functional as F

from fivefold.bijections import monotone
from fivefold.bijections.monotone import DeepSigmoid, Integral, MixtureCDF, SumOfSquares, clenshaw_curtis
from fivefold.bijections.splines import MIN_BIN, Spline
from fivefold.bijections.transforms import Additive, Affine
from fivefold.tools import roots
from fivefold.tools.roots import invert_increasing

KINDS = ["linear", "quadratic", "cubic", "rational-quadratic"]
TAILED = {f"{kind} spline": Spline(kind, 5, 2.0) for kind in KINDS}
CUBES = {f"{kind} spline of the cube": Spline(kind, 5, 2.0, tails=False) for kind in KINDS}
LINES = {
    "additive": Additive(),
    "affine": Affine(),
    "mixture": MixtureCDF(4),
    "squares": SumOfSquares(2, 2),
    "deep sigmoid": DeepSigmoid(3, 2),
    "integral": Integral(3, 6, nodes=80).double(),
}
NOT_THE_IDENTITY_AT_0 = {"mixture", "deep sigmoid", "integral"}  # whose units start apart, or whose weights are random
ALL = {**TAILED, **CUBES, **LINES}
POINTS = 60


def setting(name, scale=1.5):
    """A transform, points (in the cube where it must be) and random parameters, in float64."""
    torch.manual_seed(0)
    transform = ALL[name]
    x = 1.5 * torch.randn(POINTS, dtype=torch.float64)
    x = 2 * torch.tanh(x / 2) if name in CUBES else x
    return transform, x, scale * torch.randn(transform.size, POINTS, dtype=torch.float64)


def squashed(x, bound):
    """What `soft_clamp` documents."""
    return x * bound / (bound + abs(x))


@pytest.mark.parametrize("name", ALL)
def test_the_derivative_is_autograds_and_the_inverse_inverts(name):
    transform, x, parameters = setting(name)
    x.requires_grad_()
    y, log_derivative = transform.forward(x, parameters)
    truth = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
    torch.testing.assert_close(log_derivative, truth.log())
    back, inverse_log_derivative = transform.inverse(y, parameters)
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(inverse_log_derivative, -log_derivative, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_every_parameter_both_ways(name):
    transform, x, parameters = setting(name)
    for direction in (transform.forward, transform.inverse):
        given = parameters.clone().requires_grad_()
        y, log_derivative = direction(x, given)
        gradient = torch.autograd.grad((y * torch.arange(1, POINTS + 1)).sum() + log_derivative.sum(), given)[0]
        assert gradient.isfinite().all()
        assert (gradient.abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", ALL)
def test_the_inverse_is_differentiated_rightly(name):
    """In the point and in the parameters: against differences."""
    transform, x, parameters = setting(name, scale=0.7)
    x, parameters = x[:4], parameters[:, :4]
    points = torch.tensor([-1.13, -0.21, 0.37, 1.61], dtype=torch.float64)
    y = transform.forward(points, parameters)[0].detach().requires_grad_()
    assert torch.autograd.gradcheck(
        transform.inverse, (y, parameters.clone().requires_grad_()), eps=1e-5, atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("name", [name for name in ALL if name not in CUBES])
def test_far_points_stay_finite_and_come_back(name):
    transform, _, parameters = setting(name)
    x = torch.tensor([-1e4, -2.0, 0.0, 2.0, 1e4], dtype=torch.float64)
    y, log_derivative = transform.forward(x, parameters[:, :5])
    assert y.isfinite().all()
    assert log_derivative.isfinite().all()
    torch.testing.assert_close(transform.inverse(y, parameters[:, :5])[0], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", {**TAILED, **CUBES})
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_splines_are_finite_at_every_knot_and_keep_the_interval(name, dtype):
    transform = ALL[name]
    torch.manual_seed(1)
    parameters = 8 * torch.randn(transform.size, 1, dtype=dtype)
    widths = F.softmax(parameters[:5, 0], 0) if "linear spline" not in name else torch.full((5,), 0.2, dtype=dtype)
    knots = torch.cat([torch.zeros(1, dtype=dtype), widths.cumsum(0)]) * 4 - 2
    x = torch.cat([torch.tensor([-2.0, 2.0], dtype=dtype), knots, knots.nextafter(torch.ones_like(knots))]).clamp(-2, 2)
    for direction in (transform.forward, transform.inverse):
        y, log_derivative = direction(x, parameters.expand(-1, len(x)))
        assert log_derivative.isfinite().all()
        assert y.abs().max() <= 2
        torch.testing.assert_close(y[:2], x[:2], rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("name", ALL)
def test_increases_and_is_the_identity_at_parameters_of_zero(name):
    transform = ALL[name]
    x = torch.linspace(-2, 2, 401, dtype=torch.float64)
    y, log_derivative = transform.forward(x, x.new_zeros(transform.size, 401))
    if name not in NOT_THE_IDENTITY_AT_0:
        torch.testing.assert_close(y, x)
        torch.testing.assert_close(log_derivative, torch.zeros_like(x), rtol=0, atol=1e-9)
    torch.manual_seed(0)
    y, _ = transform.forward(x, 3 * torch.randn(transform.size, 1, dtype=x.dtype).expand(-1, 401))
    assert (y.diff() > 0).all()


@pytest.mark.parametrize("name", [name for name in TAILED if "linear spline" not in name])
def test_smooth_splines_have_no_jump_of_slope(name):
    torch.manual_seed(0)
    transform = ALL[name]
    x = torch.linspace(-2.5, 2.5, 40001, dtype=torch.float64)
    parameters = 0.3 * torch.randn(transform.size, 1, dtype=x.dtype)
    y, log_derivative = transform.forward(x, parameters.expand(-1, len(x)))
    assert log_derivative.diff().abs().max() < 0.02
    outside = x.abs() > 2
    assert torch.equal(y[outside], x[outside])


def test_the_quadratic_splines_slope_is_straight_in_every_bin():
    """Mueller et al. (2019), 3.2: a piecewise linear density, whose integral is 1."""
    transform, x = Spline("quadratic", 3, 1.0, tails=False), torch.linspace(-1, 1, 3001, dtype=torch.float64)
    parameters = torch.tensor([0.3, -0.2, 0.9, 0.5, -1.0, 1.2, 0.1], dtype=torch.float64)
    _, log_derivative = transform.forward(x, parameters[:, None].expand(-1, len(x)))
    bends = log_derivative.exp().diff().diff().abs() > 1e-9
    assert bends.sum() <= 4  # two inner knots, each between two points
    torch.testing.assert_close(
        torch.trapezoid(log_derivative.exp(), x), torch.tensor(2.0, dtype=x.dtype), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        log_derivative[-1].exp() / log_derivative[0].exp(), torch.exp(parameters[6] - parameters[3]), rtol=0.01, atol=0
    )


def test_the_cubic_splines_slopes_at_the_knots_are_steffens():
    transform = Spline("cubic", 3, 1.5, tails=False)
    widths, heights = torch.tensor([[0.2, 0.5, 0.3], [0.3, 0.1, 0.6]], dtype=torch.float64)
    parameters = torch.cat([widths.log(), heights.log(), torch.zeros(2)])[:, None]
    w, h = MIN_BIN + (1 - 3 * MIN_BIN) * widths, MIN_BIN + (1 - 3 * MIN_BIN) * heights
    slope = h / w
    for knot in (0, 1):
        weighted = (slope[knot] * w[knot + 1] + slope[knot + 1] * w[knot]) / (w[knot] + w[knot + 1])
        wanted = 2 * min(slope[knot], slope[knot + 1], weighted / 2)
        found = transform.forward((3 * w[: knot + 1].sum() - 1.5).view(1), parameters)[1].exp()
        torch.testing.assert_close(found, wanted.view(1), rtol=1e-6, atol=0)


def test_the_mixture_is_the_logit_of_its_distribution_function():
    """Ho et al. (2019), Eq. 15, with a scale and a shift."""
    torch.manual_seed(0)
    transform, x = MixtureCDF(3, bound=5.0), torch.linspace(-3, 3, 7, dtype=torch.float64)
    p = torch.randn(transform.size, 1, dtype=torch.float64)
    weights, means = p[2:5].softmax(0), p[5:8] + torch.tensor([[-1.5], [0.0], [1.5]])
    scales = squashed(p[8:], 5).exp()
    cdf = (weights * torch.sigmoid((x - means) / scales)).sum(0)
    wanted = squashed(p[0], 5).exp() * torch.logit(cdf) + p[1]
    torch.testing.assert_close(transform.forward(x, p.expand(-1, 7))[0], wanted)


@pytest.mark.parametrize("end", [1.7, -2.9, 5.0, -20.0])
def test_the_polynomial_is_the_integral_of_one_and_the_squares(end):
    """Up to 3 deviations from 0, and of what they are there beyond."""
    torch.manual_seed(0)
    transform, p = SumOfSquares(2, 3), torch.randn(10, 1, dtype=torch.float64)
    u = torch.linspace(0, end, 20001, dtype=torch.float64)
    powers = torch.stack([(u.clamp(-3, 3) / 3) ** power for power in range(4)])
    starts = torch.tensor([[0.5, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.float64)
    slope = 1 + sum((a @ powers).square() for a in p[2:, 0].view(2, 4) + starts)
    scale = squashed(p[0, 0], 5).exp() / (1 + starts.square().sum())  # so that it is the identity at p = 0
    wanted = scale * torch.trapezoid(slope, u) + p[1, 0]
    torch.testing.assert_close(transform.forward(u[-1:], p)[0][0], wanted, rtol=1e-6, atol=0)


def test_the_deep_sigmoid_is_a_network_with_positive_weights():
    """Huang et al. (2018), Eq. 8, layer by layer: h = logit(W sigmoid(a U h + b))."""
    torch.manual_seed(0)
    transform, x = DeepSigmoid(2, 2), torch.linspace(-2, 2, 5, dtype=torch.float64)
    p = torch.randn(transform.size, 1, dtype=torch.float64)
    a, b, w, a2, b2, u2, w2, u, last = p[:, 0].split([2, 2, 4, 2, 2, 4, 4, 2, 2])
    clamp, apart, own = lambda t: squashed(t, 2).exp(), torch.tensor([-1.0, 1.0]), 2 * torch.eye(2)
    h = clamp(a)[:, None] * x + (b + apart)[:, None]
    h = torch.logit((w.view(2, 2) + own).softmax(1) @ torch.sigmoid(h))
    h = clamp(a2)[:, None] * ((u2.view(2, 2) + own).softmax(1) @ h) + (b2 + apart)[:, None]
    h = torch.logit((w2.view(2, 2) + own).softmax(1) @ torch.sigmoid(h))
    wanted = clamp(last[0]) * (u.softmax(0) @ h) + last[1]
    torch.testing.assert_close(transform.forward(x, p.expand(-1, 5))[0], wanted)


def test_the_integral_is_one_of_its_positive_network_and_the_rule_is_exact_for_polynomials():
    torch.manual_seed(0)
    transform, p = Integral(3, 6, nodes=40).double(), torch.randn(4, 1, dtype=torch.float64)
    u = torch.linspace(0, -1.7, 20001, dtype=torch.float64)
    context = transform.from_embedding(p[1:].T)
    with torch.no_grad():
        wanted = torch.trapezoid(transform._log_g(u[:, None], context).exp(), u) + p[0, 0]
        torch.testing.assert_close(transform.forward(u[-1:], p)[0][0], wanted, rtol=1e-7, atol=0)
    nodes, weights = clenshaw_curtis(6)
    for power in range(8):
        assert (weights * nodes**power).sum().item() == pytest.approx(
            2 / (power + 1) if power % 2 == 0 else 0, abs=1e-12
        )
    with pytest.raises(ValueError, match="even number"):
        clenshaw_curtis(5)


def test_an_inverse_takes_few_steps_and_says_when_it_did_not_converge(monkeypatch):
    calls = []

    def cube(x):
        calls.append(1)
        return x**3 + 1e-3 * x, (3 * x**2 + 1e-3).log()

    y = torch.tensor([-8e9, -1e-6, 0.0, 2.0, 8e9], dtype=torch.float64)
    low, high = torch.full_like(y, -4096.0), torch.full_like(y, 4096.0)
    x, log_derivative = invert_increasing(cube, y, low, high, 1e-12)
    assert len(calls) < 60
    torch.testing.assert_close(cube(x)[0], y, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(log_derivative, -cube(x)[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        invert_increasing(cube, y.float(), low.float(), high.float(), 1e-12)  # as far as the precision goes
    with torch.no_grad():
        assert invert_increasing(lambda x: (x * torch.nan, x), y, low, high)[0].isnan().all()
    monkeypatch.setattr(roots, "MOST_STEPS", 3)
    with pytest.warns(RuntimeWarning, match="did not converge: after 3 steps"):
        invert_increasing(cube, y, low, high)


@pytest.mark.parametrize(("name", "most"), [("mixture", 12), ("squares", 24), ("deep sigmoid", 12)])
def test_many_inverses_at_once_take_few_evaluations_and_fewer_from_nearby(name, most, monkeypatch):
    """In single precision, where what has been found would go on by rounding errors; values agree with the truth."""
    torch.manual_seed(0)
    transform, x = ALL[name], 1.5 * torch.randn(4000)
    parameters = 0.7 * torch.randn(transform.size, 4000)
    calls, plain = [], roots.invert_increasing

    def counted(f, *settings):
        calls.append(0)

        def g(x):
            calls[-1] += 1
            return f(x)

        return plain(g, *settings)

    monkeypatch.setattr(monotone, "invert_increasing", counted)
    y = transform.forward(x, parameters)[0]
    found = [transform.inverse(y, parameters, start)[0] for start in (None, x + 1e-4)]
    for back in found:
        torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)
    assert calls[0] <= most
    assert calls[1] <= 5
