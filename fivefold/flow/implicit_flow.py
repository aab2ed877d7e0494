"""Implicit flow: noise and data are roots of one equation."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.bijections.residual import SeriesOptions
from fivefold.flow._residual import Activation, Blocks, ContractionSystem
from fivefold.nets.lipschitz import Norm
from fivefold.space import Space
from fivefold.system import Density


class ImplicitFlow(ContractionSystem):
    """Implicit flow (survey 6.3.2; Lu et al., 2021).

    Every block's image z is the root of x + g_x(x) = z + g_z(z), both g contractions (survey Eq. 38): a residual block
    and the inverse of another, which together stretch and shrink without the factor of 2 that one is bound by. Both
    ways roots are found by Anderson's method, and gradients by the implicit function theorem; the log-determinant is
    the difference of two of residual blocks, each a series that a roulette ends.

    On discrete data the density is a bound in expectation (over the noise in the cell, and over the roulette's ends and
    probes), with a standard error. On real data it is exact up to `exact_dims` dimensions, to the tolerance of the
    roots, and an estimate beyond.

    Args:
        space: of the examples.
        blocks: implicit blocks of convolutions at each resolution, two networks each.
        scales: the most resolutions; fewer where a side becomes odd.
        hidden: channels within a block of convolutions.
        layers: fully connected blocks at the end (on tables: those that an image would have in all).
        width: of the fully connected blocks.
        coefficient: the bound on every layer's norm, below 1.
        activation: lipswish or elu.
        norm: of layers, between vectors of which norm: 2 (spectral), 1, inf, or learned orders (a block each).
        terms: of the series that always count in training.
        score_terms: the same when scoring.
        stop: probability of the roulette's stopping after each further term.
        early_gradients: gradients of log-determinants are taken in the forward pass: less memory, a little slower.
        exact_dims: up to how many dimensions scores take the whole Jacobian in place of the series.
        tolerance: of the last step to a root, relative to 1 + its size.
        squeeze_first: begin with a squeeze.
        factor_out: half of the variables leave after each resolution.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: points in each cell, or draws of the roulette and its probes, when examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.ESTIMATE}
    free_form: ClassVar[bool] = True
    sampling: ClassVar[str] = "iterative"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"lr": 2e-2, "ema": 0.99, "clip": 5.0, "evaluations": 1},
        "cifar10": {
            "blocks": 2, "scales": 3, "hidden": 512, "layers": 0, "terms": 10, "early_gradients": True, "lr": 1e-3,
            "weight_decay": 0.0, "ema": 0.999, "batch_size": 64,
        },
    }  # fmt: skip

    def __init__(
        self,
        space: Space,
        *,
        blocks: int = 2,
        scales: int = 2,
        hidden: int = 32,
        layers: int = 2,
        width: int = 128,
        coefficient: float = 0.9,
        activation: Activation = "lipswish",
        norm: Norm = "2",
        terms: int = 2,
        score_terms: int = 10,
        stop: float = 0.5,
        early_gradients: bool = False,
        exact_dims: int = 16,
        tolerance: float = 1e-5,
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
                norm=norm, implicit=True, squeeze_first=squeeze_first, factor_out=factor_out,
            ),
            SeriesOptions(
                terms=terms, score_terms=score_terms, stop=stop, score_stop=stop, tolerance=tolerance,
                early=early_gradients,
            ),
            exact_dims, margin, score_samples, temperature,
        )  # fmt: skip
