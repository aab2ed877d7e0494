"""What energies learn against the truth: densities by quadrature, conditional laws, entropies, normalisers, codes."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import fivefold
from fivefold import Space, catalog, fit, load_data
from fivefold.energy._objectives import OBJECTIVES
from fivefold.energy.entropy_ebm import Generator
from fivefold.energy.gebm import lower_bound
from fivefold.options import slot
from fivefold.space import Batch, Column, label_space
from fivefold.system import System, seeded
from fivefold.tools import mcmc
from fivefold.tools.divergence import with_divergence
from fivefold.tools.matching import score_of
from fivefold.tools.roc import calibration_error

PLACES, SHARES, SCALES = np.array([[-1.5, 0.0], [1.0, 1.0], [0.5, -1.5]]), np.array([0.3, 0.5, 0.2]), (0.5, 0.6, 0.4)
PLANE = Space("table", (2,), columns=(Column("a"), Column("b")))
DIGITS = Space("image", (1, 8, 8), levels=17)


def mixture(n, seed):
    rng = np.random.default_rng(seed)
    which = rng.choice(3, n, p=SHARES)
    return pd.DataFrame(PLACES[which] + np.array(SCALES)[which, None] * rng.standard_normal((n, 2)), columns=["a", "b"])


def log_mixture(x):
    squares = ((x[:, None] - PLACES) ** 2).sum(2) / (2 * np.square(SCALES))
    return np.logaddexp.reduce(np.log(SHARES) - squares - np.log(2 * np.pi * np.square(SCALES)), 1)


GRID = pd.DataFrame(np.stack(np.meshgrid(*[np.linspace(-4.5, 4.5, 151)] * 2), -1).reshape(-1, 2), columns=["a", "b"])
CELL = (9 / 150) ** 2
TEST = mixture(2000, 9)


def divergence(log_prob):
    """KL from the mixture, in nats, of a density that is normalised on the grid; and ln of what it sums to there."""
    on_grid, on_test = log_prob(GRID), log_prob(TEST)
    log_z = np.logaddexp.reduce(on_grid) + math.log(CELL)
    return (log_mixture(TEST.to_numpy()) - on_test + log_z).mean(), log_z


def trained(name, steps, **options):
    """On the mixture."""
    data = load_data(mixture(8000, 0))
    system = fit(name, data, budget=f"{steps}steps", batch_size=128, evaluations=1, seed=0, **options)
    return system, lambda x: system.log_prob(x).numpy()


def test_the_trivial_model_is_further_off_than_what_is_asked():
    mean, covariance = TEST.to_numpy().mean(0), np.cov(TEST.to_numpy().T)
    gaussian = torch.distributions.MultivariateNormal(torch.tensor(mean), torch.tensor(covariance))
    assert divergence(lambda x: gaussian.log_prob(torch.tensor(x.to_numpy())).numpy())[0] > 0.25


@pytest.mark.parametrize(("name", "steps"), [("nce", 500), ("stein-ebm", 500), ("f-ebm", 150)])
def test_densities_of_a_mixture(name, steps):
    _, log_prob = trained(name, steps)
    found, log_z = divergence(log_prob)
    assert found < 0.15
    if name == "nce":  # its normaliser is learnt
        assert log_z == pytest.approx(0, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "options"),
    [("diffusion-recovery", 800, {}), ("entropy-ebm", 2000, {}), ("jem", 600, {})]
    + [("f-ebm", 600, {"objective.divergence": name}) for name in ("kl", "reverse-kl", "squared-hellinger")],
)
def test_densities_of_a_mixture_after_longer(name, steps, options):
    assert divergence(trained(name, steps, **options)[1])[0] < 0.15


@pytest.mark.slow
def test_a_tilted_flow_is_normalised_and_better_than_the_flow():
    """Its draws of the flow give ln Z within three errors of quadrature; a shallow flow is improved upon."""
    flow = slot("realnvp", layers=2, hidden=16)
    system, log_prob = trained("nt-ebm", 900, flow=flow, width=16, blocks=1)
    found, log_z = divergence(log_prob)
    score = system.score(TEST.head(5))
    assert abs(log_z) < 3 * score.standard_error.max().item() + 0.01
    base = divergence(lambda x: system.flow.log_prob(x).numpy())[0]
    assert found < min(0.15, base - 0.02)


# --- no chains where none are claimed --------------------------------------------------------------


@pytest.mark.parametrize("name", ["nce", "stein-ebm", "deen", "autoencoder-energy", "entropy-ebm", "gebm", "igebm"])
def test_who_runs_chains_in_training(name, monkeypatch):
    """All of `tools.mcmc`'s are counted, by their common loop."""
    system, calls, usual = catalog.build(name, PLANE), [], mcmc.iterate
    monkeypatch.setattr(mcmc, "iterate", lambda *given, **more: calls.append(1) or usual(*given, **more))
    for update in system.updates(Batch(torch.randn(8, 2)), 0.5):
        update.loss.backward(inputs=list(update.player.parameters()))
    assert bool(calls) == (name == "igebm")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_energy_learns_by_any_objective(name):
    """On images and with a label: the update reaches the energy, and the energy falls from noise to data."""
    torch.manual_seed(0)
    space = DIGITS.conditioned_on(label_space(("a", "b")))
    batch = Batch(torch.randint(17, (8, 1, 8, 8)), torch.randint(2, (8, 1)))
    system = catalog.build("generative-convnet", space, width=4, blocks=1, objective=name)
    players = {update.player: update.loss for update in system.updates(batch, 0.5)}
    assert system.energy in players
    players[system.energy].backward(inputs=list(system.energy.parameters()))
    moved = [p.grad.abs().max() > 0 for n, p in system.energy.named_parameters() if "last.bias" not in n]
    assert all(moved)


# --- noise contrast ----------------------------------------------------------------------------------


class Known(nn.Module):
    """The energy of N((1, -0.5), 0.5^2 I) and a constant that makes it wrong by 3 nats."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.tensor([1.0, -0.5])

    def forward(self, x, condition=None):
        return (x - self.mean).square().sum(1) / (2 * 0.25) + math.log(2 * math.pi * 0.25) - 3


def test_noise_contrast_learns_the_normaliser_of_a_known_law(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("fivefold.energy.nce.NCE.make_energy", lambda self: Known(), raising=False)
    system = catalog.build("nce", PLANE)
    optimizer = torch.optim.Adam([system.energy.log_z], 0.05)
    for step in range(300):
        x = torch.tensor([1.0, -0.5]) + 0.5 * torch.randn(256, 2)
        (update,) = system.updates(Batch(x), step / 300)
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
    assert system.energy.log_z.item() == pytest.approx(3, abs=0.05)


def test_samples_of_a_known_energy_are_chosen_among_the_noise(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("fivefold.energy.nce.NCE.make_energy", lambda self: Known(), raising=False)
    system = catalog.build("nce", PLANE).eval()
    system.learner.moments.follow(torch.tensor([0.7, -0.3]) + 0.7 * torch.randn(2000, 2))
    x = system.sample_encoded(4000, seed=0)
    torch.testing.assert_close(x.mean(0), torch.tensor([1.0, -0.5]), atol=0.03, rtol=0)
    torch.testing.assert_close(x.std(0), torch.tensor([0.5, 0.5]), atol=0.02, rtol=0)


def test_the_noise_has_the_datas_mean_and_covariance():
    system, x = (
        catalog.build("nce", PLANE),
        torch.randn(400, 2).double() @ torch.tensor([[1.0, 0.5], [0.0, 0.3]]).double(),
    )
    for part in (x + 1).split(100):
        system.learner.moments.follow(part)
    law = system.learner.moments.law()
    torch.testing.assert_close(law.mean, x.mean(0) + 1)
    expected = 1.21 * x.T.cov(correction=0) + 0.02 * torch.eye(2)
    torch.testing.assert_close(law.covariance_matrix, expected.double())


# --- energies of one kind ------------------------------------------------------------------------------


def test_an_autoencoders_reconstruction_is_the_gradient_of_its_energy_and_its_trace_is_known():
    torch.manual_seed(0)
    system = catalog.build("autoencoder-energy", PLANE, hidden=7).double()
    net, x = system.energy, torch.randn(5, 2).double()
    score, trace = net.score(x, None)
    expected, divergence = with_divergence(score_of(net), x)
    torch.testing.assert_close(score, expected)
    torch.testing.assert_close(trace, divergence)
    units, gap = net.parts(x, None)
    reconstruction = net.bias + units.sigmoid() @ net.weight
    torch.testing.assert_close(score * net.log_variance.exp(), reconstruction - x)
    torch.testing.assert_close(gap, x - net.bias)
    torch.testing.assert_close(system.score_matching(x, None), 0.5 * score.square().sum(1) + trace)


@pytest.mark.parametrize("name", ["deen", "autoencoder-energy"])
def test_scores_have_no_curl(name):
    torch.manual_seed(0)
    system, x = catalog.build(name, PLANE).double(), torch.randn(4, 2).double()
    for point in x:
        jacobian = torch.autograd.functional.jacobian(
            lambda y: score_of(lambda z: system.nats(z, None))(y[None])[0], point, create_graph=False
        )
        torch.testing.assert_close(jacobian, jacobian.T)


def test_a_jump_is_the_mean_of_the_clean_examples():
    """Of data N(0, 4) with noise of variance 1 at y: 4 / 5 y."""
    system, y = (
        catalog.build("deen", PLANE, objective=slot("denoising-score-matching", deviation=1.0)),
        torch.randn(6, 2),
    )
    system.energy = _Quadratic(1 / 5)
    torch.testing.assert_close(system.jump(y, None), 0.8 * y)


class _Quadratic(nn.Module):
    def __init__(self, precision: float) -> None:
        super().__init__()
        self.precision = nn.Parameter(torch.tensor(precision))

    def forward(self, x, condition=None):
        return 0.5 * self.precision * x.square().flatten(1).sum(1)


class _Linear(nn.Module):
    """x = A z."""

    def __init__(self, matrix) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, z, condition=None):
        return z @ self.matrix.T


def test_the_score_and_the_entropy_of_a_generators_law():
    """x = A z + 0.3 e is N(0, A A' + 0.09 I)."""
    torch.manual_seed(0)
    matrix, deviation = torch.tensor([[1.0, 0.2], [-0.4, 0.5], [0.3, 0.3]]), 0.3
    law = torch.distributions.MultivariateNormal(torch.zeros(3), matrix @ matrix.T + deviation**2 * torch.eye(3))
    generator = Generator(_Linear(matrix), 2, deviation, 400)
    generator.log_width.data.fill_(math.log(0.8))  # of proposals, as wide as what they are to cover
    z = torch.randn(3000, 2)
    x = generator.draw(z, None).detach()
    score, log_q = generator.score(x, z, None)
    expected = -x @ law.precision_matrix
    assert ((score - expected).square().mean() / expected.square().mean()).item() < 0.02
    assert -log_q.mean().item() == pytest.approx(law.entropy().item(), abs=0.1)
    assert abs(log_q.mean() - law.log_prob(x).mean()) < 0.02
    (gradient,) = torch.autograd.grad(-log_q.mean(), generator.log_width, retain_graph=True)
    assert gradient.abs().max() > 0
    assert torch.autograd.grad(log_q.mean(), generator.net.matrix, allow_unused=True) == (None,)


def test_kale_is_the_divergence_at_its_best_and_less_elsewhere():
    """KL(N(0.5, 1) | N(0, 1)) = 1 / 8, of the energy -x / 2 (up to a constant)."""
    torch.manual_seed(0)
    base, n = torch.randn(400_000), 400_000
    data = torch.randn(n) + 0.5
    assert lower_bound(-data / 2, -base / 2).item() == pytest.approx(1 / 8, abs=0.01)
    assert lower_bound(7 - data / 2, 7 - base / 2).item() == pytest.approx(1 / 8, abs=0.01)
    for slope in (0.5, -0.2, -0.9):
        assert lower_bound(slope * data, slope * base) < 1 / 8 - 0.01


@pytest.mark.parametrize("step", [0, 3, 5])
def test_less_noisy_data_are_recovered_by_their_law(step):
    """Of data N(0, I) each y is N(0, a^2 I), and given x by Bayes' rule of mean a^2 x and variance s^2 a^2."""
    torch.manual_seed(0)
    system = catalog.build("diffusion-recovery", PLANE)
    a, s = system.scale[step].item(), system.noises[step].item()
    assert a**2 + s**2 == pytest.approx(1)
    with seeded(0):
        y, x = system.noisy(torch.randn(20_000, 2), torch.full((20_000,), step))
    assert y.std().item() == pytest.approx(a, rel=0.02)
    assert (x - y).std().item() == pytest.approx(s, rel=0.02)
    assert (y * (x - y)).mean().item() == pytest.approx(0, abs=0.02)
    system.energy_at = lambda y, t, condition: y.square().sum(1) / (2 * a**2)
    given = torch.tensor([[1.0, -0.5]]).expand(4000, 2)
    ends = system.recover(given, torch.full((4000,), step), None, 200).state
    torch.testing.assert_close(ends.mean(0), a**2 * given[0], atol=0.05, rtol=0)
    assert ends.std(0).mean().item() == pytest.approx(s * a, rel=0.05)


def test_joint_energies_classify_as_they_say():
    """ln p(y|x) by Bayes' rule of the energies is the softmax of the logits."""
    torch.manual_seed(0)
    space = DIGITS.conditioned_on(label_space(("a", "b", "c")))
    system, x = catalog.build("jem", space, width=4).eval(), torch.randint(17, (6, 1, 8, 8))
    joint = torch.stack([system.score_encoded(Batch(x, torch.full((6, 1), c))).log_prob for c in range(3)], 1)
    torch.testing.assert_close(joint.log_softmax(1).float(), system.classify(x), atol=1e-4, rtol=1e-4)
    y = system.enter(x)
    torch.testing.assert_close(-system.energies(y, None).double(), joint.logsumexp(1), atol=1e-4, rtol=1e-4)


def test_samples_of_a_class_start_at_chains_that_the_classifier_takes_for_it():
    torch.manual_seed(0)
    system = catalog.build("jem", PLANE.conditioned_on(label_space(("a", "b"))), width=4).eval()
    buffer = system.learner.buffer
    buffer.chains.copy_(torch.where(torch.arange(len(buffer))[:, None] % 2 == 0, -1.0, 1.0))
    buffer.ages.fill_(1)
    system.logits = lambda x: torch.stack([-20 * x[:, 0], 20 * x[:, 0]], 1)
    label = torch.tensor([0, 1, 1, 0])[:, None]
    assert (system.sample_start(4, label)[:, 0] > 0).tolist() == [False, True, True, False]


@pytest.mark.parametrize(("restart", "near"), [("noise", False), ("data", True)])
def test_chains_of_the_buffer_start_afresh_where_they_are_told(restart, near):
    objective = slot("contrastive-divergence", restart=restart, reset_rate=1.0)
    system, data = catalog.build("f-ebm", PLANE, objective=objective), torch.full((8, 2), 7.0)
    start, _, ages = system.learner._starts(system, torch.arange(8), data, None)
    assert (start == data).all().item() == near
    assert (ages == 0).all()


def test_evaluations_of_a_sample_are_those_of_its_chains():
    system, calls = catalog.build("stein-ebm", PLANE, sample_steps=4).eval(), []
    system.energy.register_forward_hook(lambda *_: calls.append(1))
    system.sample(3, seed=0)
    assert system.sample_evaluations == len(calls) > 8


def test_calibration_error():
    chance = torch.tensor([[0.75, 0.25]] * 4)
    assert calibration_error(chance, torch.tensor([0, 0, 0, 1])).item() == pytest.approx(0)
    assert calibration_error(chance, torch.tensor([1, 1, 1, 0])).item() == pytest.approx(0.5)


# --- chains that generate ---------------------------------------------------------------------------


def test_the_generator_learns_what_proposals_became():
    torch.manual_seed(0)
    system = catalog.build("coopnets", PLANE)
    system.energy = _Quadratic(5.0)  # all is drawn to the middle
    first, second = system.updates(Batch(torch.randn(64, 2)), 0.5)
    assert (first.player, second.player) == (system.energy, system.generator)
    second.loss.backward(inputs=list(system.generator.parameters()))
    optimizer = torch.optim.SGD(system.generator.parameters(), 0.05)
    before = system.propose(2000, None).square().mean().item()
    optimizer.step()
    assert system.propose(2000, None).square().mean().item() < before


def test_short_chains_are_a_function_whose_start_can_be_found():
    torch.manual_seed(0)
    system = catalog.build("short-run-ebm", PLANE, sample_steps=10, step_size=0.1, inference_steps=100)
    system.energy = _Quadratic(2.0)  # a step is a contraction by 1 - 0.1
    z = torch.randn(5, 2)
    torch.testing.assert_close(system.flow(z, None), 0.9**10 * z)
    x = 0.3 * torch.randn(5, 2)
    with torch.no_grad():
        torch.testing.assert_close(system.flow(system._encode(x, None), None), x, atol=0.02, rtol=0)


@pytest.mark.slow
def test_chains_in_a_flows_noise_change_mode_far_more_often():
    """Two modes: at least five times as often as chains of as many leapfrog steps in the space of the data."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random((8000, 1)) < 0.5, -2.0, 2.0) * np.array([[1.0, 0.0]]) + 0.3 * rng.standard_normal((8000, 2))
    data = load_data(pd.DataFrame(x, columns=["a", "b"]))
    system: System = fit(
        "nt-ebm", data, budget="1200steps", batch_size=128, evaluations=1, seed=0, flow=slot("spline-flow"), width=16
    ).eval()
    move, n = mcmc.Move(0.01, warm_up=50, keep=200), 200

    def crossings(trace):
        side = trace[..., 0] > 0
        return (side[1:] != side[:-1]).sum().item()

    with seeded(0):
        noise = system.fresh(n)
        latent = mcmc.hamiltonian(lambda e: system.potential(e, None), noise, 200, move).trace
        there = torch.stack([system.examples(e, None) for e in latent])
        start = system.examples(noise, None).detach()
        here = mcmc.hamiltonian(
            lambda y: system.energy(y, None) - system.flow._point_log_prob(y, None), start, 200, move
        ).trace
    assert crossings(there) >= 5 * max(crossings(here), 1)


# --- on digits -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_joint_energies_recognise_digits():
    data = fivefold.load_data("digits", condition="label")
    system = fit("jem", data, budget="60s", evaluations=1, seed=0)
    test = data.test.batch(slice(None))
    right = (system.classify(test.x).argmax(1) == test.condition[:, 0]).float().mean().item()
    assert right >= 0.93
