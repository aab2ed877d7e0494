"""Lift: the columns of a table as networks can model them, some as more dimensions than one.

What no density and no order is right for gets dimensions of its own, drawn at random given the column's value:

| column                             | dimensions                                                              |
|------------------------------------|-------------------------------------------------------------------------|
| numbers of which some are missing, | which it is: a number, or one of those; and the number, where there is  |
| or real with values that repeat    | none noise: standard normal, or any of an integer's levels              |
| real, rounded to a step            | itself, with uniform noise in the cell of that step                     |
| categories without order, where    | a point in as many dimensions as there are categories, Gaussian about a |
| a system takes examples as points  | corner of a simplex, of which the category's own is the largest         |

With q(y | x) the law of what is drawn, ln P(x) is ln E[p(y) / q(y | x)], bounded from below by every mean over
draws (as in survey 6 [86] of uniform noise; Hoogeboom et al. 2021 of the largest of several dimensions). Since y tells
x, the bounds of all values sum to no more than 1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from fivefold.space.column import Column
from fivefold.space.space import Space

GAP = 2.0  # between the mean of a category's own dimension and of the others, whose deviation is SPREAD
SPREAD = 0.5
FEWEST = 3  # categories that have an order to be rid of
MOST_POINTS = 256  # dimensions of a column's categories; of more, the codes stay as they are


class Lift:
    """From encoded examples of `outer` to those of `inner` and back.

    Args:
        outer: the space of the user's examples, a table.
        points: whether categories become points.
    """

    def __init__(self, outer: Space, points: bool) -> None:
        self.outer = outer
        self.columns = [_lifted(column, points) for column in outer.columns]
        self.widths = [len(made) for made in self.columns]
        made = tuple(column for group in self.columns for column in group)
        counts = {column.levels for column in made}
        self.inner = replace(
            outer, shape=(len(made),), columns=made, levels=counts.pop() if len(counts) == 1 else None, lifted=True,
            made=(), dialect=None,
        )  # fmt: skip

    def up(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encoded examples `(B, D)` as drawn points `(B, inner D)`, and -ln q of the draw, nats `(B,)` float64."""
        found, weight = [], torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for i, (column, made) in enumerate(zip(self.outer.columns, self.columns, strict=True)):
            codes = x[:, i]
            term: Tensor | float
            if column.kind == "categorical" and len(made) > 1:
                y, term = _corner(codes, len(made))
            else:
                y, term = _number(codes, column)
            found.append(y)
            weight = weight + term
        return torch.cat(found, 1), weight

    def down(self, y: Tensor) -> Tensor:
        """The encoded examples `(B, D)` that points `(B, inner D)` tell, as `outer` encodes them."""
        found = []
        parts = zip(self.outer.columns, self.columns, y.split(self.widths, 1), strict=True)
        for column, made, part in parts:
            if column.kind == "categorical":
                found.append(part.argmax(1).float() if len(made) > 1 else part[:, 0])
                continue
            codes = part[:, -1]
            if column.step is not None or column.low is not None:
                codes = torch.from_numpy(column.standing(codes.detach().cpu().numpy())).to(codes.device)
            if column.mixed:
                special = [*column.atom_codes.tolist(), *([math.nan] if column.missing else [])]
                for which, code in enumerate(special, 1):
                    codes = torch.where(part[:, 0] == which, code, codes)
            found.append(codes)
        return torch.stack(found, 1)

    def known(self, mask: Tensor) -> Tensor:
        """A mask of `outer`'s dimensions `(B, D)` or `(D,)` as one of `inner`'s."""
        return mask.repeat_interleave(torch.tensor(self.widths, device=mask.device), -1)


def lift_of(space: Space, points: bool) -> Lift | None:
    """The Lift that a space needs; None where every column is one dimension as it is."""
    if space.kind != "table" or space.lifted:
        return None
    lift = Lift(space, points)
    return lift if any(c.cells for c in space.columns) or lift.inner.dims > space.dims else None


def _lifted(column: Column, points: bool) -> list[Column]:
    levels = column.levels or 0
    if column.kind == "categorical":
        if not points or column.dtype.startswith("ordered") or not FEWEST <= levels <= MOST_POINTS:
            return [column]
        return [Column(f"{column.name} {value}") for value in column.categories]
    number = Column(column.name, column.kind, levels=column.levels)
    if not column.mixed:
        return [number]
    states = ("number", *map(str, column.atoms), *(["missing"] if column.missing else []))
    return [Column(f"{column.name} is", "categorical", "str", levels=len(states), categories=states), number]


def _number(codes: Tensor, column: Column) -> tuple[Tensor, Tensor | float]:
    """What a number is, where it is not always one, and the number; -ln q."""
    term: Tensor | float = 0.0
    number = codes
    if column.cells:
        number, term = column.noisy(codes)
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


# --- categories as points ---------------------------------------------------------------------------


def _corner(codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Points `(B, count)` about the corners of their categories, drawn again until the own dimension is the largest."""
    own = torch.nn.functional.one_hot(codes.long(), count).to(codes.dtype)
    mean = GAP * (own - 1 / count)
    y = mean + SPREAD * torch.randn_like(own)
    while (wrong := y.argmax(1) != codes).any():
        y[wrong] = mean[wrong] + SPREAD * torch.randn_like(mean[wrong])
    squares = ((y - mean) / SPREAD).double().square().sum(1)
    return y, 0.5 * squares + count * (math.log(SPREAD) + 0.5 * math.log(2 * math.pi)) + _log_share(count)


@cache
def _log_share(count: int) -> float:
    """ln P(own dimension is the largest): the integral of phi(t) Phi(t + gap / deviation)^(count - 1)."""
    t = torch.linspace(-12, 12, 20_001, dtype=torch.float64, device="cpu")
    log_phi = -0.5 * t.square() - 0.5 * math.log(2 * math.pi)
    log_cdf = torch.special.log_ndtr(t + GAP / SPREAD)
    return float((log_phi + (count - 1) * log_cdf).exp().sum().mul(t[1] - t[0]).log())
