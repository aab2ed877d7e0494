"""Text: windows of characters, memory-mapped where the file is ASCII."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fivefold.data.raw import Options, Part, Raw, Subset
from fivefold.errors import DataError
from fivefold.space import Space

LENGTH = 64
CHUNK = 2**24


@dataclass(frozen=True)
class Windows:
    """Windows of `length` characters, one every `stride`, of a long text held as code points `(N,)`.

    Rows are indices into `symbols`, the sorted code points; strings until those are known.
    """

    points: np.ndarray
    length: int
    stride: int
    symbols: np.ndarray | None = None

    def __len__(self) -> int:
        return max(0, (len(self.points) - self.length) // self.stride + 1)

    def __getitem__(self, index: Any) -> Any:
        starts = np.asarray(index)[:, None] * self.stride
        points = self.points[starts + np.arange(self.length)]
        if self.symbols is None:
            return ["".join(map(chr, row)) for row in points.tolist()]
        return np.searchsorted(self.symbols, points)


def read(path: Path, options: Options) -> Raw:
    """A text file; raises DataError for one that is not UTF-8 text."""
    if not path.stat().st_size:
        raise DataError(f"{path} is empty")
    points = np.memmap(path, np.uint8, "r")
    if any((chunk == 0).any() for chunk in _chunks(points)):
        raise DataError(f"{path} holds bytes that no text has: expected a UTF-8 text file")
    if all((chunk < 128).all() for chunk in _chunks(points)):
        return from_points(points, options)
    try:
        return from_string(path.read_text(encoding="utf-8"), options)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from error


def from_strings(texts: Iterable[str], options: Options) -> Raw:
    """Many texts as one, a line break between them."""
    return from_string("\n".join(texts), options)


def from_string(text: str, options: Options) -> Raw:
    """A text in memory."""
    return from_points(np.frombuffer(text.encode("utf-32-le"), np.uint32), options)


def from_points(points: np.ndarray, options: Options) -> Raw:
    """A text as code points `(N,)`; raises DataError where it is too short for the windows."""
    length = options.length or LENGTH
    windows = Windows(points, length, length)
    if len(windows) < 3:
        raise DataError(
            f"a text of {len(points)} characters is too short for windows of {length} in three parts; "
            f"pass a smaller length (--length), at most {len(points) // 4}"
        )
    return Raw("text", {"train": Part(windows)}, ordered=True, facts={"length": length})


def fit(raw: Raw, options: Options) -> Space:
    """The Space of text: the alphabet of all parts. The training part becomes overlapping windows."""
    length = raw.facts["length"]
    parts = {name: _block(part.rows) for name, part in raw.parts.items()}
    found = [np.unique(chunk) for part in parts.values() for chunk in _chunks(part.points)]
    symbols = np.unique(np.concatenate(found))
    stride = {"train": max(1, length // 4)}
    for name, windows in parts.items():
        raw.parts[name] = Part(replace(windows, symbols=symbols, stride=stride.get(name, length)))
    raw.notes.append(f"windows of {length} characters, in training one every {stride['train']}, else end to end")
    alphabet = "".join(map(chr, symbols.tolist()))
    return Space("text", (length,), levels=len(alphabet), symbols=alphabet, dtype="str")


def _block(rows: Any) -> Windows:
    """The text that consecutive windows cover, as one."""
    if not isinstance(rows, Subset):
        return rows
    windows = _block(rows.rows)
    first, last = int(rows.index[0]), int(rows.index[-1])
    return replace(windows, points=windows.points[first * windows.stride : last * windows.stride + windows.length])


def _chunks(points: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(points), CHUNK):
        yield points[start : start + CHUNK]
