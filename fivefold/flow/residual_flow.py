"""Residual flow: blocks x + g(x) with g a contraction."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.bijections.residual import SeriesOptions
from fivefold.flow._residual import Activation, Blocks, ContractionSystem
from fivefold.nets.lipschitz import Norm
from fivefold.space import Space
from fivefold.system import Density


class ResidualFlow(ContractionSystem):
    """Residual flow (survey 6.3; Chen et al., 2019).

    Blocks x + g(x), with g a network whose Lipschitz constant is below 1: each of its layers is kept below
    `coefficient` by power iteration. Every dimension may depend on every other. The log-determinant is an infinite
    series, ended by Russian roulette without bias, its gradient a Neumann series; the inverse is a fixed point.

    On discrete data the density is a bound in expectation (over the noise in the cell, and over the roulette's ends and
    probes), with a standard error. On real data it is exact up to `exact_dims` dimensions and an estimate beyond.

    Args:
        space: of the examples.
        blocks: residual blocks of convolutions at each resolution.
        scales: the most resolutions; fewer where a side becomes odd.
        hidden: channels within a block of convolutions.
        layers: fully connected blocks at the end (on tables: those that an image would have in all).
        width: of the fully connected blocks.
        coefficient: the bound on every layer's norm, below 1.
        activation: lipswish, whose second derivative vanishes nowhere its first is large; or elu.
        norm: of layers, between vectors of which norm: 2 (spectral), 1, inf, or learned orders (a block each).
        attention: heads of a block of L2 self-attention at each resolution of an image (Kim et al., 2021); 0 for none.
        terms: of the series that always count in training.
        score_terms: the same when scoring.
        stop: probability of the roulette's stopping after each further term.
        early_gradients: gradients of log-determinants are taken in the forward pass: less memory, a little slower.
        exact_dims: up to how many dimensions scores take the whole Jacobian in place of the series.
        tolerance: of a step of the inverse's iteration, relative to 1 + |x|.
        squeeze_first: begin with a squeeze.
        factor_out: half of the variables leave after each resolution.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: points in each cell, or draws of the roulette and its probes, when examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.ESTIMATE}
    free_form: ClassVar[bool] = True
    sampling: ClassVar[str] = "iterative"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {
        "temperature": (0.7, 0.85, 1.0),
        "tolerance": (0.3, 1e-1, 1e-2, 1e-4, 1e-6),
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"lr": 2e-2, "ema": 0.99, "clip": 5.0, "evaluations": 1},
        "mnist": {
            "blocks": 16, "scales": 3, "hidden": 512, "layers": 4, "width": 128, "margin": 1e-6,
            "early_gradients": True, "lr": 1e-3, "weight_decay": 0.0, "ema": 0.999, "batch_size": 64,
        },
        "cifar10": {
            "blocks": 16, "scales": 3, "hidden": 512, "layers": 4, "width": 128, "early_gradients": True,
            "lr": 1e-3, "weight_decay": 0.0, "ema": 0.999, "batch_size": 64,
        },
        "imagenet32": {
            "blocks": 32, "scales": 3, "hidden": 512, "layers": 4, "width": 128, "early_gradients": True,
            "lr": 1e-3, "weight_decay": 0.0, "ema": 0.999, "batch_size": 64,
        },
        "imagenet64": {
            "blocks": 32, "scales": 3, "hidden": 512, "layers": 4, "width": 128, "squeeze_first": True,
            "factor_out": True, "early_gradients": True,
            "lr": 1e-3, "weight_decay": 0.0, "ema": 0.999, "batch_size": 64,
        },
        "celebahq256": {
            "blocks": 16, "scales": 6, "hidden": 512, "layers": 0, "squeeze_first": True, "factor_out": True,
            "activation": "elu", "terms": 8, "early_gradients": True,
            "lr": 1e-3, "weight_decay": 0.0, "ema": 0.999, "batch_size": 40, "accumulate": 5,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "mnist": (16.6e6, "Chen et al. 2019, experimental setup; its reference implementation"),
        "cifar10": (25.2e6, "Chen et al. 2019, experimental setup; its reference implementation"),
        "imagenet32": (47.1e6, "Chen et al. 2019, experimental setup; its reference implementation"),
        "imagenet64": (53.3e6, "Chen et al. 2019, experimental setup; its reference implementation"),
    }

    def __init__(
        self,
        space: Space,
        *,
        blocks: int = 4,
        scales: int = 2,
        hidden: int = 32,
        layers: int = 4,
        width: int = 128,
        coefficient: float = 0.98,
        activation: Activation = "lipswish",
        norm: Norm = "2",
        attention: int = 0,
        terms: int = 2,
        score_terms: int = 10,
        stop: float = 0.5,
        early_gradients: bool = False,
        exact_dims: int = 16,
        tolerance: float = 1e-6,
        squeeze_first: bool = False,
        factor_out: bool = False,
        margin: float = 0.05,
        score_samples: int = 4,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(
            space,
            Blocks(
                blocks, scales, hidden, layers, width, coefficient, activation,
                norm=norm, attention=attention, squeeze_first=squeeze_first, factor_out=factor_out,
            ),
            SeriesOptions(
                terms=terms, score_terms=score_terms, stop=stop, score_stop=stop, tolerance=tolerance,
                early=early_gradients,
            ),
            exact_dims, margin, score_samples, temperature,
        )  # fmt: skip
