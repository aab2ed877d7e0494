"""Discrete energies: their one-hot form, their chains against enumeration, and couplings found again."""

import itertools

import numpy as np
import pytest
import torch

import fivefold
from fivefold.energy.discrete_ebm import DiscreteEBM
from fivefold.errors import Unfit
from fivefold.nets.discrete import Independent, QuadraticEnergy
from fivefold.space import Batch, Column, Space, label_space
from fivefold.system import seeded
from fivefold.tools.discrete_mcmc import DISCRETE_KERNELS
from tests.systems import follow

COUNT, KIND, TWO = (
    Column("n", "integer", levels=4), Column("c", "categorical", levels=3), Column("b", "categorical", levels=2),
)  # fmt: skip
SPACES = {
    "binary": Space("image", (1, 2, 3), levels=2),
    "levels": Space("image", (1, 1, 3), levels=4),
    "table": Space("table", (3,), columns=(COUNT, KIND, TWO)),
}


def every(space: Space) -> torch.Tensor:
    return torch.tensor(list(itertools.product(*map(range, space.dim_levels))))


def system(name: str, scale: float = 0.3, **options) -> DiscreteEBM:
    torch.manual_seed(1)
    made = DiscreteEBM(SPACES[name], width=8, blocks=1, **options)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(scale * torch.randn_like(p))
        made.base.frequency.mul_(torch.rand_like(made.base.frequency) + 0.2)
        made.base.frequency.div_(made.base.frequency.sum(1, keepdim=True))
    return made.eval()


@pytest.mark.parametrize("name", SPACES)
def test_independent_laws_are_normalised_and_drawn_from(name):
    base, states = system(name).base, every(SPACES[name])
    one_hot = torch.nn.functional.one_hot(states, len(base.possible[0])).float()
    law = (-base(one_hot)).double().exp()
    assert law.sum().item() == pytest.approx(1, abs=1e-5)
    drawn = base.sample(4000)
    counts = (drawn[:, None] == states).all(2).sum(0)
    assert follow(counts.numpy(), 4000 * law.numpy(), 1e-3)


def test_independent_laws_learn_frequencies():
    base = Independent(SPACES["table"], prior=0.0)
    x = torch.tensor([[3, 0, 1], [3, 2, 1], [0, 2, 1], [3, 2, 0]])
    for row in x:
        base.learn(torch.nn.functional.one_hot(row[None], 4).float().mean(0))
    expected = torch.tensor([[0.25, 0, 0, 0.75], [0.25, 0, 0.75, 0], [0.25, 0.75, 0, 0]])
    torch.testing.assert_close(base.frequency, expected)


@pytest.mark.parametrize("energy", ["network", "quadratic"])
@pytest.mark.parametrize("name", SPACES)
def test_samples_follow_the_enumerated_law(name, energy):
    """And differences of the density are those of that law."""
    made, states = system(name, energy=energy, sample_steps=60, reset_rate=1.0), every(SPACES[name])
    x = Batch(made.examples(states))
    log_p = made.score_encoded(x).log_prob
    law = log_p.softmax(0)
    assert law.max() / law.min() > 10
    drawn = made.sample_encoded(5000, seed=0).flatten(1)
    counts = (drawn[:, None] == states).all(2).sum(0)
    assert follow(counts.numpy(), 5000 * law.numpy(), 1e-3)


def test_quadratic_energies_are_eq_3_of_spins_and_of_one_hot_values():
    torch.manual_seed(0)
    for name, count in (("binary", 6), ("table", 12)):
        energy = QuadraticEnergy(SPACES[name])
        with torch.no_grad():
            energy.couplings = torch.randn(count, count)
            energy.bias.normal_()
        states, couplings = every(SPACES[name]), energy.couplings.detach().double()
        assert couplings.shape == (count, count)
        torch.testing.assert_close(couplings, couplings.T)
        one_hot = torch.nn.functional.one_hot(states, 2 if count == 6 else 4).double()
        s = (2.0 * states - 1).double() if count == 6 else one_hot.flatten(1)
        pairs = itertools.combinations(range(count), 2)
        expected = -s @ energy.bias.double() - sum(couplings[i, j] * s[:, i] * s[:, j] for i, j in pairs)
        torch.testing.assert_close(energy(one_hot.float()).double(), expected.double(), rtol=1e-4, atol=1e-4)
        if count == 12:  # no coupling between values of one number
            assert (couplings.view(3, 4, 3, 4).diagonal(dim1=0, dim2=2) == 0).all()


@pytest.mark.parametrize("kernel", DISCRETE_KERNELS)
def test_known_numbers_stay_and_the_rest_follows_its_conditional_law(kernel):
    made, n = system("table", kernel=kernel, sample_steps=5), 4000
    made.fill_steps = 40
    x = torch.tensor([[2.0, 1, 1]]).repeat(n, 1)
    known = torch.tensor([[True, False, False]]).repeat(n, 1)
    filled = made.fill_encoded(x, known, seed=0)
    assert (filled[:, 0] == 2).all()
    states = every(SPACES["table"])
    law = made.score_encoded(Batch(states.float())).log_prob.exp() * (states[:, 0] == 2)
    counts = (filled[:, None] == states).all(2).sum(0)
    assert follow(counts.numpy(), n * (law / law.sum()).numpy(), 1e-3)


def test_gradient_is_that_of_the_likelihood():
    """Chains at the law itself: the mean of the loss's gradients within four errors of the enumerated one."""
    made = system("levels", energy="quadratic", chain_steps=1, reset_rate=0.0, buffer_size=20_000, regularisation=0.0)
    states = every(SPACES["levels"])
    data, weight = states[torch.randint(64, (8,))], made.f.parametrizations.couplings.original
    log_p = -made.energies(states, None)
    loss = -(-made.energies(data, None).mean() - log_p.logsumexp(0))
    exact = torch.autograd.grad(loss, weight)[0].flatten()
    with torch.no_grad():
        made.buffer.chains.copy_(states[torch.multinomial(log_p.softmax(0), 20_000, replacement=True)])
        made.buffer.ages.fill_(1)
    found = []
    for _ in range(30):
        update = next(made.updates(Batch(data.repeat(50, 1).view(-1, 1, 1, 3)), 0.0))
        found.append(torch.autograd.grad(update.loss, weight)[0].flatten())
    found = torch.stack(found)
    error = found.std(0) / 30**0.5
    moved = error > 1e-6
    assert ((found.mean(0) - exact)[moved].abs() < 4 * error[moved]).all()
    assert moved.sum() == 3 * 16


def test_conditional_chains_follow_the_law_of_their_condition():
    space = Space("table", (2,), columns=(COUNT, KIND), condition=label_space(("a", "b")))
    torch.manual_seed(1)
    made = DiscreteEBM(space, energy="quadratic", sample_steps=60)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.5 * torch.randn_like(p))
    states = every(space)
    for label in (0.0, 1.0):
        given = torch.full((len(states), 1), label)
        law = made.score_encoded(Batch(states.float(), given)).log_prob.softmax(0)
        drawn = made.sample_encoded(3000, torch.full((3000, 1), label), seed=0)
        counts = (drawn[:, None] == states).all(2).sum(0)
        assert follow(counts.numpy(), 3000 * law.numpy(), 1e-3)


@pytest.mark.parametrize(
    ("space", "options", "reason"),
    [
        (Space("table", (2,), columns=(COUNT, Column("x"))), {}, "DiscreteEBM does not fit"),
        (Space("image", (3, 64, 64), levels=256), {"energy": "quadratic"}, "coupling for every pair"),
    ],
)
def test_what_does_not_fit_is_refused(space, options, reason):
    with pytest.raises(Unfit, match=reason):
        DiscreteEBM(space, **options)


def lattice(side: int, coupling: float) -> torch.Tensor:
    """Couplings of the neighbours of a torus, `(side^2, side^2)`."""
    place = torch.arange(side**2).view(side, side)
    found = torch.zeros(side**2, side**2)
    for axis in (0, 1):
        a, b = place.flatten(), place.roll(1, axis).flatten()
        found[a, b] = found[b, a] = coupling
    return found


def ising_states(n: int, side: int, coupling: float, sweeps: int = 150) -> torch.Tensor:
    """States `(n, side, side)` of a torus of even side: the fields of one colour of squares are those of the other."""
    colour = (torch.arange(side)[:, None] + torch.arange(side)) % 2
    spins = torch.randint(2, (n, side, side)) * 2.0 - 1
    for turn in range(2 * sweeps):
        field = sum(spins.roll(shift, axis) for shift in (-1, 1) for axis in (1, 2))
        drawn = (torch.rand_like(spins) < (2 * coupling * field).sigmoid()) * 2.0 - 1
        spins = torch.where(colour == turn % 2, drawn, spins)
    return (spins > 0).long()


@pytest.mark.slow
def test_couplings_are_found_again_closer_than_with_plain_gibbs():
    """Of a 10x10 Ising model by 6,000 of its states, at equal steps of the chains and of training."""
    couplings = lattice(10, 0.25)
    with seeded(0):
        data = fivefold.load_data(ising_states(6000, 10, 0.25).numpy().astype(np.uint8))
    error = {}
    for kernel in ("gibbs", "gibbs-with-gradients"):
        made = fivefold.fit(
            "discrete-ebm", data, budget="700steps", batch_size=128, evaluations=1, energy="quadratic", kernel=kernel,
            chain_steps=3, buffer_size=128, reset_rate=0.0, regularisation=0.0, sparsity=0.01,
        )  # fmt: skip
        error[kernel] = (made.f.couplings - couplings).square().mean().sqrt().item()
    assert error["gibbs-with-gradients"] < 0.8 * error["gibbs"], error
    assert error["gibbs-with-gradients"] < 0.6 * couplings.square().mean().sqrt(), error
