"""Unconstrained monotonic neural network."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.bijections.monotone import Integral
from fivefold.flow._autoregressive import AutoregressiveFlowSystem
from fivefold.space import Space
from fivefold.system import Density


class UMNN(AutoregressiveFlowSystem):
    """UMNN-MAF (survey 6.1.2, Eq. 33; Wehenkel and Louppe, 2019).

    An autoregressive flow whose map of each dimension is the integral of a positive, otherwise free network, found by
    Clenshaw and Curtis's rule. A masked network of the dimensions before gives an embedding, which that network sees
    beside the point. The inverse is Newton's, dimension by dimension.

    Args:
        space: of the examples.
        layers: autoregressive maps, the order of the dimensions reversed in between.
        hidden: units of each of a network's two hidden layers.
        embedding: width of what the integrand sees of the dimensions before.
        integrand: units of each of its two hidden layers.
        nodes: of the rule, even.
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
        embedding: int = 8,
        integrand: int = 32,
        nodes: int = 16,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(
            space,
            lambda: Integral(embedding, integrand, nodes),
            layers=layers,
            hidden=hidden,
            margin=margin,
            score_samples=score_samples,
            temperature=temperature,
        )
