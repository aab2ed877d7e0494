"""What a column of a table is: told by its values or by the user, refused with the way out where unknown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from fivefold.errors import DataError, OptionError
from fivefold.space import Column, LeftOut
from fivefold.space.dates import dates_of

HEAVY = 2.0  # skewness: that of an exponential
FEW = 20  # rows, in which nothing is said by values that are all different
WIDE = 2**24  # whole numbers beyond this are not exact in float32, in which tables are encoded
DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}")
KINDS = ("real", "integer", "category", "ordered", "date", "identifier", "drop")


def kinds_told(text: str) -> dict[str, str]:
    """What a user says of columns, `zip=category,income=real`, by name; OptionError for what is no kind."""
    told = {}
    for part in re.split(rf",(?=[^,]*=(?:{'|'.join(KINDS)})(?:,|:|$))", text) if text else []:
        name, _, kind = part.rpartition("=")
        if not name or (kind not in KINDS and not kind.startswith("date:")):
            raise OptionError(f"columns (--columns) takes NAME=KIND,...; kinds are {', '.join(KINDS)}; got {part!r}")
        told[name.strip()] = kind
    return told


def identifier(values: pd.Series, place: int) -> LeftOut | None:
    """How such values are made anew; None where they repeat, are few, or are neither a range nor codes of one form."""
    number = pd.api.types.is_integer_dtype(values)
    if not number and not (_is_text(values) and values.map(lambda v: isinstance(v, str)).all()):
        return None
    if len(values) < FEW or values.isna().any() or not values.is_unique:
        return None
    name, dtype = str(values.name), str(values.dtype)
    if number:
        low, high = int(values.min()), int(values.max())
        return LeftOut(name, place, start=high + 1, dtype=dtype) if high - low + 1 == len(values) else None
    lengths = values.str.len().unique()
    if len(lengths) > 1 or not lengths[0]:
        return None
    alphabets = tuple("".join(sorted(set(symbols))) for symbols in zip(*values, strict=True))
    is_code = math.prod(map(len, alphabets)) > len(values) and " " not in "".join(alphabets)
    return LeftOut(name, place, alphabets=alphabets, dtype=dtype) if is_code and not is_date(values) else None


def constant(values: pd.Series, place: int) -> LeftOut | None:
    """A real number that is the same in every row, of which there is no density; None for other columns."""
    if not pd.api.types.is_float_dtype(values) or values.nunique(dropna=False) != 1 or not np.isfinite(values.iloc[0]):
        return None
    return LeftOut(str(values.name), place, value=float(values.iloc[0]), dtype=str(values.dtype))


def infer_column(values: pd.Series, train: pd.Series, notes: list[str], told: str | None = None) -> Column:
    """The Column of `values` (all rows), scaled by `train`'s; raises DataError for what cannot be modelled."""
    name = str(values.name)
    if told == "ordered" and not isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(pd.CategoricalDtype(sorted(values.dropna().unique().tolist()), ordered=True))
    if told in ("real", "integer") and not is_numeric(values):
        raise DataError(f"column {name!r} cannot be {told} (--columns): it holds {values.dtype}")
    if told == "integer" and not (values.round() == values).all():
        raise DataError(f"column {name!r} cannot be integer (--columns): it has fractions")
    if told is not None and told.startswith("date"):
        return _date(name, values, train, notes, told.removeprefix("date").removeprefix(":"))
    for test, make in _KINDS if told is None else ((lambda values: True, _TOLD[told]),):
        if test(values):
            column = make(name, values, train, notes)
            if values.nunique(dropna=False) == 1:
                notes.append(f"column {name!r} is constant")
            return column
    raise DataError(f"column {name!r} holds {values.dtype}: expected numbers, categories, text or booleans")


def _is_duration(values: pd.Series) -> bool:
    return pd.api.types.is_timedelta64_dtype(values)


def is_date(values: pd.Series) -> bool:
    """Whether all that is given are datetimes, or text of one format of dates."""
    if not pd.api.types.is_datetime64_any_dtype(values) and not _is_text(values):
        return False
    return dates_of(values) is not None


def is_numeric(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _is_category(values: pd.Series) -> bool:
    kinds = pd.api.types
    return isinstance(values.dtype, pd.CategoricalDtype) or kinds.is_bool_dtype(values)


def _is_whole(values: pd.Series) -> bool:
    """Whether floats are few whole numbers, such as 0.0 and 1.0: no density could be had of them."""
    if not pd.api.types.is_float_dtype(values) or not np.isfinite(values).all():
        return False
    return bool((values == values.round()).all()) and 1 < values.nunique() < min(FEW, len(values) / 10)


def _is_text(values: pd.Series) -> bool:
    return pd.api.types.is_object_dtype(values) or pd.api.types.is_string_dtype(values)


def _duration(name: str, values: pd.Series, train: pd.Series, notes: list[str]) -> Column:
    raise DataError(
        f"column {name!r} holds durations (such as {values.iloc[0]}): turn them into numbers (seconds, say), or leave "
        f"the column out (--columns '{name}=drop')"
    )


def _date(name: str, values: pd.Series, train: pd.Series, notes: list[str], told: str = "") -> Column:
    """Whole steps of a day, a minute, ... since 1970; real where they span too many."""
    found = dates_of(values, told)
    if found is None:
        raise DataError(f"column {name!r} holds no dates{f' of the form {told}' if told else ''}, or of several forms")
    dates, exchangeable = found
    if exchangeable:
        notes.append(
            f"column {name!r}: dates read as {dates.format}, though day and month could be exchanged "
            f"(--columns '{name}=date:%m/%d/%Y' says otherwise)"
        )
    steps, known = (pd.Series(dates.numbers(one), name=name) for one in (values, train))
    column = _integer(name, steps.astype("int64"), known, notes)
    return replace(column, dtype=str(values.dtype), dates=dates)


def _real(name: str, values: pd.Series, train: pd.Series, notes: list[str]) -> Column:
    x = values.to_numpy(np.float64)
    infinite = int(np.isinf(x).sum())
    if infinite:
        raise DataError(f"column {name!r} has {infinite} infinite values; remove or fill them first")
    distinct = values.nunique()
    if 1 < distinct <= 20 and distinct < len(values) / 10:
        notes.append(
            f"column {name!r} is real by its type but has {distinct} values only: its density has no upper limit; "
            "give whole numbers as integers, names as text"
        )
    known, low = train.to_numpy(np.float64), float(x.min())
    log = low > 0 and _skewness(known) > HEAVY and abs(_skewness(np.log(known))) < _skewness(known) / 2
    if log:
        notes.append(f"column {name!r} is positive and heavily skewed: modelled by its logarithm, counted in densities")
        known = np.log(known)
    unit = float(np.abs(known).max()) or 1.0  # so that squares of large numbers stay finite
    location, scale = float((known / unit).mean()) * unit, float((known / unit).std()) * unit
    return Column(
        name, "real", str(values.dtype), location=location, scale=scale if known.max() > known.min() else 1.0, log=log,
        low=low if low >= 0 else None,
    )  # fmt: skip


def _skewness(x: np.ndarray) -> float:
    """The third moment of the standardised numbers; 0 of a constant."""
    unit = np.abs(x).max() or 1.0
    centred = x / unit - (x / unit).mean()
    spread = centred.std()
    return float((centred**3).mean() / spread**3) if spread > 0 else 0.0


def _integer(name: str, values: pd.Series, train: pd.Series, notes: list[str]) -> Column:
    low, high = int(values.min()), int(values.max())
    if high - low >= WIDE:
        notes.append(f"column {name!r} spans {high - low + 1:,} whole numbers: modelled as real values")
        return _real(name, values, train, notes)
    return Column(name, "integer", str(values.dtype), location=float(low), levels=high - low + 1)


def _category(name: str, values: pd.Series, train: pd.Series, notes: list[str]) -> Column:
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        known, kind = list(dtype.categories), "ordered category" if dtype.ordered else "category"
    else:
        known, kind = sorted(values.dropna().unique().tolist(), key=lambda v: (str(type(v)), v)), str(dtype)
    if values.isna().any():
        notes.append(f"column {name!r}: {int(values.isna().sum())} missing values are a category of their own")
        known.append(None)
    odd = [value for value in map(_plain, known) if not isinstance(value, str | int | float | None)]
    if odd:
        raise DataError(f"column {name!r} has categories of type {type(odd[0]).__name__}: turn them into text")
    return Column(name, "categorical", kind, levels=len(known), categories=tuple(map(_plain, known)))


def _text(name: str, values: pd.Series, train: pd.Series, notes: list[str]) -> Column:
    given = values.dropna()
    if not len(given):
        raise DataError(f"column {name!r} is empty: leave it out")
    strings = given[given.map(lambda v: isinstance(v, str))]
    if len(strings) and strings.map(lambda v: bool(DATE.match(v))).mean() > 0.9:
        raise DataError(
            f"column {name!r} holds dates of several forms, or mixed with others (such as {strings.iloc[0]}): give "
            f"them one, or leave the column out (--columns '{name}=drop')"
        )
    unlike = given.map(lambda v: not isinstance(v, str | bool | int))
    if unlike.any():
        raise DataError(
            f"column {name!r} holds {type(given[unlike].iloc[0]).__name__} among others: expected text or categories"
        )
    distinct = given.nunique()
    numbers = pd.to_numeric(strings, errors="coerce").notna()
    if distinct > 20 and numbers.mean() > 0.5:
        odd = ", ".join(map(repr, strings[~numbers].unique()[:3])) or "none that is no number"
        raise DataError(f"column {name!r} holds numbers as text, among them {odd}: leave such cells empty or mend them")
    if distinct > max(20, len(given) / 2):
        raise DataError(
            f"column {name!r} holds free text ({distinct} different values in {len(given)} rows): "
            "leave it out, or turn it into categories"
        )
    return _category(name, values, train, notes)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


_TOLD = {"real": _real, "integer": _integer, "category": _category, "ordered": _category}
_Make = Callable[[str, pd.Series, pd.Series, list[str]], Column]
_KINDS: tuple[tuple[Callable[[pd.Series], bool], _Make], ...] = (
    (is_date, _date),
    (_is_duration, _duration),
    (_is_category, _category),
    (pd.api.types.is_integer_dtype, _integer),
    (_is_whole, _integer),
    (pd.api.types.is_float_dtype, _real),
    (_is_text, _text),
)
