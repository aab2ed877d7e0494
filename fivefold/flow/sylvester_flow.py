"""Sylvester flow: residual layers of low rank with a small triangular determinant."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.bijections.base import Chain
from fivefold.bijections.determinant import Basis, Sylvester
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.shape import Flatten
from fivefold.flow._system import FlowSystem
from fivefold.space import Space
from fivefold.system import Density

CONDITION_WIDTH = 16


class SylvesterFlow(FlowSystem):
    """Sylvester flow (survey 6.3.1; van den Berg et al., 2018).

    Planar flow with M directions at once: x + Q R tanh(R~ Q^T x + b), Q with orthonormal columns, R and R~ upper
    triangular. Sylvester's identity turns the determinant into that of an M x M triangular matrix. Data become noise
    in the direction that is a formula; samples take M scalar roots a layer. Images are flattened.

    Args:
        space: of the examples.
        basis: how Q is made: orthogonal (by a QR decomposition) or householder (a product of M reflections).
        layers: in a row.
        rank: M, at most the number of dimensions.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "iterative"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.99, "clip": 5.0}}

    def __init__(
        self,
        space: Space,
        *,
        basis: Basis = "orthogonal",
        layers: int = 8,
        rank: int = 32,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature)
        parts = [Sylvester(space.dims, rank, basis, self.embedding.width) for _ in range(layers)]
        self.flow = self._onto_line(Chain(Flatten(space.shape), ActNorm(space.dims), *parts), margin)
