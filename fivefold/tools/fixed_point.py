"""Fixed points of contractions, x = f(x): by iteration, in fewer steps by Anderson's method, and their gradients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]  # of `(B, ...)` to the same shape, every row on its own

GAIN = 0.99  # by what an extrapolation has to shrink the residual, or it is undone
STRIKES = 8  # undone extrapolations of a row until it is iterated plainly to the end
STALL = 100  # evaluations without a smaller residual after which a row is given up: rounding, or no contraction


class FixedPoint(NamedTuple):
    """Where a search for a fixed point ended."""

    x: Tensor
    error: float  # of the last step f(x) - x, the largest, relative to 1 + |x|
    steps: int  # evaluations of f

    def warn(self, what: str, tolerance: float) -> None:
        """A RuntimeWarning where the last step was above `tolerance`, or not a number."""
        if not self.error <= tolerance:
            warnings.warn(
                f"{what} did not converge: after {self.steps} steps the last was {self.error:.1e}, the tolerance is "
                f"{tolerance:.1e}; raise the tolerance",
                RuntimeWarning,
                stacklevel=3,
            )


@torch.no_grad()
def fixed_point(f: Map, x: Tensor, tolerance: float, most: int) -> FixedPoint:
    """x = f(x) of a contraction f by iteration, until a step is below `tolerance` (1 + |x|) or `most` are taken.

    With a Lipschitz constant L the distance to the fixed point is at most the last step times L / (1 - L) (Banach).
    """
    steps, error = 0, math.inf
    while steps < most and not error <= tolerance:
        before, x = x, f(x)
        steps, error = steps + 1, ((x - before).abs() / (1 + x.abs())).max().item()
    return FixedPoint(x, error, steps)


@torch.no_grad()
def anderson(f: Map, x: Tensor, tolerance: float, most: int, memory: int = 8) -> FixedPoint:
    """As `fixed_point`, by extrapolation from the last steps (Anderson, 1965), in far fewer where they are slow.

    f(x) - x is taken to be linear in between the last points; where it is, this is GMRES, which ends after as many
    steps as there are dimensions. A row's extrapolation that does not shrink its residual f(x) - x is undone and
    replaced by a step of the contraction; after STRIKES of those the row is iterated plainly. So it converges wherever
    iteration does, in whatever norm f is a contraction, and Banach's bound on the distance to the fixed point holds.
    A row whose residual has not shrunk for STALL evaluations is given up, as where rounding stands in the way.

    Args:
        f: a contraction of every row.
        x: where to start, `(B, ...)`.
        tolerance: of the last step, relative to 1 + |x|.
        most: evaluations of f.
        memory: how many steps to extrapolate from.
    """
    point, shape = x.flatten(1), x.shape
    step = f(x).flatten(1) - point
    moves = point.new_zeros(len(point), memory, point.shape[1])  # of the last points
    changes = torch.zeros_like(moves)  # of f(x) - x there
    strikes = torch.zeros(len(point), dtype=torch.long, device=x.device)
    plain = strikes == 0  # whether a row's next step is the contraction's own
    best, since = step.norm(dim=1), torch.zeros_like(strikes)
    steps = 1
    while True:
        errors = (step.abs() / (1 + point.abs())).amax(1)
        unsettled = (errors > tolerance) & (since < STALL)  # NaN is past help
        if steps >= most or not unsettled.any():
            return FixedPoint((point + step).view(shape), errors.max().item(), steps)
        jump = torch.where(plain[:, None], step, _extrapolated(step, moves, changes))
        jump = torch.where(unsettled[:, None], jump, 0)
        there = point + jump
        there_step = f(there.view(shape)).flatten(1) - there
        size = there_step.norm(dim=1)
        good = plain | (size <= GAIN * step.norm(dim=1))
        since = torch.where(size < best, 0, since + 1)
        best = torch.fmin(size, best)
        moves *= good[:, None, None]  # what misled a row is forgotten
        changes *= good[:, None, None]
        slot = steps % memory
        moves[:, slot], changes[:, slot] = (t.nan_to_num(0, 0, 0) for t in (jump, there_step - step))
        point, step = torch.where(good[:, None], there, point), torch.where(good[:, None], there_step, step)
        strikes += ~good
        plain = ~good | (strikes >= STRIKES)
        steps += 1


def _extrapolated(step: Tensor, moves: Tensor, changes: Tensor) -> Tensor:
    """The step to where the residual would be least, were it linear in the span of the last `moves`."""
    sizes = changes.norm(dim=2, keepdim=True)
    units = changes / sizes.clamp(min=torch.finfo(step.dtype).tiny)
    ridge = 10 * torch.finfo(step.dtype).eps * torch.eye(units.shape[1], dtype=step.dtype, device=step.device)
    mixture, _ = torch.linalg.solve_ex(units @ units.mT + ridge, units @ step[:, :, None])  # what fails is undone
    weights = mixture / sizes.clamp(min=torch.finfo(step.dtype).tiny)
    return step - ((moves + changes).mT @ weights).squeeze(2)


def implicit(f: Map, x: Tensor, tolerance: float, most: int) -> Tensor:
    """The fixed point `x` of `f`, with gradients by what f depends on (implicit function theorem).

    dx = (I - df/dx)^-1 df, so a gradient u becomes (I - df/dx)^-T u: the fixed point v = u + (df/dx)^T v, which
    `anderson` finds from products with the Jacobian, however x was found. RuntimeError where second derivatives are
    asked for.

    Args:
        f: a contraction of every row.
        x: f(x), `(B, ...)`.
        tolerance: of the last step to v, relative to the largest of |u| in its row; not below what rounding allows.
        most: products with the Jacobian.
    """
    at = x.detach().requires_grad_()
    with torch.enable_grad():
        image = f(at)
    return solved_for(image, lambda v: torch.autograd.grad(image, at, v, retain_graph=True)[0], tolerance, most)


def solved_for(image: Tensor, pull: Map, tolerance: float, most: int) -> Tensor:
    """As `implicit`, of f(x) whose graph goes by all that f depends on but x, and of `pull`, v to (df/dx)^T v."""
    tolerance = max(tolerance, 40 * torch.finfo(image.dtype).eps)

    def solve(gradient: Tensor) -> Tensor:
        scale = gradient.flatten(1).abs().amax(1).clamp(min=torch.finfo(image.dtype).tiny)
        scale = scale.view(-1, *[1] * (image.dim() - 1))
        u = gradient / scale
        found = anderson(lambda v: u + pull(v), u, tolerance, most)
        found.warn("the gradient of a fixed point", tolerance)
        return found.x * scale

    return _Implicit.apply(image, solve)


class _Implicit(torch.autograd.Function):
    """The identity, whose gradient is `solve` of the one that comes."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, solve: Map) -> Tensor:
        ctx.solve = solve
        return image.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("a fixed point that is differentiated implicitly has no second derivatives")
        return ctx.solve(gradient), None
