"""A table of which cells are missing, from a file; and the same file with them filled in, all else as it is written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from fivefold.data import dialect as dialects
from fivefold.data import read_raw
from fivefold.data.raw import Options
from fivefold.data.tables import flat
from fivefold.data.writers import csv_text
from fivefold.errors import DataError
from fivefold.files import replacing
from fivefold.space import Space
from fivefold.space.written import Dialect

TEXTS = (".csv", ".tsv", ".tab", ".psv")


class Written(NamedTuple):
    """A text file of rows as it is written: its names and rows, field by field, with quotes and spaces."""

    dialect: Dialect
    names: list[list[str]]
    rows: list[list[str]]


def read_partial(source: str | Path, space: Space, read: str = "") -> tuple[pd.DataFrame, Written | None]:
    """The rows of a file, missing cells NaN or None, and how they are written where the file is text.

    Args:
        source: a file of rows as `load_data` takes, perhaps without some columns.
        space: of the model. A text file is read as the training data were written where that finds its columns.
        read: how the file is written, where that is told wrongly: "sep=;,decimal=,".

    Raises:
        DataError: the file cannot be read, or has none of the model's columns.
    """
    path = Path(source).expanduser()
    if path.suffix.lower() not in TEXTS:
        raw = read_raw(source, Options())
        if raw.kind != "table":
            raise DataError(f"{source} holds {raw.kind} data; expected {space.describe()}")
        return flat(raw.parts["train"].rows)[:], None
    known = {column.name for column in space.columns}
    tried = [dialects.given(read)] if read else [*_as_trained(space), {}]
    for said in tried:
        try:
            frame, found, _ = dialects.read(path, said)
        except OSError as error:
            raise DataError(f"{source} cannot be read: {error.strerror or error}") from error
        except DataError:
            if said is tried[-1]:
                raise
            continue
        if known & set(frame.columns):
            break
    else:
        raise DataError(
            f"{source} has none of the model's columns: it has {', '.join(map(str, frame.columns))}; expected some of "
            f"{', '.join(column.name for column in space.columns)}"
        )
    _, text = dialects.find(path, path.read_bytes(), said)
    records = fields(dialects.without_comments(text, found.comment), found.sep)
    if len(records) != found.header + len(frame):
        raise DataError(
            f"{source}: {len(records)} records, but {len(frame)} rows and {found.header} of names were read"
        )
    return frame, Written(found, records[: found.header], records[found.header :])


def _as_trained(space: Space) -> list[dict[str, object]]:
    one = space.dialect
    if one is None:
        return []
    return [{"sep": one.sep, "decimal": one.decimal, "thousands": one.thousands, "header": one.header}]


def fields(text: str, sep: str) -> list[list[str]]:
    """The records of a text that are not blank, each a list of fields exactly as they are written."""
    quoted_or_plain = re.compile(rf' *"(?:[^"]|"")*"[^{re.escape(sep)}\r\n]*|[^{re.escape(sep)}\r\n]*')
    end = re.compile(r"\r\n|\n|\r|$")
    records, record, place = list[list[str]](), list[str](), 0
    while place < len(text):
        field = quoted_or_plain.match(text, place)
        assert field is not None
        record.append(field.group())
        place = field.end()
        if text[place : place + 1] == sep:
            place += 1
            if place == len(text):
                record.append("")
            else:
                continue
        stop = end.match(text, place)
        place = stop.end() if stop else place + 1
        if any(field.strip() for field in record) or len(record) > 1:
            records.append(record)
        record = []
    return records


def write_filled(
    path: str | Path, space: Space, written: Written | None, given: pd.DataFrame, filled: pd.DataFrame, draws: int
) -> None:
    """Write rows with their missing cells filled in, `draws` for each given one, which a last column then counts.

    In text a known cell is as it was, to the last character; new cells are written as the training data's.

    Args:
        path: file to write, by its suffix text, Parquet or NPZ (numbers only).
        space: of the model.
        written: of the file that was given, where it is text.
        given: its rows.
        filled: the rows of all draws, in the order of `given`, those of one row after another.
        draws: how many for each.
    """
    path, counted = Path(path), free_name("draw", filled.columns)
    number = np.tile(np.arange(1, draws + 1), len(given))
    with replacing(path) as temporary:
        if path.suffix.lower() in TEXTS and written is not None:
            text = _filled_text(space, written, given, filled, counted if draws > 1 else "")
            temporary.write_bytes(text.encode(written.dialect.encoding))
            return
        whole = filled.reset_index(drop=True)
        whole = whole.assign(**{counted: number}) if draws > 1 else whole
        if path.suffix.lower() in TEXTS:
            whole.to_csv(temporary, index=False, sep="," if path.suffix.lower() == ".csv" else "\t")
        elif path.suffix.lower() == ".npz":
            with temporary.open("wb") as file:
                np.savez(file, x=whole.to_numpy(np.float64))
        else:
            whole.to_parquet(temporary, index=False)


def free_name(name: str, taken: Iterable[str]) -> str:
    """`name`, or with underscores after it where that is taken."""
    while name in set(taken):
        name += "_"
    return name


def _filled_text(space: Space, written: Written, given: pd.DataFrame, filled: pd.DataFrame, counted: str) -> str:
    trained, dialect = space.dialect or Dialect(), written.dialect
    plain = replace(dialect, header=1, lines=(), thousands=dialect.thousands or trained.thousands, newline="\n")
    names, *cells = fields(csv_text(space, filled.reset_index(drop=True), plain), dialect.sep)
    width, draws = len(given.columns), len(filled) // max(len(given), 1)
    missing = given.isna().to_numpy()
    quote = '"{}"' if dialect.quoted else "{}"
    heads = []
    for line, head in enumerate(written.names):
        added = [*names[width:], *([quote.format(counted)] if counted else [])]
        heads.append([*head, *(added if line == 0 else ["" for _ in added])])
    rows = []
    for row, (old, absent) in enumerate(zip(written.rows, missing, strict=True)):
        old = [*old, *[""] * (width - len(old))]
        for draw in range(draws):
            new = cells[row * draws + draw]
            kept = [new[i] if absent[i] else old[i] for i in range(width)]
            rows.append([*kept, *new[width:], *([quote.format(draw + 1)] if counted else [])])
    return "".join(dialect.sep.join(record) + dialect.newline for record in [*heads, *rows])
