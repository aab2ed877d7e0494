"""The solvers against closed forms: tolerance, order, evaluations, gradients direct and by the adjoint."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fivefold.tools.divergence import rademacher, with_divergence
from fivefold.tools.ode import integrate, integrate_adjoint, runge_kutta

torch.manual_seed(0)
MATRIX = torch.tensor([[-0.3, 2.0, 0.1], [-2.0, -0.2, 0.4], [0.0, -0.3, 0.1]], dtype=torch.float64)
START = torch.randn(5, 3, dtype=torch.float64)


def linear(t, y):
    return y @ MATRIX.T


def moving(t, y):
    """y' = -2 t y + cos t y: y = y0 exp(sin t - t^2) from t = 0."""
    return (math.cos(t) - 2 * t) * y


CASES = {
    "linear": (linear, 0.0, 3.0, lambda y: y @ torch.linalg.matrix_exp(3 * MATRIX).T),
    "backwards": (linear, 1.0, -1.0, lambda y: y @ torch.linalg.matrix_exp(-2 * MATRIX).T),
    "moving": (moving, 0.0, 2.0, lambda y: y * math.exp(math.sin(2) - 4)),
    "logistic": (lambda t, y: y - y**2, 0.0, 4.0, lambda y: 1 / (1 + (1 / y - 1) * math.exp(-4))),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_tolerance_is_held_and_evaluations_are_counted(name, tolerance):
    f, t0, t1, truth = CASES[name]
    y0, calls = START.abs() + 0.5, []
    end, evaluations = integrate(lambda t, y: calls.append(t) or f(t, y), y0, t0, t1, tolerance, tolerance)
    error = ((end - truth(y0)) / (1 + truth(y0).abs())).square().mean().sqrt().item()
    assert error < 20 * tolerance
    assert evaluations == len(calls)
    assert 8 <= evaluations < 40 + 30 * tolerance**-0.2
    assert min(t0, t1) <= min(calls) and max(calls) <= max(t0, t1)  # noqa: PT018


@pytest.mark.parametrize("tolerance", [1e-6, 1e-9])
def test_a_step_that_is_too_large_is_taken_again(tolerance):
    """Before a bump steps grow far beyond its width; without going back its integral, 1, would be far off."""
    width = 0.1

    def bump(t, y):
        return y * math.exp(-(((t - 2) / width) ** 2)) / (width * math.sqrt(math.pi))

    end, _ = integrate(bump, START, 0.0, 3.0, tolerance, tolerance)
    torch.testing.assert_close(end, math.e * START, rtol=20 * tolerance, atol=20 * tolerance)


def test_orders_of_convergence():
    """Global error falls as the fourth power of Runge-Kutta's step, and as the tolerance of the pair."""
    truth = CASES["linear"][3](START)
    steps = torch.tensor([20.0, 40.0, 80.0, 160.0], dtype=torch.float64)
    errors = torch.stack([(runge_kutta(linear, START, 0, 3, int(n)).state - truth).norm() for n in steps])
    slopes = errors.log().diff() / steps.log().diff()
    torch.testing.assert_close(slopes, torch.full_like(slopes, -4.0), rtol=0.05, atol=0)
    assert runge_kutta(linear, START, 0, 3, 7).evaluations == 28
    few, many = (integrate(linear, START, 0, 3, tol, tol).evaluations for tol in (1e-4, 1e-9))
    assert math.log10(many / few) == pytest.approx(1, abs=0.25)  # a fifth-order method takes 10 times as many


def test_states_are_tensors_or_tuples_of_any_shapes():
    """The divergence of a linear flow adds up to its trace, beside the flow itself."""
    y0 = START.view(5, 1, 3)

    def f(t, state):
        return linear(t, state[0]), MATRIX.trace().expand(5)

    (end, trace), _ = integrate(f, (y0, torch.zeros(5, dtype=torch.float64)), 0, 2, 1e-9, 1e-9)
    torch.testing.assert_close(end, integrate(linear, y0, 0, 2, 1e-9, 1e-9).state, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(trace, (2 * MATRIX.trace()).expand(5))
    assert integrate(f, (y0, trace), 1, 1).evaluations == 0


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, t, y):
        return self.net(torch.cat([y, torch.full_like(y[:, :1], t)], 1))


def gradients(solve, field):
    y0 = START.clone().requires_grad_()
    (y, total), _ = solve(lambda t, s: (field(t, s[0]), s[0].square().sum(1)), (y0, START.new_zeros(5)))
    loss = y.sin().sum() + total.sum()
    return torch.autograd.grad(loss, [y0, *field.parameters()], materialize_grads=True, allow_unused=True)


def test_gradients_direct_and_by_the_adjoint_are_those_of_many_small_steps():
    field = Field()
    truth = gradients(lambda f, y: runge_kutta(f, y, 0, 1.5, 400), field)
    direct = gradients(lambda f, y: integrate(f, y, 0, 1.5, 1e-8, 1e-8), field)
    adjoint = gradients(
        lambda f, y: integrate_adjoint(f, y, 0, 1.5, 1e-8, 1e-8, parameters=list(field.parameters())), field
    )
    for a, b, c in zip(truth, direct, adjoint, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(c, a, rtol=1e-5, atol=1e-6)


def test_gradient_of_a_linear_flow_is_the_matrix_exponential():
    y0 = START[0].clone().requires_grad_()
    for solve in (integrate, integrate_adjoint):
        (end, _) = solve(lambda t, y: MATRIX @ y, y0, 0, 1, 1e-9, 1e-9)
        (gradient,) = torch.autograd.grad(end[0], y0)
        torch.testing.assert_close(gradient, torch.linalg.matrix_exp(MATRIX)[0], rtol=1e-6, atol=1e-7)


def test_what_cannot_be_solved_is_an_error():
    with pytest.raises(RuntimeError, match="stiff"):
        integrate(lambda t, y: y**2, torch.ones(1, dtype=torch.float64), 0, 2)  # infinite at t = 1
    with pytest.raises(RuntimeError, match="stiff"):
        integrate(lambda t, y: y * math.nan, torch.ones(1), 0, 2)
    with pytest.raises(RuntimeError, match=r"after 1.. evaluations"):
        integrate(lambda t, y: -1e4 * y, torch.ones(1), 0, 10, max_evaluations=100)


def test_divergence_is_the_trace_of_autograds_jacobian_and_hutchinsons_mean():
    field, y = Field(), START.clone().requires_grad_()
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda row: field(0.3, row[None])[0], row) for row in y])
    value, exact = with_divergence(lambda x: field(0.3, x), y)
    torch.testing.assert_close(value, field(0.3, y))
    torch.testing.assert_close(exact, jacobian.diagonal(dim1=1, dim2=2).sum(1))
    assert torch.autograd.grad(exact.sum(), field.net[0].weight)[0].abs().sum() > 0
    many = y.detach().repeat(4000, 1)
    with torch.no_grad():
        draws = with_divergence(lambda x: field(0.3, x), many, rademacher(many))[1].view(4000, 5)
    assert not draws.requires_grad
    assert ((draws.mean(0) - exact).abs() < 4 * draws.std(0) / math.sqrt(4000)).all()
