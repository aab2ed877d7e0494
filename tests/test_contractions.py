"""Fixed points and their gradients, series that are cut or differentiated early, norms, attention, implicit flows."""

from __future__ import annotations

import copy
import gc
import math
import weakref

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

from fivefold.bijections.base import Chain
from fivefold.bijections.residual import Residual, SeriesOptions, implicit_block
from fivefold.catalog import find
from fivefold.nets.lipschitz import ContractiveNet, LipschitzAttention, _most_spread, linearised
from fivefold.nets.norm import LearnedOrder, NormBound, bounded
from fivefold.space import Batch, Column, Space
from fivefold.tools.divergence import rademacher
from fivefold.tools.fixed_point import anderson, fixed_point, implicit
from fivefold.tools.roulette import exact_log_det, log_det_series, roulette_weights, truncation_bound
from fivefold.tools.spectral import Convolution, Matrix, induced_norm, p_norm

PLANE = Space("table", (2,), columns=(Column("x"), Column("y", scale=3.0)))


def contraction(shape=(3,), limit=0.9, condition=0, std=0.7, **options):
    torch.manual_seed(0)
    net = ContractiveNet(shape, 6, condition, limit, "lipswish", **options).double()
    for name, parameter in net.named_parameters():
        nn.init.normal_(parameter, std=0.3 if "raw" in name or "orders" in name else std)
    return net.eval()


# --- fixed points -------------------------------------------------------------------------------


def test_anderson_ends_a_linear_iteration_after_as_many_steps_as_dimensions():
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    matrix, y = 0.95 * turn @ torch.linspace(-1, 1, 5).double().diag() @ turn.T, torch.randn(4, 5).double()
    truth = y @ torch.linalg.inv(torch.eye(5) + matrix)
    plain = fixed_point(lambda x: y - x @ matrix, y, 1e-9, 2000)
    found = anderson(lambda x: y - x @ matrix, y, 1e-9, 2000)
    torch.testing.assert_close(found.x, truth, rtol=0, atol=1e-7)
    assert found.steps <= 10 < 300 < plain.steps
    assert found.error <= 1e-9


def test_anderson_falls_back_where_extrapolation_misleads():
    """A contraction in the largest coordinate with a bend at every integer, no two rows alike."""
    torch.manual_seed(0)

    def f(x):
        folded = (x - x.round()).abs() * 2
        return 0.9 * 0.5 * folded.roll(1, 1) * torch.tensor([1.0, -1.0, 1.0]).double() + 3 * y.sin()

    y = 3 * torch.randn(64, 3, dtype=torch.float64)
    found, plain = anderson(f, y, 1e-10, 3000), fixed_point(f, y, 1e-12, 3000)
    assert found.error <= 1e-10
    torch.testing.assert_close(found.x, plain.x, rtol=0, atol=1e-8)


def test_a_search_that_does_not_end_is_told():
    found = anderson(lambda x: 2 * x + x.square() + 1, torch.ones(2, 3), 1e-3, 30)
    assert found.steps <= 30
    with pytest.warns(RuntimeWarning, match="a thing did not converge"):
        found.warn("a thing", 1e-3)
    nowhere = anderson(lambda x: x * math.nan, torch.ones(2, 3), 1e-3, 30)
    assert math.isnan(nowhere.error)
    with pytest.warns(RuntimeWarning, match="did not converge"):
        nowhere.warn("a thing", 1e-3)


def test_gradients_of_a_fixed_point_are_those_of_the_iteration():
    """By what the map depends on, against autograd through 400 steps; a second derivative is refused."""
    net = contraction(condition=2)
    y, condition = torch.randn(4, 3).double().requires_grad_(), torch.randn(4, 2).double().requires_grad_()

    def f(x):
        return y - net(x, condition)

    wanted = (y, condition, *net.parameters())
    unrolled = y
    for _ in range(400):
        unrolled = f(unrolled)
    weights = torch.randn(4, 3).double()
    truth = torch.autograd.grad((weights * unrolled.sin()).sum(), wanted, allow_unused=True)
    x = implicit(f, unrolled, 1e-13, 2000)
    found = torch.autograd.grad((weights * x.sin()).sum(), wanted, allow_unused=True)
    assert sum(one is not None and bool(one.abs().max() > 1e-3) for one in truth) > 5
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(implicit(f, unrolled, 1e-13, 2000).sum(), y, create_graph=True)


def test_an_inverse_takes_few_evaluations_and_keeps_the_weights_of_training():
    net = contraction(limit=0.99).train()
    block, x = Residual(net, SeriesOptions(tolerance=1e-10)), torch.randn(8, 3).double()
    for _ in range(20):  # of power iteration
        net(x)
    y, _ = block.eval()(x)
    torch.testing.assert_close(block.inverse(y)[0], x, rtol=0, atol=1e-8)
    assert block.steps < 30
    seen = []
    net.layers[0].register_forward_hook(lambda layer, *_: seen.append(layer.weight))
    block.train().inverse(y)
    assert len(seen) > 4
    assert all(weight is seen[0] for weight in seen)


# --- the series ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (2, 4, 3)], ids=["table", "image"])
@pytest.mark.parametrize("activation", ["lipswish", "elu"])
@pytest.mark.parametrize("first", [False, True])
def test_a_net_knows_the_products_with_its_jacobian_and_their_gradients(shape, activation, first):
    """Against the whole Jacobian, and against autograd through it."""
    torch.manual_seed(0)
    net = ContractiveNet(shape, 5, 2, 0.9, activation, first).double().eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.7)
    x, condition, probe, v, u = (torch.randn(4, *size).double() for size in (shape, (2,), shape, shape, shape))
    wanted = (x.requires_grad_(), condition.requires_grad_(), *net.parameters())
    value, pull, pair = linearised(net, x, condition, probe)
    matrix = torch.autograd.functional.jacobian(lambda at: net(at, condition).sum(0).flatten(), x, create_graph=True)
    matrix = matrix.flatten(2).transpose(0, 1)  # (B, D, D)
    torch.testing.assert_close(value, net(x, condition))
    torch.testing.assert_close(pull(v), (v.flatten(1)[:, None] @ matrix).view(x.shape))
    truth = torch.einsum("bi,bij,bj->b", v.flatten(1), matrix, probe.flatten(1))
    torch.testing.assert_close(pair(v), truth)
    assert not pull(v).requires_grad
    by_hand, by_autograd = (
        torch.autograd.grad((u * g).sum() + (one.cos()).sum(), wanted, allow_unused=True, retain_graph=True)
        for g, one in ((value, pair(v)), (net(x, condition), truth))
    )
    assert sum(one is not None for one in by_autograd) >= 8
    for one, other in zip(by_hand, by_autograd, strict=True):
        torch.testing.assert_close(one, other)


def test_a_cut_series_is_off_by_no_more_than_its_bound():
    """Which is reached where every eigenvalue is -L; the mean of estimates is the cut series and not the whole."""
    for limit, terms in ((0.9, 5), (0.5, 3)):
        x = torch.randn(1, 4, dtype=torch.float64)
        probe, slope = rademacher(x), -limit
        _, pull, pair = linearised(lambda at, condition: slope * at, x, None, probe)  # noqa: B023
        cut = log_det_series(pull, pair, probe, torch.ones(terms, 1)).item()
        bound = truncation_bound(4, limit, terms)
        assert cut - 4 * math.log(1 - limit) == pytest.approx(bound)
        assert bound > 0.01
    net, x = contraction(limit=0.97), torch.randn(2, 3).double()
    block = Residual(net, SeriesOptions(score_terms=3, score_stop=None)).eval()
    many = torch.stack([block(x)[1].detach() for _ in range(400)])
    truth = Residual(net, SeriesOptions(exact=True)).eval()(x)[1].detach()
    assert ((many.mean(0) - truth).abs() < truncation_bound(3, 0.97**3, 3) + 4 * many.std(0) / 20).all()
    assert block.exactness.log_det == "truncated"
    assert block.train().exactness.log_det == "estimated"
    trained = Residual(net, SeriesOptions(stop=None))
    assert trained.train().exactness.log_det == "truncated"
    assert trained.eval().exactness.log_det == "estimated"
    assert Chain(block.eval(), trained).exactness.log_det == "truncated"


def test_early_gradients_are_the_same_and_refuse_to_be_weighed_apart():
    """Though x and the condition were made from the same tensor, each path counts once."""
    net, start = contraction(condition=2).train(), torch.randn(5, 5).double().requires_grad_()
    found = []
    for early in (False, True):
        block = copy.deepcopy(Residual(net, SeriesOptions(early=early)))  # with power iteration where it was
        torch.manual_seed(0)
        mixed = start * block.net.layers[0].bias.mean() + start.flip(1)
        y, log_det = block(mixed[:, :3], mixed[:, 2:4])
        loss = (y.square().sum(1) - 3 * log_det).mean()
        found.append(torch.autograd.grad(loss, (start, *block.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    _, log_det = block(start[:, :3], start[:, 3:])
    with pytest.raises(RuntimeError, match="weigh alike"):
        (log_det * torch.arange(5.0)).sum().backward()


def test_early_gradients_hold_less_memory():
    """Bytes that the graph of a block still holds when its forward pass is over."""

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor

    net, x = contraction((2, 6, 6)).train(), torch.randn(4, 2, 6, 6).double().requires_grad_()

    def held(part):
        alive = weakref.WeakSet()

        def pack(tensor):
            kept = Kept(tensor.detach())  # an output with its graph would hold itself
            alive.add(kept)
            return kept

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            result = part(x)
        gc.collect()
        size = sum({kept.tensor.data_ptr(): kept.tensor.nbytes for kept in alive}.values())
        return size, result

    (bare, _), (early, _), (late, _) = (
        held(part) for part in (net, *(Residual(net, SeriesOptions(early=early)) for early in (True, False)))
    )
    assert early < 1.1 * bare
    assert late > 1.25 * bare


# --- norms --------------------------------------------------------------------------------------

INF = math.inf
PAIRS = [(1.0, 1.0), (INF, INF), (1.0, 3.0), (3.0, INF), (1.0, INF), (2.0, 2.0), (3.0, 1.5), (1.5, 3.0), (INF, 1.0)]


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_induced_norms_are_the_largest_of_all_directions(p, q):
    torch.manual_seed(0)
    weight = torch.randn(4, 3, dtype=torch.float64)
    line = torch.linspace(-1, 1, 61, dtype=torch.float64)
    x = torch.cartesian_prod(line, line, line)
    x = x[x.abs().amax(1) == 1]  # the surface of the cube: every direction, to 1 / 30
    truth = (p_norm(x @ weight.T, q) / p_norm(x, p)).max().item()
    found, _ = induced_norm(Matrix((1, 3)), weight, (p, q), torch.randn(8, 3).double(), 1000, 1e-9)
    assert truth <= found.item() * (1 + 1e-9)
    assert found.item() == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize(("p", "q"), [(1.0, 1.0), (INF, INF), (1.0, 2.0), (1.5, 3.0)])
def test_induced_norms_of_convolutions_are_those_of_their_matrices(p, q):
    torch.manual_seed(0)
    weight, shape = torch.randn(2, 2, 3, 3).double(), (1, 2, 3, 2)
    linear = Convolution(shape, padding=(1, 1))
    rows = linear.apply(weight, torch.eye(12).double().view(12, 2, 3, 2)).flatten(1).T
    found, _ = induced_norm(linear, weight, (p, q), torch.randn(8, *shape[1:]).double(), 1000, 1e-9)
    truth, _ = induced_norm(Matrix((1, 12)), rows, (p, q), torch.randn(8, 12).double(), 1000, 1e-9)
    assert found.item() == pytest.approx(truth.item(), rel=1e-4)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 2)], ids=["table", "image"])
@pytest.mark.parametrize(("norm", "order"), [("1", 1.0), ("inf", INF)])
def test_a_net_contracts_in_the_norm_that_it_is_bounded_in(norm, order, shape):
    net = contraction(shape, 0.95, norm=norm, std=2.0)
    largest = 0.0
    for x in torch.randn(10, *shape).double():
        matrix = jacobian(lambda v: net(v[None])[0], x).reshape(x.numel(), -1)
        largest = max(largest, torch.linalg.matrix_norm(matrix, order).item())
    assert 0.01 < largest < 0.95**3


def test_orders_of_norms_are_learnt(monkeypatch):
    """Their gradient is the one of finite differences."""
    monkeypatch.setattr(NormBound, "EVALUATION", (1000, 1e-12))
    torch.manual_seed(0)
    raw = nn.Parameter(torch.tensor([0.3, -0.4], dtype=torch.float64))
    assert LearnedOrder(nn.Parameter(torch.zeros(1)), 0)().item() == pytest.approx(2)
    layer = bounded(nn.Linear(4, 3), 0.5, orders=(LearnedOrder(raw, 0), LearnedOrder(raw, 1))).double().eval()

    def value():
        return layer.weight.square().sum()

    (found,) = torch.autograd.grad(value(), raw)
    for i in range(2):
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                raw[i] += step
                values.append(value().item())
                raw[i] -= step
        assert found[i].item() == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-2, abs=1e-4)
    assert found.abs().min() > 1e-3
    net = contraction(norm="learned")
    assert net.orders.shape == (3,)
    copied = copy.deepcopy(net)  # as for an average of weights
    for layer in copied.layers:
        assert all(order.raw is copied.orders for order in layer.parametrizations.weight[0].orders)
    assert len(dict(net.named_parameters())) == len(dict(contraction().named_parameters())) + 1


# --- attention ----------------------------------------------------------------------------------


def test_the_bound_on_attention_holds_for_the_worst_inputs_found():
    """Gradient ascent of the Jacobian's norm from many starts: below the limit, and not by orders of magnitude."""
    torch.manual_seed(0)
    net = LipschitzAttention((2, 4), 1, 0, 1.0, "elu").double()
    net.activation = nn.Identity()
    nn.init.zeros_(net.place)
    nn.init.normal_(net.query, std=1.0)
    x = (torch.randn(24, 2, 4) * torch.logspace(-1, 1, 24)[:, None, None]).double().requires_grad_()
    optimizer, largest = torch.optim.Adam([x], 0.05), 0.0
    for _ in range(60):
        g = net(x).flatten(1)
        rows = [torch.autograd.grad(g[:, i].sum(), x, create_graph=True)[0].flatten(1) for i in range(8)]
        norms = torch.linalg.matrix_norm(torch.stack(rows, 1), 2)
        largest = max(largest, norms.max().item())
        optimizer.zero_grad()
        (-norms.sum()).backward()
        optimizer.step()
    assert 0.1 < largest < 1


def test_the_most_spread_under_softmax_weights_is_what_its_formula_says():
    for positions in (2, 5, 64):
        r = torch.linspace(0, 10, 100_001, dtype=torch.float64)
        mean = (positions - 1) * r * (-r).exp() / (1 + (positions - 1) * (-r).exp())
        assert mean.max().item() == pytest.approx(_most_spread(positions), rel=1e-6)
    torch.manual_seed(0)
    r = 6 * torch.rand(100_000, 4).double()
    assert ((r * (-r).exp()).sum(1) / (1 + (-r).exp().sum(1))).max() < _most_spread(5)
    assert _most_spread(1) == 0


def test_attention_mixes_positions_and_knows_their_places():
    net = LipschitzAttention((2, 2, 2), 2, 3, 0.9, "elu").double()
    x, condition = torch.randn(1, 2, 2, 2).double(), torch.randn(1, 3).double()
    matrix = jacobian(lambda v: net(v, condition), x).view(8, 8)
    assert (matrix != 0).all()
    assert (net(x.flip(3), condition) - net(x, condition).flip(3)).abs().max() > 1e-6
    nn.init.zeros_(net.place)
    torch.testing.assert_close(net(x.flip(3), condition), net(x, condition).flip(3))
    system = find("residual-flow").load()(
        Space("image", (1, 4, 4), levels=3), blocks=1, hidden=4, width=8, attention=2, squeeze_first=False
    )
    nets = [part for part in system.modules() if isinstance(part, LipschitzAttention)]
    assert [part.positions for part in nets] == [16, 4]


# --- implicit flows -----------------------------------------------------------------------------


def test_an_implicit_block_is_the_root_and_stretches_beyond_a_residual_block():
    net_x, net_z = contraction(), contraction(limit=0.95)
    block = implicit_block(net_x, net_z, SeriesOptions(exact=True, tolerance=1e-12)).eval()
    x = torch.randn(5, 3).double()
    z, log_det = block(x)
    torch.testing.assert_close(x + net_x(x), z + net_z(z), rtol=0, atol=1e-10)
    torch.testing.assert_close(block.inverse(z)[0], x, rtol=0, atol=1e-10)
    assert block.exactness == ("iterative", "iterative", "exact")
    parts = [
        exact_log_det(net(at), at) for net, at in ((net_x, x.requires_grad_()), (net_z, z.detach().requires_grad_()))
    ]
    torch.testing.assert_close(log_det, parts[0] - parts[1])

    class Slope(nn.Module):
        def __init__(self, slope):
            super().__init__()
            self.slope = slope

        def forward(self, x, condition=None):
            return self.slope * x

    steep = implicit_block(Slope(0.9), Slope(-0.9), SeriesOptions(exact=True, tolerance=1e-12)).eval()
    torch.testing.assert_close(steep(x)[0], 19 * x)  # (1 + 0.9) / (1 - 0.9), where one block has 1.9
    torch.testing.assert_close(steep(x)[1], torch.full((5,), 3 * math.log(19)).double())


@pytest.mark.parametrize("early", [False, True])
def test_the_gradient_of_an_implicit_block_is_that_of_the_unrolled_one(early):
    """Of image and log-determinant in training, averaged over roulettes and probes, by parameters and the input."""
    torch.manual_seed(0)
    nets = [contraction(limit=0.8).train() for _ in range(2)]
    options = SeriesOptions(terms=3, tolerance=1e-12, early=early)
    block, x = implicit_block(*nets, options).train(), torch.randn(2, 3).double().requires_grad_()
    for net in nets:
        for layer in net.layers:  # the same weights in every draw
            nn.utils.parametrize.remove_parametrizations(layer, "weight")
    wanted = (x, nets[0].layers[0].bias, nets[1].layers[1].bias)
    with torch.enable_grad():
        target = x + nets[0](x)
        z = target
        for _ in range(60):
            z = target - nets[1](z)
        truth = z.square().sum() + (exact_log_det(nets[0](x), x) - exact_log_det(nets[1](z), z)).sum()
    truth = torch.cat([one.flatten() for one in torch.autograd.grad(truth, wanted)])
    draws = []
    for _ in range(200):
        z, log_det = block(x)
        draws.append(
            torch.cat([one.flatten() for one in torch.autograd.grad(z.square().sum() + log_det.sum(), wanted)])
        )
    draws = torch.stack(draws)
    assert truth.abs().max() > 0.1
    assert ((draws.mean(0) - truth).abs() < 4.5 * draws.std(0) / len(draws) ** 0.5 + 1e-9).all()


@pytest.mark.parametrize("name", ["i-resnet", "implicit-flow"])
def test_a_few_steps_move_every_parameter(name):
    torch.manual_seed(0)
    system = find(name).load()(PLANE, blocks=1, layers=1, width=16).train()
    optimizer, x = torch.optim.Adam(system.parameters(), 1e-2), torch.randn(64, 2)
    x = torch.stack([x[:, 0], 0.2 * x[:, 1] + x[:, 0].square()], 1)
    losses = []
    for _ in range(30):
        loss = system.loss(Batch(x))
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in system.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    assert {part.exactness.log_det for part in system.modules() if isinstance(part, Residual)} == {
        "truncated" if name == "i-resnet" else "estimated"
    }


def test_the_paper_series_of_an_i_resnet_is_cut_in_training_alone(monkeypatch):
    import fivefold.bijections.residual as module

    seen = []
    monkeypatch.setattr(module, "roulette_weights", lambda *given: seen.append(given) or roulette_weights(*given))
    system = find("i-resnet").load()(Space("image", (1, 2, 2), levels=3), blocks=1, hidden=4, exact_dims=1)
    x = torch.randint(3, (4, 1, 2, 2))
    system.train().loss(Batch(x))
    assert not seen
    system.score_encoded(Batch(x))
    assert seen
    assert "cut after 5 terms" in system.density_note
