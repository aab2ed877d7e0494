"""Flows whose determinant the matrix determinant lemma makes small: planar and Sylvester (survey 6.3.1, Table 3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.base import Bijection, Exactness
from fivefold.bijections.transforms import soft_clamp
from fivefold.nets.coders import zero
from fivefold.tools.roots import invert_increasing

ZERO = math.log(math.e - 1)  # softplus is 1 there
Basis = Literal["orthogonal", "householder"]


class Planar(Bijection):
    """y = x + u tanh(w.x + b) of vectors `(B, D)` (survey Eq. 37; Rezende and Mohamed, 2015).

    det = 1 + tanh'(w.x + b) w.u by the matrix determinant lemma, which costs O(D). The map is invertible where
    w.u >= -1, so u is moved along w until w.u is softplus(w.u + c) - 1, with c such that 0 stays 0. The inverse is
    one increasing function of w.x, found to a tolerance. The identity at first; b is at random, so that layers bend
    standardised data at different places and not all in the middle.

    Args:
        dims: D.
        condition: width of a condition to whose linear function the parameters are added, 0 for none.
        constrained: whether u is moved; without, the map may fold space over and have no inverse.
        tolerance: of the inverse.
    """

    def __init__(self, dims: int, condition: int = 0, constrained: bool = True, tolerance: float = 1e-6) -> None:
        super().__init__()
        self.constrained, self.tolerance = constrained, tolerance
        start = torch.cat([torch.randn(dims) / dims**0.5, torch.zeros(dims), torch.randn(1)])
        self.parameters_of = Amortised(start, [(dims,), (dims,), ()], condition)

    @property
    def exactness(self) -> Exactness:
        return Exactness(inverse="iterative")

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        w, u, b, slope = self._direction(condition)
        h = torch.tanh((x * w).sum(1) + b)
        return x + u * h.unsqueeze(1), _log_slope(h, slope).expand(len(x))

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        w, u, b, slope = self._direction(condition)
        along = (y * w).sum(1)  # of y; that of x is a root, and what is orthogonal to w moves with u
        root, log_det = invert_tanh(along, slope - 1, torch.ones_like(b), b, slope, self.tolerance)
        return y - u * torch.tanh(root + b).unsqueeze(1), log_det

    def _direction(self, condition: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """w and u `(1 or B, D)`, b, and 1 + w.u, which is positive, `(1 or B,)`."""
        w, u, b = self.parameters_of(condition)
        inner = (w * u).sum(1)
        if not self.constrained:
            return w, u, b, 1 + inner
        slope = F.softplus(inner + ZERO)
        move = (slope - 1 - inner) / w.square().sum(1).clamp(min=torch.finfo(w.dtype).tiny)
        return w, u + move.unsqueeze(1) * w, b, slope


class Sylvester(Bijection):
    """y = x + Q R tanh(R~ Q^T x + b) of vectors `(B, D)` (van den Berg et al., 2018, Eq. 13).

    Q `(D, M)` has orthonormal columns, R and R~ are upper triangular. By Sylvester's identity the determinant is that
    of an M x M triangular matrix, prod_m 1 + tanh'_m R_mm R~_mm, and the map is invertible as R_mm R~_mm > -1: the
    diagonal of R~ is positive, and that of the product softplus - 1. What is orthogonal to Q stays. In Q's coordinates
    the inverse is a triangular system of increasing functions, solved last to first. The identity at first,
    but for b, at random.

    Args:
        dims: D.
        rank: M, at most D.
        basis: how Q is made: orthogonal (the Q of a QR decomposition) or householder (a product of M reflections).
        condition: width of a condition to whose linear function the parameters are added, 0 for none.
        tolerance: of the inverse.
    """

    def __init__(
        self, dims: int, rank: int, basis: Basis = "orthogonal", condition: int = 0, tolerance: float = 1e-6
    ) -> None:
        super().__init__()
        rank = min(rank, dims)
        self.basis, self.tolerance = BASES[basis], tolerance
        square = (rank, rank)
        start = torch.cat([torch.randn(dims * rank), torch.zeros(2 * rank * rank), torch.randn(rank)])
        self.parameters_of = Amortised(start, [(dims, rank), square, square, (rank,)], condition)

    @property
    def exactness(self) -> Exactness:
        return Exactness(inverse="iterative")

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        basis, outer, inner, bias, slope = self._factors(condition)
        h = torch.tanh(_times(inner, _times(basis.mT, x)) + bias)
        return x + _times(basis, _times(outer, h)), _log_slope(h, slope).sum(1)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        basis, outer, inner, bias, slope = self._factors(condition)
        target = _times(basis.mT, y)
        v, h, log_det = target[:, :0], target[:, :0], y.new_zeros(len(y))  # v and h of what comes after m
        for m in reversed(range(target.shape[1])):
            rest = target[:, m] - (outer[:, m, m + 1 :] * h).sum(1)
            shift = bias[:, m] + (inner[:, m, m + 1 :] * v).sum(1)
            root, term = invert_tanh(rest, outer[:, m, m], inner[:, m, m], shift, slope[:, m], self.tolerance)
            v = torch.cat([root.unsqueeze(1), v], 1)
            h = torch.cat([torch.tanh(inner[:, m, m] * root + shift).unsqueeze(1), h], 1)
            log_det = log_det + term
        return y - _times(basis, _times(outer, h)), log_det

    def _factors(self, condition: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Q, R and R~ `(1 or B, ., M)`, b, and 1 + the diagonal of R R~, which is positive, `(1 or B, M)`."""
        matrix, outer, inner, bias = self.parameters_of(condition)
        slope = F.softplus(outer.diagonal(dim1=1, dim2=2) + ZERO)
        log_scale = soft_clamp(inner.diagonal(dim1=1, dim2=2), 5.0)
        outer = outer.triu(1) + torch.diag_embed((slope - 1) * torch.exp(-log_scale))
        return self.basis(matrix), outer, inner.triu(1) + torch.diag_embed(log_scale.exp()), bias, slope


class Amortised(nn.Module):
    """Tensors of learned parameters, to each of which a linear function of a condition is added; none at first.

    Args:
        start: all parameters in a row.
        shapes: of the tensors, in that order.
        condition: width of the condition, 0 for none.
    """

    def __init__(self, start: Tensor, shapes: list[tuple[int, ...]], condition: int) -> None:
        super().__init__()
        self.shapes, self.sizes = shapes, [math.prod(shape) for shape in shapes]
        self.base = nn.Parameter(start)
        self.added = zero(nn.Linear(condition, len(start), bias=False)) if condition else None

    def forward(self, condition: Tensor | None) -> list[Tensor]:
        """Each `(B, *shape)`, or `(1, *shape)` without a condition."""
        values = self.base.unsqueeze(0)
        if self.added is not None and condition is not None:
            values = values + self.added(condition)
        return [part.view(-1, *shape) for part, shape in zip(values.split(self.sizes, 1), self.shapes, strict=True)]


def invert_tanh(
    y: Tensor, outer: Tensor, inner: Tensor, bias: Tensor, slope: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    """The v at which v + outer tanh(inner v + bias) = y, and ln of its derivative in y; all `(B,)` or `(1,)`.

    `slope` is 1 + outer inner, which must be positive.
    """

    def f(v: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(inner * v + bias)
        return v + outer * h, _log_slope(h, slope)

    return invert_increasing(f, y, y - outer.abs(), y + outer.abs(), tolerance)


def _log_slope(h: Tensor, slope: Tensor) -> Tensor:
    """ln(1 + (1 - h^2) (slope - 1)), without the difference that would cost its digits where slope is small."""
    return torch.log(h.square() + (1 - h.square()) * slope)


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """One matrix for all, or one each: `(1 or B, n, m)` and `(B, m)` to `(B, n)`."""
    return F.linear(x, matrix[0]) if len(matrix) == 1 else torch.bmm(matrix, x.unsqueeze(2)).squeeze(2)


def _reflections(matrix: Tensor) -> Tensor:
    """The first columns of a product of Householder reflections by what is below the diagonal of `matrix`."""
    below = matrix.tril(-1)
    return torch.linalg.householder_product(below, 2 / (1 + below.square().sum(-2)))


BASES: dict[Basis, Callable[[Tensor], Tensor]] = {
    "orthogonal": lambda matrix: torch.linalg.qr(matrix)[0],
    "householder": _reflections,
}
