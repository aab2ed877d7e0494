"""MADE, PixelCNN, PixelRNN, transformers: densities against enumeration, order, samples, incremental against full."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fivefold import catalog, fit
from fivefold.data.splits import Data, Split
from fivefold.errors import Unfit
from fivefold.nets import pixelcnn
from fivefold.nets.embedding import DimEmbedding, DimFeatures
from fivefold.nets.norm import Standardised
from fivefold.space import Batch, Column, Space, label_space
from tests.systems import follow

SIGNIFICANCE = 1e-4
LABEL = label_space(("a", "b", "c"))
COLUMNS = (
    Column("real"),
    Column("letter", "categorical", levels=3, categories=tuple("xyz")),
    Column("count", "integer", levels=4),
)
TABLE = Space("table", (3,), columns=COLUMNS)
TEXT = Space("text", (4,), levels=3, symbols="abc")
IMAGE = Space("image", (1, 2, 2), levels=3)
COLOUR = Space("image", (3, 1, 2), levels=2, condition=LABEL)

SMALL = {
    "made": {"hidden": 30, "layers": 2, "dropout": 0.0},
    "gated-pixelcnn": {"channels": 9, "layers": 2, "embedding": 3, "dropout": 0.0},
    "pixelrnn": {"channels": 8, "layers": 2, "hidden": 9, "embedding": 3, "dropout": 0.0},
    "transformer": {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0},
    "sparse-transformer": {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0},
}
MIXTURE = ("made", {"orders": 2, "masks": 2, "direct": False})  # four members
FIXED = ("sparse-transformer", {"pattern": "fixed", "stride": 3, "cells": 1})
ROWS = ("pixelrnn", {"kind": "row"})
SYSTEMS = [*((name, {}) for name in SMALL), FIXED, ROWS]


def build(name, space, **options):
    """A small system with weights far from their start, so that its density is no accident of symmetry."""
    torch.manual_seed(0)
    system = catalog.build(name, space, **{**SMALL[name], **options}).eval()
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for module in system.modules():
            if isinstance(module, Standardised):
                module.set_by(torch.randn_like(module.mean), 1 + torch.rand_like(module.mean))
    return system


def every(space):
    """All examples of an enumerable space, encoded."""
    values = itertools.product(*(range(levels) for levels in space.dim_levels))
    return torch.tensor(list(values)).view(-1, *space.shape)


def condition_for(space, n):
    return None if space.condition is None else torch.arange(n).remainder(3).view(n, 1).float()


def cases(*spaces, systems=(*SYSTEMS, MIXTURE)):
    return [
        pytest.param(name, options, space, id=f"{name}-{space.kind}-{'x'.join(map(str, space.shape))}{options or ''}")
        for name, options in systems
        for space in spaces
        if space.kind in catalog.find(name).densities
    ]


@pytest.mark.parametrize(("name", "options", "space"), cases(IMAGE, COLOUR, TEXT))
def test_probabilities_sum_to_one(name, options, space):
    system, x = build(name, space, **options), every(space)
    for label in range(3 if space.condition else 1):
        condition = None if space.condition is None else torch.full((len(x), 1), float(label))
        with system.evaluating():
            assert system._log_prob(x, condition).double().logsumexp(0).abs() < 1e-5


GAUSSIANS = ("made", {"likelihood": "gaussian-mixture"})


def test_an_output_layer_that_nobody_can_pay_for_is_refused_or_made_smaller():
    """20,000 dimensions of 256 levels: categories would need 2^26 weights with 16 units, mixtures 2^31 with 5000."""
    space = Space("image", (1, 100, 200), levels=256)
    assert catalog.build("made", space, hidden=16, direct=False).head.width == 24
    with pytest.raises(Unfit, match="fewer hidden units or mixtures"):
        catalog.build("made", space, hidden=5000)


@pytest.mark.parametrize(("name", "options", "space"), cases(TABLE, systems=(*SYSTEMS, MIXTURE, GAUSSIANS)))
def test_a_mixed_table_integrates_to_one(name, options, space):
    system, grid = build(name, space, **options), torch.linspace(-40, 40, 4001)
    total = 0.0
    for letter, count in itertools.product(range(3), range(4)):
        x = torch.stack([grid, torch.full_like(grid, letter), torch.full_like(grid, count)], 1)
        with system.evaluating():
            total += torch.trapezoid(system._log_prob(x, None).exp(), grid).item()
    assert abs(total - 1) < 1e-4


@pytest.mark.parametrize(("name", "options", "space"), cases(IMAGE, COLOUR, TEXT))
def test_samples_follow_the_density(name, options, space):
    system, x, n = build(name, space, **options), every(space), 4000
    condition = None if space.condition is None else torch.ones(n, 1)
    samples = system.sample_encoded(n, condition, seed=1).flatten(1)
    places = torch.tensor([levels ** (space.dims - 1 - i) for i, levels in enumerate(space.dim_levels)])
    observed = torch.bincount((samples * places).sum(1), minlength=len(x)).double()
    with system.evaluating():
        expected = system._log_prob(x, None if condition is None else condition[: len(x)]).double().exp() * n
    assert follow(observed.numpy(), expected.numpy(), SIGNIFICANCE)


SHAPES = [Space("image", shape, levels=5, condition=LABEL) for shape in [(1, 3, 4), (3, 4, 3), (4, 2, 1), (1, 1, 1)]]


@pytest.mark.parametrize(("name", "options", "space"), cases(*SHAPES, TEXT, systems=SYSTEMS))
def test_the_jacobian_is_strictly_triangular(name, options, space, monkeypatch):
    """Of every dimension's parameters by the features of every dimension, in the system's order; nothing is missing."""
    # So wide that no input meets only dead units.
    wide = {"made": {"hidden": 600}, "pixelrnn": {"hidden": 200, "channels": 60}}.get(name, {})
    system, condition = build(name, space, **wide, **options), condition_for(space, 1)
    x = torch.zeros(1, *space.shape, dtype=torch.long)
    kind = DimFeatures if name == "made" else DimEmbedding
    (module,) = (m for m in system.modules() if type(m) is kind)
    features = module(x).detach()

    def parameters(f):
        monkeypatch.setattr(kind, "forward", lambda self, x: f)
        return system.conditionals(x, condition)[0]

    jacobian = torch.autograd.functional.jacobian(parameters, features)[:, :, 0].abs().amax(1)
    if name == "made":
        jacobian = jacobian.unflatten(1, (space.dims, -1))
    order = list(system._order())
    influence = jacobian.amax(-1)[order][:, order]
    assert influence.triu().max() == 0
    assert (influence + torch.ones_like(influence).triu() > 0).all()


@pytest.mark.parametrize(
    ("name", "options", "space"),
    cases(*SHAPES, TEXT, TABLE, Space("audio", (6,), levels=65536, rate=8000), Space("image", (1, 3, 2))),
)
def test_incremental_sampling_equals_full_evaluation(name, options, space):
    system, condition = build(name, space, **options), condition_for(space, 16)
    found = []
    with system.evaluating():
        for sample in (system._sample_from, system._sample_full_from):
            torch.manual_seed(2)
            found.append(sample(system.head.noise(16), condition))
    incremental, full = found
    torch.testing.assert_close(incremental.double(), full.double(), rtol=1e-3, atol=1e-4)  # a level of 65,536 may round


def test_an_image_is_a_condition_aligned_with_the_pixels():
    """Sampled row by row as it is evaluated whole; its last place reaches the pixels there and none before."""
    maps = torch.randn(4, 2, 4, 3)
    space = Space("image", (2, 8, 5), levels=3, condition=Space("image", (2, 4, 3), dtype="float32"))
    system = build("gated-pixelcnn", space)
    with system.evaluating():
        noise = system.head.noise(4)
        assert torch.equal(system._sample_from(noise, maps), system._sample_full_from(noise, maps))
        x, moved = torch.zeros(4, *space.shape, dtype=torch.long), maps.clone()
        moved[:, :, 3, 2] += 3
        differ = system.conditionals(x, maps) != system.conditionals(x, moved)
    rows = differ.view(4, 2, 8, 5, -1).any(-1).all(1).all(0)
    assert not rows[:2].any()  # two 3x3 convolutions reach two places up, of two rows each
    assert rows[6:, 3:].all()


@pytest.mark.parametrize("name", ["transformer", "sparse-transformer"])
def test_transformers_know_where_they_are(name):
    """By colour, row and column, each of whose vectors counts."""
    system = build(name, Space("image", (3, 2, 2), levels=4))
    system.conditionals(torch.zeros(1, 3, 2, 2, dtype=torch.long), None).square().sum().backward()
    assert [len(axis) for axis in system.position.axes] == [3, 2, 2]
    assert all(axis.grad.abs().sum(1).min() > 0 for axis in system.position.axes)


def test_two_stacks_leave_no_blind_spot():
    """After the first layer, two places up, two more blocks: all of four rows above, four columns to the right too."""
    system = build("gated-pixelcnn", Space("image", (1, 9, 9)), kernel=3)
    x = torch.zeros(1, 1, 9, 9, requires_grad=True)
    system.conditionals(x, None)[0, 6 * 9 + 3].abs().sum().backward()
    seen = x.grad[0, 0] != 0
    assert seen[2:6, :8].all()
    assert seen[6, :3].all()
    assert not seen[6, 3:].any()
    assert not seen[7:].any()
    assert not seen[:2].any()
    assert not seen[:, 8].any()


def test_a_gated_block_is_the_papers_figure_2():
    torch.manual_seed(0)
    block, (v, h) = pixelcnn._Block(torch.zeros(6, dtype=torch.long), 3, 0, 0.0), torch.randn(2, 2, 6, 5, 4)

    def gated(x):
        value, gate = x.chunk(2, 1)
        return value.tanh() * gate.sigmoid()

    above = block.vertical(v)
    expected = v + gated(above), h + block.out(gated(block.horizontal(h) + block.link(above)))
    for ours, theirs in zip(block(v, h, None), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", SMALL)
def test_sampling_costs_about_one_pass(name):
    """In multiplications, so linear in the dimensions where a pass is."""
    space = Space("image", (3, 6, 5), levels=4)
    system = build(name, space)

    def operations(f):
        with FlopCounterMode(display=False) as counter, system.evaluating():
            f()
        return counter.get_total_flops()

    one_pass = operations(lambda: system.conditionals(torch.zeros(2, *space.shape, dtype=torch.long), None))
    assert operations(lambda: system._sample(2, None)) < 1.5 * one_pass


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("made", TABLE),
        ("gated-pixelcnn", IMAGE),
        ("pixelrnn", IMAGE),
        ("transformer", TEXT),
        ("sparse-transformer", TEXT),
    ],
)
def test_learns_a_dependency_and_the_condition(name, space):
    """Examples that their condition fixes: the density rises from chance to nearly one, and samples obey."""
    rng, label = np.random.default_rng(0), np.arange(600) % 3
    x = np.repeat(label[:, None], space.dims, 1).astype(np.float32)
    if space is TABLE:
        x[:, 0] = label - 1 + 0.05 * rng.standard_normal(600)
    x = torch.from_numpy(x).view(-1, *space.shape)
    x = x if space is TABLE else x.long()
    splits = [
        Split(200, x[part], torch.from_numpy(label[part, None]).float()) for part in np.split(rng.permutation(600), 3)
    ]
    data = Data("toy", space.conditioned_on(LABEL), *splits, fingerprint="")
    system = fit(name, data, budget="150steps", seed=0, lr=5e-3, ema=0.9, **SMALL[name])
    batch = data.test.batch(slice(None))
    assert system.score_encoded(batch).log_prob.mean() > -0.7
    swapped = Batch(batch.x, (batch.condition + 1) % 3)
    assert system.score_encoded(swapped).log_prob.mean() < -3
    drawn = system.sample_encoded(60, condition_for(data.space, 60), seed=0).flatten(1)[:, -1]
    assert (drawn == condition_for(data.space, 60)[:, 0]).float().mean() > 0.9


def test_numbers_are_standardised_by_the_first_batch_in_training():
    """Each has its middle there and all have one scale; levels stay as they are, and so does all in evaluation."""
    torch.manual_seed(0)
    features = DimFeatures(TABLE, standardised=True)
    x = torch.stack([5 + 2 * torch.randn(300), torch.randint(3, (300,)), torch.randint(4, (300,))], 1)
    as_it_is = DimFeatures(TABLE)(x)
    assert torch.equal(features.eval()(x), as_it_is)
    y = features.train()(x)
    torch.testing.assert_close(y[:, 0].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(y[:, 0].std(), torch.tensor(1.0), atol=1e-2, rtol=0)
    assert torch.equal(y[:, 1:], as_it_is[:, 1:])
    later = features(x[:7] + torch.tensor([2, 0, 0]))[:, 0] - y[:7, 0]
    torch.testing.assert_close(later, 2 / x[:, 0].std().expand(7), atol=1e-2, rtol=0)
    torch.testing.assert_close(torch.cat([features.of(dim, x[:, dim]) for dim in range(3)], 1), y)


def test_a_first_batch_that_is_constant_magnifies_nothing_without_bound():
    norm = Standardised(torch.tensor([True, True]))
    assert torch.equal(norm(torch.tensor([[-1.0, 3.0]] * 16)), torch.zeros(16, 2))
    torch.testing.assert_close(norm(torch.tensor([[1.0, 3.5]])), torch.tensor([[20.0, 5.0]]))


def test_order_agnostic_ensemble_beats_no_member_alone_on_average():
    """The mixture's log-density is at least the mean of its members' (Jensen), and its members differ."""
    system, x = build("made", IMAGE, orders=3, masks=2), every(IMAGE)
    with system.evaluating():
        members = torch.stack([system._member_log_prob(member, x, None) for member in range(6)])
        assert (system._log_prob(x, None) >= members.mean(0) - 1e-5).all()
    assert members.std(0).min() > 1e-4
    assert sorted(system.position[1].tolist()) == [0, 1, 2, 3]


def test_refusals_say_why():
    with pytest.raises(Unfit, match="GiB"):
        catalog.build("transformer", Space("audio", (20_000,), levels=65536, rate=8000))
    with pytest.raises(Unfit, match="colour channels"):
        catalog.build("gated-pixelcnn", Space("image", (3, 2, 2), levels=4), channels=2)
    with pytest.raises(Unfit, match="made"):
        catalog.build("gated-pixelcnn", TABLE)
    with pytest.raises(ValueError, match="odd"):
        catalog.build("gated-pixelcnn", IMAGE, kernel=4)


def test_temperature_sharpens_every_conditional():
    """The first pixel's frequencies are those of p^(1/T); at 1 samples are what they were."""
    torch.manual_seed(0)
    space = Space("image", (1, 2, 2), levels=3)
    system = catalog.build("made", space, hidden=16)
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    logits = system.conditionals(torch.zeros(1, 1, 2, 2, dtype=torch.long), None)[0, 0]
    with system.turned(temperature=0.5):
        cold = system.sample_encoded(20_000, seed=0)[:, 0, 0, 0]
    wanted = (2 * logits).softmax(0)
    assert torch.allclose(cold.bincount(minlength=3) / 20_000, wanted, atol=4 * 0.5 / 20_000**0.5)
    with system.turned(temperature=1.0):
        same = system.sample_encoded(9, seed=0)
    assert torch.equal(same, system.sample_encoded(9, seed=0))
    with pytest.raises(ValueError, match="above 0"), system.turned(temperature=0.0):
        pass
