"""Neural autoregressive flow."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.bijections.monotone import DeepSigmoid
from fivefold.flow._autoregressive import AutoregressiveFlowSystem
from fivefold.space import Space
from fivefold.system import Density


class NAF(AutoregressiveFlowSystem):
    """NAF (survey 6.1.3; Huang et al., 2018).

    An autoregressive flow whose map of each dimension is itself a network, monotone since its weights are positive
    (deep dense sigmoidal flow); a masked network of the dimensions before gives those weights. The inverse is
    Newton's, dimension by dimension.

    Args:
        space: of the examples.
        layers: autoregressive maps, the order of the dimensions reversed in between.
        hidden: units of each of a network's two hidden layers.
        units: of a layer of the monotone networks.
        depth: layers of the monotone networks.
        margin: how far the logit of discrete images keeps from 0 and 1.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "autoregressive"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"lr": 2e-3, "ema": 0.99, "clip": 5.0}}

    def __init__(
        self,
        space: Space,
        *,
        layers: int = 2,
        hidden: int = 128,
        units: int = 4,
        depth: int = 2,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(
            space,
            lambda: DeepSigmoid(units, depth),
            layers=layers,
            hidden=hidden,
            margin=margin,
            score_samples=score_samples,
            temperature=temperature,
        )
