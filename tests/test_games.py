"""Losses of adversarial games against their formulas and their optima."""

import math

import pytest
import torch
from torch.nn import functional as F

from fivefold.tools.games import GAMES, clip_weights, duplicate_rate, gradient_penalty

P = torch.tensor([1, 5, 2, 8])  # counts out of 16: two laws on four points
Q = torch.tensor([4, 4, 6, 2])
p, q = P / 16, Q / 16
JS = 0.5 * (p * (2 * p / (p + q)).log()).sum() + 0.5 * (q * (2 * q / (p + q)).log()).sum()

# name: (best output of the critic on each point, the discriminator's loss there)
OPTIMA = {
    "non-saturating": ((p / q).log(), 2 * math.log(2) - 2 * JS),
    "minimax": ((p / q).log(), 2 * math.log(2) - 2 * JS),
    "least-squares": (p / (p + q), 0.5 * (p * q / (p + q)).sum()),
    "hinge": ((p - q).sign(), 2 * torch.minimum(p, q).sum()),
}


@pytest.mark.parametrize("name", OPTIMA)
def test_the_best_critic_reaches_the_divergence_and_no_other_is_better(name):
    best, value = OPTIMA[name]

    def loss(critic):
        return GAMES[name].discriminator(critic.repeat_interleave(P), critic.repeat_interleave(Q))

    assert loss(best).item() == pytest.approx(float(value), abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        assert loss(best + 0.3 * torch.randn(4, generator=generator)) >= value - 1e-6


@pytest.mark.parametrize("name", [name for name in GAMES if GAMES[name].log_ratio])
def test_the_best_critic_tells_the_ratio_of_the_laws(name):
    torch.testing.assert_close(GAMES[name].log_ratio(OPTIMA[name][0]), (p / q).log(), rtol=1e-5, atol=1e-5)


SIGMOID = torch.sigmoid
FORMULAS = {  # name: (discriminator, generator), as survey Fig. 5a and the papers write them
    "non-saturating": (lambda r, f: -(SIGMOID(r).log() + (1 - SIGMOID(f)).log()), lambda r, f: -SIGMOID(f).log()),
    "minimax": (lambda r, f: -(SIGMOID(r).log() + (1 - SIGMOID(f)).log()), lambda r, f: (1 - SIGMOID(f)).log()),
    "wasserstein": (lambda r, f: f - r, lambda r, f: -f),
    "wasserstein-gp": (lambda r, f: f - r, lambda r, f: -f),
    "least-squares": (lambda r, f: ((r - 1) ** 2 + f**2) / 2, lambda r, f: (f - 1) ** 2 / 2),
    "hinge": (lambda r, f: F.relu(1 - r) + F.relu(1 + f), lambda r, f: -f),
    "relativistic": (
        lambda r, f: -(SIGMOID(r - f.mean()).log() + (1 - SIGMOID(f - r.mean())).log()),
        lambda r, f: -(SIGMOID(f - r.mean()).log() + (1 - SIGMOID(r - f.mean())).log()),
    ),
}


@pytest.mark.parametrize("name", GAMES)
def test_losses_are_the_formulas_and_the_generator_gains_by_better_fakes(name):
    real, fake = torch.randn(2, 32, generator=torch.Generator().manual_seed(1)).double()
    for ours, formula in zip(GAMES[name][:2], FORMULAS[name], strict=True):
        assert ours(real, fake).item() == pytest.approx(formula(real, fake).mean().item(), abs=1e-12)
    fake.requires_grad_()
    weak = fake - 1  # a least-squares critic is fooled at 1: stay below
    (gradient,) = torch.autograd.grad(GAMES[name].generator(real, weak.clamp(max=0.9)), fake)
    assert (gradient <= 0).all()
    assert (gradient < 0).any()


def test_the_minimax_gradient_vanishes_before_a_good_critic_and_the_other_does_not():
    fake = torch.full((1,), -10.0, requires_grad=True)
    slopes = {n: torch.autograd.grad(GAMES[n].generator(fake, fake), fake)[0] for n in ("minimax", "non-saturating")}
    assert abs(slopes["minimax"]) < 1e-4
    assert abs(slopes["non-saturating"]) > 0.99


def test_relativistic_critic_of_equal_laws_is_constant_at_2_ln_2():
    scores = torch.full((8,), 3.0, requires_grad=True)
    loss = GAMES["relativistic"].discriminator(scores, scores)
    assert loss.item() == pytest.approx(2 * math.log(2))
    assert torch.autograd.grad(loss, scores)[0].abs().max() < 1e-6


def test_gradient_penalty_finds_the_wasserstein_distance_of_two_point_masses():
    """A linear critic w.x under penalty weight 10 is best at |w| = 1 + distance / 20, along the line between."""
    torch.manual_seed(0)
    critic = torch.nn.Linear(2, 1, bias=False).double()
    real, fake = torch.tensor([[3.0, 4.0]]).double().expand(8, 2), torch.zeros(8, 2).double()
    optimizer = torch.optim.SGD(critic.parameters(), 0.02)
    for _ in range(400):
        scores = critic(real), critic(fake)
        penalty = gradient_penalty(lambda x: critic(x).squeeze(1), real, fake)
        optimizer.zero_grad()
        (GAMES["wasserstein-gp"].discriminator(*scores) + 10 * penalty).backward()
        optimizer.step()
    torch.testing.assert_close(critic.weight[0], 1.25 * torch.tensor([0.6, 0.8]).double(), atol=1e-6, rtol=0)
    distance = (critic(real) - critic(fake)).mean() / 1.25
    assert distance.item() == pytest.approx(5.0, abs=1e-5)


def test_gradient_penalty_of_a_known_function():
    real, fake = torch.ones(6, 1), torch.zeros(6, 1)
    torch.manual_seed(3)
    weight = torch.rand(6, 1)
    torch.manual_seed(3)
    penalty = gradient_penalty(lambda x: (x**2).sum(1), real, fake)  # gradient 2y at y = weight
    torch.testing.assert_close(penalty, ((2 * weight - 1) ** 2).mean())


def test_clipping_bounds_all_weights():
    critic = torch.nn.Linear(5, 5)
    clip_weights(critic, 0.01)
    assert max(w.abs().max() for w in critic.parameters()) <= 0.01


def test_duplicates_are_counted_and_distinct_samples_are_not():
    data = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    assert duplicate_rate(data[:1].repeat(50, 1), data) == 1
    assert duplicate_rate(torch.cat([data[:90], data[:10]]), data) >= 0.2
    assert duplicate_rate(data, data) < 0.1
