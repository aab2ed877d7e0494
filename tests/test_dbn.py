"""Deep belief networks against enumeration: the law, its bound, and what a second layer is worth."""

import itertools

import pytest
import torch

import fivefold
from fivefold.energy.dbn import DBN, turned_over
from fivefold.options import slot
from fivefold.space import Batch, Column, Space
from fivefold.system import seeded
from tests.systems import follow

KIND = Column("c", "categorical", levels=3)
SPACES = {
    "binary": Space("image", (1, 2, 3), levels=2),
    "binomial": Space("image", (1, 1, 3), levels=3),
    "softmax": Space("table", (2,), columns=(KIND, KIND)),
}


def states(levels) -> torch.Tensor:
    return torch.tensor(list(itertools.product(*map(range, levels)))).float()


def network(name: str, layers: int = 2, scale: float = 0.7, **options) -> DBN:
    torch.manual_seed(1)
    system = DBN(SPACES[name], layers=layers, rbm=slot("rbm", hidden=5, sampling_steps=60, persistent=False), **options)
    with torch.no_grad():
        for p in system.parameters():
            p.add_(scale * torch.randn_like(p))
        for rbm in system.rbms:
            rbm.mean.uniform_(0.1, 0.9)
    system.started.fill_(layers)
    return system.eval()


@torch.no_grad()
def exact_log_prob(system: DBN) -> torch.Tensor:
    """ln p of every example, hidden layers summed over from the top down."""
    units, top = states([2] * system.rbms[0].hidden), system.rbms[-1]
    below = [states(system.space.dim_levels)] + [units] * (len(system.rbms) - 1)
    v = below[-1]
    log_p = (-top.free_energy(v)).log_softmax(0).double()
    for rbm, x in zip(reversed(system.rbms[:-1]), reversed(below[:-1]), strict=True):
        natural, s = rbm.visible_input(units, None), rbm.units.statistic(x)
        given = rbm.units.log_base(x)[:, None] + s @ natural.T - rbm.units.log_normaliser(natural)
        log_p = (given.double() + log_p).logsumexp(1)
    return log_p


@torch.no_grad()
def exact_bound(system: DBN) -> torch.Tensor:
    """E_q[ln p(v | h) + ln p(h) - ln q(h | v)] of every example of two layers."""
    v, h = states(system.space.dim_levels), states([2] * 5)
    below, top = system.rbms
    logits, natural = below.hidden_input(v, None), below.visible_input(h, None)
    log_q = torch.distributions.Bernoulli(logits=logits[:, None]).log_prob(h).sum(2)
    log_v = (
        below.units.log_base(v)[:, None] + below.units.statistic(v) @ natural.T - below.units.log_normaliser(natural)
    )
    return (log_q.exp() * (log_v + (-top.free_energy(h)).log_softmax(0) - log_q)).sum(1).double()


@pytest.mark.parametrize(("name", "layers"), [("binary", 2), ("binomial", 2), ("softmax", 2), ("binary", 3)])
def test_bound_is_below_the_enumerated_likelihood_and_tends_to_it(name, layers):
    system = network(name, layers, score_samples=1)
    v, exact = states(system.space.dim_levels), exact_log_prob(system)
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-5)
    x = Batch(v.view(-1, *system.space.shape))
    with torch.no_grad(), seeded(0):
        draws = torch.stack([system.log_ratio(v, None) for _ in range(2000)])
    mean, error = draws.mean(0), draws.std(0) / 2000**0.5
    assert (mean < exact + 3 * error).all()
    assert (mean - exact).mean() < -0.005
    ratio = (draws - exact).exp()  # unbiased: importance weights
    z = (ratio.mean(0) - 1) / (ratio.std(0) / 2000**0.5)
    assert z.abs().max() < 4.5
    if layers == 2:
        assert ((mean - exact_bound(system)).abs() < 4.5 * error + 1e-5).all()
    system.score_samples = 500
    score = system.score_encoded(x)
    assert ((score.log_prob - exact).abs() < 4.5 * score.standard_error + 1e-4).all()


@pytest.mark.parametrize(("name", "layers"), [("binary", 2), ("binomial", 3)])
def test_samples_follow_the_enumerated_law(name, layers):
    system = network(name, layers, scale=0.4)
    v = states(system.space.dim_levels)
    x = system.sample_encoded(5000, seed=0).flatten(1).float()
    counts = (x[:, None] == v).all(2).sum(0)
    assert follow(counts.numpy(), 5000 * exact_log_prob(system).exp().numpy(), 1e-3)


@pytest.mark.parametrize("name", ["binary", "binomial"])
@pytest.mark.parametrize("spare", [0, 3])
def test_a_second_layer_starts_where_the_first_one_is(name, spare):
    """Turned over, the machine above gives the first one's hidden units their law: the bound is its likelihood."""
    torch.manual_seed(0)
    copies = sum(n - 1 for n in SPACES[name].dim_levels)
    system = DBN(SPACES[name], rbm=slot("rbm", hidden=copies + spare))
    below, above = system.rbms
    with torch.no_grad():
        for p in below.parameters():
            p.add_(0.7 * torch.randn_like(p))
        below.offset.uniform_(0, 1)
    x = Batch(states(SPACES[name].dim_levels).view(-1, *SPACES[name].shape))
    alone = system.score_encoded(x).log_prob
    turned_over(below, above)
    system.started.fill_(2)
    score = system.score_encoded(x)
    assert score.standard_error.max() < (0.02 if spare else 1e-3)
    torch.testing.assert_close(score.log_prob, alone, rtol=0, atol=0.03 if spare else 1e-3)


def test_too_few_units_above_are_left_as_they_were():
    system = DBN(SPACES["binomial"], rbm=slot("rbm", hidden=5))
    before = system.rbms[1].weight.clone()
    turned_over(*system.rbms)
    assert torch.equal(system.rbms[1].weight, before)


def prototypes(n: int) -> torch.Tensor:
    """Images near one of four, `(n, 1, 2, 3)`."""
    with seeded(0):
        kinds = torch.randint(2, (4, 1, 2, 3))[torch.randint(4, (n,))]
        return torch.where(torch.rand(n, 1, 2, 3) < 0.04, 1 - kinds, kinds)


def test_a_second_layer_raises_the_bound():
    """From the likelihood of a first layer whose units tell much of the data but follow another law, where it starts,
    by steps of the second alone."""
    torch.manual_seed(0)
    system, x = DBN(SPACES["binary"], rbm=slot("rbm", hidden=8, k=2)), prototypes(600)
    below = system.rbms[0]
    with torch.no_grad():
        below.weight.normal_().mul_(1.5)

    def train(steps: int, progress: float) -> None:
        optimizers = system.optimizers()
        for _ in range(steps):
            stream = system.updates(Batch(x[torch.randint(len(x), (50,))]), progress)
            update = next(stream)
            optimizers[update.player].zero_grad()
            update.loss.backward()
            optimizers[update.player].step()
            with pytest.raises(StopIteration):
                stream.send(update.stats)

    def bound() -> float:
        with torch.no_grad(), seeded(0):
            return torch.stack([system.log_ratio(x.flatten(1).float(), None).mean() for _ in range(20)]).mean().item()

    before, first = below.weight.clone(), bound()
    train(1, 0.5)
    start = bound()
    assert int(system.started) == 2
    assert start == pytest.approx(first, abs=0.02)
    train(400, 0.5)
    assert bound() > start + 0.5
    assert torch.equal(below.weight, before)  # which is trained no more
    assert bound() < exact_log_prob_of(system, x) + 1e-3


def exact_log_prob_of(system: DBN, x: torch.Tensor) -> float:
    log_p = exact_log_prob(system)
    return log_p[(x.flatten(1) @ 2 ** torch.arange(5, -1, -1)).long()].mean().item()


def test_it_is_trained_layer_by_layer():
    """By `fit`: both are in use at the end, and the bound is not below what the first reached."""
    data = fivefold.load_data(prototypes(600)[:, 0].numpy().astype("uint8"))
    system = fivefold.fit(
        "dbn", data, budget="400steps", batch_size=50, evaluations=1, lr=0.3, rbm=slot("rbm", hidden=8)
    )
    batch = data.train.batch(slice(None))
    both = system.score_encoded(batch).log_prob.mean()
    assert int(system.started) == 2
    system.started.fill_(1)
    assert both > system.score_encoded(batch).log_prob.mean() - 0.01
