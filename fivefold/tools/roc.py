"""The area under the ROC curve of a score that tells two samples apart, and how well it is known."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from torch import Tensor

from fivefold.tools.resampling import Estimate


def roc_area(low: ArrayLike, high: ArrayLike) -> Estimate:
    """The share of pairs in which the one of `high` scores more, ties by half: 1 tells apart, 1/2 is a guess.

    The standard error is that of DeLong, DeLong and Clarke-Pearson (Biometrics, 1988): each example's own share of
    pairs won varies, within either sample. It is 0 where no pair is lost, which says no more than that none was seen.

    Args:
        low: scores `(n,)` of one sample, two or more, none NaN.
        high: scores `(m,)` of the other.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    n, m = len(low), len(high)
    if min(n, m) < 2:
        raise ValueError(f"an area with its error needs two scores or more of either sample, got {n} and {m}")
    ranks = rankdata(np.concatenate([low, high]))
    won_by_high = (ranks[n:] - rankdata(high)) / n  # of each high, the share of the low below it
    won_from_low = 1 - (ranks[:n] - rankdata(low)) / m  # of each low, the share of the high above it
    error = math.sqrt(won_by_high.var(ddof=1) / m + won_from_low.var(ddof=1) / n)
    return Estimate(float(won_by_high.mean()), error)


def calibration_error(chance: Tensor, label: Tensor, bins: int = 10) -> Tensor:
    """How far a classifier's confidence is from its accuracy, by bins of confidence (Naeini et al., 2015).

    Args:
        chance: of every class, `(B, classes)`.
        label: the right one, `(B,)`.
        bins: of equal width.
    """
    confidence, guess = chance.max(1)
    place = (confidence * bins).long().clamp(max=bins - 1)
    gap = (guess == label).to(confidence) - confidence
    return torch.zeros(bins, device=chance.device).index_add_(0, place, gap.float()).abs().sum() / len(label)
