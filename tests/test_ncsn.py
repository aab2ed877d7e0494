"""The noise-conditional score network: its noises, the order of its chains, what it learns."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from fivefold import Space, catalog, fit, load_data
from fivefold.errors import OptionError
from fivefold.space import Column

PLANE = Space("table", (2,), columns=(Column("a"), Column("b")))


def test_noises_are_a_geometric_sequence():
    system = catalog.build("ncsn", PLANE, noises=6, low=0.05, high=4.0)
    found = system.equation.at(system.trained).noise
    expected = torch.tensor(np.geomspace(0.05, 4.0, 6))
    torch.testing.assert_close(found[:-1], expected[:-1])
    assert found[-1] == pytest.approx(math.sqrt(4.0**2 - 0.05**2))  # data are there from noise 0 on
    assert sorted(set(system.times(500).tolist())) == pytest.approx(system.trained.tolist())


def test_chains_go_from_strong_noise_to_weak_and_are_counted():
    system = catalog.build("ncsn", PLANE, noises=5, corrections=3).eval()
    seen, usual = [], system.net.forward
    system.net.forward = lambda x, t, condition: seen.append(t.item()) or usual(x, t, condition)
    system.sample(4, seed=0)
    down = system.trained.flip(0).float().tolist()
    assert seen == pytest.approx([time for time in down[1:] for _ in range(3)] + down[-1:])
    assert len(seen) == system.sample_evaluations


def test_a_gaussian_is_learnt_and_sampled():
    """Correlated columns: by independent ones the correlation would be 0."""
    draw = np.random.default_rng(0).multivariate_normal([1, -2], [[1, 0.8], [0.8, 1]], 4000)
    data = load_data(pd.DataFrame(draw, columns=["a", "b"]))
    system = fit("ncsn", data, budget="1200steps", batch_size=128, seed=0)
    made = system.sample(4000, seed=0)
    np.testing.assert_allclose(made.mean(), [1, -2], atol=0.12)
    np.testing.assert_allclose(made.std(), [1, 1], atol=0.12)
    assert made.corr().iloc[0, 1] == pytest.approx(0.8, abs=0.08)


def test_one_noise_is_refused():
    with pytest.raises(OptionError, match="noises"):
        catalog.build("ncsn", PLANE, noises=1)
