"""Inverse autoregressive flow."""

from __future__ import annotations

from typing import ClassVar

from fivefold.bijections.transforms import Affine, Transform
from fivefold.flow._autoregressive import AutoregressiveFlowSystem


class IAFFlow(AutoregressiveFlowSystem):
    """IAF (survey 6.1.3; Kingma et al., 2016).

    Each dimension is scaled and shifted by functions of the noise of those before it: a sample takes one pass, and a
    density is found dimension by dimension, so training is slower than a masked autoregressive flow's. Gradients
    come from the implicit function theorem.
    """

    sampling: ClassVar[str] = "direct"
    inverse: ClassVar[bool] = True

    layers = 3

    def transform(self) -> Transform:
        return Affine()
