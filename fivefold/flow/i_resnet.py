"""i-ResNet: residual blocks with contractions, trained by a truncated power series."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.bijections.residual import SeriesOptions
from fivefold.flow._residual import Activation, Blocks, ContractionSystem
from fivefold.space import Space
from fivefold.system import Density
from fivefold.tools.roulette import truncation_bound


class IResNet(ContractionSystem):
    """i-ResNet (survey 6.3.2; Behrmann et al., 2019).

    Blocks x + g(x), invertible because every layer of g has a norm below `coefficient`. In training the
    log-determinant is the first `terms` of its power series, their traces by Hutchinson's estimator: biased, by at
    most what the note on its density says. The inverse is a fixed point.

    Scores do not keep that bias: up to `exact_dims` dimensions they take the whole Jacobian, beyond that a series of
    `score_terms` and more that a roulette ends. So the density is one of the flow that was trained, exact or an
    estimate on real data and a bound in expectation on discrete data.

    Args:
        space: of the examples.
        blocks: residual blocks of convolutions at each resolution.
        scales: the most resolutions; fewer where a side becomes odd.
        hidden: channels within a block of convolutions.
        layers: fully connected blocks at the end, 0 in the paper (on tables: those that an image would have in all).
        width: of the fully connected blocks.
        coefficient: the bound on every layer's norm, below 1.
        activation: elu or lipswish.
        terms: of the series in training.
        score_terms: of the series that always count when scoring.
        stop: probability of the roulette's stopping after each further term when scoring.
        exact_dims: up to how many dimensions scores take the whole Jacobian in place of the series.
        tolerance: of the last step to an inverse, relative to 1 + |x|.
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
        "default": {"ema": 0.99, "clip": 5.0, "evaluations": 1},
        "cifar10": {
            "blocks": 16, "scales": 3, "hidden": 512, "layers": 0, "factor_out": True, "lr": 3e-3, "weight_decay": 0.0,
            "batch_size": 128,
        },
    }  # fmt: skip

    def __init__(
        self,
        space: Space,
        *,
        blocks: int = 4,
        scales: int = 2,
        hidden: int = 32,
        layers: int = 2,
        width: int = 128,
        coefficient: float = 0.9,
        activation: Activation = "elu",
        terms: int = 5,
        score_terms: int = 10,
        stop: float = 0.5,
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
                squeeze_first=squeeze_first, factor_out=factor_out,
            ),
            SeriesOptions(terms=terms, score_terms=score_terms, stop=None, score_stop=stop, tolerance=tolerance),
            exact_dims, margin, score_samples, temperature,
        )  # fmt: skip
        bias = truncation_bound(1, coefficient**3, terms)
        self.density_note += f"; in training cut after {terms} terms, within {bias:.1g} nats a dimension and block"
