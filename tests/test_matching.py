"""Objectives against closed forms: a two-dimensional mixture whose score is known, enumerated and integrated laws."""

from __future__ import annotations

import math

import pytest
import torch

from fivefold.system import seeded
from fivefold.tools import matching
from fivefold.tools.matching import DIVERGENCES, score_of

PLACES = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [0.5, -1.5]]).double()
WEIGHTS, SCALES = torch.tensor([0.3, 0.5, 0.2]).double(), torch.tensor([0.6, 0.8, 0.5]).double()


def energy(x, extra=0.0):
    """Minus ln of the mixture's density, each part widened by noise of variance `extra`."""
    variance = SCALES**2 + extra
    parts = -(x[:, None] - PLACES).square().sum(2) / (2 * variance) - (2 * math.pi * variance).log()
    return -torch.logsumexp(parts + WEIGHTS.log(), 1)


def draw(n, seed=0):
    with seeded(seed):
        which = torch.multinomial(WEIGHTS, n, True)
        return PLACES[which] + SCALES[which, None] * torch.randn(n, 2).double()


def wrong(x, extra=0.0):
    """Another energy: the mixture's, tilted and curved."""
    return energy(x, extra) + 0.4 * x[:, 0] + 0.1 * (x**4).sum(1)


def fisher(x, extra=0.0):
    return 0.5 * (score_of(lambda y: wrong(y, extra))(x) - score_of(lambda y: energy(y, extra))(x)).square().sum(1)


def constant(x, extra=0.0):
    """|s|^2 / 2 of the data's own law, what lies between the objective and the divergence."""
    return 0.5 * score_of(lambda y: energy(y, extra))(x).square().sum(1)


def close(found, expected, errors=4.0):
    gap = found - expected
    assert abs(gap.mean().item()) < errors * gap.std().item() / math.sqrt(len(gap))


def test_score_is_the_negative_gradient():
    x = torch.randn(5, 2).double()
    torch.testing.assert_close(score_of(lambda y: (y**2).sum(1) / 2)(x), -x)


def test_score_matching_is_the_fisher_divergence_up_to_the_datas_own_term():
    x = draw(40_000)
    close(matching.score_matching(score_of(wrong), x) + constant(x), fisher(x))
    close(matching.score_matching(score_of(energy), x), -constant(x))


@pytest.mark.parametrize("reduced", [False, True])
def test_sliced_is_unbiased_for_exact(reduced):
    x = draw(8).repeat_interleave(4000, 0)
    with seeded(1):
        v = torch.randn_like(x)
    sliced = matching.sliced_score_matching(score_of(wrong), x, v, reduced).view(8, -1)
    exact = matching.score_matching(score_of(wrong), x[::4000])
    assert ((sliced.mean(1) - exact).abs() < 4 * sliced.std(1) / math.sqrt(4000)).all()


def test_the_reduced_form_varies_less():
    x = draw(1).expand(4000, 2)
    with seeded(1):
        v = torch.randn_like(x)
    spread = [matching.sliced_score_matching(score_of(wrong), x, v, reduced).std().item() for reduced in (True, False)]
    assert spread[0] < 0.9 * spread[1]


def test_finite_differences_are_of_second_order():
    x = draw(200)
    with seeded(1):
        v = torch.randn_like(x)
    exact = matching.sliced_score_matching(score_of(wrong), x, v, reduced=False)
    errors = [
        (matching.finite_difference_score_matching(wrong, x, v, h) - exact).abs().mean().item()
        for h in (0.04, 0.02, 0.01)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)
    assert errors[2] < 1e-2


def test_the_best_denoiser_is_the_noisy_laws_score():
    """Its objective less that of another score is the difference of their divergences from the noisy law."""
    x, deviation = draw(40_000), 0.5
    with seeded(1):
        noise = torch.randn_like(x)
    y = x + deviation * noise

    def loss(of):
        return matching.denoising_score_matching(score_of(of), x, noise, deviation) / deviation**2

    def noisy(z):
        return energy(z, deviation**2)

    close(loss(lambda z: wrong(z, deviation**2)) - loss(noisy), fisher(y, deviation**2))
    assert (loss(energy) - loss(noisy)).mean() > 0.05  # not the data's own


OBJECTIVES = {
    "score-matching": lambda e, x: matching.score_matching(score_of(e), x),
    "sliced-score-matching": lambda e, x: matching.sliced_score_matching(score_of(e), x, torch.randn_like(x)),
    "finite-difference-score-matching": lambda e, x: matching.finite_difference_score_matching(
        e, x, torch.randn_like(x), 0.05
    ),
    "denoising-score-matching": lambda e, x: matching.denoising_score_matching(
        score_of(e), x, torch.randn_like(x), 0.2
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_network_finds_the_score(name):
    """Relative Fisher divergence below 5 %, of the noisy law where it is its score that is learnt."""
    with seeded(0):
        net = torch.nn.Sequential(
            torch.nn.Linear(2, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 1)
        )
        best = torch.optim.Adam(net.parameters(), 5e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(best, 1e-2, 1200)
        x = draw(40_000).float()
        for _ in range(1200):
            batch = x[torch.randint(len(x), (512,))]
            loss = OBJECTIVES[name](lambda y: net(y).squeeze(1) + 0.1 * y.square().sum(1), batch).mean()
            best.zero_grad()
            loss.backward()
            best.step()
            schedule.step()
    test, extra = draw(4000, 5), 0.2**2 if name.startswith("denoising") else 0.0
    if extra:
        test = test + 0.2 * torch.randn_like(test)
    truth = score_of(lambda y: energy(y, extra))(test)
    found = score_of(lambda y: net(y).squeeze(1) + 0.1 * y.square().sum(1))(test.float())
    assert ((found - truth).square().sum(1).mean() / truth.square().sum(1).mean()).item() < 0.05


# --- f-divergences, on twelve states ------------------------------------------------------------------

F_OF = {
    "kl": lambda r: r * r.log(),
    "reverse-kl": lambda r: -r.log(),
    "jensen-shannon": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "squared-hellinger": lambda r: (r.sqrt() - 1) ** 2,
    "pearson": lambda r: (r - 1) ** 2,
}


@pytest.fixture
def laws():
    torch.manual_seed(0)
    return torch.randn(12).double().softmax(0), torch.randn(12).double().requires_grad_()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_variational_form_is_the_divergence_and_others_lie_below(laws, name):
    p, energies = laws
    q, rules = (-energies).softmax(0).detach(), DIVERGENCES[name]

    def value(u):
        return (p * rules.on_data(u)).sum() - (q * rules.on_model(u)).sum()

    best = (p / q).log()
    assert value(best).item() == pytest.approx((q * F_OF[name](p / q)).sum().item())
    assert all(value(best + 0.1 * torch.randn(12)).item() < value(best).item() for _ in range(5))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_models_gradient_is_the_divergences(laws, name):
    """With u = H + E at its best, in expectation over the model's draws; for kl it is maximum likelihood's."""
    p, energies = laws
    q, rules = (-energies).softmax(0), DIVERGENCES[name]
    best = (p / q).log().detach() - energies.detach()
    (expected,) = torch.autograd.grad((q * F_OF[name](p / q)).sum(), energies)
    n = 400_000
    data, drawn = (torch.multinomial(law.detach(), n, True) for law in (p, q))

    def gradient(u):
        loss = matching.f_divergence(rules, u[data], u[drawn], energies[data], energies[drawn])
        return torch.autograd.grad(loss, energies)[0]

    torch.testing.assert_close(gradient((best + energies).detach()), expected, atol=0.01, rtol=0)
    if name == "kl":
        torch.testing.assert_close(expected, p - q.detach())
        torch.testing.assert_close(gradient(torch.randn(12).double()), expected, atol=0.01, rtol=0)


# --- Stein ------------------------------------------------------------------------------------------------


def field(x):
    return torch.stack([torch.sin(x[:, 0]) * x[:, 1], torch.cos(x[:, 1]) + x[:, 0] ** 2], 1)


def test_steins_identity_holds_under_the_models_own_law_and_no_other():
    x = draw(40_000)
    with seeded(1):
        probe = torch.randint(2, x.shape).double() * 2 - 1
    own, size = matching.stein(score_of(energy), field, x, probe)
    close(own, torch.zeros_like(own))
    torch.testing.assert_close(size, field(x).square().sum(1))
    other, _ = matching.stein(score_of(wrong), field, x, probe)
    shift = (score_of(wrong)(x) - score_of(energy)(x)) * field(x)  # E_p of (s_q - s_p) f
    close(other, shift.sum(1))
    assert abs(other.mean()) > 10 * other.std() / math.sqrt(len(other))
