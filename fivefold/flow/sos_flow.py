"""Sum-of-squares polynomial flow."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.bijections.monotone import SumOfSquares
from fivefold.flow._autoregressive import AutoregressiveFlowSystem
from fivefold.space import Space
from fivefold.system import Density


class SOSFlow(AutoregressiveFlowSystem):
    """SOS flow (survey 6.1.2; Jaini et al., 2019).

    An autoregressive flow whose map of each dimension is the integral of a sum of squared polynomials, which a masked
    network of the dimensions before gives. Exact where the map is a polynomial; the inverse is Newton's, dimension
    by dimension.

    Args:
        space: of the examples.
        layers: autoregressive maps, the order of the dimensions reversed in between.
        hidden: units of each of a network's two hidden layers.
        squares: how many are summed.
        degree: of each polynomial that is squared.
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
        layers: int = 3,
        hidden: int = 128,
        squares: int = 3,
        degree: int = 2,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(
            space,
            lambda: SumOfSquares(squares, degree),
            layers=layers,
            hidden=hidden,
            margin=margin,
            score_samples=score_samples,
            temperature=temperature,
        )
