"""ln Z by annealed importance sampling, forwards and backwards, against closed forms and quadrature."""

from __future__ import annotations

import math

import pytest
import torch

from fivefold.system import seeded
from fivefold.tools.annealing import backwards, bracket, find_path, forwards, independent

PLACES = torch.tensor([-2.0, 2.0]).double()
SHARES = torch.tensor([0.25, 0.75]).double()


def correlated(dims):
    """A Gaussian energy whose numbers have deviations from 0.3 to 2 and lean on each other; ln Z; exact draws."""
    root = torch.logspace(math.log10(0.3), math.log10(2), dims).double().diag()
    root = root @ (torch.eye(dims).double() + 0.3 * torch.ones(dims, dims).double().tril(-1) / math.sqrt(dims))
    inverse, mean = root.inverse(), torch.linspace(-1, 1, dims).double()
    log_z = 0.5 * dims * math.log(2 * math.pi) + root.logdet().item() - 3.0

    def energy(x):
        return 0.5 * ((x - mean) @ inverse.T).square().sum(1) + 3.0

    return energy, log_z, lambda n: mean + torch.randn(n, dims).double() @ root.T


def parted(dims):
    """Two parts along the first number, a quarter and the rest; ln Z of the first number by quadrature."""

    def line(x):
        return -torch.logsumexp(-2 * (x[:, None] - PLACES).square() + SHARES.log(), 1)

    def energy(x):
        return line(x[:, 0]) + 2 * x[:, 1:].square().sum(1)

    grid = torch.linspace(-8, 8, 20_001).double()
    log_z = math.log(torch.trapezoid(torch.exp(-line(grid)), grid).item()) + 0.5 * (dims - 1) * math.log(math.pi / 2)

    def draw(n):
        x = 0.5 * torch.randn(n, dims).double()
        x[:, 0] += PLACES[torch.multinomial(SHARES, n, True)]
        return x

    return energy, log_z, draw


LAWS = {"correlated": correlated, "parted": parted}


def normal(dims, scale=1.5):
    return independent(torch.zeros(dims).double(), torch.full((dims,), scale).double())


def box(dims):
    edge = torch.full((dims,), 10.0).double()
    return independent(0 * edge, edge * math.inf, -edge, edge)


@pytest.mark.parametrize(
    ("base", "dims", "temperatures"),
    [(normal, 2, 60), (normal, 20, 150), (box, 2, 120), pytest.param(box, 20, 1000, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("law", LAWS)
def test_both_bounds_are_within_three_errors(law, base, dims, temperatures):
    energy, log_z, draw = LAWS[law](dims)
    with seeded(0):
        lower, upper = found = bracket(energy, base(dims), draw(100), temperatures)
    assert abs(lower.value - log_z) < 3 * lower.error
    assert abs(upper.value - log_z) < 3 * upper.error
    assert max(lower.error, upper.error) < 0.7
    assert abs(found.middle.value - log_z) < 3 * found.middle.error


def test_few_temperatures_leave_a_gap_around_the_truth_which_more_of_them_close():
    """Many estimates by few chains: their means are low forwards and high backwards."""
    energy, log_z, draw = correlated(6)
    gaps = []
    for temperatures in (2, 40):
        with seeded(1):
            path = find_path(energy, normal(6), temperatures)
            low = forwards(energy, normal(6), path, 800)[1].view(200, 4).logsumexp(1) - math.log(4)
            high = math.log(4) - backwards(energy, normal(6), path, draw(800))[1].view(200, 4).logsumexp(1)
        for values, sign in ((low, -1), (high, 1)):
            assert sign * (values.mean() - log_z) > -3 * values.std() / math.sqrt(200)
        gaps.append((high.mean() - low.mean()).item())
    assert gaps[0] > 4 * gaps[1] > 0


def test_weights_are_unbiased_whatever_the_moves():
    """E of the weights is Z forwards and 1 / Z backwards, with three laws and moves that are far too long."""

    def energy(x):
        return x[:, 0] ** 2 / 2.88 + 0.5 * torch.sin(2 * x[:, 0])

    grid, base = torch.linspace(-12, 12, 20_001).double(), normal(1, 1.0)
    mass = torch.exp(-energy(grid[:, None]))
    log_z = math.log(torch.trapezoid(mass, grid).item())
    with seeded(0):
        path = find_path(energy, base, 3)._replace(sizes=(2.0,) * 4)
        draws = grid[torch.multinomial(mass, 20_000, True), None]
        weights = (forwards(energy, base, path, 20_000)[1] - log_z).exp()
        back = (backwards(energy, base, path, draws)[1] + log_z).exp()
    for found in (weights, back):
        assert found.std() > 0.2
        assert abs(found.mean() - 1) < 3 * found.std() / math.sqrt(len(found))


def test_chains_end_in_the_law_they_are_led_to():
    energy, _, _ = correlated(2)
    with seeded(0):
        path = find_path(energy, normal(2), 60)
        x = forwards(energy, normal(2), path, 2000)[0]
    truth = torch.cov(correlated(2)[2](100_000).T)
    torch.testing.assert_close(torch.cov(x.T), truth, atol=0.1, rtol=0.1)


# --- where it starts ----------------------------------------------------------------------------------


def test_the_base_draws_from_the_density_it_states():
    """A normal number between bounds and a uniform one: the density integrates to 1, and moments are its own."""
    mean, scale = torch.tensor([0.5, 0.0]).double(), torch.tensor([1.0, math.inf]).double()
    low, high = torch.tensor([-1.0, -2.0]).double(), torch.tensor([1.5, 4.0]).double()
    base = independent(mean, scale, low, high)
    axes = [torch.linspace(a.item(), b.item(), 801).double() for a, b in zip(low, high, strict=True)]
    density = base.log_prob(torch.cartesian_prod(*axes)).exp().view(801, 801)
    assert torch.trapezoid(torch.trapezoid(density, axes[1]), axes[0]).item() == pytest.approx(1, abs=1e-5)
    with seeded(0):
        x = base.draw(40_000)
    assert ((x >= low) & (x <= high)).all()
    marginal = torch.trapezoid(density, axes[1])
    first = torch.trapezoid(marginal * axes[0], axes[0]).item()
    assert x[:, 0].mean().item() == pytest.approx(first, abs=4 * x[:, 0].std().item() / 200)
    assert x[:, 1].mean().item() == pytest.approx(1.0, abs=4 * math.sqrt(3) / 200)
    assert x[:, 1].var().item() == pytest.approx(3.0, rel=0.03)


def test_a_uniform_law_without_an_end_is_refused():
    with pytest.raises(ValueError, match="finite bounds"):
        independent(torch.zeros(2), torch.full((2,), math.inf))


def test_what_lies_out_of_bounds_does_not_count():
    """exp(-E) of E = 0 in a box is its volume, and no chain leaves it."""
    base = box(2)
    with seeded(0):
        path = find_path(lambda x: 0 * x[:, 0], base, 4)
        x, weight = forwards(lambda x: 0 * x[:, 0], base, path, 50)
    assert (x.abs() <= 10).all()
    torch.testing.assert_close(weight, torch.full_like(weight, math.log(400)))


def test_energies_of_large_scale_find_a_path_of_their_own():
    """Energies of thousands of nats: laws crowd where the path begins, and moves shrink along it."""

    def energy(x):
        return 5e3 * (x**2).sum(1)

    with seeded(0):
        path = find_path(energy, normal(3), 200)
        lower, upper = bracket(energy, normal(3), 0.01 * torch.randn(100, 3).double(), 200)
    assert path.betas[20] < 0.01
    assert path.sizes[-1] < 0.03 < path.sizes[0]
    for found in (lower, upper):
        assert abs(found.value - 1.5 * math.log(2 * math.pi * 1e-4)) < 3 * found.error < 1
