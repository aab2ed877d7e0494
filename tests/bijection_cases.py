"""Every bijection that there is, small: what `test_bijections.py` holds against autograd. Add yours."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fivefold.bijections.autoregressive import AutoregressiveMaps, MaskedAutoregressive, masked_autoregressive_flow
from fivefold.bijections.base import Chain, Inverse, Layer
from fivefold.bijections.coupling import Coupling, MaskedCoupling, checkerboard_mask, parity_mask
from fivefold.bijections.discrete import IntegerShift, ModuloAutoregressive, ModuloCoupling, Translation, Wrap
from fivefold.bijections.elementwise import Logit, NormalQuantile
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.ode import ContinuousFlow
from fivefold.bijections.shape import FactorOut, Flatten, Permutation, Squeeze
from fivefold.bijections.splines import Spline
from fivefold.bijections.transforms import Additive, Affine, MixtureCDF, SumOfSquares
from fivefold.nets.conditioner import Conditioner
from fivefold.nets.dense import DenseConditioner
from fivefold.nets.velocity import Velocity

CONDITION = 3  # width of the condition, which all are given and some use


class Case(NamedTuple):
    """How one bijection is built and what is claimed of it.

    Args:
        shape: of one example.
        build: makes it.
        cube: whether inputs lie in [-1, 1].
        spread: standard deviation of its random parameters.
        tolerance: of the inverse, absolute.
        jacobian: "diagonal" or "triangular" (row by row of the flattened example), where that is claimed.
        far: whether inputs of 1e4 are among what it is made for.
        needs: whether it cannot do without its condition.
        idle: a parameter that nothing can reach in a case this small.
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


def coupling(shape: tuple[int, ...], mask: torch.Tensor, transform: Any, skips: bool = False) -> Layer:
    """A coupling with a random network: by channels, or by pixels where the mask is of pixels."""
    by_pixel = mask.dim() > 1
    kept, changed = (shape[0], shape[0]) if by_pixel else (int((~mask).sum()), int(mask.sum()))
    outputs = changed * transform.size
    net = Conditioner(kept, outputs, shape[1:], hidden=8, blocks=1, condition=CONDITION, skips=skips)
    return (MaskedCoupling if by_pixel else Coupling)(mask, transform, net)


def multi_scale() -> Layer:
    inner = Chain(coupling((2, 2, 2), parity_mask(2, 1), Affine()), Flatten((2, 2, 2)))
    return Chain(Squeeze(), FactorOut((4, 2, 2), 2, inner))


def autoregressive(transform: Any) -> MaskedAutoregressive:
    return MaskedAutoregressive(4, transform, 9, CONDITION)


def equation() -> Layer:
    return ContinuousFlow(Velocity((3,), 8, 1, CONDITION, "concatsquash"), tolerance=1e-10)


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
}
LOOSE = {"cubic spline", "mixture", "sum of squares"}  # whose inverses are iterative, to 1e-6

CASES: dict[str, Case] = {
    **{
        f"coupling, {name}": Case(
            (5,), lambda t=t: coupling((5,), parity_mask(5, 1), t), tolerance=1e-5 if name in LOOSE else 1e-9
        )
        for name, t in TRANSFORMS.items()
    },
    **{
        f"autoregressive, {name}": Case(
            (4,), lambda t=t: autoregressive(t), tolerance=1e-5 if name in LOOSE else 1e-9, jacobian="triangular"
        )
        for name, t in TRANSFORMS.items()
    },
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
    # --- residual ---
    # --- continuous time ---
    # --- surjections and stochastic layers that have an inverse ---
    # --- discrete ---
    "integers": Case((5,), lambda: integer_coupling((5,), False)),
    "integers, an image": Case((4, 3, 2), lambda: integer_coupling((4, 3, 2), True)),
    "integers round": Case((5,), lambda: Wrap(torch.tensor(-20.0), torch.tensor(41.0)), jacobian="diagonal"),
    "remainders, autoregressive": Case((3, 5), lambda: ModuloAutoregressive((5, 5, 5), 9, CONDITION)),
    "remainders, the last first": Case((3, 4), lambda: ModuloAutoregressive((4, 4, 4), 9, CONDITION, reverse=True)),
    "remainders, bipartite": Case((4, 3), lambda: ModuloCoupling(parity_mask(4, 1), (3, 3, 3, 3), 9, CONDITION)),
    # --- others ---
}
