"""Discrete flows: probabilities sum to 1, samples follow them, integers come back, gradients pass through rounding."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import fivefold
from fivefold import Batch, Density, Space, catalog
from fivefold.bijections import discrete
from fivefold.bijections.discrete import ModuloAutoregressive, ModuloCoupling, Remainders, Wrap, round_through
from fivefold.errors import Unfit
from fivefold.flow.discrete_flow import DiscreteFlow
from fivefold.flow.idf import Idf
from fivefold.space import Column, label_space
from fivefold.tools.baselines import IndependentDims
from fivefold.tools.laws import IntegerLogistics, Levels

MIXED = Space(
    "table",
    (3,),
    columns=(
        Column("count", "integer", levels=5),
        Column("kind", "categorical", "object", levels=3, categories=("a", "b", "c")),
        Column("flag", "integer", levels=2),
    ),
)
SPACES = {
    "image": Space("image", (1, 2, 2), levels=3, layout="HW"),
    "odd image": Space("image", (1, 1, 3), levels=4, layout="HW"),
    "colours": Space("image", (3, 1, 1), levels=5),
    "one pixel": Space("image", (1, 1, 1), levels=4),
    "mixed table": MIXED,
    "text": Space("text", (3,), levels=4, symbols="abcd", dtype="str"),
}
SYSTEMS = {
    "idf": (Idf, {"hidden": 6, "depth": 2, "layers": 2}),
    "idf++": (Idf, {"hidden": 6, "depth": 2, "layers": 3, "restore": True, "rezero": True, "normed": True}),
    "discrete-flow": (DiscreteFlow, {"hidden": 9}),
    "bipartite": (DiscreteFlow, {"hidden": 9, "order": "bipartite", "layers": 3}),
    "sigma of 1": (DiscreteFlow, {"hidden": 9, "scales": False, "layers": 2}),
    "independent": (DiscreteFlow, {"hidden": 9, "layers": 2, "base": "independent"}),
}
CASES = [(name, kind) for name in SYSTEMS for kind in SPACES if kind != "text" or SYSTEMS[name][0] is DiscreteFlow]


def build(name, space, spread=0.5, **options):
    torch.manual_seed(0)
    cls, chosen = SYSTEMS[name]
    system = cls(space, **{**chosen, **options})
    with torch.no_grad():
        for key, parameter in system.named_parameters():  # a law's own count many times over
            parameter.add_(spread * (0.1 if key.endswith("own") else 1) * torch.randn_like(parameter))
    return system.eval()


def every(space):
    """All examples of a small space, encoded."""
    x = torch.tensor(list(itertools.product(*map(range, space.dim_levels)))).view(-1, *space.shape)
    return x.float() if space.columns else x


def follows(counts, probabilities):
    """Whether counts are of these probabilities, by chi-square at 1 in 10,000; rare outcomes count as one."""
    expected = probabilities * counts.sum()
    often = expected > 5
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], max(counts.sum() - expected[often].sum(), 1e-9))
    keep = (wanted > 1e-6) | (observed > 0)
    return chisquare(observed[keep], wanted[keep] * observed[keep].sum() / wanted[keep].sum()).pvalue > 1e-4


def counts_of(x, space):
    codes = np.ravel_multi_index(x.flatten(1).long().numpy().T, space.dim_levels)
    return np.bincount(codes, minlength=math.prod(space.dim_levels))


# --- truth on enumerable spaces -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_probabilities_sum_to_one_and_samples_follow_them(name, kind):
    space = SPACES[kind]
    system, x = build(name, space), every(space)
    assert system.density is Density.EXACT
    probabilities = system.score_encoded(Batch(x)).log_prob.exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert follows(counts_of(system.sample_encoded(4000, seed=0), space), probabilities.numpy())
    assert torch.equal(system._decode(system._encode(x, None), None), x)
    z = system._encode(x, None)
    assert len(z.unique(dim=0)) == len(x)


@pytest.mark.parametrize("name", SYSTEMS)
def test_probabilities_sum_to_one_after_training_given_a_condition(name):
    """And the mean log-probability comes near the entropy of the law that was learnt, which is not independent."""
    space = SPACES["mixed table"].conditioned_on(label_space(("low", "high")))
    system = build(name, space, spread=0.0).train()
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(2, (600, 1), generator=generator)
    first = torch.randint(5, (600,), generator=generator)
    x = torch.stack([first, (first + label[:, 0]) % 3, (first > 2).long()], 1).float()
    rate, steps = (0.01, 60) if name == "idf" else (0.003, 300)
    system.lr = rate
    optimizer = system.optimizers()[system]
    for _ in range(steps):
        loss = system.loss(Batch(x, label))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert -system._log_prob(x, label).mean() < math.log(5) + math.log(3) + math.log(2) - 0.3  # independent values
    system.eval()
    for value in (0, 1):
        given = torch.full((30, 1), value)
        total = system.score_encoded(Batch(every(space), given)).log_prob.exp().sum()
        assert total.item() == pytest.approx(1, abs=1e-5)


def test_on_all_integers_probabilities_sum_to_one_and_numbers_follow_them():
    """The paper's flow: its law is of the integers, of which the levels are a part, and so a bound there."""
    space = Space("table", (2,), columns=(Column("a", "integer", levels=4), Column("b", "integer", levels=3)))
    system = build("idf", space, wrap=False)
    assert system.density is Density.LOWER_BOUND
    axis = torch.arange(-300, 300)
    x = torch.cartesian_prod(axis, axis)
    probabilities = system.score_encoded(Batch(x), batch_size=10**6).log_prob.exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-3)
    with torch.no_grad():
        drawn = system.generate(4000, None, lambda law: law.sample().double())
    inside = (drawn.abs() < 300).all(1)
    codes = ((drawn[inside] + 300) @ torch.tensor([600.0, 1.0])).long()
    assert follows(np.bincount(codes.numpy(), minlength=len(x)), probabilities.numpy())
    levels = ((x >= 0) & (x < torch.tensor([4, 3]))).all(1)
    assert probabilities[levels].sum() < 1
    clamped = counts_of(system.sample_encoded(4000, seed=0), space)
    bound = probabilities[levels].numpy() * 4000
    assert (clamped > bound - 5 * np.sqrt(bound + 1)).all()


@pytest.mark.parametrize("bounded", [False, True])
def test_logistic_laws_are_the_masses_of_cells(bounded):
    """Against differences of the distribution function, of one value and of intervals."""
    torch.manual_seed(0)
    bounds = (torch.tensor(-4.0), torch.tensor(5.0)) if bounded else None
    law = IntegerLogistics(*torch.randn(3, 6, 2, dtype=torch.float64).unbind(0), bounds)
    means, scales, shares = law.means, law.log_scales.exp(), law.weights.softmax(-1)

    def below(edge):  # P(Z < edge) of the unbounded law
        return (shares * torch.sigmoid((edge - 0.5 - means) / scales)).sum(-1)

    z = torch.arange(-4.0, 6.0, dtype=torch.float64)
    truth = torch.stack([below(v + 1) - below(v) for v in z])
    if bounded:
        truth[0], truth[-1] = below(z[1]), 1 - below(z[-1])
    found = torch.stack([law.log_prob(v.expand(6)) for v in z]).exp()
    torch.testing.assert_close(found, truth)
    assert not bounded or torch.allclose(found.sum(0), torch.ones(6, dtype=torch.float64))
    low, high = torch.full((6,), -2.0).double(), torch.full((6,), 3.0).double()
    torch.testing.assert_close(law.mass(low, high), truth[2:7].sum(0))
    infinite = torch.full((6,), torch.inf).double()
    torch.testing.assert_close(law.mass(-infinite, high) + law.mass(high, infinite), torch.ones(6).double())
    assert law.log_prob(torch.full((6,), 1e9)).isfinite().all()


def test_laws_of_levels_are_their_shares():
    law = Levels(torch.randn(4, 5, dtype=torch.float64))
    shares, ends = law.logits.softmax(-1), [torch.full((4,), float(i)) for i in (1, 4)]
    torch.testing.assert_close(law.mass(*ends), shares[:, 1:4].sum(-1))
    torch.testing.assert_close(law.mass(ends[0] - torch.inf, ends[1] + torch.inf), torch.ones(4).double())
    torch.testing.assert_close(law.log_prob(torch.tensor([0, 1, 2, 4])).exp(), shares[range(4), [0, 1, 2, 4]])


# --- integers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 6), (1, 5, 3), (3, 1, 1)])
@pytest.mark.parametrize("restore", [False, True])
def test_integers_come_back_however_far_out(shape, restore):
    """Exactly and in both directions, from the levels to a billion."""
    system = build("idf", Space("image", shape, levels=256), wrap=False, restore=restore)
    for reach in (1, 10, 10**5, 10**9):
        x = torch.randint(-reach, reach + 256, (4, *shape))
        with torch.no_grad():
            parts = system.code(x, None)
            assert all(torch.equal(z, z.round()) for z in parts)
            assert torch.equal(_given(system, parts), x)
            other = [torch.randint(-reach, reach + 1, z.shape).double() for z in parts]
            assert all(torch.equal(*pair) for pair in zip(system.code(_given(system, other), None), other, strict=True))


def _given(system, parts):
    waiting = iter(parts)
    return system.generate(len(parts[0]), None, lambda _: next(waiting))


@pytest.mark.parametrize("name", SYSTEMS)
def test_gradients_reach_every_parameter(name):
    """Through rounding and argmax; what the few rectifiers of a first layer shut at one point is open at another."""
    space, idle = Space("image", (1, 4, 4), levels=5), None
    for seed in range(5):
        system = build(name, space, spread=0.1, hidden=24).train()
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in system.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for key, parameter in system.named_parameters():
                if "narrow" in key:
                    parameter.normal_()
        system.loss(Batch(torch.randint(5, (64, *space.shape)))).backward()
        assert all(p.grad.isfinite().all() for p in system.parameters() if p.grad is not None)
        here = {n for n, p in system.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
        idle = here if idle is None else idle & here
    assert not idle


def test_rounding_is_exact_and_passes_gradients():
    x = torch.tensor([0.2, -0.5, 1.5, 1e6 + 0.3, -3e9], requires_grad=True)
    y = round_through(x)
    assert torch.equal(y, x.round())
    y.square().sum().backward()
    assert torch.equal(x.grad, 2 * x.detach().round())


def test_translations_are_learnt_through_rounding():
    """Two columns that go together: the flow takes the first from the second, which independent values cannot."""
    space = Space("table", (2,), columns=tuple(Column(c, "integer", levels=64) for c in "ab"))
    system = build("idf", space, spread=0.0, wrap=False, layers=2, hidden=32).train()
    torch.manual_seed(0)
    first = torch.randint(4, 60, (512,))
    x = torch.stack([first, first + torch.randint(-1, 2, (512,))], 1).float()
    system.lr = 0.02
    optimizer = system.optimizers()[system]
    for _ in range(150):
        optimizer.zero_grad()
        loss = system.loss(Batch(x))
        loss.backward()
        optimizer.step()
    entropy = math.log(56) + math.log(3)
    assert entropy - 0.1 < loss.item() < entropy + 1.2 < 2 * math.log(56) - 1


# --- remainders ---------------------------------------------------------------------------------------


def test_arithmetic_modulo_each_dimensions_own_levels():
    """All pairs, by counting; and the inverses of all that have one."""
    levels = (1, 2, 5, 6)
    modulo = Remainders(levels)
    for dim, size in enumerate(levels):
        pairs = torch.cartesian_prod(torch.arange(size), torch.arange(size))
        codes = torch.zeros(2, len(pairs), 4, dtype=torch.long)
        codes[:, :, dim] = pairs.T
        x, y = (modulo.encode(c, torch.float64) for c in codes)
        value = lambda t, dim=dim: t[:, dim].argmax(-1)  # noqa: E731
        assert torch.equal(value(modulo.add(x, y)), pairs.sum(1) % size)
        assert modulo.is_unit[dim].tolist() == [a < size and math.gcd(a, size) == 1 for a in range(6)]
        unit = modulo.is_unit[dim, pairs[:, 1]]
        product = modulo.multiply(x, y)
        assert torch.equal(value(product)[unit], pairs.prod(1)[unit] % size)
        assert torch.equal(product[unit, dim].sum(-1), torch.ones(int(unit.sum())).double())
        assert torch.equal(modulo.add(x, y).sum(-1), torch.ones(len(pairs), 4).double())


@pytest.mark.parametrize("operation", ["add", "multiply"])
def test_gradients_of_remainders_are_those_of_bilinear_maps(operation):
    """Against autograd through the whole table of the operation, at one-hot vectors."""
    torch.manual_seed(0)
    size, modulo = 6, Remainders((6, 6))
    codes = torch.randint(size, (2, 5, 2))
    codes[1] = torch.tensor([1, 5])[torch.randint(2, (5, 2))]
    weights = torch.randn(5, 2, size)
    values = torch.arange(size)
    table = (values[:, None] + values if operation == "add" else values[:, None] * values) % size
    full = torch.nn.functional.one_hot(table, size).float()
    gradients = []
    for f in (getattr(modulo, operation), lambda a, b: torch.einsum("bdi,bdj,ijk->bdk", a, b, full)):
        x, y = (modulo.encode(c, torch.float32).requires_grad_() for c in codes)
        (weights * f(x, y)).sum().backward()
        gradients.append((x.grad, y.grad))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("reverse", [False, True])
def test_autoregressive_coefficients_see_only_what_comes_before(reverse):
    torch.manual_seed(0)
    flow = ModuloAutoregressive((3, 4, 2, 3), 12, reverse=reverse)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter)
    x = flow.remainders.encode(torch.zeros(1, 4), torch.float32).requires_grad_()
    for dim in range(4):
        grad = torch.autograd.grad(flow.logits_of(x, None)[:, dim].square().sum(), x)[0].abs().sum((0, 2)) > 0
        before = torch.arange(4) > dim if reverse else torch.arange(4) < dim
        assert torch.equal(grad, before)


def test_a_discrete_flow_learns_what_no_independent_law_can():
    """A permutation of the second value by the first, without any order: most of what there is to gain."""
    space = Space("table", (2,), columns=tuple(Column(c, "integer", levels=5) for c in "ab"))
    system = build("independent", space, spread=0.0, hidden=32).train()
    torch.manual_seed(0)
    first = torch.randint(5, (200,))
    x = torch.stack([first, torch.tensor([3, 0, 4, 1, 2])[first]], 1).float()
    system.lr = 0.02
    optimizer = system.optimizers()[system]
    for _ in range(200):
        optimizer.zero_grad()
        loss = system.loss(Batch(x))
        loss.backward()
        optimizer.step()
    assert math.log(5) - 0.05 < loss < math.log(5) + 0.4 < 2 * math.log(5) - 1


def test_an_argmax_is_exact_and_its_logits_learn_the_mean_gain_of_each_choice_in_its_context():
    """Two contexts, of which the rare one has another best choice; what cannot be is never chosen, nor gains."""
    torch.manual_seed(0)
    gains = torch.tensor([[5.0, 1.0, 9.0], [0.0, 2.0, 9.0]])
    table = torch.zeros(2, 3, requires_grad=True)
    for _ in range(300):
        context = (torch.rand(64) < 0.1).long()
        logits = table[context].masked_fill(torch.tensor([False, False, True]), -torch.inf)
        chosen, zero_term = discrete.one_hot_through(logits.unsqueeze(1))
        assert torch.equal(chosen.detach()[:, 0], torch.nn.functional.one_hot(logits.argmax(1), 3).float())
        assert not zero_term.any()
        noisy = gains[context] + torch.randn(64, 3)
        (step,) = torch.autograd.grad(((chosen[:, 0] * noisy).sum(1) + zero_term).mean(), table)
        table.data += 0.3 * step
    torch.testing.assert_close(table.detach()[:, :2], torch.tensor([[2.0, -2.0], [-1.0, 1.0]]), atol=0.5, rtol=0)
    assert not table[:, 2].any()


@pytest.mark.parametrize(("base", "limit"), [pytest.param("paper", 2.3, marks=pytest.mark.slow), ("independent", 2.39)])
def test_codes_depend_on_their_context_and_gain_by_it(base, limit):
    """From the start that users get, on digits; independent levels take 2.41 bits, so that 2.39 is the flow's own."""
    data = fivefold.load_data("digits")
    options = {"scales": False} if base == "independent" else {}
    system = fivefold.fit(
        "discrete-flow", data, budget="300steps" if base == "paper" else "150steps", evaluations=1, base=base, **options
    )
    x = data.test.batch(slice(None)).x
    independent = IndependentDims(data.space, data.train.batch(slice(None)).x)
    bits = [
        -model.mean() / 64 / math.log(2) for model in (system.score_encoded(Batch(x)).log_prob, independent.log_prob(x))
    ]
    assert bits[0] < limit < bits[1]
    other = x.clone()
    other[:, 0, 2, 3] = (x[:, 0, 2, 3] + 8) % 17
    changed = (system._encode(x, None) != system._encode(other, None)).float()
    assert not changed[:, : 2 * 8 + 3].any()
    assert changed[:, 2 * 8 + 4 :].any(1).float().mean() > 0.2


# --- mechanisms switched off --------------------------------------------------------------------------


def test_without_rounding_nothing_is_whole(monkeypatch):
    monkeypatch.setattr(discrete, "round_through", lambda x: x)
    system = build("idf", SPACES["image"])
    z = system._encode(every(SPACES["image"]), None)
    assert (z != z.round()).any()


def test_without_the_modulus_probability_is_lost(monkeypatch):
    monkeypatch.setattr(Wrap, "forward", lambda self, x, condition=None: (x, x.new_zeros(len(x))))
    system, x = build("idf", SPACES["image"]), every(SPACES["image"])
    assert abs(system.score_encoded(Batch(x)).log_prob.exp().sum() - 1) > 0.01
    monkeypatch.setattr(Remainders, "_at", lambda self, x, index: x.gather(-1, index.clamp(0, x.shape[-1] - 1)))
    flow = build("discrete-flow", SPACES["image"])
    assert abs(flow.score_encoded(Batch(x)).log_prob.exp().sum() - 1) > 0.01


def test_the_law_of_what_is_factored_out_depends_on_the_rest(monkeypatch):
    system = build("idf", Space("image", (1, 4, 4), levels=9), scales=2)
    x = torch.randint(9, (6, 1, 4, 4))
    (_, given), (_, last) = system._parts(x, None)
    assert given.means.std(0).min() > 0
    assert last.means.std(0).max() == 0
    kept = system.stages[0](x.double() + system.lowest, None)[0]
    before = system._log_prob(x, None)
    monkeypatch.setattr(type(system.stages[0].law), "forward", _blind(type(system.stages[0].law).forward))
    assert (system._log_prob(x, None) - before).abs().max() > 1e-3
    assert system.stages[0].law(kept, None).means.std(0).max() == 0


def _blind(forward):
    return lambda self, kept, condition: forward(self, torch.zeros_like(kept), condition)


# --- IDF++, and what is refused -----------------------------------------------------------------------


def test_idf_plus_plus_restores_the_order_starts_at_zero_and_normalises():
    space, x = Space("image", (2, 4, 4), levels=5), torch.randint(5, (3, 2, 4, 4))
    squeezed = torch.nn.functional.pixel_unshuffle(x.double() - 2, 2)
    options = {"layers": 3, "scales": 1, "hidden": 6, "depth": 2}
    for restore in (False, True):
        torch.manual_seed(0)
        code = Idf(space, restore=restore, **options).code(x, None)[0]
        assert torch.equal(code, squeezed) == restore
        assert torch.equal(code.flatten(1).sort(1).values, squeezed.flatten(1).sort(1).values)  # only moved
    plain, plus = Idf(space, **options), Idf(space, rezero=True, normed=True, **options)
    last = lambda s: next(m for n, m in s.named_modules() if n.endswith("net.net.last"))  # noqa: E731
    assert not last(plain).layer.weight.any()
    assert last(plus).layer.weight.any()
    factors = {n: p for n, p in plus.named_parameters() if n.endswith("factor")}
    assert len(factors) == 3
    plus.loss(Batch(x)).backward()
    assert all(p == 0 and p.grad != 0 for p in factors.values())
    norms = [sum(isinstance(m, torch.nn.GroupNorm) for m in s.modules()) for s in (plain, plus)]
    assert norms == [0, 12]


def test_a_quarter_of_the_channels_is_shifted():
    system = Idf(Space("image", (3, 8, 8), levels=256), layers=2, scales=2, hidden=4, depth=1)
    couplings = [m for m in system.modules() if type(m).__name__ == "Coupling"]
    assert [(len(c.keep), len(c.change)) for c in couplings] == [(9, 3)] * 2 + [(18, 6)] * 2


@pytest.mark.parametrize("cls", [Idf, DiscreteFlow])
def test_real_values_are_refused(cls):
    for space in (
        Space("table", (2,), columns=(Column("a"), Column("b", "integer", levels=3))),
        Space("image", (1, 2, 2), dtype="float32"),
    ):
        with pytest.raises(Unfit, match="real"):
            catalog.build(cls, space)


def test_too_many_dimensions_times_levels_are_refused():
    with pytest.raises(Unfit, match="hidden units"):
        DiscreteFlow(Space("image", (3, 32, 32), levels=256), hidden=512)


def test_bipartite_flows_take_one_evaluation():
    space = SPACES["image"]
    assert build("bipartite", space).sample_evaluations == 3
    assert build("discrete-flow", space, layers=2).sample_evaluations == 8 + 4  # two flows, and what they end in
    assert build("independent", space).sample_evaluations == 8
    masks = [m.mask.flatten() for m in build("bipartite", space).modules() if isinstance(m, ModuloCoupling)]
    assert torch.equal(masks[0], ~masks[1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "limit"), [("idf", {"wrap": False}, 2.35), ("discrete-flow", {}, 2.3)])
def test_learns_digits(name, options, limit):
    data = fivefold.load_data("digits")
    system = fivefold.fit(name, data, budget="400steps", **options)
    nats = system.score_encoded(data.test.batch(slice(None))).log_prob.mean()
    assert -nats / data.space.dims / np.log(2) < limit
