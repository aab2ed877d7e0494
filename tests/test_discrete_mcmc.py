"""Samplers of discrete states against enumerated laws, and how well they mix on an Ising model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fivefold.errors import OptionError
from fivefold.system import seeded
from fivefold.tools.discrete_mcmc import DISCRETE_KERNELS, gibbs_with_gradients
from fivefold.tools.mcmc import Move
from fivefold.tools.traces import effective_sample_size
from tests.systems import follow

LOW, HIGH = torch.tensor([0, 1, 0]), torch.tensor([1, 3, 3])  # 2, 3 and 4 values
EVERY = torch.tensor(list(itertools.product(range(2), range(1, 4), range(4))))
torch.manual_seed(0)
WEIGHT, BIAS, OUT = torch.randn(12, 5), torch.randn(5), 1.5 * torch.randn(5)


def bent(one_hot):
    """No sum over numbers, and curved between the states: a gradient tells little of what a change does."""
    return torch.tanh(one_hot.flatten(1) @ WEIGHT + BIAS) @ OUT


def law(energy, states=EVERY):
    return (-energy(torch.nn.functional.one_hot(states, 4).float())).softmax(0).double().numpy()


def counts(states):
    return (states[:, None] == EVERY).all(2).sum(0).numpy()


@pytest.mark.parametrize("name", DISCRETE_KERNELS)
def test_chains_follow_the_enumerated_law(name):
    """From one state, by which all would be seen to stay, to a law far from uniform."""
    with seeded(0):
        start = EVERY[:1].expand(6000, -1)
        ends = DISCRETE_KERNELS[name](bent, start, 60, Move(1.0, bounds=(LOW, HIGH)))
    expected = law(bent)
    assert expected.max() / expected.min() > 50
    assert follow(counts(ends.state), 6000 * expected, 1e-3)


@pytest.mark.parametrize("name", DISCRETE_KERNELS)
def test_one_step_leaves_the_law_as_it_is(name):
    """Many short chains that start from the law: what a wrong reverse proposal would move at once."""
    with seeded(1):
        start = EVERY[torch.multinomial(torch.from_numpy(law(bent)), 40_000, replacement=True)]
        ends = DISCRETE_KERNELS[name](bent, start, 2, Move(1.0, bounds=(LOW, HIGH)))
    assert follow(counts(ends.state), 40_000 * law(bent), 1e-3)


def test_proposals_by_gradients_need_their_correction():
    """Without it the same proposals follow another law, which this test's size tells apart."""
    with seeded(1):
        start = EVERY[torch.multinomial(torch.from_numpy(law(bent)), 40_000, replacement=True)]
        accepted = gibbs_with_gradients(bent, start, 1, Move(1.0, bounds=(LOW, HIGH))).accepted
    assert 0.3 < accepted.mean() < 0.95


@pytest.mark.parametrize("name", DISCRETE_KERNELS)
def test_what_is_held_stays_and_the_rest_follows_its_conditional_law(name):
    with seeded(0):
        start = torch.tensor([[1, 1, 3]]).repeat(6000, 1)
        free = torch.tensor([[False, True, True]]).repeat(6000, 1)
        free[-1] = False
        ends = DISCRETE_KERNELS[name](bent, start, 60, Move(1.0, bounds=(LOW, HIGH)), free=free).state
    assert (ends[:, 0] == 1).all()
    assert torch.equal(ends[-1], start[-1])
    expected = np.where(EVERY[:, 0] == 1, law(bent), 0)
    assert follow(counts(ends), 6000 * expected / expected.sum(), 1e-3)


@pytest.mark.parametrize("name", DISCRETE_KERNELS)
def test_what_samplers_give(name):
    seen = []

    def energy(one_hot):
        seen.append(len(one_hot))
        assert one_hot.shape[1:] == (3, 4)
        return bent(one_hot)

    ends = DISCRETE_KERNELS[name](energy, EVERY[:5], 8, Move(1.0, bounds=(LOW, HIGH), warm_up=4, keep=5))
    assert ends.trace.shape == (8, 5, 3)
    assert torch.equal(ends.trace[-1], ends.state)
    assert ends.state.dtype == torch.long
    assert ((ends.trace[1:] != ends.trace[:-1]).sum(2) <= 1).all()  # one number a step
    assert ((ends.accepted > 0) & (ends.accepted <= 1)).all()
    assert sum(seen) == 5 * (ends.evaluations + 1)  # and where they start


@pytest.mark.parametrize("name", DISCRETE_KERNELS)
def test_states_without_bounds_or_of_fractions_are_refused(name):
    for state, move in ((EVERY, Move(1.0)), (EVERY.float(), Move(1.0, bounds=(0, 3)))):
        with pytest.raises(OptionError, match="whole numbers and bounds"):
            DISCRETE_KERNELS[name](bent, state, 1, move)


# --- an Ising model on a torus ------------------------------------------------------------------------


def ising(coupling, side):
    """E of one-hot spins `(B, side^2, 2)`: each pair of neighbours counts once."""

    def energy(one_hot):
        spins = (one_hot[..., 1] - one_hot[..., 0]).view(-1, side, side)
        return -coupling * (spins * (spins.roll(1, 1) + spins.roll(1, 2))).sum((1, 2))

    return energy


def effective(name, coupling, chains=16, steps=16_000, every=50):
    """Of the energy of a lattice of 20x20 the effective samples of a chain for a thousand steps, and for a thousand
    evaluations."""
    energy, move, found, evaluations = ising(coupling, 20), Move(1.0, bounds=(0, 1)), [], 0
    with seeded(0):
        x = DISCRETE_KERNELS["gibbs"](energy, torch.randint(2, (chains, 400)), 8000, move).state
        for _ in range(steps // every):
            ends = DISCRETE_KERNELS[name](energy, x, every, move)
            x, evaluations = ends.state, evaluations + ends.evaluations
            found.append(energy(torch.nn.functional.one_hot(x, 2).float())[:, None])
    size = 1000 * effective_sample_size(torch.stack(found)).item() / chains
    return size / steps, size / evaluations


@pytest.mark.slow
def test_gradients_mix_twice_as_fast_near_the_critical_coupling():
    """Of 0.44, ln(1 + sqrt 2) / 2. For an evaluation too, which is one gradient of the one and one energy of the other.

    At the coupling itself chains of any length that a test can wait for tell little.
    """
    by_gradients, plain = (effective(name, 0.36) for name in ("gibbs-with-gradients", "gibbs"))
    assert by_gradients[0] > 2 * plain[0]
    assert by_gradients[1] > 2 * plain[1]
