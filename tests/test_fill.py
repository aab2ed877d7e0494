"""Filling in what is missing, against truth: closed conditional laws, enumeration, quadrature; and files of rows."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import fivefold
from fivefold import catalog
from fivefold.bijections.linear import LULinear
from fivefold.cli.app import app, main
from fivefold.data.partial import fields, read_partial
from fivefold.errors import DataError, OptionError, Unfit
from fivefold.space import Batch, Column, Space, label_space
from fivefold.tools.given import gibbs_sweeps, random_walk
from fivefold.tools.mcmc import FIRST, Move, hamiltonian
from fivefold.tools.particles import systematic
from fivefold.tools.sde import RANGES, SDES, Denoiser, Plan, filled_in
from fivefold.vae._codes import CodeSystem
from fivefold.vae._system import VAESystem
from tests.systems import follow

DIMS = 5
REALS = Space("table", (DIMS,), columns=tuple(Column(f"x{i}") for i in range(DIMS)), frame=True)
MASKS = {"first": [1, 1, 0, 0, 0], "last": [0, 0, 1, 1, 1], "mixed": [0, 1, 0, 1, 0]}
GIVEN = torch.tensor([1.0, -1.5, 0.5, 0.8, -0.3])
DRAWS = 1500


def covariance() -> torch.Tensor:
    """Of a correlated Gaussian of unit variances: the largest eigenvalue is 11 times the least."""
    factor = torch.randn(DIMS, DIMS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = factor @ factor.T + torch.eye(DIMS)
    scale = whole.diag().sqrt()
    return whole / scale[:, None] / scale


COVARIANCE = covariance()


def conditional(known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of what is missing given `GIVEN` where it is known."""
    m, k = (~known).nonzero()[:, 0], known.nonzero()[:, 0]
    gain = COVARIANCE[m][:, k] @ torch.linalg.inv(COVARIANCE[k][:, k])
    return gain @ GIVEN[k].double(), COVARIANCE[m][:, m] - gain @ COVARIANCE[k][:, m]


def follows(draws: torch.Tensor, mean: torch.Tensor, cov: torch.Tensor, bias: float = 0.0) -> bool:
    """Whether mean and covariance of draws `(n, d)` are within their standard errors and a `bias` in deviations."""
    n, x, spread = len(draws), draws.double(), cov.diag()
    mean_error = (x.mean(0) - mean).abs() / spread.sqrt()
    scale = (spread[:, None] * spread).sqrt()
    cov_error = (x.T.cov().view_as(cov) - cov).abs() / scale
    allowed = ((cov / scale) ** 2 + 1).sqrt()
    error = 3.5 / math.sqrt(n)  # a dozen figures are looked at
    return bool((mean_error < error + bias).all() and (cov_error < error * allowed + bias).all())


def filled(system, mask: list[int], n: int = DRAWS, **options) -> torch.Tensor:
    known = torch.tensor(mask).bool()
    x = torch.where(known, GIVEN, 0.0).expand(n, DIMS)
    return system.fill_encoded(x, known.expand(n, DIMS), seed=0, batch_size=n, **options)[:, ~known]


# --- closed conditional laws, with exact weights -------------------------------------------------------


@pytest.fixture(scope="module")
def affine():
    """A flow that is the Gaussian: one linear map to noise."""
    system, whiten = catalog.build("realnvp", REALS).eval(), LULinear(DIMS)
    parts = torch.linalg.lu(torch.linalg.inv(torch.linalg.cholesky(COVARIANCE)))
    permutation, lower, upper = (part.float() for part in parts)
    with torch.no_grad():
        whiten.permutation.copy_(permutation)
        whiten.sign.copy_(upper.diag().sign())
        for own, value in ((whiten.lower, lower.tril(-1)), (whiten.upper, upper.triu(1))):
            own.copy_(value)
        whiten.log_diagonal.copy_(upper.diag().abs().log())
    system.flow = whiten
    return system


@pytest.mark.parametrize("mask", MASKS)
def test_a_flow_that_is_a_gaussian(affine, mask):
    assert follows(filled(affine, MASKS[mask], steps=15), *conditional(torch.tensor(MASKS[mask]).bool()))


def test_estimates_of_a_density_do_as_well_where_they_are_unbiased(affine):
    """A random walk by the density times log-normal noise of mean 1."""
    known = torch.tensor(MASKS["mixed"]).bool()

    def noisy(x):
        noise = 0.5 * torch.randn(len(x)) - 0.125
        return affine._point_log_prob(x, None) + noise

    start = torch.where(known, GIVEN, 0.0).expand(DRAWS, DIMS)
    ends = random_walk(noisy, start, 150, 100, ~known.expand(DRAWS, DIMS))
    assert torch.equal(ends[:, known], start[:, known])
    assert follows(ends[:, ~known], *conditional(known))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("equation", ["vp", "ve"])
def test_the_reverse_equation_by_the_gaussians_own_score(equation, mask):
    """Approximate: means and covariances within 5% of a deviation beyond their errors."""
    known, sde = torch.tensor(MASKS[mask]).bool(), SDES[equation](*RANGES[equation])

    def noise(x, at):
        whole = at.signal**2 * COVARIANCE.float() + at.noise**2 * torch.eye(DIMS)
        return at.noise * torch.linalg.solve(whole, x.T).T

    start = torch.where(known, GIVEN, 0.0).expand(DRAWS, DIMS)
    first = {"vp": 1e-3, "ve": 0.1}[equation]
    ends = filled_in(Denoiser(sde, noise), start, known.expand(DRAWS, DIMS), Plan(first, 100), 5)
    assert torch.equal(ends[:, known], start[:, known])
    assert follows(ends[:, ~known], *conditional(known), bias=0.05)


def test_a_gaussian_generator():
    """A GAN whose generator is the Gaussian's linear map; the kernel adds its own variance to what is known."""
    system = catalog.build("dcgan", REALS, latent=DIMS).eval()
    root = torch.linalg.cholesky(COVARIANCE).float()
    system.generator = _Linear(root)
    known = torch.tensor(MASKS["mixed"]).bool()
    assert follows(filled(system, MASKS["mixed"], steps=15), *conditional(known), bias=0.05)


class _Linear(torch.nn.Module):
    def __init__(self, root):
        super().__init__()
        self.root = torch.nn.Parameter(root)

    def forward(self, z, condition=None):
        return z @ self.root.T


def test_hamiltonian_dynamics_sample_a_law_of_two_modes():
    """Within one mode each; how many are in which is what the start says, and that none is lost is checked."""
    mixture = lambda x: -torch.logaddexp(-8 * (x[:, 0] - 1) ** 2, -8 * (x[:, 0] + 1) ** 2)  # noqa: E731
    ends = hamiltonian(mixture, torch.randn(4000, 1).sign(), 40, Move(FIRST, warm_up=40)).state
    assert ends.abs().mean().item() == pytest.approx(1, abs=0.02)
    assert ends.abs().std().item() == pytest.approx(0.25, abs=0.02)


def test_systematic_resampling_is_unbiased():
    weight = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    chosen = systematic(weight.expand(5000, 4))
    share = torch.bincount(chosen.flatten(), minlength=4) / chosen.numel()
    assert torch.allclose(share, weight.exp(), atol=0.01)


# --- enumeration ---------------------------------------------------------------------------------------

TABLE = Space(
    "table", (4,), frame=True, lifted=True,  # so that categories are levels to all systems
    columns=(Column("a", "integer", levels=3), Column("b", "categorical", levels=2, categories=("u", "v")),
             Column("c", "integer", levels=4), Column("d", "categorical", levels=3, categories=("x", "y", "z"))),
)  # fmt: skip
STATES = torch.tensor(list(itertools.product(range(3), range(2), range(4), range(3)))).float()
WEIGHTS = torch.tensor([24.0, 12.0, 3.0, 1.0])  # the number of a state
DISCRETE = {  # options, the scale of random parameters, and steps enough for such
    "made": ({"hidden": 16}, 0.3, 40),
    "made-orders": ({"hidden": 16, "orders": 3}, 0.3, 40),
    "transformer": ({"width": 8, "layers": 1, "heads": 2}, 0.3, 40),
    "rbm": ({"hidden": 5, "persistent": False, "sampling_steps": 20, "ais_steps": 200}, 0.3, 60),
    "vae": ({"latent": 2, "width": 4}, 0.3, 200),
    "vq-vae": ({"codes": 3, "slots": 2, "code_width": 4, "width": 4}, 0.3, 10),
    "idf": ({"hidden": 8, "layers": 2}, 0.05, 30),
    "discrete-flow": ({"hidden": 8}, 0.05, 30),
    "realnvp": ({"hidden": 8, "layers": 2, "score_samples": 4000}, 0.3, 15),
}


def moved(name: str):
    """A small system with parameters drawn at random, so that nothing is 0 or symmetric."""
    torch.manual_seed(1)
    options, scale, _ = DISCRETE[name]
    system = catalog.build(name.removesuffix("-orders"), TABLE, **options).eval()
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return system


@torch.no_grad()
def probabilities(system) -> torch.Tensor:
    """Of all states, by the system's own law; of codes by summing over all, or over a grid where they are real."""
    if isinstance(system, VAESystem):
        codes = torch.cartesian_prod(*[torch.linspace(-6, 6, 81)] * 2)
        prior = system.log_prior(codes, None)
        likelihood = [system.decoder.log_prob(x.expand(len(codes), 4), codes, None) for x in STATES]
        return (prior + torch.stack(likelihood)).double().logsumexp(1).softmax(0)
    if isinstance(system, CodeSystem):
        codes = torch.cartesian_prod(*[torch.arange(system.codes)] * 2).view(-1, 1, 1, 2)
        params = system.autoencoder.decode(*system._vectors(codes))
        prior = torch.stack(system._log_priors([codes], None)).sum(0)
        head = system.autoencoder.head
        likelihood = [head.log_prob(params, x.expand(len(codes), 4)).sum(1) for x in STATES]
        return (prior + torch.stack(likelihood)).double().logsumexp(1).exp()
    return system.score_encoded(Batch(STATES), batch_size=len(STATES)).log_prob.exp()


FAST = ("made", "made-orders", "rbm", "realnvp")
KNOWN = [[0, 0, 1, 1], [1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0]]


@pytest.mark.parametrize(
    ("name", "patterns", "draws"),
    [*((name, KNOWN[:2], 800) for name in FAST),
     *(pytest.param(name, KNOWN, 2000, marks=pytest.mark.slow) for name in DISCRETE)],
)  # fmt: skip
def test_conditionals_of_a_table_that_can_be_enumerated(name, patterns, draws):
    """A chi-square test at 1 in 10,000 of the states that agree with what is known."""
    system = moved(name)
    law = probabilities(system).double()
    state = STATES[int(law.argsort()[len(law) // 2])]  # neither likely nor not
    for pattern in patterns:
        known = torch.tensor(pattern).bool()
        agrees = (STATES[:, known] == state[known]).all(1)
        x, steps = torch.where(known, state, 0.0).expand(draws, 4), DISCRETE[name][2]
        ends = system.fill_encoded(x, known.expand(draws, 4), seed=0, batch_size=draws, steps=steps)
        found = torch.bincount((ends @ WEIGHTS).long(), minlength=len(STATES))[agrees]
        assert found.sum() == draws
        assert follow(found.numpy(), (law[agrees] / law[agrees].sum() * draws).numpy()), pattern


RNG = np.random.default_rng(0)
MIDDLE = {"a": -1.5, "b": 0.0, "c": 2.0}
SHARES = {"a": 0.5, "b": 0.3, "c": 0.2}
CLASS = RNG.choice(list(SHARES), 4000, p=list(SHARES.values()))
RAIN = np.where(RNG.random(4000) < np.where(CLASS == "a", 0.8, 0.2), 0.0, RNG.lognormal(1, 0.5, 4000))
CLASSES = pd.DataFrame({"kind": CLASS, "x": [RNG.normal(MIDDLE[k], 1) for k in CLASS], "rain": RAIN})


@pytest.mark.parametrize(
    "name", ["spline-flow", "made", *(pytest.param(n, marks=pytest.mark.slow) for n in ("score-sde", "vae", "rbm"))]
)
def test_lifted_columns_are_filled_by_their_law(name):
    """The posterior of a class given a number, and the share of a point mass given the class, as the data were made."""
    model = fivefold.fit(name, CLASSES, budget="1000steps", batch_size=128, evaluations=1)
    n = 400
    for x in (-1.5, 0.5, 2.0):
        partial = pd.DataFrame({"kind": [None] * n, "x": np.full(n, x)})
        drawn = model.fill_in(partial, seed=0)["kind"].value_counts(normalize=True)
        weight = {k: SHARES[k] * math.exp(-0.5 * (x - MIDDLE[k]) ** 2) for k in SHARES}
        for k, share in weight.items():
            assert drawn.get(k, 0) == pytest.approx(
                share / sum(weight.values()), abs=0.2 if name == "score-sde" else 0.13
            ), (x, k)
    for kind, dry in (("a", 0.8), ("b", 0.2)):
        filled = model.fill_in(pd.DataFrame({"kind": [kind] * n, "x": np.full(n, MIDDLE[kind])}), seed=0)
        assert (filled["kind"] == kind).all()
        assert (filled["rain"] == 0).mean() == pytest.approx(dry, abs=0.15)


SLOW_ONES = [pytest.param(name, marks=pytest.mark.slow) for name in ("transformer", "glow")]


@pytest.mark.parametrize("name", ["gated-pixelcnn", "pixelrnn", *SLOW_ONES])
def test_conditionals_of_images_that_can_be_enumerated(name):
    """2x2 pixels of 3 levels: the lower from the upper ones, and the upper from the lower ones."""
    space, draws = Space("image", (1, 2, 2), levels=3), 800
    images = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 1, 2, 2)
    torch.manual_seed(0)
    options = {"score_samples": 2000, "hidden": 8, "layers": 2} if name == "glow" else {}
    system = catalog.build(name, space, **options).eval()
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    law = system.score_encoded(Batch(images)).log_prob.exp()
    for rows in ([True, False], [False, True]):
        known = torch.tensor(rows).view(1, 1, 2, 1).expand(draws, 1, 2, 2)
        agrees = (images[:, known[0]] == torch.tensor([1, 2])).all(1)
        x = torch.tensor([1, 2]).expand(draws, 1, 2, 2)
        ends = system.fill_encoded(x, known, seed=0, batch_size=draws, steps=30).flatten(1)
        found = torch.bincount(ends @ torch.tensor([27, 9, 3, 1]), minlength=81)[agrees]
        assert found.sum() == draws
        assert follow(found.numpy(), (law[agrees] / law[agrees].sum() * draws).numpy())


def test_gibbs_among_some_of_many_values():
    """Of more values than are weighed at once."""
    law = (torch.arange(100) / 30.0).sin().mul(2)
    ends = gibbs_sweeps(lambda x, rows: law[x[:, 0].long()], torch.zeros(4000, 1), torch.ones(4000, 1).bool(),
                        torch.tensor([100]), 20)  # fmt: skip
    found = torch.bincount(ends[:, 0].long() // 10, minlength=10)
    expected = law.double().softmax(0).view(10, 10).sum(1) * 4000
    assert follow(found.numpy(), expected.numpy())


# --- trained systems ------------------------------------------------------------------------------------


def gaussian_data(n: int = 4000) -> fivefold.Data:
    x = torch.randn(n, DIMS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = x @ torch.linalg.cholesky(COVARIANCE).T
    return fivefold.load_data(pd.DataFrame(rows.numpy(), columns=[f"x{i}" for i in range(DIMS)]))


TRAINED = ["made", "igebm", "rbm", "spline-flow", "vae", "anf", "residual-flow"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_system_by_quadrature_of_its_own_density(name):
    """One number missing: draws against the law that the system's own density gives on a grid."""
    system = fivefold.fit(name, gaussian_data(), budget="300steps", evaluations=2)
    if name == "igebm":  # its chains tend to the energy's law, slowly
        system.sampler, system.fill_steps = "metropolis-langevin", 1500
    known, n = torch.tensor([1, 1, 0, 1, 1]).bool(), 1000
    grid = torch.linspace(-5, 5, 400)
    points = GIVEN.repeat(len(grid), 1)
    points[:, 2] = grid
    law = system.score_encoded(Batch(points), batch_size=400).log_prob.double().softmax(0)
    mean = (law * grid).sum()
    spread = (law * (grid - mean) ** 2).sum()
    x = torch.where(known, GIVEN, 0.0).expand(n, DIMS)
    draws = system.fill_encoded(x, known.expand(n, DIMS), seed=0, batch_size=n)[:, 2].double()
    bias = 0.2 if name == "igebm" else 0.05  # densities of some are bounds
    assert follows(draws[:, None], mean[None], spread[None, None], bias)


# --- what every system promises ---------------------------------------------------------------------------

COLUMNS = (Column("a", location=3.0, scale=2.0), Column("b", "integer", "int64", levels=4),
           Column("c", "categorical", "object", levels=2, categories=("no", "yes")))  # fmt: skip
MIXED = Space("table", (3,), columns=COLUMNS, frame=True)
PARTIAL = pd.DataFrame(
    {"c": ["yes", None, "no"], "a": [1.25, 3.0, np.nan], "note": ["i", "ii", "iii"]}, index=[7, 8, 9]
)


@pytest.mark.parametrize("name", ["made", "realnvp", "vae", "rbm", "igebm", "ddpm", "dcgan"])
def test_rows_come_back_with_what_was_known(name):
    torch.manual_seed(0)
    system = catalog.build(name, MIXED).eval()
    first, again, other = (system.fill_in(PARTIAL, draws=3, steps=3, seed=seed) for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)
    assert list(first.columns) == ["c", "a", "note", "b"]
    assert list(first.index) == [7, 7, 7, 8, 8, 8, 9, 9, 9]
    assert list(first["note"]) == [word for word in PARTIAL["note"] for _ in range(3)]
    assert list(first["a"][:6]) == [1.25] * 3 + [3.0] * 3
    assert list(first["c"][:3]) + list(first["c"][6:]) == ["yes"] * 3 + ["no"] * 3
    assert first["a"].nunique() > 3
    assert not first.isna().any().any()
    assert first["b"].dtype == "int64"


def test_what_a_kept_relation_tells_is_not_drawn():
    """A part that follows from the total, a factor from the product; both at once; what does not follow is refused."""
    draw = np.random.default_rng(0)
    whole = pd.DataFrame(
        {"a": draw.integers(0, 9, 200), "b": draw.normal(size=200).round(1), "n": draw.integers(1, 5, 200)}
    )
    whole = whole.assign(total=whole["a"] + whole["b"], paid=(whole["b"] * whole["n"]).round(1))
    data = fivefold.load_data(whole, keep="total=a+b,paid=b*n")
    system = catalog.build("made", data.space, hidden=8).eval()
    rows = pd.DataFrame({
        "a": [3, np.nan, 2, np.nan], "b": [np.nan, 0.5, np.nan, np.nan], "n": [2, 1, np.nan, np.nan],
        "total": [4.5, 7.5, 3.5, np.nan], "paid": [np.nan, np.nan, 6.0, np.nan],
    })  # fmt: skip
    found = system.fill_in(rows, draws=5, seed=0)
    np.testing.assert_allclose(found["a"][:15], np.repeat([3, 7, 2], 5))
    np.testing.assert_allclose(found["b"][:15], np.repeat([1.5, 0.5, 1.5], 5), atol=1e-6)
    np.testing.assert_allclose(found["n"][10:15], 4)
    np.testing.assert_allclose(found["total"], found["a"] + found["b"], atol=1e-6)
    np.testing.assert_allclose(found["paid"], (found["b"] * found["n"]), atol=0.06)
    assert found["b"][15:].nunique() > 1
    with pytest.raises(DataError, match="row 2 gives 'total', which does not tell what is missing of total=a"):
        system.fill_in(rows.assign(b=[1.5, np.nan, 1.5, np.nan]), seed=0)


def test_arrays_and_images_come_back_alike():
    space = Space("image", (1, 4, 4), levels=5, layout="HW")
    system = catalog.build("made", space, hidden=8).eval()
    images = np.random.default_rng(0).integers(0, 5, (3, 4, 4)).astype(np.uint8)
    missing = np.zeros((4, 4), dtype=bool)
    missing[2:] = True
    made = system.fill_in(images, missing=missing, draws=2, seed=0)
    assert made.shape == (6, 4, 4)
    assert made.dtype == np.uint8
    assert np.array_equal(made[:, :2], images.repeat(2, 0)[:, :2])
    assert not np.array_equal(made[0::2, 2:], made[1::2, 2:])
    text = Space("text", (4,), levels=3, symbols="abc")
    texts = catalog.build("made", text, hidden=8).eval().fill_in(["ab??"], missing=[0, 0, 1, 1], seed=0)
    assert texts[0][:2] == "ab"
    assert set(texts[0]) <= set("abc")
    rows = np.array([[1.0, np.nan], [np.nan, 2.0]])
    plain = Space("table", (2,), columns=(Column("x0"), Column("x1")))
    table = catalog.build("made", plain, hidden=8).eval().fill_in(rows, seed=0)
    assert table[0, 0] == 1.0
    assert table[1, 1] == 2.0
    assert np.isfinite(table).all()


def test_conditions_are_of_each_row():
    space = Space("table", (1,), columns=(Column("a"),), condition=label_space(("s", "t")))
    for name in ("made", "realnvp", "vae", "rbm"):
        system = catalog.build(name, space).eval()
        assert np.isfinite(system.fill_in(np.array([[np.nan], [1.0]]), ["s", "t"], steps=2, seed=0)).all()


def test_what_does_not_fit_is_said():
    system = catalog.build("made", MIXED, hidden=8).eval()
    with pytest.raises(DataError, match=r"none of these columns are the model's: given q; expected some of a, b, c"):
        system.fill_in(pd.DataFrame({"q": [1]}))
    with pytest.raises(DataError, match=r"'c': maybe not among the 2 known categories"):
        system.fill_in(pd.DataFrame({"c": ["maybe", None]}))
    with pytest.raises(DataError, match=r"leave missing cells empty"):
        system.fill_in(PARTIAL, missing=[True, False, False])
    with pytest.raises(OptionError, match=r"draws for each example are at least 1, got 0"):
        system.fill_in(PARTIAL, draws=0)
    with pytest.raises(OptionError, match=r"steps .* at least 1, got 0"):
        system.fill_in(PARTIAL, steps=0)
    images = Space("image", (1, 4, 4), levels=3)
    data = np.zeros((2, 1, 4, 4), dtype=np.uint8)
    pixels = catalog.build("pixeliqn", images, channels=4, layers=1).eval()
    with pytest.raises(DataError, match=r"say what is missing of these image data"):
        pixels.fill_in(data)
    with pytest.raises(DataError, match=r"has shape \(3, 3\); expected"):
        pixels.fill_in(data, missing=np.ones((3, 3)))
    upper = np.arange(4)[:, None] < np.full(4, 2)
    with pytest.raises(Unfit, match=r"Pixeliqn has no probabilities to weigh draws by"):
        pixels.fill_in(data, missing=upper)
    assert pixels.fill_in(data, missing=~upper, seed=0).shape == data.shape


# --- files and the command line ---------------------------------------------------------------------------


def command(*words) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run on a file with semicolons, decimal commas, a currency, categories, dates and a running number."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    lines = ["id;price;kind;day;size"]
    for i in range(60):
        price = f"{rng.normal(50, 5):.2f}".replace(".", ",")
        lines.append(
            f"{i + 1};{price} €;{rng.choice(['big', 'small'])};{rng.integers(10, 28)}.03.2024;{rng.integers(1, 5)}"
        )
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command(
        "train", "made", "--data", folder / "table.csv", "--budget", "3steps", "--hidden", "8", "--out", folder / "made"
    )
    return folder


PARTIAL_FILE = 'size;"kind";price;remark\n2;;"44,10 €";a "b\n;"small";;\n\n4;big;45,5 €;"x;y"\n'


def test_a_file_comes_back_as_it_is_written(run, tmp_path):
    (tmp_path / "partial.csv").write_text(PARTIAL_FILE, encoding="utf-8")
    said = command("fill", run / "made", "--data", tmp_path / "partial.csv", "--out", tmp_path / "filled.csv")
    assert "filled in 9 missing cells of 3 rows; not of the model and kept as they are: remark" in said
    assert "ancestral sampling" in said
    names, *rows = fields((tmp_path / "filled.csv").read_text(encoding="utf-8"), ";")
    assert names == ["size", '"kind"', "price", "remark", "id", "day"]
    assert (rows[0][0], rows[0][2], rows[0][3]) == ("2", '"44,10 €"', 'a "b')
    assert (rows[1][1], rows[1][3]) == ('"small"', "")
    assert rows[2][:4] == ["4", "big", "45,5 €", '"x;y"']
    assert rows[0][1] in ("big", "small")
    assert rows[1][2].endswith(" €")
    assert "," in rows[1][2]
    assert all(row[5].endswith(".03.2024") for row in rows)
    assert [row[4] for row in rows] == ["61", "62", "63"]
    model = fivefold.load(run / "made")
    whole, _ = read_partial(tmp_path / "filled.csv", model.space)
    assert model.log_prob(whole).isfinite().all()


def test_draws_are_counted_and_a_seed_repeats_them(run, tmp_path):
    (tmp_path / "partial.csv").write_text(PARTIAL_FILE, encoding="utf-8")
    for out, seed in (("a.csv", 3), ("b.csv", 3), ("c.csv", 4)):
        command(
            "fill",
            run / "made",
            "--data",
            tmp_path / "partial.csv",
            "--draws",
            4,
            "--seed",
            seed,
            "--out",
            tmp_path / out,
        )
    a, b, c = ((tmp_path / name).read_text(encoding="utf-8") for name in ("a.csv", "b.csv", "c.csv"))
    assert a == b != c
    names, *rows = fields(a, ";")
    assert names[-1] == "draw"
    assert [row[-1] for row in rows] == ["1", "2", "3", "4"] * 3
    assert len({tuple(row[:-1]) for row in rows}) == 12


def test_images_are_filled_into_a_picture_and_an_archive(tmp_path):
    images = np.random.default_rng(0).integers(0, 4, (60, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=images)
    fivefold.fit("made", fivefold.load_data(tmp_path / "images.npz"), out=tmp_path / "run", hidden=4, budget="1steps")
    for mask in ("upper", "lower", "left", "right", "center"):
        command("fill", tmp_path / "run", "--mask", mask, "-n", 3, "--steps", 4, "--out", tmp_path / "a.npz",
                "--data", tmp_path / "images.npz")  # fmt: skip
        with np.load(tmp_path / "a.npz") as archive:
            same = (archive["x"] == images[:3]).all(0)
        where = {"upper": same[2:], "lower": same[:2], "left": same[:, 2:], "right": same[:, :2], "center": same[0]}
        assert where[mask].all()
        assert not same.all()
    np.save(tmp_path / "mask.npy", np.eye(4))
    said = command("fill", tmp_path / "run", "--mask", tmp_path / "mask.npy", "--draws", 2, "--out", tmp_path / "a.png")
    assert "filled in 25% of 9 examples, 2 draws of each" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fill", "{run}", "--out", "a.csv"], "give the rows to fill in: --data FILE"),
        (["fill", "{run}", "--data", "nowhere.csv", "--out", "a.csv"], "nowhere.csv"),
        (["fill", "{run}", "--data", "{bad}", "--out", "a.csv"], "none of the model's columns"),
        (["fill", "{run}", "--data", "{wrong}", "--out", "a.csv"], "'kind': huge not among the 2 known categories"),
        (["fill", "{run}", "--data", "{wrong}", "--out", "a.doc"], "choose a suffix of .csv"),
        (["fill", "{run}", "--data", "{wrong}", "--out", "no/a.csv"], "make it first"),
        (
            ["fill", "{run}", "--data", "{wrong}", "--mask", "upper", "--out", "a.csv"],
            "in tables leave the missing cells",
        ),
    ],
)
def test_errors_are_one_clear_line_and_leave_no_file(run, words, message, capsys, monkeypatch, tmp_path):
    (run / "bad.csv").write_text("p;q\n1;2\n")
    (run / "wrong.csv").write_text("kind;price\nhuge;\n")
    named = {"run": run / "made", "bad": run / "bad.csv", "wrong": run / "wrong.csv"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fivefold", *(word.format(**named) for word in words)])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.iterdir())
