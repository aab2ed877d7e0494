"""Examples from a file that are to be in the space of other data: other people's samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fivefold.data import as_trained, read_raw, text
from fivefold.data.raw import Options
from fivefold.errors import DataError
from fivefold.space import Space


def read_examples(source: str | Path, space: Space, limit: int = 5000) -> Any:
    """At most `limit` examples of a file or folder, evenly spread, in the form that `space.encode` takes.

    Raises:
        DataError: the file cannot be read or does not fit the space; says what was expected.
    """
    side = space.shape[1:] if space.kind == "image" else None
    size = None if side is None or not Path(source).is_dir() else (side[0], side[1])
    raw = read_raw(source, as_trained(Options(size=size), space))
    if raw.kind != space.kind:
        raise DataError(f"{source} holds {raw.kind} data; expected {space.describe()}")
    rows = raw.parts["train"].rows
    rows = text.in_space(rows, space) if space.kind == "text" else rows
    index = np.unique(np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(np.int64))
    examples = rows[index]
    if not raw.facts.get("named", True):
        examples = examples.to_numpy()  # columns without names are told by their number and order
    try:
        space.encode(examples)
    except (DataError, ValueError) as error:
        raise DataError(f"{source} does not fit the data ({space.describe()}): {error}") from error
    return examples
