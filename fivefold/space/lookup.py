"""Columns that follow from one of categories: a country from its city, a code from its name."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

FEW = 5  # rows of a category that make a coincidence unlikely


@dataclass(frozen=True)
class Lookup:
    """`result` has one value for every value of `source`.

    Args:
        pairs: of a value of the source and that of the result; None where one is missing.
    """

    result: str
    source: str
    pairs: tuple[tuple[Any, Any], ...]

    @property
    def names(self) -> list[str]:
        """The column that it is of."""
        return [self.source]

    def of(self, columns: Mapping[str, Any]) -> np.ndarray:
        """The result `(N,)`, objects; None where it is missing, or the source's value is none that has one."""
        return _mapped(columns[self.source], self.pairs)

    def holds(self, columns: Mapping[str, Any]) -> np.ndarray:
        """In which rows `(N,)`."""
        found, given = self.of(columns), _objects(columns[self.result])
        return (found == given) | (pd.isna(found) & pd.isna(given))

    def solve(self, name: str, columns: Mapping[str, Any]) -> np.ndarray:
        """The source `(N,)` from the result, objects; None where several have that result, or none."""
        back: dict[Any, list[Any]] = {}
        for source, result in self.pairs:
            back.setdefault(result, []).append(source)
        return _mapped(columns[self.result], tuple((k, one[0]) for k, one in back.items() if len(one) == 1))

    def describe(self) -> str:
        """As it is written: `country=city`."""
        return f"{self.result}={self.source}"


def pairs_of(source: pd.Series, result: pd.Series) -> tuple[tuple[Any, Any], ...] | None:
    """Every value of the source with its one result; None where one has several."""
    both = pd.DataFrame({"source": source, "result": result}).drop_duplicates()
    if both["source"].duplicated().any():
        return None
    return tuple(zip(_objects(both["source"]), _objects(both["result"]), strict=True))


def find(frame: pd.DataFrame, sources: list[str], results: list[str]) -> list[str]:
    """Those that hold in all rows of a frame, as `RESULT=SOURCE`; by chance hardly. Of two that tell each other the
    first is the source."""
    found: dict[str, str] = {}
    hashable = {name: frame[name].map(lambda value: isinstance(value, Hashable)).all() for name in results}
    for source in sources:
        if not hashable[source]:  # lists, which other words refuse
            continue
        counts = frame[source].value_counts()
        if not 1 < len(counts) <= len(frame) / FEW:
            continue
        often = frame[source].isin(counts.index[counts >= FEW])
        for result in results:
            if (
                result in (source, *found)
                or source in found
                or not hashable[result]
                or frame[result][often].nunique() < 2
            ):
                continue
            if pairs_of(frame[source], frame[result]) is not None:
                found[result] = source
    return [f"{result}={source}" for result, source in found.items()]


def _mapped(values: Any, pairs: tuple[tuple[Any, Any], ...]) -> np.ndarray:
    table = dict(pairs)
    keys = [key for key in table if key is not None]
    made = np.empty(len(keys) + 1, dtype=object)
    made[:] = [*(table[key] for key in keys), None]
    objects = _objects(values)
    found: np.ndarray = made[pd.Index(keys, dtype=object).get_indexer(pd.Index(objects, dtype=object))]
    found[pd.isna(objects)] = table.get(None)
    return found


def _objects(values: Any) -> np.ndarray:
    """Python's own values, None where they are missing."""
    given = pd.Series(values).reset_index(drop=True)
    objects = np.array(given.astype(object).tolist(), dtype=object)
    objects[given.isna().to_numpy()] = None
    return objects
