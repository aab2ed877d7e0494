"""What a column of a table is: told by its values or by the user, refused with the way out where unknown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from fivefold.errors import DataError, OptionError
from fivefold.space import Column, LeftOut
from fivefold.space.column import multiples
from fivefold.space.dates import dates_of

HEAVY = 2.0  # skewness: that of an exponential
FEW = 20  # rows, in which nothing is said by values that are all different
WIDE = 2**24  # whole numbers beyond this are not exact in float32, in which tables are encoded
MOST_LEVELS = 1024  # whole numbers of a wider range are real ones of step 1
MOST_DECIMALS = 6  # that a resolution has
SAMPLED = 1000  # rows that are looked at first
REGULAR = 0.995  # share of the rows that have the resolution
REPEATS = 0.95  # share of different values below which rounding shows
ATOM = 0.02  # share of the rows
OUTSTANDING = 10.0  # times what other values have
MOST_ATOMS = 8
FEWEST_WITH_ATOMS = 16  # levels; fewer can be told apart as they are
MOST_CATEGORIES = 256  # that are modelled apart
FEW_FOR_ENDS = 100
TAIL = 1 / 3  # of what lies between the median and the last twentieth; of a Gaussian 0.5 in 100 rows, and more of more
FAR = 100.0  # deviations from the middle, of a Gaussian with the same quartiles
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


def identifier(values: pd.Series, place: int, everything: pd.Series, count: int) -> LeftOut | None:
    """How such values are made anew; None where they repeat, are few, or are neither a range nor codes of one form.

    Args:
        values: of some rows, or of all.
        place: among all columns.
        everything: those and the smallest and largest, perhaps again.
        count: all rows.
    """
    number = pd.api.types.is_integer_dtype(values)
    if not number and not (_is_text(values) and values.map(lambda v: isinstance(v, str)).all()):
        return None
    if len(values) < FEW or values.isna().any() or not values.is_unique:
        return None
    name, dtype = str(values.name), str(values.dtype)
    if number:
        low, high = int(everything.min()), int(everything.max())
        return LeftOut(name, place, start=high + 1, dtype=dtype) if high - low + 1 == count else None
    lengths = values.str.len().unique()
    if len(lengths) > 1 or not lengths[0]:
        return None
    alphabets = tuple("".join(sorted(set(symbols))) for symbols in zip(*values, strict=True))
    is_code = math.prod(map(len, alphabets)) > count and " " not in "".join(alphabets)
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
    if told == "integer" and not (values.dropna().round() == values.dropna()).all():
        raise DataError(f"column {name!r} cannot be integer (--columns): it has fractions")
    if told is not None and told.startswith("date"):
        return _date(name, values, train, notes, told.removeprefix("date").removeprefix(":"))
    makers = [make for test, make in _KINDS if test(values)] if told is None else [_TOLD[told]]
    if makers:
        column = makers[0](name, values, train, notes)
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
    if not pd.api.types.is_float_dtype(values):
        return False
    given = floats(values.dropna())
    if not np.isfinite(given).all() or not (given == given.round()).all():
        return False
    whole_but_for_the_missing = len(given) < len(values) and len(given) > 0 and np.ptp(given) < MOST_LEVELS
    return bool(whole_but_for_the_missing or 1 < len(np.unique(given)) < min(FEW, len(values) / 10))


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
    column = _integer(name, steps, known, notes)
    return replace(column, dtype=str(values.dtype), dates=dates, span=(float(steps.min()), float(steps.max())))


def _real(name: str, values: pd.Series, train: pd.Series, notes: list[str]) -> Column:
    """Standardised, along the curve that suits; what repeats and what is missing have a probability of their own."""
    x = floats(values)
    if infinite := int(np.isinf(x).sum()):
        raise DataError(f"column {name!r} has {infinite} infinite values; remove or fill them first")
    given = floats(train)
    given = given[~np.isnan(given)]
    if not len(given):
        raise DataError(f"column {name!r} has no number in the training part: leave it out (--columns '{name}=drop')")
    step = resolution(x[~np.isnan(x)])
    atoms = _atoms(given)
    numbers = given[~np.isin(given, atoms)]
    numbers = numbers if len(numbers) else given  # a constant, in the training part
    plain = x[~np.isnan(x) & ~np.isin(x, atoms)]
    low = float(plain.min(initial=np.inf))
    if low == 0 and _skewness(numbers) > HEAVY and 0 not in atoms:  # zeros, which have no logarithm
        atoms, numbers = (0.0, *atoms), numbers[numbers > 0]
        low = float(x[x > 0].min())
    column = _along(_curve(numbers, low), numbers, Column(name, "real", str(values.dtype)))
    cells = step is not None and len(np.unique(numbers)) < REPEATS * len(numbers)
    has_low, has_high = 0 <= low < np.inf or _ends(-numbers), _ends(numbers)
    column = replace(
        column, low=low if has_low else None, high=float(plain.max()) if has_high else None, step=step, cells=cells,
        atoms=atoms,
    )  # fmt: skip
    notes.extend(_said(column, given))
    return _or_missing(column, values, notes)


def _ends(x: np.ndarray) -> bool:
    """Whether numbers end at their largest and have no tail there: percentages do, and marks of 1 to 6."""
    if len(x) < FEW_FOR_ENDS:
        return False
    middle, near, end = np.quantile(x, [0.5, 0.95, 1.0])
    return bool(end - near < TAIL * (near - middle))


def floats(values: pd.Series) -> np.ndarray:
    """As float64, missing ones NaN, also those of pandas' nullable types."""
    return values.astype("Float64").to_numpy(np.float64, na_value=np.nan)


def _said(column: Column, given: np.ndarray) -> list[str]:
    """What to tell of a real column."""
    name, lines = column.name, []
    if column.atoms:
        shares = ", ".join(f"{atom:g} ({(given == atom).mean():.0%} of the rows)" for atom in column.atoms)
        lines.append(f"column {name!r}: {shares}: a probability of its own beside the density of the rest")
    if column.curve == "log":
        lines.append(f"column {name!r} is positive and heavily skewed: modelled by its logarithm, counted in densities")
    if column.curve == "asinh":
        lines.append(f"column {name!r} has far outliers: modelled by its inverse hyperbolic sine, counted in densities")
    if column.cells:
        lines.append(f"column {name!r} is rounded to {column.step:g}: its density is the mean over such a step")
    return lines


def _or_missing(column: Column, values: pd.Series, notes: list[str]) -> Column:
    """With the probability of being missing, where some are."""
    lacking = int(values.isna().sum())
    if not lacking:
        return column
    notes.append(f"column {column.name!r}: {lacking} of {len(values)} are missing: a probability of its own")
    return replace(column, missing=True)


def resolution(x: np.ndarray) -> float | None:
    """The largest of 1000, 100, ..., 1e-6 of which nearly all numbers are multiples; None where there is no such.

    A few that were interpolated between others, say, come back rounded like the rest.
    """
    if not len(x):
        return None
    largest = float(np.abs(x).max())
    for exponent in range(3, -MOST_DECIMALS - 1, -1):
        step = 10.0**exponent
        if largest / step >= 2**53 or (exponent > 0 and largest < 100 * step):
            continue
        if all((multiples(part, step) == part).mean() >= REGULAR for part in (x[:SAMPLED], x)):
            return step
    return None


def _atoms(x: np.ndarray) -> tuple[float, ...]:
    """Values of such a share that no density has them: a fiftieth of all, and ten times what the others have."""
    values, counts = np.unique(x, return_counts=True)
    if len(values) < 2:
        return ()
    order = np.argsort(-counts, kind="stable")
    values, counts = values[order], counts[order]
    others = (len(x) - counts.cumsum()) / np.maximum(len(values) - 1 - np.arange(len(values)), 1)
    stands_out = (counts >= max(5, ATOM * len(x))) & (counts >= OUTSTANDING * others)
    most = int(np.argmin(stands_out)) if not stands_out.all() else 0
    return tuple(sorted(values[: min(most, MOST_ATOMS)].tolist()))


def _curve(x: np.ndarray, low: float) -> str:
    """Along which numbers are less skewed, or their outliers less far: "log", "asinh" or "" for the straight line."""
    skewness = _skewness(x)
    if low > 0 and skewness > HEAVY and abs(_skewness(np.log(x))) < skewness / 2:
        return "log"
    middle, unit = _robust(x)
    return "asinh" if unit > 0 and np.abs((x - middle) / unit).max() > FAR else ""


def _robust(x: np.ndarray) -> tuple[float, float]:
    """The median, and the deviation of a Gaussian with the quartiles of `x`."""
    low, middle, high = np.quantile(x, [0.25, 0.5, 0.75])
    return float(middle), float((high / 2 - low / 2) / 0.6745)


def _along(curve: str, x: np.ndarray, column: Column) -> Column:
    """The column standardised along a curve."""
    middle, unit = _robust(x) if curve == "asinh" else (0.0, 1.0)
    column = replace(column, curve=curve, middle=middle, unit=unit)
    straight = column.straighten(x)
    largest = float(np.abs(straight).max()) or 1.0  # so that squares of large numbers stay finite
    location, scale = float((straight / largest).mean()) * largest, float((straight / largest).std()) * largest
    return replace(column, location=location, scale=scale if straight.max() > straight.min() else 1.0)


def _skewness(x: np.ndarray) -> float:
    """The third moment of the standardised numbers; 0 of a constant."""
    unit = np.abs(x).max() or 1.0
    centred = x / unit - (x / unit).mean()
    spread = centred.std()
    return float((centred**3).mean() / spread**3) if spread > 0 else 0.0


def _integer(name: str, values: pd.Series, train: pd.Series, notes: list[str], most: int = MOST_LEVELS) -> Column:
    """Levels where they are few enough for a probability each, else real numbers of step 1."""
    given = values.dropna()
    low, high = int(given.min()), int(given.max())
    if high - low >= most:
        notes.append(f"column {name!r} spans {high - low + 1:,} whole numbers: modelled as real ones that are rounded")
        return _real(name, values, train, notes)
    atoms = _atoms(floats(train.dropna())) if high - low >= FEWEST_WITH_ATOMS else ()
    column = Column(name, "integer", str(values.dtype), location=float(low), levels=high - low + 1, atoms=atoms)
    return _or_missing(column, values, notes)


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
    column = Column(name, "categorical", kind, levels=len(known), categories=tuple(map(_plain, known)))
    return column if kind == "ordered category" else replace(column, rare=_rare(column, train, notes))


def _rare(column: Column, train: pd.Series, notes: list[str]) -> tuple[float, ...]:
    """The share of each category of the group of rare ones, where there are very many; 0 for the others."""
    if len(column.categories) <= MOST_CATEGORIES:
        return ()
    place = {category: i for i, category in enumerate(column.categories)}
    counts = np.zeros(len(place))
    for value, count in train.value_counts(dropna=False).items():
        counts[place[None if pd.isna(value) else _plain(value)]] += count
    apart = np.argsort(-counts, kind="stable")[: MOST_CATEGORIES - 1]
    shares = counts + 1  # so that none is impossible
    shares[apart] = 0
    notes.append(
        f"column {column.name!r} has {len(place):,} categories: the {len(apart)} most frequent are modelled apart, the "
        f"others, {counts[shares > 0].sum() / counts.sum():.0%} of the rows, as one, and drawn by their frequencies"
    )
    return tuple((shares / shares.sum()).tolist())


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


_Make = Callable[[str, pd.Series, pd.Series, list[str]], Column]
_TOLD: dict[str, _Make] = {
    "real": _real,
    "integer": partial(_integer, most=WIDE),
    "category": _category,
    "ordered": _category,
}
_KINDS: tuple[tuple[Callable[[pd.Series], bool], _Make], ...] = (
    (is_date, _date),
    (_is_duration, _duration),
    (_is_category, _category),
    (pd.api.types.is_integer_dtype, _integer),
    (_is_whole, _integer),
    (pd.api.types.is_float_dtype, _real),
    (_is_text, _text),
)
