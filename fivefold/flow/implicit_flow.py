"""Implicit flow: noise and data are roots of one equation."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from fivefold.bijections.residual import SeriesOptions
from fivefold.flow._residual import ContractionSystem
from fivefold.options import fixed, option


class ImplicitFlow(ContractionSystem):
    """Implicit flow (survey 6.3.2; Lu et al., 2021).

    Every block's image z is the root of x + g_x(x) = z + g_z(z), both g contractions (survey Eq. 38): a residual block
    and the inverse of another, which together stretch and shrink without the factor of 2 that one is bound by. Both
    ways roots are found by Anderson's method, and gradients by the implicit function theorem; the log-determinant is
    the difference of two of residual blocks, each a series that a roulette ends.

    On discrete data the density is a bound in expectation (over the noise in the cell, and over the roulette's ends and
    probes), with a standard error. On real data it is exact up to `exact_dims` dimensions, to the tolerance of the
    roots, and an estimate beyond.
    """

    implicit: ClassVar[bool] = True
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.7, 0.85, 1.0)}  # densities need roots too
    presets = {
        "cifar10": {
            "blocks": 2, "scales": 3, "squeeze_first": False, "hidden": 512, "layers": 0, "terms": 10,
            "early_gradients": True, "lr": 1e-3,
            "weight_decay": 0.0, "ema": 0.999, "batch_size": 64,
        },
    }  # fmt: skip

    lr = 2e-2
    blocks = 1
    attention = fixed(0)
    tolerance = 1e-5
    training_tolerance: float = option(
        1e-3, "of roots and of gradients through them in training, where the roulette's noise is far larger", above=0
    )

    @property
    def series(self) -> SeriesOptions:
        return dataclasses.replace(super().series, training_tolerance=self.training_tolerance)
