"""Every bijection against autograd: its inverse, and its log-determinant in float64."""

import pytest
import torch
from torch.autograd.functional import jacobian

from fivefold.bijections.autoregressive import AutoregressiveMaps, MaskedAutoregressive, masked_autoregressive_flow
from fivefold.bijections.base import Chain
from fivefold.bijections.coupling import (
    Coupling,
    MaskedCoupling,
    alternate_channels,
    alternate_pixels,
    checkerboard_mask,
    parity_mask,
)
from fivefold.bijections.elementwise import Logit, NormalQuantile
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.shape import FactorOut, Flatten, Permutation, Squeeze
from fivefold.bijections.splines import Spline
from fivefold.bijections.transforms import Affine
from fivefold.nets.conditioner import Conditioner

CONDITION = 3


def coupling(shape, mask, transform, skips=False):
    """A coupling with a random network: by channels, or by pixels where the mask is of pixels."""
    by_pixel = mask.dim() > 1
    kept, changed = (shape[0], shape[0]) if by_pixel else (int((~mask).sum()), int(mask.sum()))
    outputs = changed * transform.parameters
    net = Conditioner(kept, outputs, shape[1:], hidden=8, blocks=1, condition=CONDITION, skips=skips)
    return (MaskedCoupling if by_pixel else Coupling)(mask, transform, net)


def multi_scale():
    inner = Chain(coupling((2, 2, 2), parity_mask(2, 1), Affine()), Flatten((2, 2, 2)))
    return Chain(Squeeze(), FactorOut((4, 2, 2), 2, inner))


TAILS, CUBE = Spline("rational-quadratic", 5, 1.5), Spline("rational-quadratic", 5, 1.0, tails=False)
# name: (shape, whether inputs lie in the cube, how to build it)
CASES = {
    "affine table": ((5,), False, lambda: coupling((5,), parity_mask(5, 1), Affine())),
    "affine one column": ((1,), False, lambda: coupling((1,), parity_mask(1, 1), Affine())),
    "affine checkerboard": ((2, 3, 5), False, lambda: coupling((2, 3, 5), checkerboard_mask(3, 5), Affine())),
    "affine channels": ((3, 2, 2), False, lambda: coupling((3, 2, 2), parity_mask(3, 3), Affine())),
    "affine skips": ((3, 2, 2), False, lambda: coupling((3, 2, 2), parity_mask(3, 3), Affine(), skips=True)),
    "spline table": ((5,), False, lambda: coupling((5,), ~parity_mask(5, 2), TAILS)),
    "spline cube": ((4, 2, 2), True, lambda: coupling((4, 2, 2), parity_mask(4, 3), CUBE)),
    "spline one pixel": ((1, 1, 1), True, lambda: coupling((1, 1, 1), checkerboard_mask(1, 1), CUBE)),
    "LU on a table": ((5,), False, lambda: LULinear(5)),
    "LU on an image": ((3, 2, 4), False, lambda: LULinear(3)),
    "LU from a rotation": ((6, 2, 2), False, lambda: LULinear(6, rotation=True)),
    "actnorm": ((3, 2, 2), False, lambda: ActNorm(3)),
    "masked autoregressive": ((4,), False, lambda: MaskedAutoregressive(4, Affine(), 9, CONDITION)),
    "autoregressive flow": ((3,), False, lambda: masked_autoregressive_flow(3, 3, Affine(), 8)),
    "autoregressive maps": ((18,), False, lambda: AutoregressiveMaps((3, 2, 3), Affine(), 6, CONDITION)),
    "squeeze": ((2, 4, 2), False, Squeeze),
    "permutation": ((5,), False, lambda: Permutation(torch.tensor([3, 0, 4, 1, 2]))),
    "flatten": ((2, 3, 1), False, lambda: Flatten((2, 3, 1))),
    "logit": ((6,), True, Logit),
    "normal quantile": ((6,), True, NormalQuantile),
    "multi-scale": ((1, 4, 4), False, multi_scale),
}


@pytest.fixture(params=CASES)
def case(request):
    """A bijection with random parameters in float64, inputs and a condition."""
    torch.manual_seed(0)
    shape, in_cube, build = CASES[request.param]
    bijection = build().double()
    for parameter in bijection.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    x = torch.randn(4, *shape, dtype=torch.float64)
    return bijection, torch.tanh(x) if in_cube else x, torch.randn(4, CONDITION, dtype=torch.float64)


def test_agrees_with_autograd(case):
    bijection, x, condition = case
    y, log_det = bijection(x, condition)
    back, inverse_log_det = bijection.inverse(y, condition)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=0, atol=1e-9)
    for i in range(len(x)):
        matrix = jacobian(lambda one, i=i: bijection(one[None], condition[i : i + 1])[0].flatten(), x[i])
        truth = torch.linalg.slogdet(matrix.reshape(x[i].numel(), -1)).logabsdet
        torch.testing.assert_close(log_det[i], truth, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("alternate", "shape"), [(alternate_channels, (4, 2, 2)), (alternate_pixels, (1, 3, 4))])
def test_two_couplings_in_a_row_change_everything_once(alternate, shape):
    changed = torch.zeros(shape)
    for layer in (0, 1):
        part = alternate(layer, shape, Affine(), lambda *sizes: Conditioner(*sizes, hidden=4, blocks=1))
        torch.nn.init.ones_(part.net.last.bias)
        changed += (part(torch.zeros(1, *shape))[0][0] != 0).float()
    assert torch.equal(changed, torch.ones(shape))


@pytest.mark.parametrize("transform", [TAILS, CUBE, Affine()])
def test_transforms_start_as_the_identity_and_increase(transform):
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    y, log_derivative = transform.forward(x, x.new_zeros(transform.parameters, 101))
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_derivative, torch.zeros_like(x), rtol=0, atol=1e-9)
    torch.manual_seed(0)
    y, _ = transform.forward(x, 3 * torch.randn(transform.parameters, 1, dtype=x.dtype).expand(-1, 101))
    assert (y.diff() > 0).all()


def test_affine_scales_and_shifts():
    """Survey Eq. 32, with a log-scale that cannot pass 3."""
    torch.manual_seed(0)
    x, parameters = torch.randn(7), 4 * torch.randn(2, 7)
    log_scale = 3 * torch.tanh(parameters[0] / 3)
    y, log_derivative = Affine().forward(x, parameters)
    torch.testing.assert_close(log_derivative, log_scale)
    torch.testing.assert_close(y, log_scale.exp() * x + parameters[1])


def test_spline_is_smooth_at_the_knots_and_in_the_tails():
    """Value and derivative are continuous everywhere, so tiny steps change the log-derivative by little."""
    torch.manual_seed(0)
    parameters = 0.5 * torch.randn(TAILS.parameters, 1, dtype=torch.float64)
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
