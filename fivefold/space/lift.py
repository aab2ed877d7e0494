"""Lift: the columns of a table as networks can model them, some as more dimensions than one.

What no density and no order is right for gets dimensions of its own, drawn at random given the column's value where
they are more than the value tells:

| column                             | dimensions                                                              |
|------------------------------------|-------------------------------------------------------------------------|
| numbers of which some are missing, | which it is: a number, or one of those; and the number, where there is  |
| or real with values that repeat    | none noise: standard normal, or any of an integer's levels              |
| real, rounded to a step            | itself, with uniform noise in the cell of that step                     |
| dates, by the day or finer         | week, weekday, and the hour and what is left of it                      |
| categories, very many              | a category, of which one stands for all that are rare                   |
| categories without order (of those | a point in as many dimensions as there are categories, Gaussian about a |
| above too), where a system takes   | corner of a simplex, of which the category's own is the largest         |
| examples as points                 |                                                                         |

With q(y | x) the law of what is drawn, ln P(x) is ln E[p(y) / q(y | x)], bounded from below by every mean over
draws (as in survey 6 [86] of uniform noise; Hoogeboom et al. 2021 of the largest of several dimensions). Since y tells
x, the bounds of all values sum to no more than 1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.space.column import Column
from fivefold.space.space import Space

GAP = 2.0  # between the mean of a category's own dimension and of the others, whose deviation is SPREAD
SPREAD = 0.5
FEWEST = 3  # categories that have an order to be rid of
DAY, WEEK = 86400, 7 * 86400  # seconds
MONDAY = 3  # days before 1970
FEWEST_WEEKS = 4


class Part(Protocol):
    """What one column becomes: `columns`, of which `trivial` says whether they are the column as it is."""

    columns: list[Column]
    trivial: bool

    def up(self, codes: Tensor) -> tuple[Tensor, Tensor | float]:
        """Codes `(B,)` as drawn points `(B, width)`, and -ln q of the draw, nats `(B,)`."""
        ...

    def down(self, y: Tensor) -> Tensor:
        """The codes that points tell."""
        ...


class Lift:
    """From encoded examples of `outer` to those of `inner` and back.

    Args:
        outer: the space of the user's examples, a table.
        points: whether categories become points.
    """

    def __init__(self, outer: Space, points: bool) -> None:
        self.outer = outer
        parts = [_part(column, points) for column in outer.columns]
        self.parts: list[Part] = [Points(part) for part in parts] if points else parts
        self.widths = [len(part.columns) for part in self.parts]
        self.trivial = all(part.trivial for part in self.parts)
        starts = np.cumsum([0, *self.widths]).tolist()
        self.corners = [  # of a category's dimensions each
            slice(start + corner.start, start + corner.stop)
            for part, start in zip(self.parts, starts, strict=False) if isinstance(part, Points)
            for corner in part.corners
        ]  # fmt: skip
        made = tuple(column for part in self.parts for column in part.columns)
        counts = {column.levels for column in made}
        self.inner = replace(
            outer, shape=(len(made),), columns=made, levels=counts.pop() if len(counts) == 1 else None, lifted=True,
            made=(), dialect=None,
        )  # fmt: skip

    def up(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encoded examples `(B, D)` as drawn points `(B, inner D)`, and -ln q of the draw, nats `(B,)` float64."""
        found, weight = [], torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for part, codes in zip(self.parts, x.unbind(1), strict=True):
            y, term = part.up(codes)
            found.append(y)
            weight = weight + term
        return torch.cat(found, 1), weight

    def down(self, y: Tensor) -> Tensor:
        """The encoded examples `(B, D)` that points `(B, inner D)` tell, as `outer` encodes them."""
        return torch.stack([p.down(each) for p, each in zip(self.parts, y.split(self.widths, 1), strict=True)], 1)

    def known(self, mask: Tensor) -> Tensor:
        """A mask of `outer`'s dimensions `(B, D)` or `(D,)` as one of `inner`'s."""
        return mask.repeat_interleave(torch.tensor(self.widths, device=mask.device), -1)


def lift_of(space: Space, points: bool) -> Lift | None:
    """The Lift that a space needs; None where every column is one dimension as it is."""
    if space.kind != "table" or space.lifted:
        return None
    lift = Lift(space, points)
    return None if lift.trivial else lift


def _part(column: Column, points: bool) -> Part:
    if column.kind == "categorical":
        return Grouped(column) if column.rare else Plain(column)
    if column.dates is not None and not column.missing and Calendar.fits(column):
        return Calendar(column)
    return Number(column if points or column.kind == "real" else replace(column, atoms=()))


class Plain:
    """A category as it is."""

    def __init__(self, column: Column) -> None:
        self.columns, self.trivial = [column], True

    def up(self, codes: Tensor) -> tuple[Tensor, Tensor | float]:
        return codes[:, None], 0.0

    def down(self, y: Tensor) -> Tensor:
        return y[:, 0]


class Number:
    """Which it is, where it is not always a number, and the number."""

    def __init__(self, column: Column) -> None:
        self.column = column
        number = Column(column.name, column.kind, levels=column.levels)
        states = ("number", *map(str, column.atoms), *(["missing"] if column.missing else []))
        which = Column(f"{column.name} is", "categorical", "str", levels=len(states), categories=states)
        self.columns = [which, number] if column.mixed else [number]
        self.trivial = not (column.mixed or column.cells)

    def up(self, codes: Tensor) -> tuple[Tensor, Tensor | float]:
        column = self.column
        number, term = column.noisy(codes) if column.cells else (codes, 0.0)
        if not column.mixed:
            return number[:, None], term
        which = column.which(codes)
        plain = which == 0
        if column.kind == "real":
            noise = torch.randn_like(codes)
            entropy = 0.5 * (noise.double().square() + math.log(2 * math.pi))
        else:
            assert column.levels is not None
            noise = (torch.rand_like(codes) * column.levels).floor().clamp(max=column.levels - 1)
            entropy = torch.full_like(noise, math.log(column.levels), dtype=torch.float64)
        return torch.stack([which, torch.where(plain, number, noise)], 1), torch.where(plain, term, entropy)

    def down(self, y: Tensor) -> Tensor:
        column, codes = self.column, y[:, -1]
        if column.step is not None or column.low is not None or column.high is not None:
            codes = torch.from_numpy(column.standing(codes.detach().cpu().numpy())).to(codes.device)
        if column.mixed:
            special = [*column.atom_codes.tolist(), *([math.nan] if column.missing else [])]
            for which, code in enumerate(special, 1):
                codes = torch.where(y[:, 0] == which, code, codes)
        return codes


class Calendar:
    """A date as its week and weekday, the hour where it has one, and what is left of the hour: whole numbers all."""

    def __init__(self, column: Column) -> None:
        assert column.dates is not None
        self.column, self.trivial = column, False
        step = round(column.dates.step)
        self.offset = column.dates.seconds + MONDAY * DAY
        units = [WEEK, DAY, *([3600] if step <= 3600 else []), *([step] if step < 3600 else [])]
        low, high = _span(column)
        self.first = int((low * step + self.offset) // WEEK)
        weeks = int((high * step + self.offset) // WEEK) - self.first + 1
        counts = [weeks, *(above // below for above, below in pairwise(units))]
        self.units = units
        names = ("week", "weekday", "hour", "rest")
        self.columns = [
            Column(f"{column.name} {name}", "categorical" if name == "weekday" else "integer", "int64", levels=count,
                   categories=tuple(range(count)) if name == "weekday" else ())
            for name, count in zip(names, counts, strict=False)
        ]  # fmt: skip

    @staticmethod
    def fits(column: Column) -> bool:
        """Whether it spans some weeks by days, hours or parts of hours."""
        assert column.dates is not None
        step = column.dates.step
        low, high = _span(column)
        whole = step == DAY or (1 <= step <= 3600 and 3600 % step == 0)
        return whole and (high - low) * step >= FEWEST_WEEKS * WEEK

    def up(self, codes: Tensor) -> tuple[Tensor, Tensor | float]:
        assert self.column.dates is not None
        steps = torch.from_numpy(np.rint(self.column.decode(codes.cpu().numpy())).astype(np.int64))
        rest = steps * round(self.column.dates.step) + self.offset - self.first * WEEK
        found = []
        for unit in self.units:
            found.append(rest // unit)
            rest = rest % unit
        return torch.stack(found, 1).to(codes), -self.column.log_det(codes.double())  # a probability, not a density

    def down(self, y: Tensor) -> Tensor:
        assert self.column.dates is not None
        units = torch.tensor(self.units, dtype=torch.float64, device=y.device)
        seconds = (y.double() * units).sum(1) - self.offset + self.first * WEEK
        low, high = _span(self.column)
        steps = (seconds / round(self.column.dates.step)).round().clamp(low, high)
        if self.column.kind == "integer":
            return (steps - self.column.location).float()
        straight = torch.from_numpy(self.column.straighten(steps.cpu().numpy())).to(y.device)
        return ((straight - self.column.location) / self.column.scale).float()


def _span(column: Column) -> tuple[float, float]:
    """The first and the last of a column of dates, in its steps."""
    if column.kind == "integer":
        return column.location, column.location + (column.levels or 1) - 1
    return column.span


class Grouped:
    """A category, the rare ones as one; which of these it is has the share of each in the training data."""

    def __init__(self, column: Column) -> None:
        shares = torch.tensor(column.rare, dtype=torch.float64, device="cpu")
        self.rare = (shares > 0).nonzero()[:, 0]
        self.shares = shares[self.rare] / shares.sum()
        self.kept = (shares == 0).nonzero()[:, 0]
        names = (*(column.categories[i] for i in self.kept.tolist()), "a rare one")
        self.columns = [Column(column.name, "categorical", column.dtype, levels=len(names), categories=names)]
        self.trivial = False
        self.to = torch.full((len(shares),), float(len(self.kept)), device="cpu")
        self.to[self.kept] = torch.arange(float(len(self.kept)), device="cpu")
        self.nats = torch.zeros(len(shares), dtype=torch.float64, device="cpu")
        self.nats[self.rare] = self.shares.log()

    def up(self, codes: Tensor) -> tuple[Tensor, Tensor | float]:
        return self.to.to(codes.device)[codes.long()][:, None], self.nats.to(codes.device)[codes.long()]

    def down(self, y: Tensor) -> Tensor:
        group = y[:, 0].long().cpu()
        drawn = self.rare[torch.multinomial(self.shares, len(group), replacement=True)]
        own = self.kept[group.clamp(max=len(self.kept) - 1)]
        return torch.where(group == len(self.kept), drawn, own).to(y)


class Points:
    """What a part makes of a column, its categories without order as points."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.pieces = [Corners(column) if _unordered(column) else Plain(column) for column in part.columns]
        self.columns = [column for piece in self.pieces for column in piece.columns]
        self.widths = [len(piece.columns) for piece in self.pieces]
        self.trivial = part.trivial and all(piece.trivial for piece in self.pieces)
        ends = np.cumsum(self.widths).tolist()
        self.corners = [slice(end - w, end) for end, w in zip(ends, self.widths, strict=True) if w > 1]

    def up(self, codes: Tensor) -> tuple[Tensor, Tensor | float]:
        y, total = self.part.up(codes)
        found = []
        for piece, each in zip(self.pieces, y.unbind(1), strict=True):
            point, term = piece.up(each)
            found.append(point)
            total = total + term
        return torch.cat(found, 1), total

    def down(self, y: Tensor) -> Tensor:
        points = y.split(self.widths, 1)
        return self.part.down(torch.stack([p.down(each) for p, each in zip(self.pieces, points, strict=True)], 1))


def _unordered(column: Column) -> bool:
    return column.kind == "categorical" and (column.levels or 0) >= FEWEST and not column.dtype.startswith("ordered")


class Corners:
    """A category as a point about its corner, of which its own dimension is the largest."""

    def __init__(self, column: Column) -> None:
        self.columns = [Column(f"{column.name} {name}") for name in column.categories]
        self.count, self.trivial = len(self.columns), False

    def up(self, codes: Tensor) -> tuple[Tensor, Tensor | float]:
        own = F.one_hot(codes.long(), self.count).to(codes.dtype)
        mean = GAP * (own - 1 / self.count)
        y = mean + SPREAD * torch.randn_like(own)
        while (wrong := y.argmax(1) != codes).any():
            y[wrong] = mean[wrong] + SPREAD * torch.randn_like(mean[wrong])
        squares = ((y - mean) / SPREAD).double().square().sum(1)
        constant = self.count * (math.log(SPREAD) + 0.5 * math.log(2 * math.pi)) + _log_share(self.count)
        return y, 0.5 * squares + constant

    def down(self, y: Tensor) -> Tensor:
        return y.argmax(1).to(y)


@cache
def _log_share(count: int) -> float:
    """ln P(own dimension is the largest): the integral of phi(t) Phi(t + gap / deviation)^(count - 1)."""
    t = torch.linspace(-12, 12, 20_001, dtype=torch.float64, device="cpu")
    log_phi = -0.5 * t.square() - 0.5 * math.log(2 * math.pi)
    log_cdf = torch.special.log_ndtr(t + GAP / SPREAD)
    return float((log_phi + (count - 1) * log_cdf).exp().sum().mul(t[1] - t[0]).log())
