"""Increments that are halved where they are large stay normal; equations with a known law; examples by themselves."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from fivefold.system import seeded
from fivefold.tools.brownian import Increments, adaptive_heun

N = 20_000


def test_increments_stay_normal_whatever_is_refused():
    """All of [0, 1] in steps that are refused where their noise is large: drawn anew it would be short of variance."""
    x, gone, total = torch.zeros(N, 2).double(), torch.zeros(N).double(), torch.zeros(N, 2).double()
    first_half = torch.zeros(N, 2).double()
    with seeded(0):
        path = Increments(x, torch.full((N,), 0.5).double())
        while (gone < 1 - 1e-9).any():
            on = gone < 1 - 1e-9
            refused = on & ((path.noise.norm(dim=1) > path.length.sqrt()) & (path.length > 0.02))
            taken = (on & ~refused).nonzero()[:, 0]
            total[taken] += path.noise[taken]
            gone[taken] += path.length[taken]
            halfway = taken[(gone[taken] - 0.5).abs() < 1e-9]
            first_half[halfway] = total[halfway]
            if refused.any():
                path.halve(refused.nonzero()[:, 0])
            path.go_on(taken, (1 - gone[taken]).clamp(max=0.5, min=1e-3))
    assert (gone - 1).abs().max() < 1e-9
    for part in (first_half / math.sqrt(0.5), total, (total - first_half) / math.sqrt(0.5)):
        assert stats.kstest(part[:, 0].numpy(), "norm").pvalue > 1e-4
    together = torch.corrcoef(torch.stack([first_half[:, 0], (total - first_half)[:, 0], total[:, 1]]))
    assert (together - torch.eye(3)).abs().max() < 4.5 / math.sqrt(N)


@pytest.mark.parametrize("tolerance", [0.3, 0.03])
def test_the_law_of_a_linear_equation(tolerance):
    """dx = -3 x ds + 2 (1 + s) dW from 1: mean and variance at 1 in closed form."""
    with seeded(0):
        x, evaluations = adaptive_heun(
            lambda y, s: -3 * y, lambda s: 2 * (1 + s), torch.ones(N, 1).double(), 1.0, tolerance
        )
    s = torch.linspace(0, 1, 100_001).double()
    variance = torch.trapezoid((2 * (1 + s) * torch.exp(-3 * (1 - s))) ** 2, s).item()
    slack = 0.3 * tolerance  # of the steps themselves: as many even ones are off by 3 and 0.5 %
    assert x.mean().item() == pytest.approx(math.exp(-3), abs=4 * math.sqrt(variance / N) + slack)
    assert x.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / N) + slack)
    assert evaluations > 10


def test_refusals_do_not_bend_the_law():
    """A drift that is steep in places, so that steps are refused; against small steps of Euler and Maruyama."""
    drift = lambda y, s: -4 * torch.sin(3 * y)  # noqa: E731
    with seeded(0):
        x, _ = adaptive_heun(drift, lambda s: torch.ones_like(s), torch.zeros(N, 1).double(), 1.0, 0.05)
        y = torch.zeros(N, 1).double()
        for _ in range(1000):
            y = y + drift(y, None) / 1000 + torch.randn_like(y) / math.sqrt(1000)
    assert stats.ks_2samp(x[:, 0].numpy(), y[:, 0].numpy()).pvalue > 1e-4


def test_every_example_has_its_own_steps():
    """A stiff one in a batch costs the others nothing."""
    stiff = torch.ones(100, 1).double()
    stiff[0] = 1000
    counted = []

    def drift(y, s):
        counted.append(len(y))
        return -y if len(y) == 99 else torch.where(y.abs() > 100, -50 * y, -y)

    with seeded(0):
        x, evaluations = adaptive_heun(drift, lambda s: 0.1 * torch.ones_like(s), stiff, 1.0, 0.05)
    assert x.isfinite().all()
    assert evaluations == math.ceil(sum(counted) / 100)
    assert max(counted) == 100
    assert min(counted) < 50


def test_what_is_not_a_number_comes_to_an_end():
    x, _ = adaptive_heun(lambda y, s: y * float("nan"), torch.ones_like, torch.ones(3, 1), 1.0, 0.1)
    assert x.isnan().all()
