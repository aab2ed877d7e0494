"""Masked language models: what they see, their implicit energies, and the laws of their chains."""

import itertools

import pytest
import torch

import fivefold
from fivefold.diffusion.masked_lm import MaskedLM
from fivefold.errors import Unfit
from fivefold.space import Batch, Column, Space
from fivefold.system import Density, seeded
from tests.systems import follow

TEXT = Space("text", (3,), symbols="abc", levels=3)
BITS = Space("image", (1, 1, 3), levels=2)
EVERY = torch.tensor(list(itertools.product(range(3), repeat=3)))


def model(space: Space = TEXT, scale: float = 0.25, **options) -> MaskedLM:
    torch.manual_seed(1)
    made = MaskedLM(space, **{"width": 8, "layers": 2, "heads": 2, **options})
    with torch.no_grad():
        for p in made.parameters():
            p.add_(scale * torch.randn_like(p))
    return made.eval()


@torch.no_grad()
def test_what_is_hidden_is_not_seen_and_all_else_is():
    made = model()
    x, hidden = EVERY[:1].clone(), torch.tensor([[False, True, False]])
    there = made.conditionals(x, hidden, None)
    other = x.clone()
    other[0, 1] = 2
    assert torch.equal(made.conditionals(other, hidden, None), there)
    for dim in (0, 2):  # before and after
        other = x.clone()
        other[0, dim] = 2
        assert not torch.allclose(made.conditionals(other, hidden, None)[:, 1], there[:, 1], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("implicit", ["normalised", "raw"])
@pytest.mark.parametrize("space", [TEXT, BITS], ids=["text", "bits"])
def test_implicit_energies_written_out(space, implicit):
    """One position after another; the raw one differs by more than a constant."""
    made = model(space, sampler="metropolis", implicit=implicit)
    states = torch.tensor(list(itertools.product(range(space.levels), repeat=3)))
    expected = torch.zeros(len(states))
    for dim in range(3):
        hidden = torch.zeros(len(states), 3, dtype=torch.bool)
        hidden[:, dim] = True
        out = made.conditionals(states, hidden, None)[:, dim] + made.head.start[0]
        logits = out if space is TEXT else torch.cat([torch.zeros_like(out), out], 1)
        scores = logits if implicit == "raw" else logits.log_softmax(1)
        expected -= scores.gather(1, states[:, dim, None]).squeeze(1)
    torch.testing.assert_close(made.energy(states, None), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        made.score_encoded(Batch(states.view(-1, *space.shape))).log_prob.float(), -expected, rtol=1e-4, atol=1e-5
    )
    assert made.density is Density.UNNORMALISED


@pytest.mark.parametrize("implicit", ["normalised", "raw"])
def test_metropolis_leaves_the_law_of_the_implicit_energy_as_it_is(implicit):
    """Chains that start from it, and chains that start anywhere; Gibbs sampling alone follows another law."""
    made = model(scale=0.5, sampler="metropolis", implicit=implicit, sweeps=5)
    with torch.no_grad(), seeded(0):
        law = (-made.energy(EVERY, None)).softmax(0).double()
        start = EVERY[torch.multinomial(law, 6000, replacement=True)]
        dims = lambda: torch.randint(3, (len(start), 1))  # noqa: E731
        stayed = made.metropolis(3, dims, start, None)
        drifted = start
        for _ in range(12):
            drifted = made.gibbs(drifted, dims(), None)
        found = made.sample_encoded(3000, seed=0)
    assert law.max() / law.min() > 20

    def counts(x):
        return torch.bincount(x @ torch.tensor([9, 3, 1]), minlength=27).numpy()

    assert (stayed != start).any(1).float().mean() > 0.3
    assert follow(counts(stayed), 6000 * law.numpy(), 1e-3)
    assert follow(counts(found), 3000 * law.numpy(), 1e-3)
    assert not follow(counts(drifted), 6000 * law.numpy(), 1e-3)


@pytest.mark.slow
def test_learns_conditionals_of_a_known_law():
    """Of three letters whose law is a table: every conditional, however much is hidden; Gibbs then follows the law."""
    torch.manual_seed(0)
    law = torch.distributions.Dirichlet(0.5 * torch.ones(27)).sample().double()
    x = EVERY[torch.multinomial(law, 4000, replacement=True)]
    law = torch.bincount(x @ torch.tensor([9, 3, 1]), minlength=27).double() / 4000
    data = fivefold.load_data(["".join("abc"[i] for i in row) for row in x.tolist()])
    options = {"width": 32, "layers": 2, "dropout": 0.0, "batch_size": 256, "evaluations": 1, "lr": 5e-3, "ema": 0.98}
    made = fivefold.fit("masked-lm", data, budget="500steps", **options)
    cube = law.view(3, 3, 3)
    joint = {(): cube.sum((1, 2)) / cube.sum(), (2,): cube.sum(1) / cube.sum((0, 1)), (1, 2): cube / cube.sum(0)}
    for seen, table in joint.items():  # of the first letter given those that are seen
        hidden = torch.tensor([[dim not in seen for dim in range(3)]]).expand(27, -1)
        with torch.no_grad():
            p = (made.conditionals(EVERY, hidden, None)[:, 0] + made.head.start[0]).softmax(1)
        for row, state in enumerate(EVERY.tolist()):
            expected = table[(slice(None), *[state[dim] for dim in seen])]
            weight = law.view(3, 3, 3)[(slice(None), *[state[d] if d in seen else slice(None) for d in (1, 2)])].sum()
            assert (p[row].double() - expected).abs().max() < 0.05 + 0.01 / weight.clamp(min=0.02)
    drawn = made.sample_encoded(4000, seed=0) @ torch.tensor([9, 3, 1])
    found = torch.bincount(drawn, minlength=27).double() / 4000
    assert (found - law).abs().sum() / 2 < 0.08


def test_filled_in_numbers_depend_on_what_is_known():
    made = model(scale=0.5, sampler="metropolis")
    made.fill_steps = 8
    x = torch.tensor([[2, 0, 0]]).repeat(3000, 1)
    known = torch.tensor([[True, False, False]]).repeat(3000, 1)
    filled = made.fill_encoded(x, known, seed=0)
    assert (filled[:, 0] == 2).all()
    with torch.no_grad():
        law = (-made.energy(EVERY, None)).softmax(0).double() * (EVERY[:, 0] == 2)
    counts = torch.bincount(filled @ torch.tensor([9, 3, 1]), minlength=27)
    assert follow(counts.numpy(), 3000 * (law / law.sum()).numpy(), 1e-3)


@pytest.mark.parametrize(
    ("space", "options", "reason"),
    [
        (Space("table", (2,), columns=(Column("a"), Column("b"))), {}, "discrete"),
        (Space("image", (1, 2, 2), levels=1000), {"implicit": "raw"}, "an output for every value"),
    ],
)
def test_energies_that_there_are_not_are_refused(space, options, reason):
    with pytest.raises(Unfit, match=reason):
        MaskedLM(space, width=8, heads=2, sampler="metropolis", **options)
    assert MaskedLM(space, width=8, heads=2).density is Density.NONE
