"""Every bijection that there is, small: what `test_bijections.py` holds against autograd. Add yours."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fivefold.bijections.autoregressive import AutoregressiveMaps, MaskedAutoregressive, masked_autoregressive_flow
from fivefold.bijections.base import Chain, Inverse, Layer
from fivefold.bijections.block import BlockAutoregressive
from fivefold.bijections.convolution import AutoregressiveConv, ConvExp, PeriodicConv, Turned, emerging
from fivefold.bijections.coupling import (
    Coupling,
    MaskedCoupling,
    alternate_channels,
    checkerboard_mask,
    in_a_row,
    parity_mask,
)
from fivefold.bijections.determinant import Planar, Sylvester
from fivefold.bijections.discrete import IntegerShift, ModuloAutoregressive, ModuloCoupling, Translation, Wrap
from fivefold.bijections.elementwise import HalfLine, Logit, NormalQuantile
from fivefold.bijections.laws import conditional_flow
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.masked_convolution import MaskedConv, MintLayer, macow_unit, mint_pair
from fivefold.bijections.monotone import DeepSigmoid, Integral, MixtureCDF, SumOfSquares
from fivefold.bijections.ode import ContinuousFlow
from fivefold.bijections.residual import Residual, SeriesOptions, implicit_block
from fivefold.bijections.shape import Checkerboard, FactorOut, Flatten, Permutation, Squeeze
from fivefold.bijections.splines import Spline
from fivefold.bijections.transforms import Additive, Affine
from fivefold.nets.attentive import AttentiveNet
from fivefold.nets.conditioner import Conditioner
from fivefold.nets.dense import DenseConditioner
from fivefold.nets.lipschitz import ContractiveNet, LipschitzAttention, Norm
from fivefold.nets.planar import PlanarSum
from fivefold.nets.potential import Potential, PotentialVelocity
from fivefold.nets.velocity import Velocity
from fivefold.tools.roulette import truncation_bound

CONDITION = 3  # width of the condition, which all are given and some use
NORMS: tuple[Norm, ...] = ("1", "inf", "learned")


class Case(NamedTuple):
    """How one bijection is built and what is claimed of it.

    Args:
        shape: of one example.
        build: makes it.
        cube: whether inputs lie in [-1, 1].
        spread: standard deviation of its random parameters.
        tolerance: of the inverse, absolute.
        jacobian: "diagonal" or "triangular" (row by row of the flattened example; "pixels", with channels last),
            where that is claimed.
        far: whether inputs of 1e4 are among what it is made for.
        needs: whether it cannot do without its condition.
        idle: a parameter that nothing can reach in a case this small.
        bias: how far the mean of a truncated log-determinant may be off, in nats.
    """

    shape: tuple[int, ...]
    build: Callable[[], Layer]
    cube: bool = False
    spread: float = 0.4
    tolerance: float = 1e-9
    jacobian: str | None = None
    far: bool = True
    needs: bool = False
    idle: str = ""
    bias: float = 0.0


def coupling(shape: tuple[int, ...], mask: torch.Tensor, transform: Any, skips: bool = False) -> Layer:
    """A coupling with a random network: by channels, or by pixels where the mask is of pixels."""
    by_pixel = mask.dim() > 1
    kept, changed = (shape[0], shape[0]) if by_pixel else (int((~mask).sum()), int(mask.sum()))
    outputs = changed * transform.size
    net = Conditioner(kept, outputs, shape[1:], hidden=8, blocks=1, condition=CONDITION, skips=skips)
    return (MaskedCoupling if by_pixel else Coupling)(mask, transform, net)


def row(shape: tuple[int, ...]) -> Layer:
    return in_a_row(alternate_channels(layer, shape, Affine(), net) for layer in range(4))


def attentive() -> Layer:
    net = AttentiveNet(2, 2 * MixtureCDF(3).size, (2, 2), hidden=4, blocks=2, heads=2, condition=CONDITION)
    return Coupling(parity_mask(4, 1), MixtureCDF(3), net)


def net(inputs: int, outputs: int, spatial: tuple[int, ...]) -> Conditioner:
    return Conditioner(inputs, outputs, spatial, hidden=8, blocks=1, condition=CONDITION)


def multi_scale() -> Layer:
    inner = Chain(coupling((2, 2, 2), parity_mask(2, 1), Affine()), Flatten((2, 2, 2)))
    return Chain(Squeeze(), FactorOut((4, 2, 2), 2, inner))


def autoregressive(transform: Any) -> MaskedAutoregressive:
    return MaskedAutoregressive(4, transform, 9, CONDITION)


def equation() -> Layer:
    return ContinuousFlow(moving(), tolerance=1e-10)


def moving() -> Velocity:
    return Velocity((3,), 8, 1, CONDITION, "concatsquash")


def planar_equation() -> Layer:
    return ContinuousFlow(PlanarSum(3, 4, 6, CONDITION), 1e-10, "closed")


def gradient_flow(layers: int, **options: Any) -> Layer:
    phi = Potential(3, 5, layers, activation="softplus", condition=CONDITION, **options)
    return ContinuousFlow(PotentialVelocity(phi), 1e-10, "closed")


def contraction(shape: tuple[int, ...], first: bool = False, norm: Norm = "2") -> ContractiveNet:
    return ContractiveNet(shape, 8, CONDITION, 0.9, "lipswish", first, norm)


def residual(shape: tuple[int, ...], exact: bool = True, stop: float | None = 0.3, norm: Norm = "2") -> Layer:
    options = SeriesOptions(exact, score_terms=5, score_stop=stop, tolerance=1e-12)
    return Residual(contraction(shape, norm=norm), options)


def attention() -> Layer:
    net = LipschitzAttention((2, 2, 3), 2, CONDITION, 0.9, "lipswish")
    return Residual(net, SeriesOptions(exact=True, tolerance=1e-12))


def implicit(shape: tuple[int, ...], exact: bool = True) -> Layer:
    options = SeriesOptions(exact, score_terms=5, tolerance=1e-12)
    return implicit_block(contraction(shape, first=True), contraction(shape), options)


def integer_coupling(shape: tuple[int, ...], plus: bool) -> Layer:
    mask, units = parity_mask(shape[0], 1), torch.arange(2.0, 2 + shape[0])
    net = DenseConditioner(int((~mask).sum()), int(mask.sum()), shape[1:], 6, 2, CONDITION, plus, not plus)
    return Coupling(mask, IntegerShift(), Translation(net, units[~mask], units[mask], rezero=plus))


TAILS, CUBE = Spline("rational-quadratic", 5, 1.5), Spline("rational-quadratic", 5, 1.0, tails=False)
TRANSFORMS = {
    "additive": Additive(),
    "affine": Affine(),
    "linear spline": Spline("linear", 5, 1.5),
    "quadratic spline": Spline("quadratic", 5, 1.5),
    "cubic spline": Spline("cubic", 5, 1.5),
    "spline": TAILS,
    "mixture": MixtureCDF(3),
    "sum of squares": SumOfSquares(2, 2),
    "deep sigmoid": DeepSigmoid(3, 2),
    "integral": lambda: Integral(4, 6, nodes=60),
}
LOOSE = {"cubic spline", "mixture", "sum of squares", "deep sigmoid", "integral"}  # iterative inverses, to 1e-6

CASES: dict[str, Case] = {
    **{
        f"coupling, {name}": Case(
            (5,),
            lambda t=t: coupling((5,), parity_mask(5, 1), t() if callable(t) else t),
            tolerance=1e-5 if name in LOOSE else 1e-9,
        )
        for name, t in TRANSFORMS.items()
    },
    **{
        f"autoregressive, {name}": Case(
            (4,),
            lambda t=t: autoregressive(t() if callable(t) else t),
            tolerance=1e-5 if name in LOOSE else 1e-9,
            jacobian="triangular",
        )
        for name, t in TRANSFORMS.items()
    },
    "autoregressive, backwards": Case((4,), lambda: MaskedAutoregressive(4, Affine(), 9, CONDITION, backwards=True)),
    "row": Case((5,), lambda: row((5,))),
    "row of maps": Case((4, 2, 2), lambda: row((4, 2, 2)), spread=0.3),
    "inverse autoregressive": Case((4,), lambda: Inverse(autoregressive(Affine())), jacobian="triangular"),
    "affine one column": Case((1,), lambda: coupling((1,), parity_mask(1, 1), Affine()), jacobian="diagonal"),
    "affine checkerboard": Case((2, 3, 5), lambda: coupling((2, 3, 5), checkerboard_mask(3, 5), Affine())),
    "affine channels": Case((3, 2, 2), lambda: coupling((3, 2, 2), parity_mask(3, 3), Affine())),
    "affine skips": Case((3, 2, 2), lambda: coupling((3, 2, 2), parity_mask(3, 3), Affine(), skips=True)),
    "spline cube": Case((4, 2, 2), lambda: coupling((4, 2, 2), parity_mask(4, 3), CUBE), cube=True),
    "spline one pixel": Case(
        (1, 1, 1),
        lambda: coupling((1, 1, 1), checkerboard_mask(1, 1), CUBE),
        cube=True,
        jacobian="diagonal",
        idle="net.first.weight",
    ),
    "LU on a table": Case((5,), lambda: LULinear(5)),
    "LU on an image": Case((3, 2, 4), lambda: LULinear(3)),
    "LU from a rotation": Case((6, 2, 2), lambda: LULinear(6, rotation=True)),
    "actnorm": Case((3, 2, 2), lambda: ActNorm(3), jacobian="diagonal"),
    "autoregressive flow": Case((3,), lambda: masked_autoregressive_flow(3, 3, Affine(), 8)),
    "autoregressive maps": Case((18,), lambda: AutoregressiveMaps((3, 2, 3), Affine(), 6, CONDITION)),
    "squeeze": Case((2, 4, 2), Squeeze),
    "permutation": Case((5,), lambda: Permutation(torch.tensor([3, 0, 4, 1, 2]))),
    "flatten": Case((2, 3, 1), lambda: Flatten((2, 3, 1))),
    "logit": Case((6,), Logit, cube=True, jacobian="diagonal"),
    "normal quantile": Case((6,), NormalQuantile, cube=True, jacobian="diagonal"),
    "multi-scale": Case((1, 4, 4), multi_scale),
    "ordinary differential equation": Case((3,), equation, tolerance=1e-7, far=False, needs=True),
    # --- convolutions ---
    "autoregressive convolution": Case((3, 3, 4), lambda: AutoregressiveConv(3, 2), jacobian="pixels", tolerance=1e-8),
    "autoregressive convolution, wide": Case((2, 3, 4), lambda: AutoregressiveConv(2, 2, right=1), jacobian="pixels"),
    "turned": Case((2, 3, 2), lambda: Turned(AutoregressiveConv(2, 2, right=1), flip=(1, 3), transpose=True)),
    "emerging": Case((2, 3, 4), lambda: emerging(2, 5), tolerance=1e-8),
    "emerging, one row": Case((3, 1, 4), lambda: emerging(3)),
    "periodic, odd sides": Case((3, 3, 5), lambda: PeriodicConv(3)),
    "periodic, even sides": Case((2, 4, 2), lambda: PeriodicConv(2, rotation=True)),
    "periodic, larger than the image": Case((2, 2, 1), lambda: PeriodicConv(2, 5)),
    "convolution exponential": Case((2, 3, 4), lambda: ConvExp(2)),
    "convolution exponential, one pixel": Case((3, 1, 1), lambda: ConvExp(3, 5, limit=1.0)),
    "masked convolution": Case((2, 3, 4), lambda: MaskedConv(2, Affine(), (2, 3), 6, CONDITION), jacobian="pixels"),
    "masked convolution, mixture": Case((1, 3, 2), lambda: MaskedConv(1, MixtureCDF(2), (1, 1), 4), tolerance=1e-5),
    "macow": Case((2, 4, 3), lambda: macow_unit(2, Affine(), condition=CONDITION), tolerance=1e-8),
    "mint": Case((2, 3, 4), lambda: MintLayer((2, 3, 4), 6, CONDITION), tolerance=1e-5, jacobian="pixels"),
    "mint pair": Case((1, 3, 3), lambda: mint_pair((1, 3, 3), 4), tolerance=1e-5),
    # --- residual ---
    "residual": Case((3,), lambda: residual((3,))),
    "residual on an image": Case((2, 3, 2), lambda: residual((2, 3, 2))),
    "residual, roulette": Case((3,), lambda: residual((3,), exact=False)),
    "residual, cut series": Case(
        (3,), lambda: residual((3,), exact=False, stop=None), bias=truncation_bound(3, 0.9**3, 5)
    ),
    **{f"residual, norm {norm}": Case((3,), lambda norm=norm: residual((3,), norm=norm)) for norm in NORMS},
    "residual on an image, norm inf": Case((2, 3, 2), lambda: residual((2, 3, 2), norm="inf")),
    "residual attention": Case((2, 2, 3), attention),
    "implicit": Case((3,), lambda: implicit((3,))),
    "implicit on an image": Case((2, 3, 2), lambda: implicit((2, 3, 2))),
    "implicit, roulette": Case((3,), lambda: implicit((3,), exact=False)),
    # --- by the determinant lemma, blocks, NICE's and Flow++'s ---
    "checkerboard": Case((2, 3, 4), Checkerboard),
    "attentive coupling": Case((4, 2, 2), attentive, tolerance=1e-5),
    "planar": Case((4,), lambda: Planar(4, CONDITION), spread=0.8),
    "planar of one dimension": Case((1,), lambda: Planar(1, CONDITION), jacobian="diagonal"),
    "sylvester": Case((4,), lambda: Sylvester(4, 2, "orthogonal", CONDITION), spread=0.8),
    "sylvester of full rank": Case((4,), lambda: Sylvester(4, 4, "orthogonal", CONDITION), spread=0.8),
    "sylvester, reflections": Case((4,), lambda: Sylvester(4, 3, "householder", CONDITION), spread=0.8),
    "block autoregressive": Case((3,), lambda: BlockAutoregressive(3, 4, 2, CONDITION), jacobian="triangular"),
    # --- continuous time ---
    "planar dynamics": Case((3,), planar_equation, tolerance=1e-7, far=False, needs=True),
    "potential, timed": Case((3,), lambda: gradient_flow(3, rank=2), tolerance=1e-7, far=False),
    "potential, fixed": Case((3,), lambda: gradient_flow(1, timed=False), tolerance=1e-7, far=False),
    "Runge-Kutta's steps": Case(
        (3,), lambda: ContinuousFlow(moving(), steps=40), tolerance=1e-6, far=False, needs=True
    ),
    "Hutchinson's trace": Case(
        (3,), lambda: ContinuousFlow(moving(), trace="hutchinson", steps=20), tolerance=1e-5, far=False, needs=True
    ),
    # --- surjections and stochastic layers that have an inverse ---
    "half line": Case((6,), lambda: Inverse(HalfLine()), jacobian="diagonal"),
    "law of a vector": Case((5,), lambda: conditional_flow(2, 3, (), 3, Affine(), net)),
    "law of maps": Case((3, 2, 2), lambda: conditional_flow(2, 1, (2, 2), 2, Affine(), net)),
    # --- discrete ---
    "integers": Case((5,), lambda: integer_coupling((5,), False)),
    "integers, an image": Case((4, 3, 2), lambda: integer_coupling((4, 3, 2), True)),
    "integers round": Case((5,), lambda: Wrap(torch.tensor(-20.0), torch.tensor(41.0)), jacobian="diagonal"),
    "remainders, autoregressive": Case((3, 5), lambda: ModuloAutoregressive((5, 5, 5), 9, CONDITION)),
    "remainders, the last first": Case((3, 4), lambda: ModuloAutoregressive((4, 4, 4), 9, CONDITION, reverse=True)),
    "remainders, bipartite": Case((4, 3), lambda: ModuloCoupling(parity_mask(4, 1), (3, 3, 3, 3), 9, CONDITION)),
}
