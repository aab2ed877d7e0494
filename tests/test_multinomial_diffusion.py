"""Categorical diffusion against enumeration: marginals, posteriors, the bound; samples against the chain's own law."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch

from fivefold import catalog, fit, load_data
from fivefold.diffusion.multinomial_diffusion import MultinomialDiffusion
from fivefold.errors import Unfit
from fivefold.space import Batch, Column, Space
from fivefold.system import seeded
from fivefold.tools.categorical import CategoricalDiffusion, step_bars
from fivefold.tools.diffusion import SCHEDULES
from tests.systems import follow

LEVELS, STEPS = (3, 2), 6
BARS = step_bars(SCHEDULES["cosine"], STEPS)
TABLE = Space(
    "table", (2,),
    columns=(Column("a", "categorical", levels=3, categories=(0, 1, 2)), Column("b", "integer", levels=2)),
)  # fmt: skip
TEXT = Space("text", (3,), levels=2, symbols="ab")


def chain() -> CategoricalDiffusion:
    return CategoricalDiffusion(BARS, LEVELS)


def transition(t: int, levels: int) -> torch.Tensor:
    """q(x_t | x_{t-1}), rows the earlier value, by the definition."""
    keep = (BARS[t] / BARS[t - 1]).item()
    return keep * torch.eye(levels).double() + (1 - keep) / levels


def test_single_steps_compose_to_the_marginal():
    for dim, levels in enumerate(LEVELS):
        total = torch.eye(levels).double()
        for t in range(1, STEPS + 1):
            total = total @ transition(t, levels)
            x = torch.zeros(levels, 2).long()
            x[:, dim] = torch.arange(levels)
            found = chain().marginal(chain().certain(x), torch.full((levels,), t))[:, dim].exp()
            torch.testing.assert_close(found[:, :levels], total)
            assert (found[:, levels:] == 0).all()


@pytest.mark.parametrize(("t", "s"), [(1, 0), (4, 3), (6, 2), (6, 0)])
def test_posteriors_are_bayes_rule(t, s):
    """q(x_s | x_t, x_0) by enumerating x_s, for every x_0 and x_t; and the law that a guess of x_0 makes of it."""
    for dim, levels in enumerate(LEVELS):
        to_s, to_t = torch.eye(levels).double(), torch.eye(levels).double()
        for step in range(1, s + 1):
            to_s = to_s @ transition(step, levels)
        for step in range(s + 1, t + 1):
            to_t = to_t @ transition(step, levels)
        for x_0, x_t in itertools.product(range(levels), repeat=2):
            joint = to_s[x_0] * to_t[:, x_t]
            known, now = torch.zeros(1, 2).long(), torch.zeros(1, 2).long()
            known[0, dim], now[0, dim] = x_0, x_t
            one = torch.tensor([t]), torch.tensor([s])
            found = chain().posterior(now, chain().certain(known), *one)[0, dim].exp()
            torch.testing.assert_close(found[:levels], joint / joint.sum())
            guess = torch.full((1, 2, 3), -1e9).double()
            law = torch.rand(levels).double() + 0.1
            guess[0, dim, :levels] = (law / law.sum()).log()
            product = (law / law.sum()) @ to_s * to_t[:, x_t]
            found = chain().posterior(now, guess, *one)[0, dim].exp()
            torch.testing.assert_close(found[:levels], product / product.sum())


def built(space: Space, **options) -> MultinomialDiffusion:
    """Small, its parameters moved from their start."""
    torch.manual_seed(0)
    small = {"timesteps": STEPS, "hidden": 16, "layers": 1, "channels": 8, "width": 8, "depth": 1, "heads": 2}
    system = MultinomialDiffusion(space, **{**small, "score_steps": 0, "sampling_steps": STEPS, **options}).eval()
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return system


SPACES = {"table": TABLE, "text": TEXT, "image": Space("image", (1, 1, 2), levels=3)}


def everything(space: Space) -> torch.Tensor:
    """All values, `(N, D)`."""
    return torch.tensor(list(itertools.product(*(range(n) for n in space.dim_levels))))


@torch.no_grad()
def steps_back(system: MultinomialDiffusion, every: torch.Tensor, t: int) -> torch.Tensor:
    """p(x_{t-1} | x_t) over all values, rows x_t, by the product of its dimensions' laws."""
    time = torch.full((len(every),), t)
    law = system.diffusion.posterior(every, system.guess(every, time, None), time, time - 1).double().exp()
    return torch.stack([law[:, dim, every[:, dim]] for dim in range(every.shape[1])]).prod(0)


@torch.no_grad()
def law_of(system: MultinomialDiffusion, every: torch.Tensor) -> torch.Tensor:
    """P(x_0) of the sampler with all T steps, by marginalising the chain exhaustively."""
    law = torch.full((len(every),), 1 / len(every), dtype=torch.float64)
    for t in range(STEPS, 0, -1):
        law = law @ steps_back(system, every, t)
    return law


@torch.no_grad()
def exact_bound(system: MultinomialDiffusion, every: torch.Tensor) -> torch.Tensor:
    """-ELBO of every value, L_0 + ... + L_T, by enumeration of the forward chain and the definition of the terms."""
    levels = system.levels
    forward = [torch.eye(len(every)).double()]
    for t in range(1, STEPS + 1):
        single = [transition(t, n) for n in levels]
        each = torch.stack([m[every[:, d]][:, every[:, d]] for d, m in enumerate(single)]).prod(0)
        forward.append(each)
    marginal, total = torch.eye(len(every)).double(), torch.zeros(len(every)).double()
    for t in range(1, STEPS + 1):
        before, marginal = marginal, marginal @ forward[t]
        back = steps_back(system, every, t)
        joint = before[:, :, None] * forward[t]  # of x_{t-1}, x_t given x_0
        true = joint / joint.sum(1, keepdim=True)
        total += (joint * (true.clamp(min=1e-300).log() - back.T.log())).sum((1, 2))
    return total + (marginal * (marginal * len(every)).log()).sum(1)


@pytest.mark.parametrize("kind", SPACES)
def test_the_bound_is_that_of_enumeration_and_below_the_likelihood(kind):
    system, space = built(SPACES[kind]), SPACES[kind]
    every = everything(space)
    law, bound = law_of(system, every), exact_bound(system, every)
    assert law.sum().item() == pytest.approx(1, abs=1e-6)
    assert (-bound < law.log()).all()
    draws = 1500
    x = system._encoded(every.repeat_interleave(draws, 0))
    score = system.score_encoded(Batch(x), batch_size=len(x))
    values = score.log_prob.view(-1, draws)
    error = values.std(1) / math.sqrt(draws)
    assert ((values.mean(1) + bound).abs() < 4 * error + 1e-5).all()
    stated = score.standard_error.view(-1, draws).square().mean(1).sqrt()
    assert ((stated / values.std(1)) - 1).abs().max() < 0.15
    terms = system.elbo_terms(x[:3])
    assert terms.shape == (3, STEPS + 1)
    assert (terms >= -1e-6).all()


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("steps", [STEPS, 2])
def test_samples_follow_the_chains_law(kind, steps):
    """Of all steps, and of a few whose law is marginalised alike."""
    system, space = built(SPACES[kind], sampling_steps=steps), SPACES[kind]
    every = everything(space)
    if steps == STEPS:
        law = law_of(system, every)
    else:
        law = torch.full((len(every),), 1 / len(every), dtype=torch.float64)
        for t, s in ((6, 3), (3, 0)):
            now, then = torch.full((len(every),), t), torch.full((len(every),), s)
            with torch.no_grad():
                each = system.diffusion.posterior(every, system.guess(every, now, None), now, then).double().exp()
            law = law @ torch.stack([each[:, d, every[:, d]] for d in range(every.shape[1])]).prod(0)
    x = system.sample_encoded(8000, seed=0).flatten(1).long()
    place = (x[:, None] == every).all(2).long().argmax(1)
    assert follow(np.bincount(place.numpy(), minlength=len(every)), law.numpy() * 8000)


@pytest.mark.parametrize("score_steps", [4, 8])
def test_few_terms_estimate_all_of_them(score_steps):
    """Whatever their chances, which training leaves unequal."""
    full, few = built(TEXT), built(TEXT, score_steps=score_steps)
    few.aware.seen.fill_(50), few.aware.squares.copy_(torch.linspace(1, 900, STEPS))
    few.load_state_dict(full.state_dict() | {"aware.seen": few.aware.seen, "aware.squares": few.aware.squares})
    x = torch.tensor([[0, 1, 1]]).expand(6000, 3)
    exact, found = (s.score_encoded(Batch(x), batch_size=6000) for s in (full, few))
    error = torch.stack([s.log_prob.std() for s in (exact, found)]).norm() / math.sqrt(6000)
    assert (exact.log_prob.mean() - found.log_prob.mean()).abs() < 4 * error
    assert found.standard_error.square().mean().sqrt() == pytest.approx(found.log_prob.std().item(), rel=0.1)


def test_a_joint_law_is_learnt():
    """Columns that determine one another: by independent ones the bound could not pass -2 ln 2."""
    draw = np.random.default_rng(0).integers(0, 4, 3000)
    frame = pd.DataFrame({"a": np.array(list("wxyz"))[draw], "b": draw // 2, "c": np.where(draw % 2, "u", "v")})
    data = load_data(frame)
    more = {"sampling_steps": 50, "evaluations": 1, "seed": 0}
    system = fit(
        "multinomial-diffusion",
        data,
        budget="300steps",
        batch_size=64,
        timesteps=50,
        hidden=64,
        layers=2,
        lr=3e-3,
        **more,
    )
    nats = system.score_encoded(data.test.spread(200)).log_prob.mean().item()
    assert nats > -math.log(4) - 0.25
    made = system.sample(2000, seed=0)
    right = (made["b"] == made["a"].map(dict(zip("wxyz", (0, 0, 1, 1), strict=True)))) & (
        made["c"] == made["a"].map(dict(zip("wxyz", "vuvu", strict=True)))
    )
    assert right.mean() > 0.93  # by independent columns 0.25
    assert made["a"].value_counts(normalize=True).sub(0.25).abs().max() < 0.06


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Space("table", (2,), columns=(Column("x"), Column("n", "integer", levels=3))), "does not fit"),
        (Space("table", (1,), columns=(Column("n", "integer", levels=10**7),)), "10,000,000 chances"),
    ],
)
def test_what_has_no_categories_is_refused(space, message):
    with pytest.raises(Unfit, match=message):
        catalog.build("multinomial-diffusion", space)


def test_the_networks_hear_every_dimension_and_the_time():
    """Of images, tables and text: a change anywhere reaches the guess of the first dimension."""
    for kind, space in SPACES.items():
        system, x = built(space), torch.zeros(1, space.dims).long()
        time = torch.tensor([2])
        with torch.no_grad(), seeded(0):
            before = system.guess(x, time, None)[0, 0]
            assert not torch.allclose(before, system.guess(x, time + 3, None)[0, 0]), kind
            for dim in range(space.dims):
                other = x.clone()
                other[0, dim] = 1
                assert not torch.allclose(before, system.guess(other, time, None)[0, 0]), (kind, dim)
