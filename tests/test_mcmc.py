"""Samplers against known laws, and the measures of how well chains mix against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.laws import LAWS, gaussian, mixture
from fivefold.system import seeded
from fivefold.tools.mcmc import KERNELS, Move
from fivefold.tools.traces import effective_sample_size, r_hat
from tests.moments import check_moments


def autoregression(rho, steps, chains, seed=0):
    """x_t = rho x_{t-1} + e of variance 1: its integrated autocorrelation time is (1 + rho) / (1 - rho)."""
    with seeded(seed):
        x, trace = torch.randn(chains, 1).double(), []
        for _ in range(steps):
            x = rho * x + math.sqrt(1 - rho**2) * torch.randn_like(x)
            trace.append(x)
    return torch.stack(trace)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.5])
def test_effective_samples_of_an_autoregression(rho):
    trace = autoregression(rho, 4000, 8)
    assert effective_sample_size(trace).item() == pytest.approx(8 * 4000 * (1 - rho) / (1 + rho), rel=0.1)
    assert r_hat(trace).item() == pytest.approx(1, abs=0.01)


def test_chains_that_disagree_or_drift_are_seen():
    trace = autoregression(0.5, 1000, 4)
    apart = trace + torch.arange(4.0)[:, None]
    assert r_hat(apart).item() == pytest.approx(math.sqrt(1 + 5 / 3), rel=0.15)  # of the places over that of each
    assert effective_sample_size(apart).item() < 20
    drifting = trace + torch.linspace(0, 5, 1000)[:, None, None]  # halves 2.5 apart, each of variance 1 + 2.5^2 / 12
    assert r_hat(drifting).item() == pytest.approx(1.48, rel=0.1)
    still = torch.ones(100, 4, 1)
    assert effective_sample_size(still).item() == 0
    assert r_hat(still).item() == 1


# --- laws -------------------------------------------------------------------------------------------


EXACT = {
    "metropolis-langevin": (400, Move(0.3)),
    "hamiltonian": (60, Move(0.01, warm_up=60)),
    "tempered": (250, Move(0.3)),
}
CHAINS = 4000


@pytest.fixture(scope="module")
def drawn():
    """Ends of chains by law and sampler, each made once."""
    made = {}

    def of(law, name):
        if (law, name) not in made:
            steps, move = EXACT[name]
            with seeded(0):
                start = LAWS["gaussian" if name == "tempered" else law].start(CHAINS)
                made[law, name] = KERNELS[name](LAWS[law].energy, start, steps, move)
        return made[law, name]

    return of


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("law", LAWS)
def test_moments_within_three_errors(drawn, name, law):
    if law == "funnel" and name != "hamiltonian":
        pytest.skip("its neck is not reached by steps of one size")
    check_moments(LAWS[law], drawn(law, name).state)


@pytest.mark.parametrize("name", KERNELS)
def test_what_samplers_give(name):
    calls = []

    def energy(x):
        calls.append(len(x))
        return gaussian(x)

    start = torch.randn(5, 2)
    ends = KERNELS[name](energy, start, 8, Move(0.1, warm_up=4, keep=5))
    assert ends.state.shape == (5, 2)
    assert ends.accepted.shape == (5,)
    assert ((ends.accepted > 0) & (ends.accepted <= 1)).all()
    assert torch.equal(ends.trace[-1], ends.state)
    assert len(ends.trace) == (4 if name == "annealed" else 8)
    assert not ends.state.requires_grad
    assert ends.evaluations >= 8


def test_annealing_crosses_where_one_temperature_does_not():
    with seeded(0):
        start = torch.full((500, 2), -2.0)
        alone = KERNELS["langevin"](mixture, start, 100, Move(0.05)).state
        cooled = KERNELS["annealed"](mixture, start, 100, Move(0.05)).state
    assert (alone[:, 0] > 0).float().mean() < 0.1
    assert 0.2 < (cooled[:, 0] > 0).float().mean() < 0.9
