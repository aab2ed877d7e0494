"""The cheapest path against all paths, and its costs against the bound's own terms."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch

from fivefold import fit
from fivefold.tools.diffusion import SCHEDULES, GaussianDiffusion, alpha_bars
from fivefold.tools.paths import bound_costs, cheapest_path


def total(cost, path):
    return sum(cost[a, b].item() for a, b in pairwise(path))


@pytest.mark.parametrize("steps", [1, 2, 5, 12, 13])
def test_the_cheapest_path_is_that_of_exhaustive_search(steps):
    """Of 12 choose 4 and others, costs without any order."""
    cost = torch.rand(14, 14, generator=torch.Generator().manual_seed(steps), dtype=torch.float64)
    found = cheapest_path(cost, steps)
    ways = [[13, *reversed(inner), 0] for inner in combinations(range(1, 13), steps - 1)]
    assert found in ways
    assert total(cost, found) == pytest.approx(min(total(cost, way) for way in ways))


def test_more_steps_than_there_are_are_refused():
    with pytest.raises(ValueError, match="from 3 to 0 there are 1 to 3 steps, not 4"):
        cheapest_path(torch.zeros(4, 4), 4)


def test_costs_are_the_terms_of_the_bound():
    """Of a chain of those times alone, the KL of Ho et al.'s Eq. 5 for a wrong guess of x_0."""
    bars = alpha_bars(SCHEDULES["cosine"], 30, 0.05)
    chosen = torch.tensor([0, 1, 7, 19, 30])
    few = GaussianDiffusion(bars[chosen], "posterior")
    x, guess = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    ratio = bars[1:] / (1 - bars[1:])
    error = ((x - guess).square().mean()) * ratio  # of the unit noise where that of x_0 is the same at all times
    costs = bound_costs(ratio, error)
    for index in (2, 3, 4):
        kl = few.step_kl(x, guess, torch.tensor(index)).mean() / 3
        torch.testing.assert_close(costs[chosen[index] - 1, chosen[index - 1] - 1], kl)


def test_a_path_is_never_dearer_than_even_steps():
    """Of a trained system, by the errors that it met."""
    system = fit("ddpm", "rings", budget="150steps", batch_size=64, sampling_steps=6, spacing="dp-timesteps")
    assert (system.errors < 0.98).float().mean() > 0.8
    path = system.path()
    assert (len(path), path[0], path[-1]) == (6, 1.0, system.first)
    times = torch.linspace(system.first, 1, 201, dtype=torch.float64)
    at, errors = system.equation.at(times), system.errors.double()[(times * 100).long().clamp(max=99)]
    costs = bound_costs((at.signal / at.noise) ** 2, errors)
    even = torch.linspace(200, 0, 6).round().long().tolist()
    assert total(costs, cheapest_path(costs, 5)) < total(costs, even)
    assert system.sample(50, seed=0).shape == (50, 2)
