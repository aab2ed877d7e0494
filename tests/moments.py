"""Moments of draws against those of a law, by their errors."""

from __future__ import annotations

import math

from torch import Tensor

from benchmarks.laws import Law


def check_moments(law: Law, x: Tensor, errors: float = 3.0) -> None:
    """All that is known of the law within so many standard errors, states `(n, D)` being independent."""
    for of, mean, variance in law.moments:
        values = of(x)
        assert abs(values.mean().item() - mean) < errors * values.std().item() / math.sqrt(len(x))
        if variance is not None:
            square = (values - mean) ** 2
            assert abs(square.mean().item() - variance) < errors * square.std().item() / math.sqrt(len(x))
