"""i-ResNet: residual blocks with contractions, trained by a truncated power series."""

from __future__ import annotations

from typing import ClassVar

from fivefold.flow._residual import ContractionSystem
from fivefold.options import fixed
from fivefold.tools.roulette import truncation_bound


class IResNet(ContractionSystem):
    """i-ResNet (survey 6.3.2; Behrmann et al., 2019).

    Blocks x + g(x), invertible because every layer of g has a norm below `coefficient`. In training the
    log-determinant is the first `terms` of its power series, their traces by Hutchinson's estimator: biased, by at
    most what the note on its density says. The inverse is a fixed point.

    Scores do not keep that bias: up to `exact_dims` dimensions they take the whole Jacobian, beyond that a series of
    `score_terms` and more that a roulette ends. So the density is one of the flow that was trained, exact or an
    estimate on real data and a bound in expectation on discrete data.
    """

    roulette: ClassVar[bool] = False
    presets = {
        "cifar10": {
            "blocks": 16, "scales": 3, "hidden": 512, "layers": 0, "squeeze_first": False, "factor_out": True,
            "lr": 3e-3, "weight_decay": 0.0,
            "batch_size": 128,
        },
    }  # fmt: skip

    activation = "elu"
    norm = fixed("2")
    attention = fixed(0)
    early_gradients = fixed(False)
    terms = 5

    @property
    def density_note(self) -> str:
        bias = truncation_bound(1, self.coefficient**3, self.terms)
        cut = f"in training cut after {self.terms} terms, within {bias:.1g} nats a dimension and block"
        return f"{super().density_note}; {cut}"
