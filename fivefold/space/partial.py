"""Examples of which a part is missing: which numbers are known, and what was given put back over what was drawn.

In tables a missing cell is NaN, None or NaT, and columns that are not there at all are missing in every row. Of other
data an array says what is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fivefold.errors import DataError
from fivefold.space.column import Column
from fivefold.space.space import Space

if TYPE_CHECKING:
    import pandas as pd


def encode_partial(space: Space, data: Any, missing: Any = None) -> tuple[Tensor, Tensor]:
    """Encoded examples `(B, *shape)`, 0 where nothing is known, and which numbers are known, of the same shape.

    Args:
        space: of the examples.
        data: examples in the user's own form; of a table perhaps without some of its columns.
        missing: of what is no table: True where a value is missing, of the shape of one example or of all, in the
            user's layout (of images also (H, W)).

    Raises:
        DataError: what is known does not fit the space, or it is not said what is missing.
    """
    if space.kind == "table":
        if missing is not None:
            raise DataError("of a table leave missing cells empty (NaN or None); `missing` is for other data")
        return _encode_table(space, _frame(space, data))
    if missing is None:
        raise DataError(f"say what is missing of these {space.kind} data: an array that is True there")
    absent = _missing(space, data, missing)
    if space.kind == "text":
        if space.vocabulary is not None:
            raise DataError("filling in is of text of characters; this model's is of bytes or tokens")
        clean = ["".join(np.where(row, space.symbols[0], list(text))) for text, row in zip(data, absent, strict=True)]
        return space.encode(clean), torch.from_numpy(~absent)
    x = space.encode(np.where(absent, 0, np.asarray(data)).astype(np.asarray(data).dtype))
    known = ~absent
    if space.kind == "image":
        known = {"HW": known[:, None], "HWC": np.moveaxis(known, -1, 1)}.get(space.layout, known)
    return x, torch.from_numpy(np.ascontiguousarray(known))


def put_back(space: Space, data: Any, filled: Any, draws: int, missing: Any = None) -> Any:
    """`filled`, examples in the user's own form, `draws` for each of `data`, with what was given as it was given."""
    if space.kind == "table":
        if hasattr(data, "columns"):
            return _put_back_frame(data, filled if hasattr(filled, "columns") else _frame(space, filled), draws)
        given = np.repeat(np.asarray(data), draws, 0)
        absent = _isna(given)
        return np.where(absent, filled, given) if absent.any() else given
    absent = np.repeat(_missing(space, data, missing), draws, 0)
    if space.kind == "text":
        texts = [text for text in data for _ in range(draws)]
        return ["".join(np.where(row, list(a), list(b))) for a, b, row in zip(filled, texts, absent, strict=True)]
    return np.where(absent, filled, np.repeat(np.asarray(data), draws, 0)).astype(np.asarray(filled).dtype)


# --- tables -------------------------------------------------------------------------------------------


def _isna(values: Any) -> np.ndarray:
    import pandas as pd

    return np.asarray(pd.isna(values))


def _frame(space: Space, data: Any) -> pd.DataFrame:
    """A table as a DataFrame with the names of the space's columns."""
    import pandas as pd

    if hasattr(data, "columns"):
        return data.rename(columns=str)
    x = np.asarray(data)
    names = [column.name for column in space.columns]
    for one in space.made:  # in the order of their places
        names.insert(one.place, one.name)
    if x.ndim != 2 or x.shape[1] != len(names):
        raise DataError(f"expected a table of shape (N, {len(names)}), got {x.shape}; missing cells are NaN or None")
    return pd.DataFrame(x, columns=names)


def _encode_table(space: Space, frame: pd.DataFrame) -> tuple[Tensor, Tensor]:
    frame = frame.assign(**_told_by_results(space, frame))
    names = [column.name for column in space.columns]
    if not set(names) & set(frame.columns):
        raise DataError(
            f"none of these columns are the model's: given {', '.join(frame.columns)}; expected some of "
            f"{', '.join(names)}"
        )
    for one in space.made:
        if one.name in frame and one.relation is None:  # what follows from parts that are missing cannot be checked
            one.check(frame[one.name].dropna().to_numpy(), {})
    x = np.zeros((len(frame), len(names)), dtype=np.float32)
    known = np.zeros(x.shape, dtype=bool)
    for i, column in enumerate(space.columns):
        if column.name in frame:
            known[:, i] = ~_isna(frame[column.name])
            x[known[:, i], i] = column.encode(_values(column, frame[column.name][known[:, i]]))
    return torch.from_numpy(x), torch.from_numpy(known)


def _told_by_results(space: Space, frame: pd.DataFrame) -> dict[str, Any]:
    """Columns with the parts that follow from the result of a relation that is kept and from its other parts.

    Raises DataError where a result is given and more than one of its parts is missing: nothing here draws numbers of
    a given sum.
    """
    import pandas as pd

    told: dict[str, Any] = {}
    for one in space.made:
        if one.relation is None or one.name not in frame:
            continue
        names = (one.name, *one.relation.names)
        columns = {name: told.get(name, frame.get(name, pd.Series(np.nan, frame.index))) for name in names}
        absent = {name: _isna(columns[name]) & ~_isna(columns[one.name]) for name in one.relation.names}
        for name in one.relation.names:
            if (alone := absent[name] & (sum(absent.values()) == 1)).any():
                solved = np.where(alone, one.relation.solve(name, columns), columns[name])
                columns[name] = told[name] = pd.Series(solved, frame.index)
                absent[name] = absent[name] & _isna(solved)
        if (left := np.any(list(absent.values()), axis=0)).any():
            raise DataError(
                f"row {int(np.argmax(left)) + 1} gives {one.name!r}, which does not tell what is missing of "
                f"{one.relation.describe()}: leave {one.name!r} empty there too"
            )
    return told


def _values(column: Column, series: pd.Series) -> np.ndarray:
    return series.astype(object).to_numpy() if column.kind == "categorical" else series.to_numpy()


def _put_back_frame(given: pd.DataFrame, filled: pd.DataFrame, draws: int) -> pd.DataFrame:
    """The given columns first, in their order, then the others; the index says which row a draw is of."""
    import pandas as pd

    rows = given.rename(columns=str)
    rows = rows.loc[rows.index.repeat(draws)] if rows.index.is_unique else rows.iloc[np.arange(len(rows)).repeat(draws)]
    columns = {name: rows[name] for name in rows}
    for name in filled:
        drawn = filled[name].set_axis(rows.index)
        if name not in columns:
            columns[name] = drawn
        elif (absent := _isna(rows[name])).any():
            merged = drawn.astype(object)
            merged[~absent] = rows[name].astype(object)[~absent]
            kept = pd.api.types.is_float_dtype(drawn) and pd.api.types.is_float_dtype(rows[name])
            columns[name] = merged.astype(rows[name].dtype if kept else drawn.dtype)
    return pd.DataFrame(columns, index=rows.index)


# --- other data ---------------------------------------------------------------------------------------


def _missing(space: Space, data: Any, missing: Any) -> np.ndarray:
    """Of the data's shape `(N, ...)` in the user's layout."""
    absent = np.asarray(missing).astype(bool)
    if space.kind in ("text", "audio"):
        shape: tuple[int, ...] = (len(data), *space.shape)
    else:
        shape = np.asarray(data).shape
        if space.layout != "HW" and absent.shape == space.shape[1:]:
            absent = absent[..., None] if space.layout == "HWC" else absent
    try:
        return np.broadcast_to(absent, shape)
    except ValueError:
        raise DataError(
            f"what is missing has shape {np.asarray(missing).shape}; expected that of one example or of all, {shape}"
        ) from None
