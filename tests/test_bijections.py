"""Every bijection against autograd: its inverse, its log-determinants in float64, and what is claimed of it."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

from fivefold.bijections.autoregressive import MaskedAutoregressive
from fivefold.bijections.base import Chain, Inverse
from fivefold.bijections.coupling import (
    Coupling,
    CouplingRow,
    _Permute,
    alternate_channels,
    alternate_pixels,
    checkerboard_mask,
    in_a_row,
    parity_mask,
)
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.transforms import Affine
from fivefold.nets import norm as norms
from fivefold.nets.conditioner import Conditioner
from tests.bijection_cases import CASES, CONDITION, CUBE, TAILS

DRAWS = 2000  # of an estimated log-determinant


def setting(name):
    """A bijection with random parameters in float64, far from the identity, inputs and a condition."""
    torch.manual_seed(0)
    case = CASES[name]
    bijection = case.build().double().eval()
    for parameter in bijection.parameters():
        torch.nn.init.normal_(parameter, std=case.spread)
    x = torch.randn(4, *case.shape, dtype=torch.float64)
    return bijection, torch.tanh(x) if case.cube else x, torch.randn(4, CONDITION, dtype=torch.float64)


GIVEN = [(name, given) for name, case in CASES.items() for given in (True, False) if given or not case.needs]


@pytest.mark.parametrize(("name", "given"), GIVEN)
def test_agrees_with_autograd(name, given):
    """inverse(forward(x)) = x, and both log-determinants (or their means) are the full Jacobian's."""
    (bijection, x, condition), case = setting(name), CASES[name]
    condition = condition if given else None
    y, log_det = bijection(x, condition)
    back, inverse_log_det = bijection.inverse(y, condition)
    torch.testing.assert_close(back, x, rtol=0, atol=case.tolerance)
    truth = []
    for i in range(len(x)):
        one = None if condition is None else condition[i : i + 1]
        matrix = jacobian(lambda point, one=one: bijection(point[None], one)[0].flatten(), x[i])
        matrix = matrix.reshape(x[i].numel(), -1)
        if case.jacobian == "pixels":
            last = torch.arange(x[i].numel()).view(x[i].shape).movedim(0, -1).flatten()
            assert matrix[last][:, last].triu(1).abs().max() <= case.tolerance
        if case.jacobian == "triangular":
            assert matrix.triu(1).abs().max() <= case.tolerance
        if case.jacobian == "diagonal":
            assert (matrix - matrix.diagonal().diag()).abs().max() <= case.tolerance
        truth.append(torch.linalg.slogdet(matrix).logabsdet)
    truth = torch.stack(truth)
    if bijection.exactness.log_det == "exact":
        close = max(1e-8, 10 * case.tolerance)
        torch.testing.assert_close(log_det, truth, rtol=close, atol=close)
        torch.testing.assert_close(inverse_log_det, -truth, rtol=close, atol=close)
    else:
        repeat = lambda t: None if t is None else t[:1].expand(DRAWS, *t.shape[1:])  # noqa: E731
        for sign, found in (
            (1, bijection(repeat(x), repeat(condition))[1]),
            (-1, bijection.inverse(repeat(y), repeat(condition))[1]),
        ):
            error = found.std() / DRAWS**0.5
            assert error > 0
            assert abs(sign * found.mean() - truth[0]) < 3 * error + 1e-9 + case.bias
    assert (bijection.exactness.log_det == "truncated") is bool(case.bias)


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_every_parameter_and_the_input(name):
    bijection, x, condition = setting(name)
    x.requires_grad_()
    y, log_det = bijection(x, condition)
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)  # a plain sum can be blind
    (weights * y.square()).sum().add(log_det.sum()).backward()
    for key, tensor in [("input", x), *bijection.named_parameters()]:
        assert tensor.grad is not None, key
        assert tensor.grad.isfinite().all(), key
        assert tensor.grad.abs().sum() > 0 or key == CASES[name].idle, key


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.far or case.cube])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_finite_far_out_and_at_the_edge_of_its_domain(name, dtype):
    (bijection, x, condition), case = setting(name), CASES[name]
    edge = 1.0 if case.cube else 1e4
    far = edge * torch.stack([torch.ones_like(x[0]), -torch.ones_like(x[0]), x[0].sign(), torch.zeros_like(x[0])])
    bijection.to(dtype)
    for found in bijection(far.to(dtype), condition.to(dtype)):
        assert found.isfinite().all()


@pytest.mark.parametrize(("alternate", "shape"), [(alternate_channels, (4, 2, 2)), (alternate_pixels, (1, 3, 4))])
def test_two_couplings_in_a_row_change_everything_once(alternate, shape):
    changed = torch.zeros(shape)
    for layer in (0, 1):
        part = alternate(layer, shape, Affine(), lambda *sizes: Conditioner(*sizes, hidden=4, blocks=1))
        torch.nn.init.ones_(part.net.last.bias)
        changed += (part(torch.zeros(1, *shape))[0][0] != 0).float()
    assert torch.equal(changed, torch.ones(shape))


class OfExamples(nn.Module):
    """A network without a way of its own for vectors that lie units first."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, condition=None):
        return self.net(x, condition)


@pytest.mark.parametrize("shape", [(1,), (2,), (5,), (8,), (4, 2, 3)])
def test_a_row_of_couplings_is_their_chain(shape):
    """Both ways, whichever way the networks take vectors."""
    torch.manual_seed(0)
    layers = [alternate_channels(i, shape, Affine(), partial(Conditioner, hidden=4, blocks=1)) for i in range(5)]
    for layer in layers:
        torch.nn.init.normal_(layer.net.last.weight)
    (row,) = in_a_row(layers).parts
    assert isinstance(row, CouplingRow)
    x, row = torch.randn(6, *shape, dtype=torch.float64), row.double()
    (y, log_det), (wanted, truth) = row(x), Chain(*layers)(x)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(log_det, truth)
    back, log_det = row.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det, -truth)
    plain = [Coupling(_mask(layer), Affine(), OfExamples(layer.net)) for layer in layers]
    torch.testing.assert_close(in_a_row(plain)(x), (wanted, truth))


def _mask(layer):
    return torch.isin(torch.arange(len(layer.parted)), layer.change)


@pytest.mark.parametrize("transform", [TAILS, CUBE, Affine()])
def test_transforms_start_as_the_identity_and_increase(transform):
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    y, log_derivative = transform.forward(x, x.new_zeros(transform.size, 101))
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_derivative, torch.zeros_like(x), rtol=0, atol=1e-9)
    torch.manual_seed(0)
    y, _ = transform.forward(x, 3 * torch.randn(transform.size, 1, dtype=x.dtype).expand(-1, 101))
    assert (y.diff() > 0).all()


def test_affine_scales_and_shifts():
    """Survey Eq. 32, with a log-scale that cannot pass 5."""
    torch.manual_seed(0)
    x, parameters = torch.randn(7), 4 * torch.randn(2, 7)
    log_scale = parameters[0] / (1 + parameters[0].abs() / 5)
    y, log_derivative = Affine().forward(x, parameters)
    torch.testing.assert_close(log_derivative, log_scale)
    torch.testing.assert_close(y, log_scale.exp() * x + parameters[1])


def test_spline_is_smooth_at_the_knots_and_in_the_tails():
    """Value and derivative are continuous everywhere, so tiny steps change the log-derivative by little."""
    torch.manual_seed(0)
    parameters = 0.5 * torch.randn(TAILS.size, 1, dtype=torch.float64)
    x = torch.linspace(-2, 2, 40001, dtype=torch.float64)
    y, log_derivative = TAILS.forward(x, parameters.expand(-1, len(x)))
    assert log_derivative.diff().abs().max() < 0.01
    torch.testing.assert_close(y.diff() / x.diff(), log_derivative.exp()[:-1], rtol=0.01, atol=0)
    outside = x.abs() > TAILS.bound
    assert torch.equal(y[outside], x[outside])


def test_masks_part_what_they_should():
    squeezed = torch.nn.functional.pixel_unshuffle(checkerboard_mask(4, 4, odd=True)[None].float(), 2)[0]
    assert all(torch.equal(squeezed[c] > 0, parity_mask(4, 3)[c].expand(2, 2)) for c in range(4))
    for channels in (2, 3, 6, 13):
        masks = torch.stack([parity_mask(channels, p) for p in range(1, 2 ** (channels - 1).bit_length())])
        parted = (masks[:, :, None] != masks[:, None, :]).any(0)
        assert torch.equal(parted, ~torch.eye(channels, dtype=torch.bool))


def test_a_rotation_starts_as_one_of_a_permutation_and_both_signs():
    torch.manual_seed(0)
    linear = LULinear(6, rotation=True)
    weight = linear(torch.eye(6))[0].T
    torch.testing.assert_close(weight @ weight.T, torch.eye(6), atol=1e-5, rtol=0)
    assert not torch.equal(linear.permutation, torch.eye(6))
    assert set(linear.sign.tolist()) == {-1, 1}


def test_the_permutation_of_compiled_couplings_has_torchs_values_and_gradient():
    torch.manual_seed(0)
    x, weight, order = torch.randn(3, 7, requires_grad=True), torch.randn(3, 7), torch.randperm(7)
    found, wanted = _Permute.apply(x, 1, order, order.argsort()), x.index_select(1, order)
    assert torch.equal(found, wanted)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, wanted)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize(("layer", "shape"), [(nn.Linear(2, 3), (5, 2)), (nn.Conv2d(2, 3, 3, padding=1), (5, 2, 4, 4))])
def test_actnorm_lies_in_the_weights_of_the_layer_before(layer, shape):
    """The same values and gradients as after the layer; the first batch starts it as ever."""
    torch.manual_seed(0)
    x, norm = 3 * torch.randn(shape) + 1, norms.ActNorm(3)
    torch.testing.assert_close(norm.after(layer, x).mean([0, *range(2, len(shape))]), torch.zeros(3), atol=1e-5, rtol=0)
    assert norm.started
    parameters = [*layer.parameters(), *norm.parameters()]
    found, wanted = norm.after(layer, x), norm(layer(x))
    torch.testing.assert_close(found, wanted)
    weight = torch.randn_like(wanted)
    for one, other in zip(*(torch.autograd.grad((y * weight).sum(), parameters) for y in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5)])
def test_actnorm_starts_with_the_first_batch_in_training(shape):
    """Channels come out with mean 0 and variance 1; neither evaluation nor a second batch sets it."""
    torch.manual_seed(0)
    actnorm, axes = ActNorm(3), (0, *range(2, 1 + len(shape)))
    x = 5 * torch.randn(400, *shape) + 3
    assert torch.equal(actnorm.eval()(x)[0], x)
    y, log_det = actnorm.train()(x)
    torch.testing.assert_close(y.mean(axes), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.var(axes), torch.ones(3), atol=1e-2, rtol=0)
    assert log_det[0].item() == pytest.approx(-x[0, 0].numel() * 3 * 1.609, rel=0.05)
    assert actnorm(2 * x)[0].std().item() == pytest.approx(2, rel=0.5)


def one_after_another(flow, y, condition):
    """The inverse of an autoregressive flow as it is defined: a whole pass for every dimension."""
    x, dims = torch.zeros_like(y), range(y.shape[1])
    for d in reversed(dims) if flow.backwards else dims:
        x[:, d] = flow.transform.inverse(y.T, flow.net(x.T, condition))[0][d]
    return x


@pytest.mark.parametrize(("dims", "hidden"), [(1, 4), (7, 5), (6, 40), (70, 50)])
@pytest.mark.parametrize("transform", [Affine(), TAILS], ids=["affine", "spline"])
@pytest.mark.parametrize("backwards", [False, True])
def test_the_incremental_inverse_is_the_sequential_one(dims, hidden, transform, backwards):
    torch.manual_seed(0)
    flow = MaskedAutoregressive(dims, transform, hidden, CONDITION, backwards).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.6 / dims**0.5)
    y, condition = torch.randn(5, dims, dtype=torch.float64), torch.randn(5, CONDITION, dtype=torch.float64)
    with torch.no_grad():
        for given in (condition, None):
            x, log_det = flow.inverse(y, given)
            torch.testing.assert_close(x, one_after_another(flow, y, given))
            torch.testing.assert_close(log_det, -flow(x, given)[1])


@pytest.mark.parametrize("name", ["autoregressive, affine", "autoregressive, spline", "autoregressive maps"])
def test_the_inverse_of_an_autoregressive_flow_is_differentiated_rightly(name):
    """In the point, the condition and the parameters: against differences."""
    bijection, x, condition = setting(name)
    y = bijection(x, condition)[0].detach()[:2].requires_grad_()
    condition, names = condition[:2].requires_grad_(), [key for key, _ in bijection.named_parameters()]
    values = [value.detach().clone().requires_grad_() for value in bijection.parameters()]

    def inverse(y, condition, *values):
        return torch.func.functional_call(Inverse(bijection), _under("part.", names, values), (y, condition))

    assert torch.autograd.gradcheck(
        inverse, (y, condition, *values), eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True, check_undefined_grad=False
    )


def _under(prefix, names, values):
    return {prefix + name: value for name, value in zip(names, values, strict=True)}
