"""Masked autoregressive flow."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.bijections.transforms import Affine
from fivefold.flow._autoregressive import AutoregressiveFlowSystem
from fivefold.space import Space
from fivefold.system import Density


class MAFFlow(AutoregressiveFlowSystem):
    """MAF (survey 6.1.3; Papamakarios et al., 2017).

    Each dimension is scaled and shifted by functions of those before it, all at once by a masked network; layers in
    alternating orders. A density takes one pass, a sample is made dimension by dimension (each unit of the networks
    computed once).

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
    sampling: ClassVar[str] = "autoregressive"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"lr": 2e-3, "ema": 0.99, "clip": 5.0},
        "small": {"lr": 2e-3, "weight_decay": 10.0, "hidden": 64},  # tables of a few hundred rows
        # The paper's section 4.3, MAF (10), without its batch normalisation.
        "cifar10": {"layers": 10, "hidden": 2048, "lr": 1e-4, "batch_size": 100},
    }

    def __init__(
        self,
        space: Space,
        *,
        layers: int = 5,
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
        )
