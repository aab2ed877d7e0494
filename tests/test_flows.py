"""Flows as densities: they integrate to 1 in the user's units, their samples follow them, their bounds are bounds."""

import numpy as np
import pytest
import torch
from scipy import stats

import fivefold
from fivefold.bijections.coupling import Coupling, MaskedCoupling
from fivefold.bijections.linear import LULinear
from fivefold.catalog import find
from fivefold.nets.conditioner import ConditionedLayer
from fivefold.space import Batch, Column, Space, label_space
from fivefold.system import Density
from fivefold.tools.scaling import dequantise_log_det
from fivefold.training.options import options as known_options
from tests.systems import follow

SMALL = {
    "dequantisation": "uniform",
    "layers": 2,
    "hidden": 8,
    "blocks": 1,
    "width": 8,
    "units": 3,
    "integrand": 6,
    "nodes": 12,
}
AUTOREGRESSIVE = ["maf-flow", "iaf-flow", "naf", "umnn", "sos-flow"]
PLANE = Space(
    "table", (2,), columns=(Column("metres", location=3.0, scale=0.5), Column("tons", location=-1.0, scale=20.0))
)
MIXED = Space(
    "table",
    (3,),
    columns=(
        Column("height", scale=2.0),
        Column("count", "integer", levels=5),
        Column("kind", "categorical", "object", levels=3, categories=("a", "b", "c")),
    ),
)
SPACES = {
    "one column": Space("table", (1,), columns=(Column("a"),)),
    "plane": PLANE,
    "mixed table": MIXED,
    "one integer": Space("table", (1,), columns=(Column("a", "integer", dtype="int64", levels=4),)),
    "digits": Space("image", (1, 8, 8), levels=17),
    "colour, odd": Space("image", (3, 6, 5), levels=256),
    "odd": Space("image", (1, 7, 7), levels=2),
    "once even": Space("image", (1, 28, 14), levels=2),
    "one pixel": Space("image", (1, 1, 1), levels=4),
    "one colour pixel": Space("image", (3, 1, 1), levels=256),
    "one row": Space("image", (1, 1, 4), levels=4),
    "real image": Space("image", (1, 4, 4), scale=0.1, dtype="float32"),
}


@pytest.fixture(
    params=[
        "realnvp",
        "spline-flow",
        "glow",
        "residual-flow",
        "i-resnet",
        "implicit-flow",
        *AUTOREGRESSIVE,
        "planar-flow",
        "sylvester-flow",
        "bnaf",
        "nice",
        "flowpp",
    ]
)
def name(request):
    return request.param


def build(name, space, spread=0.3, **options):
    """A small flow with random parameters: as they start, flows are near the identity."""
    torch.manual_seed(0)
    cls = find(name).load()
    small = {key: value for key, value in SMALL.items() if key in known_options(cls)}
    system = cls(space, **{**small, **options})
    for parameter in system.parameters():
        with torch.no_grad():
            parameter.add_(spread * torch.randn_like(parameter))
    return system


def examples(space, n=6):
    generator = np.random.default_rng(0)
    encoded = [generator.normal(size=n) if k is None else generator.integers(k, size=n) for k in space.dim_levels]
    x = torch.tensor(np.stack(encoded, 1)).view(n, *space.shape)
    return x.float() if space.columns or not space.discrete else x


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_fits_every_space(name, space):
    system, x = build(name, space, spread=0.05), examples(space)
    assert system.density is (Density.LOWER_BOUND if any(space.dim_levels) else Density.EXACT)
    loss = system.loss(system.lifted(Batch(x)))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in system.parameters())
    data = space.decode(x)
    z = system.encode(data)
    assert z.shape == (len(x), system.space.dims)
    restored = space.encode(system.reconstruct(data))
    torch.testing.assert_close(restored, space.encode(data), rtol=0, atol=1e-3 if None in space.dim_levels else 0)
    first, again = (system.sample_encoded(5, seed=1) for _ in range(2))
    assert first.shape == (5, *space.shape)
    assert torch.equal(first, again)
    assert len(system.interpolate(data[:1], data[1:2], steps=4)) == 4
    score = system.score(data)
    assert score.log_prob.isfinite().all()
    assert bool(score.standard_error.any()) is any(space.dim_levels)


def grid_of(system, cells=40, fine=8):
    """Probabilities of the cells of a grid round the samples, by quadrature in the user's units."""
    samples = system.sample(4000, seed=3)
    low, high = samples.min(0), samples.max(0)
    edges = [np.linspace(a - 0.3 * (b - a), b + 0.3 * (b - a), cells + 1) for a, b in zip(low, high, strict=True)]
    points = []
    for edge in edges:
        step = (edge[1] - edge[0]) / fine
        points.append(edge[0] + step * (np.arange(cells * fine) + 0.5))
    mesh = np.stack(np.meshgrid(*points, indexing="ij"), -1).reshape(-1, 2)
    density = system.score(mesh, batch_size=20000).log_prob.exp().numpy()
    area = np.prod([p[1] - p[0] for p in points])
    return samples, edges, (density * area).reshape(cells, fine, cells, fine).sum((1, 3))


def test_density_is_exact(name):
    """It integrates to 1 with the table's scales counted, and a chi-square test finds the samples in it."""
    system = build(name, PLANE, spread=0.12, layers=3)
    samples, edges, mass = grid_of(system)
    assert mass.sum() == pytest.approx(1, abs=3e-3)
    assert follow(np.histogram2d(*samples.T, bins=edges)[0], len(samples) * mass, 1e-3)


def cell_probabilities(system, levels, fine=200):
    """P of every pair of levels by quadrature of the continuous density over its cell."""
    line = (2 * (np.arange(levels * fine) + 0.5) / (levels * fine) - 1).astype(np.float32)
    y = torch.tensor(np.stack(np.meshgrid(line, line, indexing="ij"), -1)).reshape(-1, 1, 1, 2)
    with torch.no_grad():
        density = system._point_log_prob(y, None).double().exp() * (2 / (levels * fine)) ** 2
    return density.view(levels, fine, levels, fine).sum((1, 3)).flatten()


def test_dequantised_density_is_a_bound(name):
    """On an enumerable space: an unbiased estimate of the cells' true probabilities, whose logarithm lies below."""
    if name in ("residual-flow", "i-resnet", "implicit-flow"):
        pytest.skip("half a million determinants; tests/test_residual_flow.py has a smaller one")
    levels = 3
    system = build(name, Space("image", (1, 1, 2), levels=levels), spread=0.15, score_samples=4)
    truth = cell_probabilities(system, levels)
    total = float(truth.sum())
    assert total == pytest.approx(1, abs=1e-3) if name == "spline-flow" else 0.3 < total < 1  # RealNVP's logit leaks
    repeats = 3000
    x = torch.cartesian_prod(torch.arange(levels), torch.arange(levels)).view(-1, 1, 1, 2)
    score = system.score_encoded(Batch(x.repeat(repeats, 1, 1, 1)), batch_size=10**6)
    values = score.log_prob.view(repeats, -1)
    mean, error = values.exp().mean(0), values.exp().std(0) / repeats**0.5
    assert ((mean - truth).abs() < 4 * error + 1e-5).all()
    assert (values.mean(0) < truth.log() + 3 * values.std(0) / repeats**0.5 + 1e-3).all()
    # Training minimises the bound of one point, which is lower still.
    torch.manual_seed(0)
    loss = torch.stack([system.loss(Batch(x)) for _ in range(500)])
    assert -loss.mean() < values.mean() + 1e-3
    assert -loss.mean() > truth.log().mean() - 1  # and not by a missing constant
    assert abs(dequantise_log_det(system.space)) > 0.8


@pytest.mark.parametrize("name", ["realnvp", "glow", "spline-flow"])
def test_noise_of_any_size_becomes_images_within_their_interval(name):
    """By a logit, whose margin is 0.05, or by splines of the cube; without either there is no end."""
    system, z = build(name, SPACES["odd"], spread=0.1), 30 * torch.randn(4, 49)
    with torch.no_grad():
        assert system.flow.inverse(z)[0].abs().max() < 1.2
        if name != "spline-flow":
            assert build(name, SPACES["odd"], spread=0.1, margin=0.0).flow.inverse(z)[0].abs().max() > 5


def test_samples_of_the_cube_follow_the_cells():
    system = build("spline-flow", Space("image", (1, 1, 2), levels=3), spread=0.5)
    samples = system.sample_encoded(4000, seed=2).flatten(1)
    counts = torch.bincount(samples[:, 0] * 3 + samples[:, 1], minlength=9).numpy()
    truth = cell_probabilities(system, 3).numpy()
    assert stats.chisquare(counts, truth / truth.sum() * len(samples)).pvalue > 1e-3


@pytest.mark.parametrize("space", [SPACES["one column"], PLANE, SPACES["odd"]], ids=["column", "plane", "image"])
def test_conditions_enter(name, space):
    system = build(name, space.conditioned_on(label_space(("cat", "dog"))))
    data = space.decode(examples(space))
    cat, dog = (system.log_prob(data, condition=one) for one in ("cat", "dog"))
    assert (cat - dog).abs().min() > 1e-4
    assert not torch.equal(system.encode(data, "cat"), system.encode(data, "dog"))
    assert len(system.sample(3, condition=["cat", "dog", "cat"])) == 3


def test_glow_starts_by_the_data_mixes_channels_and_learns_the_law_of_what_it_factors_out():
    torch.manual_seed(0)
    glow = find("glow").load()(Space("image", (1, 8, 8), levels=17), layers=2, hidden=8)
    x = torch.randint(17, (256, 1, 8, 8))
    started = [part for part in glow.modules() if hasattr(part, "started")]
    glow.eval().loss(Batch(x))
    assert len(started) == 6 * 3  # of every step and twice in its network
    assert not any(part.started for part in started)
    glow.train().loss(Batch(x))
    assert all(part.started for part in started)
    mixing = [part for part in glow.modules() if isinstance(part, LULinear)]
    for part in mixing:  # rotations, and neither permutations nor the identity
        lower, upper = part._factors()
        weight = part.permutation @ lower @ upper
        torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)), atol=1e-5, rtol=0)
        assert ((weight.abs() > 0.01) & (weight.abs() < 0.99)).any()
    assert [len(part.sign) for part in mixing] == [4] * 2 + [8] * 2 + [16] * 2  # three resolutions
    laws = [part for part in glow.modules() if isinstance(part, Coupling) and isinstance(part.net, ConditionedLayer)]
    assert [len(part.keep) for part in laws] == [2, 4, 0]
    with torch.no_grad():  # the last law's mean moves the samples' noise and nothing else
        laws[-1].net.layer.bias[16:] += 1
    z, _ = glow.flow(torch.zeros(2, 1, 8, 8))
    laws[-1].net.layer.bias.data.zero_()
    before, _ = glow.flow(torch.zeros(2, 1, 8, 8))
    torch.testing.assert_close((z - before)[0], torch.cat([torch.ones(16), torch.zeros(48)]), atol=1e-5, rtol=0)


def test_realnvp_of_the_paper_ends_after_its_scales_widens_and_sees_every_block():
    space = Space("image", (3, 8, 8), levels=256)
    system, x = build("realnvp", space, spread=0.1, layers=3, scales=2, widen=True, skips=True), examples(space)
    nets = [part.net for part in system.modules() if isinstance(part, Coupling | MaskedCoupling)]
    assert [len(net.position) for net in nets] == [8] * 3 + [16] * 3 + [16] * 4  # pixels, channels, pixels at the end
    assert torch.equal(space.encode(system.reconstruct(space.decode(x))), x)
    net, seen = nets[0], torch.randn(2, 3, 8, 8)
    before = net(seen)
    net.skips[0].weight.data.zero_()  # what the last layer sees of the start, beside the last block
    assert (net(seen) - before).abs().max() > 0.01


def test_the_learning_rate_falls_along_a_cosine_and_rises_first_where_glow_warms_up():
    plain, warmed = (build("glow", PLANE, **options) for options in ({}, {"warmup": 0.5}))
    assert [plain.learning_rate(progress) for progress in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [warmed.learning_rate(progress) for progress in (0, 0.25, 0.5, 1)] == pytest.approx(
        [0.01, 0.505 * 0.85355, 0.5, 0], abs=1e-4
    )


def test_temperature_scales_the_noise_and_not_the_density(name):
    system = build(name, PLANE, spread=0.0)
    whole = system.encode(system.sample(400, seed=0))
    with system.turned(temperature=0.5):
        half = system.encode(system.sample(400, seed=0))
        changed = system.log_prob(np.zeros((1, 2)))
    torch.testing.assert_close(half, 0.5 * whole, atol=1e-3, rtol=1e-3)
    assert torch.equal(changed, system.log_prob(np.zeros((1, 2))))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spline-flow", "maf-flow", "realnvp"])
def test_fits_columns_of_any_scale(name):
    """A correlated Gaussian whose deviations are 1e4 to 1e-3, to within 0.05 nats of its entropy."""
    generator = np.random.default_rng(0)
    scales, mixing = np.logspace(4, -3, 5), np.tril(generator.normal(size=(5, 5)), -1) + np.eye(5)  # determinant 1
    noise, held_out = generator.normal(size=(2, 20_000, 5))
    of = lambda z: scales * (z @ mixing.T + 100)  # noqa: E731
    system = fivefold.fit(name, fivefold.load_data(of(noise)), budget="60s")
    truth = stats.norm.logpdf(held_out).sum(1) - np.log(scales).sum()
    assert np.mean(truth - system.log_prob(of(held_out)).numpy()) < 0.05
