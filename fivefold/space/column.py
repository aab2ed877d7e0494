"""Column: what one column of a table is, and how its values are encoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fivefold.errors import DataError
from fivefold.space.dates import Dates
from fivefold.space.lookup import Lookup
from fivefold.space.relation import Relation
from fivefold.space.written import Numbers


@dataclass(frozen=True)
class Column:
    """One column of a table.

    `kind` is "real", "integer" or "categorical". Real: encoded as (value - location) / scale of the value, of its
    logarithm or of the inverse hyperbolic sine of (value - middle) / unit, as `curve` says; samples are from `low` to
    `high` where these are given, and whole multiples of `step`. Integer: encoded as value - location, in {0..levels-1}.
    Categorical: index into `categories`.

    `atoms` are values that have a probability of their own, in a real column beside the density of the rest; of an
    integer column they tell systems that take examples as points which levels stand out. With `missing` a number may
    be missing: its code is NaN, and it too has a probability. With `cells` the density at a value is the mean over
    the `step` around it. Of very many categories `rare` has the training share of each that is modelled as one of a
    group, 0 for others. `dtype` is the NumPy or pandas dtype in which samples come back, `written` how a file had its
    numbers.
    `dates`: the numbers are steps since 1970 of dates so written, from the first to the last of `span`.
    """

    name: str
    kind: str = "real"
    dtype: str = "float64"
    location: float = 0.0
    scale: float = 1.0
    levels: int | None = None
    categories: tuple[Any, ...] = ()
    written: Numbers | None = field(default=None, compare=False)
    dates: Dates | None = None
    curve: str = ""
    middle: float = 0.0
    unit: float = 1.0
    low: float | None = field(default=None, compare=False)
    high: float | None = field(default=None, compare=False)
    step: float | None = field(default=None, compare=False)
    cells: bool = False
    atoms: tuple[float, ...] = ()
    missing: bool = False
    rare: tuple[float, ...] = ()
    span: tuple[float, float] = (0.0, 0.0)

    @property
    def mixed(self) -> bool:
        """Whether some values have a probability and others a density (or other numbers a probability)."""
        return bool(self.atoms) or self.missing

    @cached_property
    def atom_codes(self) -> np.ndarray:
        """The code of each of `atoms`, float32: their own, or below all others where the curve has none."""
        values = np.array(self.atoms, dtype=np.float64)
        if self.kind == "integer":
            return (values - self.location).astype(np.float32)
        codes = self._straight(np.where(self._on_curve(values), values, 1.0))
        least = self._straight(np.array([self.low or 1.0]))[0] if self.curve == "log" else 0.0
        return np.where(self._on_curve(values), codes, least - 1 - np.arange(len(values))).astype(np.float32)

    def which(self, codes: Tensor) -> Tensor:
        """0 where a code is a number like others, 1... where it is one of `atoms`, after them where it is missing."""
        found = torch.zeros_like(codes)
        for i, atom in enumerate(self.atom_codes, 1):
            found = torch.where(codes == float(atom), float(i), found)
        return torch.where(codes.isnan(), float(1 + len(self.atoms)), found) if self.missing else found

    def log_det(self, codes: Tensor) -> Tensor:
        """ln |d encoded / d value| in nats at each code; 0 where it has a probability (unit steps stay unit steps)."""
        if self.kind != "real":
            return torch.zeros_like(codes)
        straight = codes * self.scale + self.location
        found = torch.full_like(codes, -math.log(self.scale) - math.log(self.unit))
        if self.curve:
            found = found - (straight if self.curve == "log" else straight.cosh().log())
        return torch.where(self.which(codes) > 0, 0.0, found) if self.mixed else found

    def noisy(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes anywhere in the cells of width `step` around those of values, and ln of what that does to the density.

        The mean over the cell of a density of values is the mean of exp(it) p(noisy code) times exp(`log_det`).
        """
        assert self.step is not None
        straight = codes.double() * self.scale + self.location
        values = _BACK[self.curve](straight) + self.step / self.unit * (torch.rand_like(straight) - 0.5)
        new = _THERE[self.curve](values)
        slopes = {"": new.new_zeros(()), "log": straight - new, "asinh": straight.cosh().log() - new.cosh().log()}
        return ((new - self.location) / self.scale).to(codes.dtype), slopes[self.curve].expand(straight.shape)

    def describe(self) -> str:
        """One line for people: name, kind, and the scaling, range or categories."""
        if self.dates is not None:
            spread = (-2 * self.scale, 2 * self.scale) if self.kind == "real" else (0, (self.levels or 1) - 1)
            low, high = (self.location + one for one in spread)
            return f"{self.name}: {'most ' if self.kind == 'real' else ''}{self.dates.describe(low, high)}"
        special = [f"{atom:g}" for atom in self.atoms if self.kind == "real"] + (["missing"] if self.missing else [])
        more = (
            f"; {', '.join(special)} of a probability of {'their' if len(special) > 1 else 'its'} own"
            if special
            else ""
        )
        if self.kind == "real":
            step = f", by {self.step:g}" if self.step else ""
            kind = "whole" if "int" in self.dtype.lower() else "real"
            if self.curve == "log":
                middle, factor = math.exp(self.location), math.exp(self.scale)
                what = f"{kind} and positive, {middle:.6g} times or by {factor:.3g} (by its logarithm)"
            elif self.curve:
                what = f"{kind}, with far outliers (by its inverse hyperbolic sine)"
            else:
                what = f"{kind}, mean {self.location:.6g}, standard deviation {self.scale:.6g}"
            return f"{self.name}: {what}{step}{more}"
        if self.kind == "integer":
            return f"{self.name}: integer, {self.location:.0f} to {self.location + (self.levels or 1) - 1:.0f}{more}"
        shown = ", ".join(
            "(missing)" if value is None else " ".join(str(value).split()) for value in self.categories[:8]
        )
        return f"{self.name}: categorical, {self.levels}: {shown}{', ...' if len(self.categories) > 8 else ''}"

    def parse(self, word: str) -> Any:
        """The value of this column that `word` names."""
        named = {str(category): category for category in self.categories}
        if named and word not in named:
            raise DataError(f"{self.name}: no {word!r} among {', '.join(list(named)[:12])}")
        try:
            return named[word] if named else word if self.dates is not None else float(word)
        except ValueError:
            raise DataError(f"{self.name}: expected a number, got {word!r}") from None

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Codes `(N,)`, float32, of values; raises DataError for what the column does not know."""
        if self.kind == "categorical":
            table = {str(value): code for code, value in enumerate(self.categories)}  # "3" from a command line is 3
            table |= {value: code for code, value in enumerate(self.categories)}
            given = [_category(value) for value in values]
            unknown = sorted({str(value) for value in given if value not in table})
            if unknown:
                more = ", ..." if len(self.categories) > 8 else ""
                raise DataError(
                    f"column {self.name!r}: {', '.join(unknown[:5])} not among the {len(self.categories)} known "
                    f"categories ({', '.join(map(str, self.categories[:8]))}{more})"
                )
            return np.array([table[value] for value in given], dtype=np.float32)
        try:
            numbers: Any = values if self.dates is None else self.dates.numbers(values)
            if numbers.dtype == object:
                numbers = [np.nan if _category(value) is None else value for value in numbers]
            values = np.asarray(numbers, dtype=np.float64)
        except DataError as error:
            raise DataError(f"column {self.name!r}: {error}") from error
        except (TypeError, ValueError) as error:
            raise DataError(f"column {self.name!r}: expected numbers ({error})") from error
        wrong = ~np.isfinite(values) & ~(np.isnan(values) & self.missing)
        if wrong.any():
            raise DataError(f"column {self.name!r} has {wrong.sum()} missing or infinite values")
        known = ~np.isnan(values)
        if self.kind == "integer":
            code = values - self.location
            assert self.levels is not None
            if (code < 0).any() or (code >= self.levels).any() or (code != np.round(code))[known].any():
                top = self.location + self.levels - 1
                raise DataError(
                    f"column {self.name!r}: expected whole numbers from {self.location:g} to {top:g}, "
                    f"got values from {values[known].min():g} to {values[known].max():g}"
                )
            return code.astype(np.float32)
        atoms = [values == atom for atom in self.atoms]
        plain = known & ~np.any(atoms, axis=0) if atoms else known
        if not self._on_curve(values[plain]).all():
            raise DataError(f"column {self.name!r}: expected positive numbers, got {values[plain].min():g}")
        codes = np.full(len(values), np.nan, dtype=np.float32)
        codes[plain] = self._straight(values[plain])
        for atom, code in zip(atoms, self.atom_codes, strict=True):
            codes[atom] = code
        return codes

    def _on_curve(self, values: np.ndarray) -> np.ndarray:
        return values > 0 if self.curve == "log" else np.ones(len(values), dtype=bool)

    def _straight(self, values: np.ndarray) -> np.ndarray:
        return (self.straighten(values) - self.location) / self.scale

    def straighten(self, values: np.ndarray) -> np.ndarray:
        """Along the curve, before they are standardised."""
        return _NUMPY[self.curve]((values - self.middle) / self.unit)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Values of codes, as float64, int64 or objects; the table gives them their dtype."""
        if self.kind == "real":
            values = self._numbers(codes)
            for atom, code in zip(self.atoms, self.atom_codes, strict=True):
                values[codes.astype(np.float32) == code] = atom
            return (
                values
                if "float" in self.dtype.lower() or self.dates or self.missing
                else np.rint(values).astype(np.int64)
            )
        assert self.levels is not None
        codes = np.clip(np.round(codes.astype(np.float64)), 0, self.levels - 1)
        if self.kind == "integer":
            return codes + self.location if self.missing else (codes + self.location).astype(np.int64)
        values = np.empty(len(self.categories), dtype=object)
        values[:] = self.categories
        return values[codes.astype(int)]

    def standing(self, codes: np.ndarray) -> np.ndarray:
        """The codes, float32, of the numbers that real codes come back as: rounded, and no smaller than the least."""
        return self._straight(self._numbers(codes)).astype(np.float32)

    def _numbers(self, codes: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            values = _NUMPY_BACK[self.curve](codes.astype(np.float64) * self.scale + self.location)
            values = np.clip(values * self.unit + self.middle, -LARGEST, LARGEST)
        values = values if self.low is None else np.maximum(values, self.low)
        values = values if self.high is None else np.minimum(values, self.high)
        return values if self.step is None else multiples(values, self.step)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        written, dates = record.get("written"), record.get("dates")
        parts = {"written": Numbers(**written) if written else None, "dates": Dates(**dates) if dates else None}
        lists = {name: tuple(record[name]) for name in ("categories", "atoms", "rare", "span")}
        return cls(**{**record, **lists, **parts})


LARGEST = 1.7e308  # near the largest of float64
_THERE: dict[str, Callable[[Tensor], Tensor]] = {"": lambda v: v, "log": torch.log, "asinh": torch.asinh}
_BACK: dict[str, Callable[[Tensor], Tensor]] = {"": lambda v: v, "log": torch.exp, "asinh": torch.sinh}
_NUMPY: dict[str, Callable[[np.ndarray], np.ndarray]] = {"": lambda v: v, "log": np.log, "asinh": np.arcsinh}
_NUMPY_BACK: dict[str, Callable[[np.ndarray], np.ndarray]] = {"": lambda v: v, "log": np.exp, "asinh": np.sinh}


def multiples(values: np.ndarray, step: float) -> np.ndarray:
    """The nearest multiples of a step, as they are written: 0.07 and not 7 times 0.01."""
    decimals = max(0, -math.floor(math.log10(step))) if step < 1 else 0
    return (np.rint(values / step) * step).round(decimals) if step >= 1 else values.round(decimals)


@dataclass(frozen=True)
class LeftOut:
    """A column that is not modelled and made anew in samples: it tells rows apart, is one real number throughout, or
    follows from others.

    Args:
        name: of the column.
        place: among all columns.
        start: of a running number, the first that no row has.
        alphabets: of a code, the symbols at each of its places.
        value: of a constant.
        relation: by which it follows from others, rounded to multiples of `step` where that is given.
        dtype: in which it comes back.
    """

    name: str
    place: int
    start: int = 0
    alphabets: tuple[str, ...] = ()
    value: float | None = None
    relation: Relation | Lookup | None = None
    step: float | None = None
    dtype: str = "int64"

    def describe(self) -> str:
        """What it is, in words."""
        if self.value is not None:
            return f"{self.value:g} in every row"
        if self.relation is not None:
            return self.relation.describe()
        return f"a code of {len(self.alphabets)} symbols" if self.alphabets else f"a running number, from {self.start}"

    def check(self, values: np.ndarray, columns: Mapping[str, Any]) -> None:
        """DataError where a constant or what follows is another: no model of the rest could tell its probability."""
        if self.value is not None and (wrong := values[values != self.value]).size:
            raise DataError(
                f"column {self.name!r} was {self.value:g} in every row of the training data, got {wrong[0]}"
            )
        if self.relation is not None and not self.relation.holds({**columns, self.name: values}).all():
            raise DataError(f"{self.relation.describe()} held in every row of the training data, not in these")

    def make(self, n: int, columns: Mapping[str, Any]) -> np.ndarray:
        """`n` new ones: the next numbers or other codes of the same form, all different; the constant; or what follows
        from other columns."""
        if self.relation is not None:
            found = self.relation.of(columns)
            return found if self.step is None else multiples(found, self.step)
        if self.value is not None:
            return np.full(n, self.value)
        if not self.alphabets:
            return np.arange(self.start, self.start + n)
        draw, codes = np.random.default_rng(0), dict[str, None]()
        while len(codes) < n:
            places = [draw.choice(list(symbols), n) for symbols in self.alphabets]
            codes |= dict.fromkeys(map("".join, zip(*places, strict=True)))
        return np.array(list(codes)[:n], dtype=object)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        relation = record.get("relation")
        if relation is not None and "pairs" in relation:
            relation = Lookup(**{**relation, "pairs": tuple(map(tuple, relation["pairs"]))})
        elif relation is not None:
            terms = tuple((factor, tuple(names)) for factor, names in relation["terms"])
            relation = Relation(relation["result"], terms)
        return cls(**{**record, "alphabets": tuple(record["alphabets"]), "relation": relation})


def _category(value: Any) -> Any:
    """A category as it is stored: NumPy scalars as Python's own, missing as None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is None or value != value else value
