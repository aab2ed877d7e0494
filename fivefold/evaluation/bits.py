"""Bits per dimension, and of text per character: the one place that makes them of nats."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Bits(NamedTuple):
    """Bits a unit of all examples together, its standard error (None of a single example), and by whose mean it moves.

    `terms` `(B,)` are of mean 0 where examples stand for unequally many units, else each example's own bits.
    """

    value: float
    error: float | None
    terms: Tensor


def bits(log_prob: Tensor, units: Tensor, common: float = 0.0) -> Bits:
    """-log2 p of all examples over all they stand for, since windows of tokens stand for more or fewer characters.

    Args:
        log_prob: nats `(B,)`, finite.
        units: what each example stands for, `(B,)`, of `Space.units`.
        common: standard error in nats of what is wrong in all examples alike.
    """
    log_prob, units, n = log_prob.double(), units.double(), len(log_prob)
    each = float(units.mean()) * math.log(2)
    value = -float(log_prob.mean()) / each
    equal = bool((units == units[0]).all())
    terms = -log_prob / each if equal else -log_prob / each - value * units / units.mean()  # of a ratio, to first order
    return Bits(value, math.sqrt(float(terms.var()) / n + (common / each) ** 2) if n > 1 else None, terms)
