"""Generative stochastic networks: their corruption, what makes the chain's law the data's, and their density."""

import itertools

import numpy as np
import pytest
import torch

import fivefold
from fivefold.diffusion.gsn import GSN
from fivefold.space import Batch, Column, Space
from fivefold.system import seeded
from tests.systems import follow

COUNT = Column("n", "integer", levels=5)
TINY = Space("image", (1, 1, 2), levels=3)
EVERY = torch.tensor(list(itertools.product(range(3), repeat=2)))


def network(space: Space = TINY, scale: float = 0.3, **options) -> GSN:
    torch.manual_seed(1)
    made = GSN(space, hidden=8, **options)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(scale * torch.randn_like(p))
    return made.eval()


def corruption(made: GSN) -> torch.Tensor:
    """C(x~ | x) over all states, `(from, to)`: each number stays or is any value."""
    c, k = made.corruption, 3
    one = (1 - c) * torch.eye(k) + c / k
    return torch.einsum("ac,bd->abcd", one, one).reshape(k * k, k * k).double()


def counts(x: torch.Tensor) -> np.ndarray:
    return torch.bincount(x.flatten(1) @ torch.tensor([3, 1]), minlength=9).numpy()


def test_corruption_is_the_law_that_it_says():
    made = network(corruption=0.3)
    table = corruption(made)
    for state in (0, 5):
        x = EVERY[state].expand(20_000, -1)
        assert follow(counts(made.corrupt(x)), 20_000 * table[state].numpy(), 1e-3)
    real = network(Space("table", (1,), columns=(Column("x"),)), corruption=0.3)
    moved = real.corrupt(torch.ones(20_000, 1)) - 1
    assert moved.std().item() == pytest.approx(0.3, rel=0.05)
    assert abs(moved.mean().item()) < 0.01


def test_with_the_best_denoiser_the_law_of_the_chain_is_the_datas():
    """P(X | X~) in proportion to p(X) C(X~ | X), drawn from a table in place of the network's."""
    made = network(sample_steps=40)
    data = torch.distributions.Dirichlet(torch.ones(9)).sample().double()
    best = data[:, None] * corruption(made)
    best = (best / best.sum(0)).T  # (x~, x)

    def step(x, h, condition):
        seen = made.corrupt(x) @ torch.tensor([3, 1])
        return EVERY[torch.multinomial(best[seen], 1).squeeze(1)], h

    made.step = step
    assert follow(counts(made.sample_encoded(6000, seed=0)), 6000 * data.numpy(), 1e-3)


def test_the_density_is_the_law_of_samples():
    """Of many chains: it sums to 1, is that of samples, and with few it is a bound on average."""
    made = network(sample_steps=3, score_chains=20_000)
    x = Batch(EVERY.view(-1, 1, 1, 2))
    law = made.score_encoded(x).log_prob.exp()
    assert law.sum().item() == pytest.approx(1, abs=1e-5)
    assert law.max() / law.min() > 2
    assert follow(counts(made.sample_encoded(6000, seed=1)), 6000 * law.numpy(), 1e-4)
    made.score_chains = 3
    low = torch.stack([made.score_encoded(x, seed=seed).log_prob for seed in range(300)])
    error = low.std(0) / 300**0.5
    assert (low.mean(0) < law.log() + 3 * error).all()
    assert (low.mean(0) - law.log()).mean() < -0.005


@pytest.mark.parametrize("memory", [False, True])
def test_walkback_learns_from_where_the_chain_goes(memory):
    """The loss is that of finding back to the example from every step of a chain that begins there."""
    made = network(walkback=3, memory=memory)
    batch = Batch(EVERY[:4].view(-1, 1, 1, 2).repeat(50, 1, 1, 1))
    seen, nats, update, log_prob = [], [], made.update, made.head.log_prob

    def watched(x, h, condition):
        seen.append((x, h))
        return update(x, h, condition)

    def scored(params, x):
        assert torch.equal(x, batch.x.flatten(1))  # the example, whatever the step
        nats.append(-log_prob(params, x).sum(1).mean())
        return log_prob(params, x)

    made.update, made.head.log_prob = watched, scored
    loss = made.loss(batch)
    assert loss.item() == pytest.approx(sum(nats).item() / 3, rel=1e-5)
    assert len(seen) == 3
    assert (seen[0][1] == 0).all()  # hidden units start anew at each example
    assert all((h != 0).all() for _, h in seen[1:])
    far = [(x != batch.x.flatten(1)).float().mean() for x, _ in seen]
    assert far[2] > 1.3 * far[0]
    loss.backward()
    if memory:
        assert made.keep.weight.grad.abs().sum() > 0  # through the steps, by what the chain keeps


def test_chains_learn_a_known_law():
    """Of one number: the law of samples is the data's within what 3,000 of them tell."""
    with seeded(0):
        x = torch.multinomial(torch.tensor([0.4, 0.05, 0.3, 0.05, 0.2]), 3000, replacement=True)[:, None].numpy()
    data = fivefold.load_data(x)
    options = {"hidden": 32, "batch_size": 256, "evaluations": 1, "ema": 0.97, "score_chains": 2000}
    made = fivefold.fit("gsn", data, budget="150steps", **options)
    law, found = (
        np.bincount(part[:, 0].astype(int), minlength=5) / len(part) for part in (x, made.sample(6000, seed=0))
    )
    assert np.abs(law - found).sum() / 2 < 0.035
    assert np.abs(np.exp(made.log_prob(np.arange(5)[:, None]).numpy()) - law).sum() / 2 < 0.035
