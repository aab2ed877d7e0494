"""Sylvester flow: residual layers of low rank with a small triangular determinant."""

from __future__ import annotations

from typing import ClassVar

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.determinant import Basis, Sylvester
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.shape import Flatten
from fivefold.flow._system import FlowSystem
from fivefold.options import depth_option, option

FULL, LOW = 128, 32  # up to how many dimensions a layer costs about the same at full rank, and the rank beyond


class SylvesterFlow(FlowSystem):
    """Sylvester flow (survey 6.3.1; van den Berg et al., 2018).

    Planar flow with M directions at once: x + Q R tanh(R~ Q^T x + b), Q with orthonormal columns, R and R~ upper
    triangular. Sylvester's identity turns the determinant into that of an M x M triangular matrix. Data become noise
    in the direction that is a formula; samples take M scalar roots a layer. Images are flattened.
    """

    condition_width: ClassVar[int] = 16
    sampling: ClassVar[str] = "iterative"

    lr = 1e-2
    basis: Basis = option(
        "orthogonal", "how Q is made: orthogonal (by a QR decomposition) or householder (a product of M reflections)"
    )
    layers: int = depth_option(8, "in a row", tune=(1, 16))
    rank: int = option(
        0,
        f"M, at most the number of dimensions; 0 for all of them up to {FULL}, and {LOW} beyond",
        least=0,
        tune=(0, 64),
    )

    def body(self) -> Layer:
        dims, width = self.space.dims, self.embedding.width
        rank = self.rank or (dims if dims <= FULL else LOW)
        parts = [Sylvester(dims, rank, self.basis, width) for _ in range(self.layers)]
        return Chain(Flatten(self.space.shape), ActNorm(dims), *parts)
