"""Tables: the kind of every column, what is refused and why, and the Space fitted on the training split."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from fivefold.data.raw import Options, Part, Raw, Subset, part_of
from fivefold.errors import DataError
from fivefold.space import Column, Space

WIDE = 2**24  # whole numbers beyond this are not exact in float32, in which tables are encoded
DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}")


@dataclass(frozen=True)
class TableRows:
    """Some rows and columns of a DataFrame, without a copy: it may be a memory map."""

    frame: pd.DataFrame
    index: np.ndarray | None = None
    hidden: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frame) if self.index is None else len(self.index)

    def __getitem__(self, index: Any) -> pd.DataFrame:
        return self.frame.iloc[index if self.index is None else self.index[index]][self.columns]

    @property
    def columns(self) -> list[str]:
        return [name for name in self.frame.columns if name not in self.hidden]

    def column(self, name: str) -> pd.Series:
        return self.frame[name] if self.index is None else self.frame[name].iloc[self.index]


def flat(rows: Any) -> TableRows:
    """A subset of a table as a table."""
    if not isinstance(rows, Subset):
        return rows
    whole = flat(rows.rows)
    return replace(whole, index=rows.index if whole.index is None else whole.index[rows.index])


def from_frame(frame: pd.DataFrame, named: bool = True, labels: np.ndarray | None = None) -> Raw:
    """The Raw of a DataFrame; a column `split` of train/valid/test makes the parts.

    `named` is False for arrays, whose samples come back as arrays.
    """
    frame = frame.rename(columns=str).reset_index(drop=True)
    twice = sorted(set(frame.columns[frame.columns.duplicated()]))
    if twice:
        raise DataError(f"column names that occur twice: {', '.join(twice)}; give each column its own name")
    if not len(frame) or not len(frame.columns):
        raise DataError(f"the table is empty: {len(frame)} rows, {len(frame.columns)} columns")
    raw = Raw("table", {}, facts={"named": named})
    if "Unnamed: 0" in frame and frame["Unnamed: 0"].equals(pd.Series(range(len(frame)), name="Unnamed: 0")):
        frame = frame.drop(columns="Unnamed: 0")
        raw.notes.append("the first column has no name and counts the rows: left out")
    raw.parts = _parts(frame, labels, raw.notes)
    return raw


def _parts(frame: pd.DataFrame, labels: np.ndarray | None, notes: list[str]) -> dict[str, Part]:
    names = frame["split"].map(part_of) if "split" in frame else None
    if names is None or names.isna().any() or "train" not in set(names):
        return {"train": Part(TableRows(frame), labels)}
    notes.append("parts by the column 'split'")
    frame = frame.drop(columns="split")
    return {
        str(name): Part(TableRows(frame.iloc[index]), None if labels is None else labels[index])
        for name, index in names.groupby(names).indices.items()
    }


def prepare(raw: Raw, options: Options) -> None:
    """Before splitting: rows with missing values are dropped where the user asks for it, and refused where not."""
    for name, part in raw.parts.items():
        frame = flat(part.rows).frame
        lacking = {c: frame[c].isna().to_numpy() for c in frame if _is_numeric(frame[c]) and frame[c].isna().any()}
        if not lacking:
            continue
        counts = ", ".join(f"{column} ({rows.sum()})" for column, rows in lacking.items())
        if options.missing != "drop":
            raise DataError(
                f"columns with missing values, of {len(frame)} rows: {counts}; "
                "fill them first, or pass missing='drop' (--missing drop) to leave those rows out"
            )
        keep = ~np.any(list(lacking.values()), axis=0)
        if not keep.any():
            raise DataError(f"no row is without missing values: {counts}")
        raw.parts[name] = Part(TableRows(frame[keep]), None if part.labels is None else part.labels[keep])
        raw.notes.append(f"{(~keep).sum()} of {len(frame)} rows dropped for missing values: {counts}")


def fit(raw: Raw, options: Options) -> Space:
    """The Space of a table; kinds and ranges from all rows (they are the support), scaling from the training part."""
    parts = {name: flat(part.rows) for name, part in raw.parts.items()}
    expected = parts["train"].columns
    for name, rows in parts.items():
        if set(rows.columns) != set(expected):
            raise DataError(
                f"the {name} part has columns {', '.join(rows.columns)}; training has {', '.join(expected)}"
            )
    return table_space([fit_column(parts, name, raw.notes) for name in expected], raw.facts["named"])


def fit_column(parts: dict[str, TableRows], name: str, notes: list[str]) -> Column:
    """One column, from all parts but scaled by the training part."""
    everything = pd.concat([rows.column(name) for rows in parts.values()], ignore_index=True)
    return infer_column(everything, parts["train"].column(name), notes)


def table_space(columns: list[Column], named: bool) -> Space:
    counts = {column.levels for column in columns}
    return Space(
        "table",
        (len(columns),),
        levels=counts.pop() if len(counts) == 1 else None,
        columns=tuple(columns),
        dtype=np.result_type(*[c.dtype for c in columns]).name if not named else "",
        frame=named,
    )


def infer_column(values: pd.Series, train: pd.Series, notes: list[str]) -> Column:
    """The Column of `values` (all rows), scaled by `train`'s; raises DataError for what cannot be modelled."""
    name = str(values.name)
    for test, make in _KINDS:
        if test(values):
            column = make(name, values, train, notes)
            if values.nunique(dropna=False) == 1:
                notes.append(f"column {name!r} is constant")
            return column
    raise DataError(f"column {name!r} holds {values.dtype}: expected numbers, categories, text or booleans")


def _is_date(values: pd.Series) -> bool:
    return pd.api.types.is_datetime64_any_dtype(values) or pd.api.types.is_timedelta64_dtype(values)


def _is_numeric(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _is_category(values: pd.Series) -> bool:
    kinds = pd.api.types
    return isinstance(values.dtype, pd.CategoricalDtype) or kinds.is_bool_dtype(values)


def _is_text(values: pd.Series) -> bool:
    return pd.api.types.is_object_dtype(values) or pd.api.types.is_string_dtype(values)


def _date(name: str, values: pd.Series, train: pd.Series, notes: list[str]) -> Column:
    raise DataError(
        f"column {name!r} holds dates (such as {values.iloc[0]}): "
        "turn them into numbers (days since the first, say) or leave the column out"
    )


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
    known = train.to_numpy(np.float64)
    location = float(known.mean())
    scale = float(known.std()) if known.max() > known.min() else 1.0
    return Column(name, "real", str(values.dtype), location=location, scale=scale)


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
        _date(name, strings, train, notes)
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
_KINDS: tuple[tuple[Callable[[pd.Series], bool], _Make], ...] = (
    (_is_date, _date),
    (_is_category, _category),
    (pd.api.types.is_integer_dtype, _integer),
    (pd.api.types.is_float_dtype, _real),
    (_is_text, _text),
)
