"""Planar flow: rank-one residual layers with a determinant of one number."""

from __future__ import annotations

from typing import ClassVar

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.determinant import Planar
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.shape import Flatten
from fivefold.flow._system import FlowSystem
from fivefold.options import depth_option


class PlanarFlow(FlowSystem):
    """Planar flow (survey 6.3.1; Rezende and Mohamed, 2015).

    Layers x + u tanh(w.x + b), each of which stretches or squeezes space along one direction; by the matrix
    determinant lemma a layer's determinant costs O(D). Data become noise in the direction that is a formula; samples
    take one scalar root a layer. Images are flattened.
    """

    condition_width: ClassVar[int] = 16
    sampling: ClassVar[str] = "iterative"

    lr = 2e-2
    layers: int = depth_option(64, "in a row", tune=(8, 128), log=True)

    def body(self) -> Layer:
        planes = [Planar(self.space.dims, self.embedding.width) for _ in range(self.layers)]
        return Chain(Flatten(self.space.shape), ActNorm(self.space.dims), *planes)
