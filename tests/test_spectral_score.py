"""The spectral estimate of a score against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from fivefold.system import seeded
from fivefold.tools.mcmc import energy_gradient
from fivefold.tools.spectral_score import spectral_score

ROOT = torch.tensor([[1.0, 0.0], [0.6, 0.8]]).double()
PLACES = torch.tensor([[-1.2, 0.0], [1.2, 0.5]]).double()


def gaussian(x):
    return 0.5 * torch.linalg.solve_triangular(ROOT, x.T, upper=False).square().sum(0)


def mixture(x):
    return -torch.logsumexp(-(x[:, None] - PLACES).square().sum(2) / 2, 1)


LAWS = {
    "gaussian": (gaussian, lambda n: torch.randn(n, 2).double() @ ROOT.T),
    "mixture": (mixture, lambda n: PLACES[torch.randint(2, (n,))] + torch.randn(n, 2).double()),
}


def relative_error(name, n, seed=0, **options):
    """E |estimate - s|^2 / E |s|^2 over other draws."""
    energy, draw = LAWS[name]
    with seeded(seed):
        estimate, x = spectral_score(draw(n), **options), draw(2000)
    truth = -energy_gradient(energy)(x)
    return ((estimate(x) - truth).square().sum() / truth.square().sum()).item()


@pytest.mark.parametrize("name", LAWS)
def test_the_error_falls_with_the_sample(name):
    found = [sum(relative_error(name, n, seed) for seed in range(3)) / 3 for n in (100, 1000)]
    assert found[1] < 0.08
    assert found[1] < 0.4 * found[0]


def test_states_of_any_shape_and_scale():
    """The estimate of b x + a is that of x, moved and divided by b."""
    with seeded(0):
        x = torch.randn(200, 2, 3)
    score, moved = spectral_score(x), spectral_score(5 * x + 2)
    points = x[:7]
    assert score(points).shape == (7, 2, 3)
    assert score(points).dtype is torch.float32
    torch.testing.assert_close(moved(5 * points + 2), score(points) / 5, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("draws", "said"), [(torch.zeros(1, 2), "two draws"), (torch.zeros(9, 2), "all draws the same")]
)
def test_what_cannot_be_estimated_is_refused(draws, said):
    with pytest.raises(ValueError, match=said):
        spectral_score(draws)


def test_one_eigenfunction_by_hand():
    """Of two draws at distance d and a kernel of width d: eigenvectors (1, 1) and (1, -1) over the root of 2."""
    x = torch.tensor([[0.0], [1.0]]).double()
    k = math.exp(-0.5)
    score = spectral_score(x, kept=1.0)
    # psi_j = root 2 / value_j sum_m u_jm k(., x_m), its coefficient minus the mean of dpsi_j/dx over the draws
    even = math.sqrt(2) / (1 + k) / math.sqrt(2)
    odd = math.sqrt(2) / (1 - k) / math.sqrt(2)
    at = torch.tensor([[0.3]], dtype=torch.float64)
    near, far = math.exp(-0.5 * 0.3**2), math.exp(-0.5 * 0.7**2)
    # of the even one both slopes cancel; of the odd one dpsi/dx at 0 is -odd k, at 1 also
    assert even * (k - k) == 0
    expected = (odd * k) * odd * (near - far)
    assert score(at).item() == pytest.approx(expected, rel=1e-9)
