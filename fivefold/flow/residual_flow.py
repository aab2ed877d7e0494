"""Residual flow: blocks x + g(x) with g a contraction."""

from __future__ import annotations

from fivefold.flow._residual import ContractionSystem


class ResidualFlow(ContractionSystem):
    """Residual flow (survey 6.3; Chen et al., 2019).

    Blocks x + g(x), with g a network whose Lipschitz constant is below 1: each of its layers is kept below
    `coefficient` by power iteration. Every dimension may depend on every other. The log-determinant is an infinite
    series, ended by Russian roulette without bias, its gradient a Neumann series; the inverse is a fixed point.

    On discrete data the density is a bound in expectation (over the noise in the cell, and over the roulette's ends and
    probes), with a standard error. On real data it is exact up to `exact_dims` dimensions and an estimate beyond.
    """

    presets = {
        "mnist": {
            "blocks": 16, "scales": 3, "squeeze_first": False, "hidden": 512, "layers": 4, "width": 128, "margin": 1e-6,
            "early_gradients": True, "lr": 1e-3, "weight_decay": 0.0, "ema": 0.999, "batch_size": 64,
        },
        "cifar10": {
            "blocks": 16, "scales": 3, "squeeze_first": False, "hidden": 512, "layers": 4, "width": 128,
            "early_gradients": True, "lr": 1e-3, "weight_decay": 0.0, "ema": 0.999, "batch_size": 64,
        },
        "imagenet32": {
            "blocks": 32, "scales": 3, "squeeze_first": False, "hidden": 512, "layers": 4, "width": 128,
            "early_gradients": True, "lr": 1e-3, "weight_decay": 0.0, "ema": 0.999, "batch_size": 64,
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
    published = {
        "mnist": (16.6e6, "Chen et al. 2019, experimental setup; its reference implementation"),
        "cifar10": (25.2e6, "Chen et al. 2019, experimental setup; its reference implementation"),
        "imagenet32": (47.1e6, "Chen et al. 2019, experimental setup; its reference implementation"),
        "imagenet64": (53.3e6, "Chen et al. 2019, experimental setup; its reference implementation"),
    }

    lr = 2e-2
    layers = 4
    coefficient = 0.98
