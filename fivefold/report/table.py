"""The table as data: for the page, which shows and sorts it, and as CSV, Markdown or Parquet."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from fivefold.catalog import FAMILIES
from fivefold.errors import OptionError, RunError
from fivefold.files import replacing
from fivefold.report import plots
from fivefold.report.columns import Cell, Column, Line, Row, cells, columns, floors, lines, number

FORMATS = ("csv", "md", "parquet")
FIRST = (  # the columns that a narrow page keeps longest; the others follow in their own order
    "bits", "nats", "frechet", "sample_64", "two_sample_accuracy", "recall", "parameters", "survey_fid", "survey_bits",
    "train_rate", "to_best", "column_shapes", "coverage", "memory", "memorisation", "copies",
)  # fmt: skip


def data(good: list[Line], table: list[Line], chosen: list[Column], limits: dict[str, float]) -> dict[str, Any]:
    """The table as JSON: a line's cells are [text, value, error, kind, mark, hint], cut after the last that says
    something."""
    found = [cells(column, good) for column in chosen]
    order = {key: i for i, key in enumerate(FIRST)}
    return {
        "columns": [
            {"key": c.key, "title": c.title, "group": c.group, "text": c.text, "rank": order.get(c.key, len(FIRST) + i),
             "better": "high" if c.best is None else c.best}
            for i, c in enumerate(chosen)
        ],
        "lines": [
            {"label": line.label, "title": line.title, "family": line.family, "status": line.rows[0]["status"]}
            | ({"note": "; ".join(line.notes)} if line.notes else {})
            | ({"cells": [_packed(of[line.label]) for of in found]} if line.finished else {"reason": _reason(line)})
            for line in table
        ],
        "floors": [number(limits[c.key]) if c.key in limits else "" for c in chosen] if limits else None,
        "families": {
            family: {"title": FAMILIES.get(family, family), "marker": marker(family)}
            for family in dict.fromkeys([*(line.family for line in table), "real"])
        },
    }  # fmt: skip


def marker(family: str) -> Markup:
    """The family's sign beside a name."""
    return Markup(f'<svg class="key" viewBox="-7 -7 14 14">{plots.marker(family, 0, 0)}</svg>')


def _reason(line: Line) -> str:
    return str(line.rows[0].get("error") or "no reason given")


def _packed(cell: Cell) -> list[Any]:
    packed = [cell.text, cell.sort, cell.error if 0 < cell.error < math.inf else None, cell.kind, cell.mark, cell.hint]
    while len(packed) > 1 and not packed[-1] and packed[-1] != 0:
        packed.pop()
    return packed


# --- files ------------------------------------------------------------------------------------------


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """A line for each system: of every column its value, and where there are such its standard error and kind."""
    chosen, table = columns(rows), lines(rows)
    good = [line for line in table if line.finished]
    found: dict[str, list[Any]] = {
        "system": [line.label for line in table],
        "family": [line.family for line in table],
        "status": [line.rows[0]["status"] if not line.finished else "ok" for line in table],
    }
    for column in chosen:
        of = cells(column, good)
        each = [of.get(line.label, Cell("–")) for line in table]
        found[column.title] = [cell.sort for cell in each]
        if any(cell.error for cell in each):
            found[f"{column.title}, error"] = [cell.error or None for cell in each]
        if any(cell.kind for cell in each):
            found[f"{column.title}, kind"] = [cell.kind or None for cell in each]
    return pd.DataFrame(found)


def markdown(rows: Sequence[Row]) -> str:
    """The table as it is shown, best in bold and ties in italics, with the floor as its last line."""
    chosen, table = columns(rows), lines(rows)
    good = [line for line in table if line.finished]
    of = [cells(column, good) for column in chosen]
    texts = [["System", *(column.title for column in chosen)]]
    for line in table:
        if line.finished:
            texts.append([line.label, *(_marked(each[line.label]) for each in of)])
        else:
            reason = f"{line.rows[0]['status']}: {_reason(line)}"
            texts.append([line.label, reason, *[""] * (len(chosen) - 1)])
    limits = floors(good, chosen)
    if limits:
        texts.append(["floor: real data", *(number(limits[c.key]) if c.key in limits else "" for c in chosen)])
    return piped(texts)


def piped(cells: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table, the first line its head."""
    head, *body = cells
    ruled = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "".join(f"| {' | '.join(map(_escaped, line))} |\n" for line in ruled)


def _marked(cell: Cell) -> str:
    sign = {"best": "**", "tie": "*"}.get(cell.mark, "")
    return f"{sign}{cell.text}{sign}"


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def has_parquet() -> bool:
    """Whether Parquet files can be written and read."""
    return importlib.util.find_spec("pyarrow") is not None


def encoded(kind: str, frame: pd.DataFrame, words: str) -> bytes:
    """A table in one of `FORMATS`; RunError where Parquet is asked for without pyarrow."""
    if kind == "md":
        return words.encode()
    if kind == "csv":
        return frame.to_csv(index=False).encode()
    buffer = io.BytesIO()
    try:
        frame.to_parquet(buffer, index=False)
    except ImportError as error:
        raise RunError("Parquet files need the library 'pyarrow': pip install 'fivefold[parquet]'") from error
    return buffer.getvalue()


def write(path: Path, frame: pd.DataFrame, words: str) -> Path:
    """A table as a file in the format of its suffix; OptionError names those there are."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise OptionError(f"cannot write a table to {path.name!r}: choose a suffix of .{', .'.join(FORMATS)}")
    content = encoded(kind, frame, words)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path
