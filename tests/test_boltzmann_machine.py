"""Boltzmann machines against enumeration: likelihood, gradient, partition function, samplers."""

import itertools
import math

import pytest
import torch

from fivefold.energy.boltzmann_machine import BoltzmannMachine
from fivefold.errors import Unfit
from fivefold.space import Batch, Column, Space, label_space
from fivefold.system import Density, seeded
from tests.systems import follow

REAL, COUNT, KIND = Column("x"), Column("n", "integer", levels=4), Column("c", "categorical", levels=3)
SPACES = {
    "binary": Space("image", (1, 1, 4), levels=2),
    "binomial": Space("image", (1, 1, 3), levels=4),
    "mixed": Space("table", (3,), columns=(KIND, COUNT, KIND)),
    "conditional": Space("table", (2,), columns=(COUNT, KIND), condition=label_space(("a", "b", "c"))),
}
HIDDEN = 3


def machine(name: str, scale: float = 0.5, **options) -> BoltzmannMachine:
    """With parameters and buffers drawn at random, so that nothing is 0 or symmetric."""
    torch.manual_seed(1)
    system = BoltzmannMachine(SPACES[name], hidden=HIDDEN, **options)
    with torch.no_grad():
        for p in system.parameters():
            p.add_(scale * torch.randn_like(p))
        system.offset.uniform_(0, 1)
        system.mean.uniform_(0.1, 0.9)
    return system.eval()


def visible(space: Space) -> torch.Tensor:
    return torch.tensor(list(itertools.product(*map(range, space.dim_levels)))).float()


def given(system: BoltzmannMachine, index: int, n: int) -> torch.Tensor | None:
    return system.conditions[index].expand(n, -1) if system.space.condition else None


def log_joint(system: BoltzmannMachine, index: int = 0) -> torch.Tensor:
    """-E of every visible and hidden state by Eq. 3, written out unit by unit: `(visible, hidden)`, float64."""
    v, h = visible(system.space), torch.tensor(list(itertools.product((0.0, 1.0), repeat=HIDDEN))).double()
    a, b = (part.detach().double().flatten() for part in system.biases(given(system, index, 1)))
    lateral, between = (part.detach().double() for part in system.lateral()), system.weight.detach().double()
    visible_pairs, hidden_pairs = lateral
    rows = []
    for one in v:
        s, base = [], 0.0
        for value, levels, kind in zip(one, system.space.dim_levels, kinds(system.space), strict=True):
            if kind == "categorical":
                s += [float(value == k) for k in range(levels)]
            else:
                n = levels - 1
                s += [value.item() / math.sqrt(n)]
                base += math.log(math.comb(n, int(value)))
        s = torch.tensor([s[i] for i in order(system.space)]).double()
        rows.append(base + s @ a + 0.5 * s @ visible_pairs @ s
                    + h @ b + h @ (s @ between) + 0.5 * ((h @ hidden_pairs) * h).sum(1))  # fmt: skip
    return torch.stack(rows)


def kinds(space: Space) -> list[str]:
    return [c.kind for c in space.columns] or ["integer"] * space.dims


def order(space: Space) -> list[int]:
    """Where the layer has each statistic: whole numbers first."""
    names = [k for k, n in zip(kinds(space), space.dim_levels, strict=True) for _ in range(n if k[0] == "c" else 1)]
    return sorted(range(len(names)), key=lambda i: names[i] == "categorical")


def law(system: BoltzmannMachine, index: int = 0) -> torch.Tensor:
    joint = log_joint(system, index)
    return (joint.logsumexp(1) - joint.logsumexp((0, 1))).exp()


@pytest.mark.parametrize("name", SPACES)
def test_likelihood_is_that_of_the_enumerated_energy(name):
    system = machine(name)
    assert system.density is Density.EXACT
    v = visible(system.space)
    for index in range(len(system.conditions)):
        x = Batch(v.view(-1, *system.space.shape), given(system, index, len(v)))
        score = system.score_encoded(x)
        torch.testing.assert_close(score.log_prob.exp(), law(system, index), rtol=1e-4, atol=1e-7)
        assert (score.standard_error == 0).all()


@pytest.mark.parametrize("name", SPACES)
def test_estimates_are_within_three_errors(name, monkeypatch):
    """ln Z, and of each example the sum over hidden states, as if these were many."""
    monkeypatch.setattr("fivefold.energy.boltzmann_machine.FEW_HIDDEN", 0)
    system = machine(name, ais_steps=100, ais_chains=200)
    with torch.no_grad():
        system.hidden_pairs.mul_(2)
    system.density = Density.ESTIMATE
    v = visible(system.space)[::3]
    for index in range(len(system.conditions)):
        x = Batch(v.view(-1, *system.space.shape), given(system, index, len(v)))
        score = system.score_encoded(x)
        joint = log_joint(system, index)
        error = system.log_z_error[index]
        assert 0 < error < 0.3
        assert abs(system.log_z[index] - joint.logsumexp((0, 1))) < 3 * error
        values, errors = system.unnormalised(v, x.condition)
        z = (values.detach() - joint.logsumexp(1)[::3]) / errors.detach()
        assert errors.min() > 0
        assert z.abs().mean() < 1.3
        exact = law(system, index).log()[::3]
        assert ((score.log_prob - exact).abs() < 4 * score.standard_error).all()


@pytest.mark.parametrize("name", ["binary", "mixed"])
@pytest.mark.parametrize("how", ["gibbs", "sample", "sample without chains"])
def test_samplers_follow_the_exact_law(name, how):
    system = machine(name, sampling_steps=30, persistent=how == "sample")
    n, v = 5000, visible(system.space)
    with torch.no_grad(), seeded(3):
        if how == "gibbs":
            x = system.gibbs(system.start(torch.zeros(n, system.units.width)), None, 30)[:, : system.space.dims]
        else:
            x = system.sample_encoded(n).flatten(1).float()
    counts = (x[:, None] == v).all(2).sum(0)
    assert follow(counts.numpy(), n * law(system).numpy(), 1e-3)


def test_hidden_units_of_an_example_follow_their_law():
    system = machine("binary", settling=30)
    with torch.no_grad():
        system.hidden_pairs.mul_(3)
    v = visible(system.space)[5]
    with torch.no_grad(), seeded(0):
        state = system.explained(v.expand(5000, -1), None)
    assert (state[:, :4] == v).all()
    codes = (state[:, 4:] @ torch.tensor([4.0, 2, 1])).long()
    assert follow(torch.bincount(codes, minlength=8).numpy(), 5000 * log_joint(system)[5].softmax(0).numpy(), 1e-3)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", ["binary", "mixed"])
def test_gradient_is_that_of_the_likelihood(name, centred):
    """The mean of sampled gradients within three errors of the enumerated one (of all numbers, a chi-square)."""
    system = machine(name, persistent=False, k=30, settling=30, centred=centred)
    torch.manual_seed(2)
    data = visible(system.space)[torch.randint(len(visible(system.space)), (6,))]
    parameters = [system.weight, system.visible_bias, system.hidden_bias, system.visible_pairs, system.hidden_pairs]
    v = visible(system.space)
    log_p = system.sum_over_hidden(data, None).mean() - system.sum_over_hidden(v, None).logsumexp(0)
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(-log_p, parameters)])
    sampled = []
    for _ in range(60):
        batch = Batch(data.repeat(50, 1).view(-1, *system.space.shape))
        loss = next(system.updates(batch, 0.0)).loss
        sampled.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    sampled = torch.stack(sampled)
    error = sampled.std(0) / math.sqrt(len(sampled))
    moved = error > 1e-6
    assert (exact[~moved].abs() < 1e-4).all()
    z = ((sampled.mean(0) - exact) / error)[moved]
    assert z.abs().max() < 4
    assert z.square().mean() < 1.7


def test_known_units_stay_and_the_rest_follows_its_conditional_law():
    system, n = machine("binary"), 5000
    system.fill_steps = 30
    x = torch.tensor([1, 0, 1, 0]).view(1, 1, 1, 4).repeat(n, 1, 1, 1)
    known = torch.tensor([True, False, False, True]).view(1, 1, 1, 4).repeat(n, 1, 1, 1)
    filled = system.fill_encoded(x, known, seed=0).flatten(1).float()
    assert (filled[:, [0, 3]] == torch.tensor([1.0, 0])).all()
    v = visible(system.space)
    expected = law(system) * (v[:, [0, 3]] == torch.tensor([1.0, 0])).all(1)
    counts = (filled[:, None] == v).all(2).sum(0)
    assert follow(counts.numpy(), n * (expected / expected.sum()).numpy(), 1e-3)


def test_real_dimensions_are_refused():
    with pytest.raises(Unfit, match="BoltzmannMachine does not fit"):
        BoltzmannMachine(Space("table", (2,), columns=(REAL, COUNT)))
