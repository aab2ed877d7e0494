"""Tables: their rows and parts, and the Space fitted on the training split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from fivefold.data.columns import (
    FEW,
    constant,
    floats,
    identifier,
    infer_column,
    is_date,
    is_numeric,
    kinds_told,
    resolution,
)
from fivefold.data.raw import Options, Part, Raw, Subset, part_of
from fivefold.data.stored import Stored
from fivefold.errors import DataError
from fivefold.space import Column, LeftOut, Space
from fivefold.space.lookup import Lookup, pairs_of
from fivefold.space.lookup import find as lookups
from fivefold.space.relation import Relation, find, parse

RELATED_ROWS = 500  # that are looked at for relations, of so many
RELATED_COLUMNS = 24
COUNTER = "the first column has no name and counts the rows: left out"
SAMPLE = 100_000  # rows of a part that is stored, from which columns are told


@dataclass(frozen=True)
class TableRows:
    """Some rows and columns of a DataFrame, without a copy, or of a table that is stored on disk."""

    frame: pd.DataFrame | Stored
    index: np.ndarray | None = None
    hidden: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frame) if self.index is None else len(self.index)

    def __getitem__(self, index: Any) -> pd.DataFrame:
        if isinstance(self.frame, Stored):
            index = np.arange(len(self))[index] if isinstance(index, slice) else index
            return self.frame.take(index if self.index is None else self.index[index], self.columns)
        return self.frame.iloc[index if self.index is None else self.index[index]][self.columns]

    @property
    def columns(self) -> list[str]:
        return [name for name in self.frame.columns if name not in self.hidden]

    def without(self, *names: str) -> TableRows:
        """The same rows with fewer columns."""
        return replace(self, hidden=(*self.hidden, *names))

    def column(self, name: str) -> pd.Series:
        """All of a column, in memory."""
        if isinstance(self.frame, Stored):
            return self.frame.column(name, self.index)
        return self.frame[name] if self.index is None else self.frame[name].iloc[self.index]

    def lacks(self, name: str) -> bool:
        """Whether a column has missing values."""
        if isinstance(self.frame, Stored):
            return self.frame.kept[name].missing > 0
        return bool(self.column(name).isna().any())

    def sampled(self, name: str) -> pd.Series:
        """A column from which to tell what it is: all of it, or of what is stored `SAMPLE` rows."""
        return self._sample[name] if isinstance(self.frame, Stored) else self.column(name)

    def telling(self, name: str) -> pd.Series:
        """The values to be seen beside the sampled ones; none where those are all."""
        if isinstance(self.frame, Stored) and len(self) > SAMPLE:
            return self.frame.telling(name)
        return self.sampled(name)[:0]

    @cached_property
    def _sample(self) -> pd.DataFrame:
        """In order, one at random from every stretch of equal length."""
        if len(self) <= SAMPLE:
            return self[np.arange(len(self))]
        edges = np.linspace(0, len(self), SAMPLE + 1).astype(np.int64)
        return self[np.random.default_rng(0).integers(edges[:-1], edges[1:])]


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
    frame = checked(frame)
    raw = Raw("table", {}, facts={"named": named})
    if "Unnamed: 0" in frame and frame["Unnamed: 0"].equals(pd.Series(range(len(frame)), name="Unnamed: 0")):
        frame = frame.drop(columns="Unnamed: 0")
        raw.notes.append(COUNTER)
    raw.parts = _parts(TableRows(frame), labels, raw.notes)
    return raw


def encoder(rows: Any, space: Space) -> Callable[[np.ndarray], Tensor]:
    """What encodes the rows at some positions."""
    table = flat(rows)
    if not isinstance(table.frame, Stored):
        return lambda index: space.encode(table[index])
    encode = table.frame.encoder(space.columns)
    return lambda index: encode(index if table.index is None else table.index[index])


def checked(frame: pd.DataFrame) -> pd.DataFrame:
    """With names that are text; DataError where one occurs twice or nothing is there."""
    frame = frame.rename(columns=str).reset_index(drop=True)
    twice = sorted(set(frame.columns[frame.columns.duplicated()]))
    if twice:
        raise DataError(f"column names that occur twice: {', '.join(twice)}; give each column its own name")
    if not len(frame) or not len(frame.columns):
        raise DataError(f"the table is empty: {len(frame)} rows, {len(frame.columns)} columns")
    return frame


def from_stored(table: Stored, named: bool) -> Raw:
    """The Raw of a table that is read from disk as it is needed."""
    raw = Raw("table", {}, facts={"named": named})
    rows = TableRows(table)
    if "Unnamed: 0" in table.columns and (rows.column("Unnamed: 0").to_numpy() == np.arange(len(table))).all():
        rows = rows.without("Unnamed: 0")
        raw.notes.append(COUNTER)
    if len(table) > SAMPLE:
        raw.notes.append(
            f"{len(table):,} rows, read from disk: what columns are, shares, curves and scaling by {SAMPLE:,} rows of "
            "each part; ranges, steps, categories and whether any is missing by all rows"
        )
    raw.parts = _parts(rows, None, raw.notes)
    return raw


def _parts(rows: TableRows, labels: np.ndarray | None, notes: list[str]) -> dict[str, Part]:
    found = rows.column("split") if "split" in rows.columns else pd.Series(dtype=object)
    names = found.map({value: part_of(value) for value in found.unique()})
    if names.isna().any() or "train" not in set(names):
        return {"train": Part(rows, labels)}
    notes.append("parts by the column 'split'")
    rows = rows.without("split")
    return {
        str(name): Part(replace(rows, index=index), None if labels is None else labels[index])
        for name, index in names.groupby(names).indices.items()
    }


def prepare(raw: Raw, options: Options) -> None:
    """Before splitting: columns to drop; rows with missing numbers, modelled, dropped or refused as the user says."""
    told = kinds_told(options.columns)
    for name, part in raw.parts.items():
        rows = flat(part.rows)
        if unknown := [column for column in told if column not in rows.columns]:
            raise DataError(f"columns (--columns): no {', '.join(unknown)} among {', '.join(rows.columns)}")
        if dropped := [column for column, kind in told.items() if kind == "drop"]:
            rows = rows.without(*dropped)
            raw.parts[name] = part = Part(rows, part.labels)
        if options.missing == "model":
            continue
        lacking = {
            column: values.isna().to_numpy() for column in rows.columns
            if rows.lacks(column) and (is_numeric(values := rows.column(column)) or is_date(values))
        }  # fmt: skip
        if not lacking:
            continue
        counts = ", ".join(f"{column} ({lacks.sum()})" for column, lacks in lacking.items())
        if options.missing == "refuse":
            raise DataError(
                f"columns with missing values, of {len(rows)} rows: {counts}; fill them first, leave those rows out "
                "(--missing drop), or let that they are missing be modelled too (--missing model)"
            )
        keep = np.flatnonzero(~np.any(list(lacking.values()), axis=0))
        if not len(keep):
            raise DataError(f"no row is without missing values: {counts}")
        raw.parts[name] = part.take(keep)
        raw.notes.append(f"{len(rows) - len(keep)} of {len(rows)} rows dropped for missing values: {counts}")


def fit(raw: Raw, options: Options) -> Space:
    """The Space of a table; kinds and ranges from all rows (they are the support), scaling from the training part."""
    parts = {name: flat(part.rows) for name, part in raw.parts.items()}
    expected = parts["train"].columns
    for name, rows in parts.items():
        if set(rows.columns) != set(expected):
            raise DataError(
                f"the {name} part has columns {', '.join(rows.columns)}; training has {', '.join(expected)}"
            )
    told, notes = kinds_told(options.columns), raw.notes
    kept = _kept(parts, parse(options.keep, expected) if options.keep else [], told)
    made = [
        found for place, name in enumerate(expected)
        if (found := replace(kept[name], place=place) if name in kept else _left_out(parts, name, place, told, raw))
    ]  # fmt: skip
    for one in made:
        notes.append(f"column {one.name!r} is left out and made anew in samples: {one.describe()}")
    notes.extend(_related(parts["train"], {one.name for one in made}, told))
    modelled = [name for name in expected if name not in {one.name for one in made}]
    if not modelled:
        raise DataError(f"nothing is left to model: {'; '.join(f'{one.name} is {one.describe()}' for one in made)}")
    columns = [replace(fit_column(parts, name, notes, told), written=raw.written.get(name)) for name in modelled]
    return replace(table_space(columns, raw.facts["named"]), dialect=raw.dialect, made=tuple(made))


def _kept(parts: dict[str, TableRows], relations: list[Relation], told: dict[str, str]) -> dict[str, LeftOut]:
    """How the results of relations are made anew; raises DataError for one that does not hold in every row."""
    found: dict[str, LeftOut] = {}
    for relation in relations:
        columns = {
            name: pd.concat([rows.column(name) for rows in parts.values()], ignore_index=True)
            for name in (relation.result, *relation.names)
        }
        dtype = str(parts["train"].column(relation.result).dtype)
        source = relation.copied
        if source and (told.get(source) in ("category", "ordered") or not is_numeric(columns[source])):
            lookup = _looked_up(relation, columns[source], columns[relation.result])
            kept = LeftOut(relation.result, 0, relation=lookup, dtype=dtype)
        else:
            kept = LeftOut(relation.result, 0, relation=relation, step=_step_of(relation, columns), dtype=dtype)
        if chained := [name for name in relation.names if name in found]:
            raise DataError(f"keep (--keep): {chained[0]!r} is itself the result of a relation; put its parts instead")
        found[relation.result] = kept
    return found


def _step_of(relation: Relation, columns: dict[str, pd.Series]) -> float | None:
    """That of the result's numbers; raises DataError where the relation does not hold in every row, or of numbers."""
    for name, values in columns.items():
        if not is_numeric(values):
            source = relation.copied
            more = f", or {source!r} a column of categories (--columns '{source}=category')" if source else ""
            raise DataError(f"keep (--keep): column {name!r} holds {values.dtype}, expected numbers{more}")
    numbers = {name: floats(values) for name, values in columns.items()}
    if not (holds := relation.holds(numbers)).all():
        raise DataError(
            f"keep (--keep): {relation.describe()} holds in {holds.mean():.1%} of the rows only, first not in row "
            f"{int(np.argmin(holds)) + 1}; what does not hold in every row cannot be kept"
        )
    return resolution(numbers[relation.result][~np.isnan(numbers[relation.result])])


def _looked_up(relation: Relation, source: pd.Series, result: pd.Series) -> Lookup:
    """Raises DataError where a category has several results, or they are neither numbers nor text."""
    name = str(source.name)
    if pd.api.types.is_datetime64_any_dtype(result):
        raise DataError(f"keep (--keep): column {relation.result!r} holds {result.dtype}, expected numbers or text")
    pairs = pairs_of(source, result)
    if pairs is None:
        odd = next(value for value, rows in result.groupby(source, dropna=False) if rows.nunique(dropna=False) > 1)
        raise DataError(
            f"keep (--keep): {relation.describe()} does not hold: {name!r} is {odd!r} in rows of which "
            f"{relation.result!r} differs; what does not hold in every row cannot be kept"
        )
    return Lookup(relation.result, name, pairs)


def _related(rows: TableRows, left_out: set[str], told: dict[str, str]) -> list[str]:
    """A line for every relation that holds in the rows looked at."""
    frame = rows[np.unique(np.linspace(0, len(rows) - 1, RELATED_ROWS).astype(int))]
    frame = frame[[name for name in frame if name not in left_out]]
    if len(frame) < FEW:
        return []
    numbers = {name: floats(values) for name, values in frame.items() if is_numeric(values)}
    words = [name for name in frame if name not in numbers or told.get(name) in ("category", "ordered")]
    names = [name for name in frame if not pd.api.types.is_datetime64_any_dtype(frame[name])][:RELATED_COLUMNS]
    found = list(map(Relation.describe, find(numbers, RELATED_COLUMNS)))
    found += lookups(frame, [name for name in words if name in names], names)
    return [
        f"{relation} in the rows looked at; samples hold it but nearly, unless it is kept (--keep '{relation}')"
        for relation in found
    ]


def _left_out(parts: dict[str, TableRows], name: str, place: int, told: dict[str, str], raw: Raw) -> LeftOut | None:
    """How a column that is not modelled is made anew: a constant, or in named columns what tells rows apart."""
    values, telling = seen(parts, name)
    everything = pd.concat([values, telling], ignore_index=True)
    kind, count = told.get(name), sum(map(len, parts.values()))
    if kind is None and (found := constant(everything, place)):
        return found
    asked = kind == "identifier" or (kind is None and raw.facts["named"])
    found = identifier(values, place, everything, count) if asked else None
    if found is None and kind == "identifier":
        raise DataError(f"column {name!r} tells rows apart in no way that could be made anew; drop it instead")
    return found


def fit_column(parts: dict[str, TableRows], name: str, notes: list[str], told: dict[str, str] | None = None) -> Column:
    """One column, from all parts but scaled by the training part; of the kind that is `told` of it."""
    train = parts["train"].sampled(name)
    if is_numeric(train) and len(numbers := parts["train"].telling(name).dropna()):
        far = pd.Series([numbers.min(), numbers.max()], dtype=numbers.dtype)  # so that outliers show
        train = pd.concat([train, far], ignore_index=True).rename(name)
    everything = pd.concat(seen(parts, name), ignore_index=True)
    return infer_column(everything, train, notes, (told or {}).get(name))


def seen(parts: dict[str, TableRows], name: str) -> tuple[pd.Series, pd.Series]:
    """What is looked at of a column, all parts or samples of them; and the telling values beside it."""
    telling = {part: rows.telling(name) for part, rows in parts.items()}
    looked_at = [rows.sampled(name) for part, rows in parts.items() if part == "train" or not len(telling[part])]
    return pd.concat(looked_at, ignore_index=True), pd.concat(telling.values(), ignore_index=True)


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
