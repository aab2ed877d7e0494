"""Inverse autoregressive flow."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.bijections.transforms import Affine
from fivefold.flow._autoregressive import AutoregressiveFlowSystem
from fivefold.space import Space
from fivefold.system import Density


class IAFFlow(AutoregressiveFlowSystem):
    """IAF (survey 6.1.3; Kingma et al., 2016).

    Each dimension is scaled and shifted by functions of the noise of those before it: a sample takes one pass, and a
    density is found dimension by dimension, so training is slower than a masked autoregressive flow's. Gradients
    come from the implicit function theorem.

    Args:
        space: of the examples.
        layers: autoregressive maps, the order of the dimensions reversed in between.
        hidden: units of each of a network's two hidden layers.
        margin: how far the logit of discrete images keeps from 0 and 1.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "direct"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"lr": 2e-3, "ema": 0.99, "clip": 5.0}}

    def __init__(
        self,
        space: Space,
        *,
        layers: int = 3,
        hidden: int = 128,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(
            space,
            Affine,
            layers=layers,
            hidden=hidden,
            margin=margin,
            score_samples=score_samples,
            temperature=temperature,
            inverse=True,
        )
