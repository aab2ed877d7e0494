"""Categories as reals: laws of them that integrate to 1 where they should, bounds below the true mass, samples."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.func import jacrev

from fivefold import Density, catalog, slot
from fivefold.bijections.argmax import ArgmaxCode, code_width
from fivefold.errors import Unfit
from fivefold.flow.argmax_flow import ArgmaxFlow
from fivefold.space import Batch, Column, Space

TABLE = Space(
    "table", (2,),
    columns=(Column("a", "categorical", levels=3, categories=(0, 1, 2)), Column("b", "integer", levels=2)),
)  # fmt: skip
TEXT = Space("text", (3,), levels=2, symbols="ab")
IMAGE = Space("image", (2, 2, 3), levels=5)
SPACES = {"table": TABLE, "text": TEXT, "image": IMAGE}


def drawn(space: Space, n: int) -> torch.Tensor:
    levels = torch.tensor(space.dim_levels)
    x = (torch.rand(n, space.dims) * levels).long().view(n, *space.shape)
    return x.float() if space.columns else x


def code(space: Space, binary: bool, layers: int = 3) -> ArgmaxCode:
    torch.manual_seed(0)
    made = ArgmaxCode(space, binary, 0, 8, layers)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.double()


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("binary", [False, True])
def test_reals_tell_the_values_that_they_were_drawn_for(kind, binary):
    space = SPACES[kind]
    x, made = drawn(space, 300), code(space, binary)
    v, term = made(x)
    assert v.shape == (300, *made.code_shape)
    assert term.isfinite().all()
    assert torch.equal(made.decode(v), x)
    assert v.std(0).min() > 0


@pytest.mark.parametrize(
    ("levels", "argmax", "binary"), [(1, 1, 1), (2, 2, 1), (5, 5, 3), (256, 256, 8), (257, 257, 9)]
)
def test_how_many_reals_tell_a_value(levels, argmax, binary):
    assert (code_width(levels, False), code_width(levels, True)) == (argmax, binary)


@pytest.mark.parametrize("binary", [False, True])
def test_the_law_of_the_reals_is_that_of_its_noise_and_its_jacobian(binary):
    """ln q(v | x) = ln N(noise) - ln |det dv/dnoise|, the Jacobian by autograd."""
    space = Space("table", (2,), columns=(Column("a", "integer", levels=3), Column("b", "integer", levels=4)))
    made, x = code(space, binary), drawn(space, 6).double()

    def of(noise):
        def fixed(like):
            return noise.expand_as(like)

        before = torch.randn_like
        torch.randn_like = fixed
        try:
            return made(row[None])[0][0]
        finally:
            torch.randn_like = before

    for row in x:
        noise = torch.randn(made.code_shape, dtype=torch.float64)
        jacobian = jacrev(of)(noise)
        log_q = -0.5 * (noise**2 + math.log(2 * math.pi)).sum() - torch.linalg.slogdet(jacobian)[1]
        before, torch.randn_like = torch.randn_like, lambda like, noise=noise: noise.expand_as(like)
        try:
            term = made(row[None])[1][0]
        finally:
            torch.randn_like = before
        torch.testing.assert_close(-term, log_q)


@pytest.mark.parametrize("binary", [False, True])
def test_the_bound_reaches_the_mass_of_a_known_density(binary):
    """Of standard normal reals all values have the mass of their part of the space: 1 / 3 each, 1 / 4 of two digits."""
    space = Space("table", (1,), columns=(Column("a", "integer", levels=3),))
    torch.manual_seed(0)
    made = ArgmaxCode(space, binary, 0, 16, 1)
    optimizer = torch.optim.Adam(made.parameters(), 0.02)

    def estimates(n):
        v, term = made(torch.arange(3).repeat(n)[:, None].float())
        normal = -0.5 * (v**2 + math.log(2 * math.pi)).sum(1)
        return normal + term

    for _ in range(300):
        loss = -estimates(200).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        values = estimates(40_000).view(-1, 3).double()
    mass, error = values.exp().mean(0), values.exp().std(0) / 200
    expected = 1 / 4 if binary else 1 / 3
    assert ((mass - expected).abs() < 4 * error).all(), (mass, error)  # an unbiased estimate of the mass itself
    assert (values.mean(0) < math.log(expected) + 1e-3).all()
    assert (values.mean(0) > math.log(expected) - 0.12).all(), values.mean(0)


def built(space: Space, **options) -> ArgmaxFlow:
    torch.manual_seed(0)
    inner = options.pop("flow", slot("spline-flow", layers=2, hidden=8, bins=4))
    system = ArgmaxFlow(space, flow=inner, code_hidden=8, **options).eval()
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return system


@pytest.mark.parametrize("encoding", ["argmax", "binary"])
@pytest.mark.parametrize("kind", ["table", "text"])
def test_the_bound_is_below_the_law_of_the_samples(kind, encoding):
    """Whose masses are counted; many draws bring it there."""
    space = SPACES[kind]
    system = built(space, encoding=encoding, score_samples=400)
    every = torch.tensor(list(itertools.product(*(range(n) for n in space.dim_levels))))
    x = system.sample_encoded(40_000, seed=0).flatten(1).long()
    counts = (x[:, None] == every).all(2).sum(0).double()
    score = system.score_encoded(Batch(every.float() if space.columns else every))
    law = counts / counts.sum()
    error = (law * (1 - law) / 40_000).sqrt() / law
    assert (score.log_prob < law.log() + 4 * (error + score.standard_error)).all()
    if kind == "text" or encoding == "argmax":  # no code is of no value, so that many draws give the law itself
        total = score.log_prob.exp().sum().item()
        assert total == pytest.approx(1, abs=0.12)
        assert ((score.log_prob - law.log()).abs() < 5 * (error + score.standard_error) + 0.1).all()
    one = built(space, encoding=encoding, score_samples=1)
    one.load_state_dict(system.state_dict())
    scores = torch.stack([one.score_encoded(Batch(every.float() if space.columns else every), seed=s).log_prob
                          for s in range(200)])  # fmt: skip
    assert (scores.mean(0) < law.log() + 4 * error).all()


def test_auto_takes_fewer_reals_where_there_are_many():
    assert not ArgmaxFlow(TABLE).binary
    many = ArgmaxFlow(Space("image", (1, 8, 8), levels=17))
    assert many.binary
    assert many.code.code_shape == (5, 8, 8)
    assert ArgmaxFlow(Space("image", (1, 8, 8), levels=17), encoding="argmax").code.code_shape == (17, 8, 8)


@pytest.mark.parametrize("name", ["realnvp", "maf-flow", "glow"])
def test_other_flows_fit(name):
    system = ArgmaxFlow(IMAGE, flow=slot(name, layers=1, hidden=8))
    assert system.density is Density.LOWER_BOUND
    assert system.sample(3, seed=0).shape == (3, 2, 2, 3)


@pytest.mark.parametrize("name", ["dcgan", "ddpm", "vae", "anf"])
def test_what_has_no_exact_density_is_refused(name):
    with pytest.raises(Unfit, match="an exact density of real vectors"):
        catalog.build("argmax-flow", TABLE, flow=slot(name))
    with pytest.raises(Unfit, match="does not fit"):
        catalog.build("argmax-flow", Space("table", (1,), columns=(Column("x"),)))
