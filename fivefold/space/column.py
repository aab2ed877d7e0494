"""Column: what one column of a table is, and how its values are encoded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fivefold.errors import DataError
from fivefold.space.dates import Dates
from fivefold.space.written import Numbers


@dataclass(frozen=True)
class Column:
    """One column of a table.

    `kind` is "real", "integer" or "categorical". Real: encoded as (value - location) / scale, with `log` of the
    value's logarithm; samples are at least `low` where that is given.
    Integer: encoded as value - location, in {0..levels-1}. Categorical: index into `categories`.
    `dtype` is the NumPy or pandas dtype in which samples come back, `written` how a file had its numbers: real
    values come back with as many decimals. `dates`: the numbers are steps since 1970 of dates so written.
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
    log: bool = False
    low: float | None = field(default=None, compare=False)

    def log_det(self, codes: Tensor) -> Tensor:
        """ln |d encoded / d value| in nats at each code; 0 for discrete columns (unit steps stay unit steps)."""
        if self.kind != "real":
            return torch.zeros_like(codes)
        constant = torch.full_like(codes, -math.log(self.scale))
        return constant - (codes * self.scale + self.location) if self.log else constant  # d ln v / d v = 1 / v

    def describe(self) -> str:
        """One line for people: name, kind, and the scaling, range or categories."""
        if self.dates is not None:
            spread = (-2 * self.scale, 2 * self.scale) if self.kind == "real" else (0, (self.levels or 1) - 1)
            low, high = (self.location + one for one in spread)
            return f"{self.name}: {'most ' if self.kind == 'real' else ''}{self.dates.describe(low, high)}"
        if self.log:
            middle, factor = math.exp(self.location), math.exp(self.scale)
            return f"{self.name}: real and positive, {middle:.6g} times or by {factor:.3g} (by its logarithm)"
        if self.kind == "real":
            return f"{self.name}: real, mean {self.location:.6g}, standard deviation {self.scale:.6g}"
        if self.kind == "integer":
            return f"{self.name}: integer, {self.location:.0f} to {self.location + (self.levels or 1) - 1:.0f}"
        shown = ", ".join("(missing)" if value is None else str(value) for value in self.categories[:8])
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
            values = np.asarray(values if self.dates is None else self.dates.numbers(values), dtype=np.float64)
        except DataError as error:
            raise DataError(f"column {self.name!r}: {error}") from error
        except (TypeError, ValueError) as error:
            raise DataError(f"column {self.name!r}: expected numbers ({error})") from error
        if not np.isfinite(values).all():
            raise DataError(f"column {self.name!r} has {(~np.isfinite(values)).sum()} missing or infinite values")
        if self.kind == "integer":
            code = values - self.location
            assert self.levels is not None
            if (code < 0).any() or (code >= self.levels).any() or (code != np.round(code)).any():
                top = self.location + self.levels - 1
                raise DataError(
                    f"column {self.name!r}: expected whole numbers from {self.location:g} to {top:g}, "
                    f"got values from {values.min():g} to {values.max():g}"
                )
            return code.astype(np.float32)
        if self.log:
            if (values <= 0).any():
                raise DataError(f"column {self.name!r}: expected positive numbers, got {values.min():g}")
            values = np.log(values)
        return ((values - self.location) / self.scale).astype(np.float32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Values of codes, as float64, int64 or objects; the table gives them their dtype."""
        codes = codes.astype(np.float64)
        if self.kind == "real":
            values = codes * self.scale + self.location
            values = np.exp(values) if self.log else values
            values = values if self.low is None else np.maximum(values, self.low)
            values = values if self.written is None else values.round(self.written.decimals)
            return values if "float" in self.dtype.lower() or self.dates else np.rint(values).astype(np.int64)
        assert self.levels is not None
        codes = np.clip(np.round(codes), 0, self.levels - 1)
        if self.kind == "integer":
            return (codes + self.location).astype(np.int64)
        values = np.empty(len(self.categories), dtype=object)
        values[:] = self.categories
        return values[codes.astype(int)]

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        written, dates = record.get("written"), record.get("dates")
        parts = {"written": Numbers(**written) if written else None, "dates": Dates(**dates) if dates else None}
        return cls(**{**record, "categories": tuple(record["categories"]), **parts})


@dataclass(frozen=True)
class LeftOut:
    """A column that is not modelled and made anew in samples: it tells rows apart, or is one real number throughout.

    Args:
        name: of the column.
        place: among all columns.
        start: of a running number, the first that no row has.
        alphabets: of a code, the symbols at each of its places.
        value: of a constant, in whose dtype it comes back.
        dtype: that dtype.
    """

    name: str
    place: int
    start: int = 0
    alphabets: tuple[str, ...] = ()
    value: float | None = None
    dtype: str = "int64"

    def describe(self) -> str:
        """What it is, in words."""
        if self.value is not None:
            return f"{self.value:g} in every row"
        return f"a code of {len(self.alphabets)} symbols" if self.alphabets else f"a running number, from {self.start}"

    def check(self, values: np.ndarray) -> None:
        """DataError where a constant is another: no model of the rest could say how probable that is."""
        if self.value is not None and (wrong := values[values != self.value]).size:
            raise DataError(
                f"column {self.name!r} was {self.value:g} in every row of the training data, got {wrong[0]}"
            )

    def make(self, n: int) -> np.ndarray:
        """`n` new ones: the next numbers or other codes of the same form, all different; or the constant."""
        if self.value is not None:
            return np.full(n, self.value)
        if not self.alphabets:
            return np.arange(self.start, self.start + n)
        draw, codes = np.random.default_rng(0), dict[str, None]()
        while len(codes) < n:
            columns = [draw.choice(list(symbols), n) for symbols in self.alphabets]
            codes |= dict.fromkeys(map("".join, zip(*columns, strict=True)))
        return np.array(list(codes)[:n], dtype=object)


def _category(value: Any) -> Any:
    """A category as it is stored: NumPy scalars as Python's own, missing as None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is None or value != value else value
