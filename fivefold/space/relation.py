"""Relations that hold between columns of a table in every row: a total and its parts, a price times a count."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fivefold.errors import OptionError

CLOSE = 1e-9  # relative: how far sums of rounded numbers are from what is written


@dataclass(frozen=True)
class Relation:
    """`result` = the sum of `terms`, each a number times a product of columns."""

    result: str
    terms: tuple[tuple[float, tuple[str, ...]], ...]

    @property
    def copied(self) -> str | None:
        """The one column that the result is the same as, where it is."""
        return self.terms[0][1][0] if [(factor, len(names)) for factor, names in self.terms] == [(1, 1)] else None

    @property
    def names(self) -> list[str]:
        """The columns that it is of."""
        return list(dict.fromkeys(name for _, names in self.terms for name in names))

    def of(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """The result `(N,)`, float64, from the other columns' numbers."""
        x = {name: np.asarray(columns[name], np.float64) for name in self.names}
        return np.sum([factor * np.prod([x[name] for name in names], axis=0) for factor, names in self.terms], axis=0)

    def holds(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """In which rows `(N,)`; where a number is missing the result has to be so too."""
        columns = {name: np.asarray(columns[name], np.float64) for name in (self.result, *self.names)}
        found, given = self.of(columns), columns[self.result]
        size = sum(abs(f) * np.abs(np.prod([columns[n] for n in names], axis=0)) for f, names in self.terms)
        return (np.abs(found - given) <= CLOSE * (size + np.abs(given))) | (np.isnan(found) & np.isnan(given))

    def solve(self, name: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """The part `name` `(N,)` from the result and the other parts; NaN where they do not tell it."""
        given = np.asarray(columns[self.result], np.float64)
        rest, slope = (self.of({**columns, name: np.full_like(given, value)}) for value in (0, 1))
        powers = max(names.count(name) for _, names in self.terms)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (given - rest) / (slope - rest)
        return np.where(np.isfinite(found) & (powers == 1), found, np.nan)

    def describe(self) -> str:
        """As it is written: `total=p1+p2`."""
        words = ""
        for factor, names in self.terms:
            sign = "-" if factor < 0 else "+" if words else ""
            words += f"{sign}{'' if abs(factor) == 1 else f'{abs(factor):g}*'}{'*'.join(names)}"
        return f"{self.result}={words}"


def parse(text: str, known: list[str]) -> list[Relation]:
    """Of `total=p1+p2,pay=rate*hours`; raises OptionError for what is no such, or of no column."""
    word = "|".join(re.escape(name) for name in sorted(known, key=len, reverse=True))
    term = rf"\s*([+-])?\s*((?:(?:{word}|\d+(?:\.\d+)?)\s*\*\s*)*(?:{word}))\s*"
    whole = re.compile(rf"\s*({word})\s*=((?:{term})+)(?:,|$)")
    found, at = [], 0
    while at < len(text):
        match = whole.match(text, at)
        if match is None:
            raise OptionError(
                f"keep (--keep) takes RESULT=COLUMN+COLUMN,... with +, -, * and numbers; got {text[at:]!r}; "
                f"columns are {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"
            )
        terms = []
        for sign, product in re.findall(term, match.group(2)):
            factors = re.findall(rf"{word}|\d+(?:\.\d+)?", product)
            names = tuple(factor for factor in factors if factor in known)
            number = float(np.prod([float(factor) for factor in factors if factor not in known]))
            terms.append((-number if sign == "-" else number, names))
        relation = Relation(match.group(1), tuple(terms))
        if relation.result in relation.names:
            raise OptionError(f"keep (--keep): {relation.result!r} stands on both sides of {relation.describe()!r}")
        found.append(relation)
        at = match.end()
    return found


def find(columns: Mapping[str, np.ndarray], most: int) -> list[Relation]:
    """Relations in all rows of at most `most` columns: one is another, the sum or product of two, or of many the sum.

    Each column is the result of one at most, and stands in none that is found after it is.
    """
    names = [name for name, values in columns.items() if len(np.unique(values)) > 1][:most]
    found: list[Relation] = []
    for result in reversed(names):  # totals tend to come last
        free = [name for name in names if name != result and name not in {one.result for one in found}]
        if any(result in one.names for one in found):
            continue
        relation = _one(result, free, columns)
        if relation is not None:
            found.append(relation)
    return found


def _one(result: str, free: list[str], columns: Mapping[str, np.ndarray]) -> Relation | None:
    given = columns[result]
    for name in free:
        if (one := Relation(result, ((1.0, (name,)),))).holds(columns).all():
            return one
    for i, a in enumerate(free):
        for b in free[i + 1 :]:
            x, y = columns[a][:8], columns[b][:8]
            for terms, start in (
                (((1.0, (a,)), (1.0, (b,))), x + y),
                (((1.0, (a,)), (-1.0, (b,))), x - y),
                (((1.0, (b,)), (-1.0, (a,))), y - x),
                (((1.0, (a, b)),), x * y),
            ):
                one = Relation(result, terms)
                if np.allclose(start, given[:8], equal_nan=True) and one.holds(columns).all():
                    return one
    return _sum_of_many(result, free, columns)


def _sum_of_many(result: str, free: list[str], columns: Mapping[str, np.ndarray]) -> Relation | None:
    """By least squares, where the weights are -1, 0 and 1."""
    x = np.stack([columns[name] for name in free], 1) if len(free) > 2 else np.zeros((0, 0))
    if len(x) <= len(free) or not np.isfinite(x).all() or not np.isfinite(columns[result]).all():
        return None
    weights = np.linalg.lstsq(x, columns[result], rcond=None)[0]
    if np.abs(weights - np.rint(weights)).max() > 1e-6 or np.abs(np.rint(weights)).max() > 1:
        return None
    one = Relation(result, tuple((w, (name,)) for w, name in zip(np.rint(weights).tolist(), free, strict=True) if w))
    return one if one.terms and one.holds(columns).all() else None
