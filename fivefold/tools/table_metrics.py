"""How alike the columns of two tables are, one by one and in pairs: 1 where they are the same, 0 at worst.

The scores that users of tabular data know (Dankar et al., 2022; SDMetrics' column shapes and pair trends).
Each distance is the greatest difference between the two samples of the mean of a function of a class: its
maximiser, the witness, is also the influence of an example on it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.tools.resampling import Score, centred, rough

BINS = 10  # of equal width over the reference's range, that a number has beside a category
PAIRED_COLUMNS = 50  # evenly spread, at most, whose pairs are looked at


class Columns(NamedTuple):
    """Encoded rows of two tables, `(n, D)` and `(m, D)`; `levels` `(D,)` of categories, None of numbers."""

    sample: Tensor
    reference: Tensor
    levels: tuple[int | None, ...]


def greatest_gap(x: Tensor, y: Tensor, *, above: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Kolmogorov-Smirnov distance of each row of `x` `(D, n)` and `y` `(D, m)`, `(D,)`, and its witnesses there.

    max_t |P(x <= t) - P(y <= t)|, or with `above` that of the difference as it is. The witnesses, `(D, n)` and
    `(D, m)`, are the indicators of [x <= t] at the greatest difference, with its sign.
    """
    at = torch.cat([x, y], 1)
    sides = [torch.searchsorted(side.sort(1).values, at, right=True).double() / side.shape[1] for side in (x, y)]
    gap = sides[0] - sides[1]
    k = (gap if above else gap.abs()).argmax(1, keepdim=True)
    threshold, signed = at.gather(1, k), gap.gather(1, k)
    sign = torch.ones_like(signed) if above else signed.sign()
    return (sign * signed)[:, 0], sign * (x <= threshold), sign * (y <= threshold)


def _one_hot(codes: Tensor, levels: list[int]) -> Tensor:
    """Codes `(n, D)` as 0 and 1, `(n, sum of levels)`."""
    parts = [F.one_hot(codes[:, k].long(), count) for k, count in enumerate(levels)]
    return torch.cat(parts, 1).double() if parts else codes.new_zeros(len(codes), 0).double()


def _of_kind(levels: tuple[int | None, ...]) -> tuple[list[int], list[int]]:
    """Which columns are numbers and which categories."""
    numbers = [k for k, count in enumerate(levels) if count is None]
    return numbers, [k for k, count in enumerate(levels) if count is not None]


def column_shapes(columns: Columns) -> Score:
    """Mean over columns of 1 - the Kolmogorov-Smirnov distance, of categories 1 - the total variation."""
    x, y = columns.sample.double(), columns.reference.double()
    numbers, categories = _of_kind(columns.levels)
    x_codes, y_codes = (_one_hot(z[:, categories], [columns.levels[k] or 0 for k in categories]) for z in (x, y))

    def statistic(i: Tensor, j: Tensor) -> list[Score]:
        gaps, of_x, of_y = greatest_gap(x[i][:, numbers].T.contiguous(), y[j][:, numbers].T.contiguous())
        p, q = x_codes[i].mean(0), y_codes[j].mean(0)
        more = (p > q).double()
        distance = gaps.sum() + more @ (p - q)
        witnesses = of_x.sum(0) + x_codes[i] @ more, of_y.sum(0) + y_codes[j] @ more
        return [centred(1 - distance / x.shape[1], -witnesses[0] / x.shape[1], witnesses[1] / x.shape[1])]

    return rough(statistic, len(x), len(y))[0]


def column_pairs(columns: Columns) -> Score | None:
    """Mean similarity over pairs of columns; None where there are no pairs that vary.

    Of two numbers 1 - |difference of the correlations| / 2, otherwise 1 - the total variation between both tables of
    counts, numbers in `BINS`. At most `PAIRED_COLUMNS` columns.
    """
    chosen = torch.linspace(0, len(columns.levels) - 1, min(len(columns.levels), PAIRED_COLUMNS)).round().long()
    varying = [int(k) for k in chosen if columns.reference[:, k].min() < columns.reference[:, k].max()]
    if len(varying) < 2:
        return None
    x, y = columns.sample[:, varying].double(), columns.reference[:, varying].double()
    levels = tuple(columns.levels[k] for k in varying)
    numbers, categories = _of_kind(levels)
    counts = [count or BINS for count in levels]
    x_codes, y_codes = (_one_hot(_binned(z, y, levels), counts) for z in (x, y)) if categories else (x[:, :0], y[:, :0])
    mask = _mixed_pairs(levels, counts) if categories else x.new_zeros(0, 0)
    pairs = len(varying) * (len(varying) - 1) / 2

    def statistic(i: Tensor, j: Tensor) -> list[Score]:
        apart, of_x, of_y = _correlations_apart(x[i][:, numbers], y[j][:, numbers])
        a, b = x_codes[i], y_codes[j]
        difference = a.T @ a / len(a) - b.T @ b / len(b)
        more = mask * (difference > 0)  # each pair of columns is there twice
        apart = apart + (more * difference).sum() / 2
        of_x, of_y = of_x + (a @ more * a).sum(1) / 2, of_y + (b @ more * b).sum(1) / 2
        return [centred(1 - apart / pairs, -of_x / pairs, of_y / pairs)]

    return rough(statistic, len(x), len(y))[0]


def _binned(x: Tensor, y: Tensor, levels: tuple[int | None, ...]) -> Tensor:
    """Codes of `x` `(n, D)`: numbers in bins over the range of `y`, categories as they are."""
    low, high = y.amin(0), y.amax(0)
    bins = ((x - low) / (high - low) * BINS).floor().clamp(0, BINS - 1)
    return torch.where(torch.tensor([count is None for count in levels]), bins, x)


def _mixed_pairs(levels: tuple[int | None, ...], counts: list[int]) -> Tensor:
    """1 for codes of two different columns that are not both numbers, `(L, L)`."""
    column = torch.arange(len(levels)).repeat_interleave(torch.tensor(counts))
    number = torch.tensor([count is None for count in levels])[column]
    return ((column[:, None] != column) & ~(number[:, None] & number)).double()


def _correlations_apart(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over pairs of numbers of |difference of the correlations| / 2, and the examples' influences on it."""
    (u, v), above = (_standard(x), _standard(y)), torch.ones(x.shape[1], x.shape[1]).triu(1)
    correlations = [z.T @ z / len(z) for z in (u, v)]
    difference = correlations[0] - correlations[1]
    sign = above * difference.sign() / 2

    def influence(z: Tensor, correlation: Tensor) -> Tensor:  # of a correlation: z_a z_b - r (z_a^2 + z_b^2) / 2
        weight = sign * correlation
        return (z @ sign * z).sum(1) - z.square() @ (weight.sum(0) + weight.sum(1)) / 2

    return (sign * difference).sum(), influence(u, correlations[0]), influence(v, correlations[1])


def _standard(x: Tensor) -> Tensor:
    """Columns of mean 0 and variance 1; of 0 where they do not vary."""
    x = x - x.mean(0)
    deviation = x.square().mean(0).sqrt()
    return x / torch.where(deviation > 1e-12, deviation, math.inf)
