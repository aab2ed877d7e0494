"""Learning rates as functions of progress."""

from __future__ import annotations

import math

FIRST = 0.01  # the share of the full rate with which a warm-up starts


def warm_cosine(progress: float, warmup: float = 0.01, level: float = 0.0, floor: float = 0.01) -> float:
    """Share of the full rate: up in a straight line, and down along half a cosine.

    Args:
        progress: share of the budget that is spent.
        warmup: share of it over which the rate rises; 0 for none.
        level: share of it before the rate falls; 1 for never.
        floor: what it falls to.
    """
    rise = min(1.0, FIRST + (1 - FIRST) * progress / warmup) if warmup else 1.0
    fall = (progress - level) / (1 - level) if progress > level else 0.0
    return rise * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fall)))


def late_fall(progress: float) -> float:
    """Constant, and over the last half down to a tenth in a straight line."""
    return 1 - 0.9 * max(0.0, 2 * progress - 1)


def second_stage(progress: float, first: float) -> float:
    """Progress within the second stage, `first` being the share of the first."""
    return (progress - first) / max(1 - first, 1e-9)
