"""Planar and Sylvester flows, and blocks: what makes each invertible, and that it would not be without."""

import warnings

import pytest
import torch
from torch.autograd.functional import jacobian

from fivefold.bijections.block import BlockAutoregressive, BlockLinear
from fivefold.bijections.determinant import BASES, Planar, Sylvester
from fivefold.tools import roots


def wild(module, spread=2.0):
    """In float64, with random parameters far from the start."""
    torch.manual_seed(0)
    module.double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    return module


def determinants(flow, x):
    return torch.stack([torch.linalg.det(jacobian(lambda p: flow(p[None])[0][0], one)) for one in x])


def test_planar_flows_fold_space_over_without_the_constraint_and_never_with_it():
    """The same parameters, w.u < -1: determinants of both signs, two points with one image; one sign under it."""
    free, flow = Planar(3, constrained=False).double(), Planar(3).double()
    base = torch.tensor([1.0, 0.5, -0.5, -3.0, 0.4, 1.0, 0.1], dtype=torch.float64)
    for planar in (free, flow):
        planar.parameters_of.base.data.copy_(base)
    torch.manual_seed(0)
    x = torch.randn(200, 3, dtype=torch.float64)
    folded = determinants(free, x)
    assert (folded < 0).any()
    assert (folded > 0).any()
    line = torch.linspace(-2, 2, 4001, dtype=torch.float64)[:, None] * base[:3]  # along w
    assert ((free(line)[0] @ base[:3]).diff() < 0).any()
    assert ((flow(line)[0] @ base[:3]).diff() > 0).all()
    assert (determinants(flow, x) > 0).all()
    w, u, _, slope = flow._direction(None)
    assert (w * u).sum().item() == pytest.approx(slope.item() - 1)
    assert slope > 0


@pytest.mark.parametrize("spread", [0.0, 30.0])
def test_planar_flows_start_as_the_identity_and_stay_finite(spread):
    torch.manual_seed(0)
    flow, x = Planar(4), torch.randn(5, 4)
    if spread:
        wild(flow, spread)
    y, log_det = flow(x.to(flow.parameters_of.base.dtype))
    assert y.isfinite().all()
    assert log_det.isfinite().all()
    if not spread:
        torch.testing.assert_close(y, x)
        torch.testing.assert_close(log_det, torch.zeros(5))


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(("rank", "columns"), [(2, 2), (5, 5), (9, 5)])
def test_sylvester_has_an_orthonormal_basis_and_leaves_what_is_orthogonal_to_it(basis, rank, columns):
    flow, x = wild(Sylvester(5, rank, basis)), torch.randn(6, 5, dtype=torch.float64)
    q, outer, inner, _, slope = flow._factors(None)
    assert q.shape == (1, 5, columns)
    torch.testing.assert_close(q[0].T @ q[0], torch.eye(columns, dtype=torch.float64))
    assert torch.equal(outer.tril(-1), torch.zeros_like(outer))
    assert torch.equal(inner.tril(-1), torch.zeros_like(inner))
    product = (outer @ inner).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(product, slope - 1)
    assert (product > -1).all()
    assert (determinants(flow, x) > 0).all()
    y, _ = flow(x)
    project = torch.eye(5, dtype=torch.float64) - q[0] @ q[0].T
    torch.testing.assert_close(y @ project, x @ project)
    torch.testing.assert_close(flow.inverse(y)[0] @ project, y @ project)


def test_sylvester_of_rank_one_is_planar():
    """With u = Q R and w = Q R~, on the same points."""
    flow, x = wild(Sylvester(4, 1)), torch.randn(6, 4, dtype=torch.float64)
    q, outer, inner, bias, _ = flow._factors(None)
    planar = Planar(4, constrained=False).double()
    planar.parameters_of.base.data = torch.cat([(q[0] @ inner[0])[:, 0], (q[0] @ outer[0])[:, 0], bias[0]])
    for a, b in zip(flow(x), planar(x), strict=True):
        torch.testing.assert_close(a, b)


def test_blocks_increase_in_their_own_dimension_and_do_not_see_later_ones():
    flow, x = wild(BlockAutoregressive(4, 3, 2), 1.5), torch.randn(20, 4, dtype=torch.float64)
    for one in x:
        matrix = jacobian(lambda p: flow(p[None])[0][0], one)
        assert (matrix.diagonal() > 0).all()
        assert matrix.triu(1).abs().max() == 0
        assert matrix.tril(-1).abs().max() > 0
    below, own = flow.layers[1].weights()
    assert (own > 0).all()
    assert (below < 0).any()


def test_rows_of_blocks_have_the_norm_that_is_learned():
    layer = wild(BlockLinear(3, 2, 4), 1.0)
    below, own = layer.weights()
    squares = below.square().sum(1) + own.square().sum(2).flatten()
    torch.testing.assert_close(squares.sqrt(), layer.log_norm.exp())


@pytest.mark.parametrize(("spread", "most"), [(0.5, 30), (1.5, 40)])
def test_all_dimensions_of_blocks_are_inverted_at_once(spread, most):
    """In fewer sweeps than there are dimensions, and in as many at most, however they depend on one another."""
    flow = BlockAutoregressive(40, 3, 2).double()
    for parameter in flow.parameters():
        parameter.data.add_(spread * torch.randn_like(parameter) / parameter.numel() ** 0.25)
    x = torch.randn(10, 40, dtype=torch.float64)
    torch.testing.assert_close(flow.inverse(flow(x)[0])[0], x)
    assert 1 < flow.sweeps <= most


def test_the_gate_makes_every_number_an_image():
    """tanh alone is bounded; far out, the inverse is still found, and without a warning."""
    flow = wild(BlockAutoregressive(3, 4, 2), 1.0)
    y = 1e3 * torch.randn(50, 3, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, _ = flow.inverse(y)
    torch.testing.assert_close(flow(x)[0], y)


def test_wide_layers_are_narrowed_before_they_cost_too_much():
    with torch.device("meta"):
        flow = BlockAutoregressive(4096, 8)
    assert flow.layers[0].outputs == 1


@pytest.mark.parametrize(
    "flow", [Planar(3), Sylvester(3, 2), BlockAutoregressive(3, 2)], ids=["planar", "sylvester", "b"]
)
def test_an_inverse_that_does_not_converge_warns(flow, monkeypatch):
    monkeypatch.setattr(roots, "MOST_STEPS", 1)
    with pytest.warns(RuntimeWarning, match="did not converge"):
        wild(flow).inverse(torch.randn(5, 3, dtype=torch.float64))
