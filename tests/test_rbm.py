"""Restricted Boltzmann machines against enumeration: partition functions, samplers, gradients."""

import itertools
import math

import pytest
import torch

import fivefold
from fivefold.energy.rbm import RBM
from fivefold.errors import Unfit
from fivefold.evaluation.features import fit_features
from fivefold.space import Batch, Column, Space, label_space
from fivefold.system import Density, seeded
from fivefold.tools.ais import log_partition
from fivefold.tools.baselines import IndependentDims
from fivefold.tools.metrics import frechet_distance
from tests.systems import follow

REAL, COUNT, KIND = Column("x"), Column("n", "integer", levels=4), Column("c", "categorical", levels=3)
SPACES = {
    "binary": Space("image", (1, 2, 4), levels=2),
    "binomial": Space("image", (1, 1, 4), levels=5),
    "softmax": Space("table", (3,), columns=(KIND, COUNT, KIND)),
    "gaussian": Space("table", (2,), columns=(REAL, REAL)),
    "mixed": Space("table", (4,), columns=(REAL, KIND, COUNT, REAL)),
    "conditional": Space("table", (2,), columns=(COUNT, KIND), condition=label_space(("a", "b", "c"))),
}
DISCRETE = [name for name in SPACES if name not in ("gaussian", "mixed")]


def machine(name: str, scale: float = 0.7, **options) -> RBM:
    """A small RBM with parameters and buffers drawn at random, so that nothing is 0 or symmetric."""
    torch.manual_seed(1)
    rbm = RBM(SPACES[name], hidden=6, **options)
    rbm.density = Density.ESTIMATE  # as of more hidden units, whose states are not summed over
    with torch.no_grad():
        for p in rbm.parameters():
            p.add_(scale * torch.randn_like(p))
        rbm.offset.uniform_(0, 1)
        rbm.mean.uniform_(0.1, 0.9)
    return rbm.eval()


def states(space: Space) -> torch.Tensor:
    """Every state of a discrete space, flat."""
    return torch.tensor(list(itertools.product(*map(range, space.dim_levels)))).float()


def given(rbm: RBM, index: int, n: int) -> torch.Tensor | None:
    return rbm.conditions[index].expand(n, -1) if rbm.space.condition else None


@torch.no_grad()
def exact_log_z(rbm: RBM, index: int = 0) -> float:
    """By summing over all hidden states: each leaves independent visible units, whose sum is closed."""
    h = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)))
    a, b = rbm.biases(given(rbm, index, 1))
    return (h @ b.flatten() + rbm.units.log_normaliser(a + h @ rbm.weight.T)).logsumexp(0).item()


@torch.no_grad()
def exact_law(rbm: RBM, index: int = 0) -> torch.Tensor:
    """p of every visible state of a discrete space."""
    v = states(rbm.space)
    return torch.exp(-rbm.free_energy(v, given(rbm, index, len(v))) - exact_log_z(rbm, index)).double()


@pytest.mark.parametrize("name", DISCRETE)
def test_free_energies_of_all_visible_states_give_the_sum_over_hidden_states(name):
    rbm = machine(name)
    for index in range(len(rbm.conditions)):
        assert exact_law(rbm, index).sum().item() == pytest.approx(1, abs=1e-5)


def test_gaussian_density_integrates_to_one():
    rbm = machine("gaussian")
    axis = torch.linspace(-15, 15, 1201)
    v = torch.cartesian_prod(axis, axis)
    mass = torch.exp(-rbm.free_energy(v) - exact_log_z(rbm)).sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", SPACES)
def test_estimated_log_prob_is_within_three_errors_of_the_exact(name):
    rbm = machine(name, ais_steps=200, ais_chains=200)
    x = rbm.units.sample(torch.zeros(5, rbm.units.width))
    for index in range(len(rbm.conditions)):
        condition = given(rbm, index, 5)
        estimate = rbm.score_encoded(Batch(x.view(5, *rbm.space.shape), condition))
        exact = -rbm.free_energy(x, condition).detach() - exact_log_z(rbm, index)
        assert (estimate.standard_error > 0).all()
        assert (estimate.standard_error < 0.2).all()
        assert ((estimate.log_prob - exact).abs() < 3 * estimate.standard_error).all()


@pytest.mark.parametrize("name", SPACES)
def test_of_few_hidden_units_log_prob_is_exact(name):
    rbm = machine(name)
    estimated = rbm.density
    rbm.density = RBM(SPACES[name], hidden=6).density
    assert (estimated, rbm.density) == (Density.ESTIMATE, Density.EXACT)
    assert RBM(SPACES[name], hidden=17).density is Density.ESTIMATE
    x = rbm.units.sample(torch.zeros(5, rbm.units.width))
    for index in range(len(rbm.conditions)):
        condition = given(rbm, index, 5)
        score = rbm.score_encoded(Batch(x.view(5, *rbm.space.shape), condition))
        exact = -rbm.free_energy(x, condition).detach() - exact_log_z(rbm, index)
        assert (score.standard_error == 0).all()
        torch.testing.assert_close(score.log_prob, exact.double(), rtol=0, atol=1e-4)


def test_annealed_weights_are_unbiased_and_their_error_honest():
    rbm = machine("binomial")
    repeats, chains = 300, 50
    with torch.no_grad(), seeded(0):
        weights = rbm.anneal(repeats * chains, None, 20)[1].view(chains, repeats)
    estimate = log_partition(weights, rbm._base_log_z())
    ratio = torch.exp(weights + rbm._base_log_z() - exact_log_z(rbm)).flatten()
    assert abs(ratio.mean().item() - 1) < 3 * ratio.std().item() / math.sqrt(len(ratio))
    z = (estimate.value - exact_log_z(rbm)) / estimate.error
    assert 0.85 < z.std() < 1.3
    assert z.mean().abs() < 0.5


def test_log_z_is_estimated_once_for_each_state_of_the_parameters():
    rbm = machine("binary", ais_steps=20)
    x = Batch(states(rbm.space)[:3].view(-1, 1, 2, 4).long())
    first = rbm.score_encoded(x)
    drawn = torch.get_rng_state()
    assert torch.equal(first.log_prob, rbm.score_encoded(x, seed=None).log_prob)
    assert torch.equal(drawn, torch.get_rng_state())
    other = machine("binary", ais_steps=20)
    other.load_state_dict(rbm.state_dict())
    assert torch.equal(other.score_encoded(x).log_prob, first.log_prob)
    with torch.no_grad():
        rbm.hidden_bias += 1
    now = exact_log_z(rbm)
    rbm.score_encoded(x)
    assert abs(rbm.log_z.item() - now) < 3 * rbm.log_z_error.item() + 1e-6


@pytest.mark.parametrize("name", ["binary", "binomial", "softmax"])
@pytest.mark.parametrize("how", ["gibbs", "sample", "sample without chains"])
def test_samplers_follow_the_exact_law(name, how):
    rbm = machine(name, scale=0.4, sampling_steps=100, persistent=how == "sample")
    n, v = 5000, states(rbm.space)
    with torch.no_grad(), seeded(3):
        start = rbm.units.sample(torch.zeros(n, rbm.units.width))
        x = rbm.gibbs(start, None, 50) if how == "gibbs" else rbm.sample_encoded(n).flatten(1).float()
    counts = (x[:, None] == v).all(2).sum(0).double()
    assert follow(counts.numpy(), n * exact_law(rbm).numpy(), 1e-3)


@pytest.mark.parametrize("centred", [False, True])
def test_gradient_is_the_difference_of_correlations(centred):
    rbm = machine("binomial", persistent=False, k=3, centred=centred)
    x = Batch(torch.randint(5, (7, 1, 1, 4)))
    v = x.x.flatten(1).float()
    with seeded(5):
        update = next(rbm.updates(x, 0.0))
    with seeded(5), torch.no_grad():
        chain = rbm.gibbs(v, None, 3)
    gradient = torch.autograd.grad(update.loss, [rbm.weight, rbm.visible_bias, rbm.hidden_bias])

    def correlations(v: torch.Tensor) -> list[torch.Tensor]:
        s = v / 2  # sqrt of the four trials
        h = torch.sigmoid(s @ rbm.weight + rbm.biases(None)[1])
        s_, h_ = (s - rbm.offset, h - 0.5) if centred else (s, h)
        return [s_.T @ h_ / len(v), s.mean(0), h.mean(0)]

    for g, data, model in zip(gradient, correlations(v), correlations(chain), strict=True):
        torch.testing.assert_close(g, model - data)


@pytest.mark.parametrize("name", ["binary", "conditional"])
def test_persistent_chains_move_on_and_keep_their_condition(name):
    rbm = machine(name, chains=8)
    before = rbm.chain.clone()
    condition = torch.tensor([[0.0], [2.0], [2.0]]) if name == "conditional" else None
    stream = rbm.updates(Batch(torch.ones(3, *rbm.space.shape), condition), 0.0)
    update = next(stream)
    assert torch.equal(rbm.chain, before)  # until the step is taken
    with pytest.raises(StopIteration):
        stream.send(update.stats)
    moved = (rbm.chain != before).flatten(2).any(2).sum(1)
    assert moved.sum() > 0
    if name == "conditional":
        assert moved[0] <= 1
        assert moved[1] == 0


def test_samples_start_at_the_chains_of_their_condition():
    rbm = machine("conditional", scale=0.0, chains=4, sampling_steps=1)
    with torch.no_grad():
        rbm.weight.zero_()
        rbm.weight[0] = torch.tensor([30.0, -30, 0, 0, 0, 0])  # hidden units hold the first column where it is
        rbm.hidden_bias[:2] = torch.tensor([-20.0, 20])
        rbm.visible_bias[0] = rbm.offset[0] = 0
        rbm.chain[:] = torch.tensor([0.0, 1])
        rbm.chain[2, :, 0] = 3
    x = rbm.sample_encoded(6, torch.tensor([[0.0], [2.0]] * 3), seed=0)
    assert x[:, 0].tolist() == [0, 3] * 3


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        (Space("audio", (4,), levels=65536), "audio"),
        (Space("table", (1,), columns=(Column("n", "integer", levels=5000),)), "levels"),
        (Space("table", (1,), columns=(REAL,), condition=Space("table", (1,), columns=(REAL,))), "condition"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(space, reason):
    with pytest.raises(Unfit, match=reason):
        RBM(space)


@pytest.mark.slow
def test_learns_digits_and_draws_them_better_than_independent_pixels():
    """From the start that users get: the density by three standard errors, and samples by half of the distance."""
    data = fivefold.load_data("digits")
    system = fivefold.fit("rbm", data, budget="600steps", evaluations=1, ais_steps=300, sampling_steps=100)
    x = data.test.batch(slice(None))
    score = system.score_encoded(x)
    pixels = IndependentDims(data.space, data.train.batch(slice(None)).x)
    assert score.log_prob.mean() - 3 * score.standard_error[0] > pixels.log_prob(x.x).mean() + 5
    features = fit_features(data)
    near, far = (
        frechet_distance(features(drawn), features(x.x))
        for drawn in (system.sample_encoded(300), pixels.sample(300, 0))
    )
    assert near < 0.5 * far
