"""Standard errors of statistics of two samples, and what each example does to them.

A statistic of a sample of n and one of m moves, to first order, by the means of its examples' influences
(von Mises, 1947), so that with influences a of the one and b of the other its variance is near
var(a)/n + var(b)/m. That is also what the jackknife gives, and it is wrong in two ways, each with its remedy here:

- `smooth`: a distance near its minimum has no first order left. With first-order variance A/n and second-order
  variance B/n^2 the jackknife gives A/n + 2 B/n^2: twice the truth at the minimum (Efron & Stein, 1981). The same
  of halves of the samples is 2 A/n + 8 B/n^2, which leaves one combination that is A/n + B/n^2.
- `rough`: shares and greatest differences are not smooth, and leaving out an example says little of another
  draw. Two halves of the samples are two draws of half the size: half the variance between them, over
  random halvings, is that of the whole.

Influences are then scaled to the variance that was found, so that `Score` has one error, and two scores with the same
reference have the error of their difference (`difference_error`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SMOOTH_HALVINGS, ROUGH_HALVINGS = 2, 8
LEAST_SHARE = 1 / 3  # of the first-order variance: second order takes half of it, higher orders little more

Pair = tuple[Tensor, Tensor]


class Estimate(NamedTuple):
    """A measured value and its standard error."""

    value: float
    error: float


class Score(NamedTuple):
    """A statistic of two samples and the influences of the examples of either: `()`, `(n,)` and `(m,)`, float64.

    The value moves by the mean of the influences, which are of mean 0.
    """

    value: Tensor
    sample: Tensor
    reference: Tensor

    @property
    def variance(self) -> float:
        """Squared standard error, of both samples drawn again."""
        return _variance(self.sample) + _variance(self.reference)

    @property
    def own_error(self) -> float:
        """The part of the standard error that is of other samples against the same reference."""
        return math.sqrt(_variance(self.sample))

    @property
    def estimate(self) -> Estimate:
        """The value and its standard error."""
        return Estimate(float(self.value), math.sqrt(self.variance))

    def among(self, i: Tensor, n: int, j: Tensor, m: int) -> Score:
        """The same for `n` and `m` examples, of which those at `i` and at `j` were looked at."""
        return Score(self.value, _among(self.sample, i, n), _among(self.reference, j, m))


def _among(influence: Tensor, index: Tensor, n: int) -> Tensor:
    return influence.new_zeros(n).index_copy_(0, index, influence * (n / len(index)))


def _variance(influence: Tensor) -> float:
    return float(influence.square().sum()) / len(influence) ** 2


def centred(value: Tensor, sample: Tensor, reference: Tensor) -> Score:
    """A score of influences that are known up to a constant."""
    return Score(value, sample - sample.mean(), reference - reference.mean())


def difference_error(a: Score, b: Score) -> float:
    """Standard error of `a.value - b.value` of two samples against the same reference."""
    return math.hypot(a.own_error, b.own_error, math.sqrt(_variance(a.reference - b.reference)))


Statistic = Callable[[Tensor, Tensor], list[Score]]  # of the examples at these indices of either sample


def smooth(statistic: Statistic, n: int, m: int) -> list[Score]:
    """Scores of `n` and `m` examples with the second order counted once."""
    found = statistic(torch.arange(n), torch.arange(m))
    halves = [statistic(i, j) for both in _halvings(n, m, SMOOTH_HALVINGS) for i, j in both]
    scaled = []
    for score, *parts in zip(found, *halves, strict=True):
        first, of_half = score.variance, sum(part.variance for part in parts) / len(parts)
        scaled.append(_scaled(score, max(1.5 * first - 0.25 * of_half, LEAST_SHARE * first)))
    return scaled


def rough(statistic: Statistic, n: int, m: int, exact: tuple[str, ...] = ()) -> list[Score]:
    """Scores of `n` and `m` examples with the variance between halves.

    Args:
        statistic: its influences are those of each example's own contribution.
        n: size of the first sample.
        m: size of the second sample.
        exact: for each score the side, "sample" or "reference", whose influences are to stay as they are, those of
            the other making up the rest, if any; without them both are scaled.
    """
    found = statistic(torch.arange(n), torch.arange(m))
    halves = [[statistic(i, j) for i, j in both] for both in _halvings(n, m, ROUGH_HALVINGS)]
    scaled = []
    for k, score in enumerate(found):
        between = [float(a[k].value - b[k].value) ** 2 / 4 for a, b in halves]
        variance = sum(between) / len(between)
        scaled.append(_filled(score, variance, exact[k]) if exact else _scaled(score, variance))
    return scaled


def _scaled(score: Score, variance: float) -> Score:
    scale = math.sqrt(variance / score.variance) if score.variance else 0.0
    return Score(score.value, score.sample * scale, score.reference * scale)


def _filled(score: Score, variance: float, exact: str) -> Score:
    other = "reference" if exact == "sample" else "sample"
    own, rest = _variance(getattr(score, exact)), _variance(getattr(score, other))
    scale = math.sqrt(max(variance - own, 0.0) / rest) if rest else 0.0
    return score._replace(**{other: getattr(score, other) * scale})


def _halvings(n: int, m: int, times: int) -> list[tuple[Pair, Pair]]:
    """Indices of both samples' random halves, always the same ones."""
    generator = torch.Generator().manual_seed(0)

    def half(size: int) -> Pair:
        order = torch.randperm(size, generator=generator)
        return order[: size // 2], order[size // 2 :][: size // 2]

    return [((a[0], b[0]), (a[1], b[1])) for a, b in ((half(n), half(m)) for _ in range(times))]
