"""Planar flow: rank-one residual layers with a determinant of one number."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.bijections.base import Chain
from fivefold.bijections.determinant import Planar
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.shape import Flatten
from fivefold.flow._system import FlowSystem
from fivefold.space import Space
from fivefold.system import Density

CONDITION_WIDTH = 16


class PlanarFlow(FlowSystem):
    """Planar flow (survey 6.3.1; Rezende and Mohamed, 2015).

    Layers x + u tanh(w.x + b), each of which stretches or squeezes space along one direction; by the matrix
    determinant lemma a layer's determinant costs O(D). Data become noise in the direction that is a formula; samples
    take one scalar root a layer. Images are flattened.

    Args:
        space: of the examples.
        layers: in a row.
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
        layers: int = 64,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature)
        planes = [Planar(space.dims, self.embedding.width) for _ in range(layers)]
        self.flow = self._onto_line(Chain(Flatten(space.shape), ActNorm(space.dims), *planes), margin)
