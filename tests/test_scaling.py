"""Between levels and real numbers: round trips, log-determinants and bounds against closed forms."""

import math

import pytest
import torch
from torch.distributions import Normal

from fivefold.space import Column, Space
from fivefold.tools import scaling

MIXED = Space(
    "table",
    (3,),
    columns=(Column("height"), Column("count", "integer", levels=5), Column("kind", "categorical", levels=2)),
)
SPACES = {
    "image": Space("image", (1, 2, 2), levels=17),
    "binary": Space("image", (1, 2, 2), levels=2),
    "constant": Space("image", (1, 1, 1), levels=1),
    "audio": Space("audio", (6,), levels=65536),
    "real image": Space("image", (1, 2, 2)),
    "mixed table": MIXED,
}


@pytest.fixture(params=SPACES)
def space(request):
    return SPACES[request.param]


def examples(space, n=64):
    torch.manual_seed(0)
    columns = [torch.randn(n) if k is None else torch.randint(k, (n,)).float() for k in space.dim_levels]
    x = torch.stack(columns, 1).view(n, *space.shape)
    return x if space.columns or not space.discrete else x.long()


def test_round_trips(space):
    x = examples(space)
    for back in (
        scaling.uncentre(scaling.centre(x, space), space),
        scaling.quantise(scaling.midpoint(x, space), space),
    ):
        torch.testing.assert_close(back, x)
    # Single precision: of 65,536 cells noise near the edge may reach the next.
    back = scaling.quantise(scaling.dequantise(x, space), space)
    torch.testing.assert_close(back, x, rtol=0, atol=1 if space.kind == "audio" else 1e-5)
    assert (back != x).float().mean() < 0.02 or not space.discrete


def test_levels_span_the_interval(space):
    discrete = torch.tensor([k is not None and k > 1 for k in space.dim_levels]).view(space.shape)
    top = torch.tensor([(k or 1) - 1.0 for k in space.dim_levels]).view(1, *space.shape)
    assert (scaling.centre(torch.zeros_like(top), space)[0][discrete] == -1).all()
    torch.testing.assert_close(scaling.centre(top, space)[0][discrete], torch.ones(int(discrete.sum())))
    y = scaling.dequantise(examples(space, 1000), space)
    assert all((y[:, d].abs() <= 1).all() for d in discrete.nonzero().unbind(0) if y.dim() == 2)
    # The middle of the cells: the first lies half a cell inside, the same distance as the last on the other side.
    middle = scaling.midpoint(torch.zeros_like(top), space) + scaling.midpoint(top, space)
    torch.testing.assert_close(middle[0][discrete], torch.zeros(int(discrete.sum())), rtol=0, atol=1e-6)


def test_dequantisation_counts_its_scale(space):
    """ln |dy/dx| against autograd: the map is x -> midpoint(x), linear in x."""
    x = examples(space, 1).float()
    jacobian = torch.autograd.functional.jacobian(lambda x: scaling.midpoint(x, space).flatten(), x)
    truth = torch.linalg.slogdet(jacobian.reshape(space.dims, space.dims).double()).logabsdet
    assert scaling.dequantise_log_det(space) == pytest.approx(float(truth), abs=1e-5)


def test_dequantised_log_prob_is_a_bound_that_tightens():
    """Under a Gaussian density on each dimension the cells' probabilities are differences of its CDF."""
    space, normal = Space("image", (1, 1, 2), levels=4), Normal(0.2, 0.3)
    x = torch.tensor([[0, 3], [1, 2], [2, 2]]).view(3, 1, 1, 2).repeat(4000, 1, 1, 1)
    low = 2 * x / 4 - 1
    truth = (normal.cdf(low + 0.5) - normal.cdf(low)).log().sum((1, 2, 3))[:3]
    gaps = []
    for samples in (1, 16):
        torch.manual_seed(0)
        value, error = scaling.dequantised_log_prob(
            lambda y, _: normal.log_prob(y).sum((1, 2, 3)), x, None, space, samples
        )
        value = value.view(-1, 3)
        mean, spread = value.exp().mean(0), value.exp().std(0) / math.sqrt(len(value))
        assert ((mean - truth.exp()).abs() < 4 * spread).all()  # unbiased for the probability
        gaps.append(truth - value.mean(0))
    assert (gaps[0] > gaps[1]).all()
    assert (gaps[1] > 0).all()
    # The stated error against the spread over repetitions, where 16 points suffice for the delta method.
    torch.testing.assert_close(error.view(-1, 3).mean(0)[1:], value.std(0)[1:], rtol=0.15, atol=0)


def test_the_averaged_logarithm_is_that_of_random_points_in_the_cells_and_states_its_error():
    """Of -y^2, whose mean over a cell of half-width 1/4 is less than its value in the middle by 1/48."""
    space, x = Space("image", (1, 1, 2), levels=4), torch.tensor([[0, 3], [1, 2]]).view(2, 1, 1, 2)
    torch.manual_seed(0)
    value, error = scaling.averaged_log_prob(lambda y, _: -y.square().sum((1, 2, 3)), x, None, space, 4000, 100)
    middles = -scaling.midpoint(x, space).square().sum((1, 2, 3))
    truth = middles - 2 / 48 + scaling.dequantise_log_det(space)
    assert ((value - truth).abs() < 4 * error).all()
    assert (error < 0.006).all()


def test_real_dimensions_stay_exact():
    space, normal = Space("table", (2,), columns=(Column("a"), Column("b"))), Normal(0.0, 1.0)
    x = torch.randn(5, 2)
    value, error = scaling.dequantised_log_prob(lambda y, _: normal.log_prob(y).sum(1), x, None, space, 16)
    torch.testing.assert_close(value, normal.log_prob(x).sum(1))
    assert not error.any()


def test_conditions_are_repeated_with_their_examples():
    space = Space("image", (1, 1, 1), levels=2)
    x, condition = torch.tensor([0, 1, 0]).view(3, 1, 1, 1), torch.tensor([[1.0], [2.0], [3.0]])
    value, _ = scaling.dequantised_log_prob(lambda y, c: c[:, 0], x, condition, space, 8)
    torch.testing.assert_close(value, condition[:, 0])  # ln(2/2) = 0
