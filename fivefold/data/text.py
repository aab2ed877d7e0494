"""Text: windows of characters, bytes or tokens, memory-mapped where the file is ASCII and has no tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fivefold.data.encodings import encoding_of
from fivefold.data.raw import Options, Part, Raw, Skipped, Subset
from fivefold.errors import DataError
from fivefold.space import Space, Vocabulary
from fivefold.space.vocabulary import BYTES

LENGTH = 64
SIZE = 512  # of a vocabulary of byte pairs
MOST = 2**16
CHUNK = 2**24


@dataclass(frozen=True)
class Windows:
    """Windows of `length` symbols, one every `stride` within each document.

    Rows are indices into `symbols`, the sorted code points or the codes of a vocabulary; strings until those are known.

    Args:
        points: all texts, one after another, as code points or as codes `(N,)`.
        bounds: where each begins and ends, `(K, 2)`; none shorter than a window.
    """

    points: np.ndarray
    bounds: np.ndarray
    length: int
    stride: int
    symbols: np.ndarray | None = None

    @cached_property
    def ends(self) -> np.ndarray:
        """How many windows there are up to the end of each document, `(K,)`."""
        return np.cumsum((self.sizes() - self.length) // self.stride + 1)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def starts(self, index: Any) -> np.ndarray:
        """Where windows begin."""
        index = np.asarray(index)
        document = np.searchsorted(self.ends, index, side="right")
        before = np.concatenate([[0], self.ends])[document]
        return self.bounds[document, 0] + (index - before) * self.stride

    def __getitem__(self, index: Any) -> Any:
        points = self.points[self.starts(index)[:, None] + np.arange(self.length)]
        if self.symbols is None:
            return ["".join(map(chr, row)) for row in points.tolist()]
        return np.searchsorted(self.symbols, points)

    def within(self, first: int, last: int) -> Windows:
        """The text that consecutive windows cover, from the `first` to the `last`."""
        begin, end = self.starts([first])[0], self.starts([last])[0] + self.length
        return replace(self, bounds=self.bounds.clip(begin, end)).cut(self.length, self.stride)

    def cut(self, length: int, stride: int, symbols: np.ndarray | None = None) -> Windows:
        """Other windows of the same texts; documents that are shorter have none."""
        long = self.sizes() >= length
        return replace(self, bounds=self.bounds[long], length=length, stride=stride, symbols=symbols)

    def sizes(self) -> np.ndarray:
        """Of each document, `(K,)`."""
        return self.bounds[:, 1] - self.bounds[:, 0]

    def coded(self, vocabulary: Vocabulary) -> Windows:
        """The same documents in the codes of a vocabulary."""
        if self.points.dtype == np.uint8 and not vocabulary.merges:
            return self  # ASCII is its own bytes, and may be a memory map
        return _windows([vocabulary.encode(text).astype(np.uint16) for text in self.texts()], 1)

    def texts(self) -> Iterator[str]:
        """The documents, of code points."""
        for begin, end in self.bounds.tolist():
            yield self.points[begin:end].astype("<u4").tobytes().decode("utf-32-le")

    def chunks(self) -> Iterator[np.ndarray]:
        """All symbols of all documents, some millions at a time."""
        for begin, end in self.bounds.tolist():
            yield from _chunks(self.points[begin:end])


def read(path: Path, options: Options) -> Raw:
    """A text file in any encoding; raises DataError for what is no text."""
    return _joined([_points_of(path)], options)


def read_folder(files: list[Path], options: Options) -> Raw:
    """Text files, a document each, in an order drawn at random, so that blocks of them are alike."""
    skipped, found = Skipped(options.skip_bad), []
    for i in np.random.default_rng(options.split_seed).permutation(len(files)):
        with skipped.unless_good():
            found.append(_points_of(files[i]))
    raw = _joined(found, options)
    raw.notes += skipped.notes(files)
    return raw


def _points_of(path: Path) -> np.ndarray:
    """The characters of a file as code points; memory-mapped where it is ASCII."""
    if not path.stat().st_size:
        raise DataError(f"{path} is empty")
    points = np.memmap(path, np.uint8, "r")
    if all(((chunk < 128) & (chunk > 0)).all() for chunk in _chunks(points)):
        return points
    raw = path.read_bytes()
    encoding = encoding_of(raw)
    try:
        text = raw.decode(encoding).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no {encoding} text ({error.reason} at byte {error.start})") from error
    if re.search(r"[\x00-\x08\x0e-\x1f]", text[:CHUNK]):
        raise DataError(f"{path} holds bytes that no text has: expected a text file")
    return _points(text)


def from_strings(texts: Iterable[str], options: Options) -> Raw:
    """Many texts, a document each: no window is of two."""
    return _joined([_points(text) for text in texts], options)


def from_string(text: str, options: Options) -> Raw:
    """A text in memory."""
    return from_strings([text], options)


def read_lines(path: Path, options: Options) -> Raw:
    """JSON lines: the texts of one field; raises DataError naming the fields where it is not clear which."""
    try:
        frame = pd.read_json(path, lines=True, dtype=False)
    except ValueError as error:
        raise DataError(f"{path} cannot be read as JSON lines: {error}") from error
    return from_field(frame, options, str(path))


def from_field(frame: pd.DataFrame, options: Options, where: str) -> Raw:
    """The texts of a DataFrame's one field of text, or of that which the user names; missing ones are left out."""
    given = {str(name): column.dropna() for name, column in frame.items()}
    fields = [n for n, column in given.items() if len(column) and column.map(lambda v: isinstance(v, str)).all()]
    name = options.field or (fields[0] if len(fields) == 1 else None)
    if name is None or name not in fields:
        asked = f"no field {name!r} of text" if name else "it is not clear which field is the text"
        raise DataError(f"{where}: {asked}; name one with field (--field): {', '.join(fields) or 'there is none'}")
    raw = from_strings(given[name], options)
    if lacking := len(frame) - len(given[name]):
        raw.notes.append(f"{lacking:,} of {len(frame):,} rows have no {name}: left out")
    return raw


def _points(text: str) -> np.ndarray:
    try:
        return np.frombuffer(text.encode("utf-32-le"), np.uint32)
    except UnicodeEncodeError as error:
        raise DataError(f"a text holds {text[error.start]!r}, which is half of a character: remove it") from error


def _usual_length(lengths: list[int]) -> int:
    """64; where all of many documents are shorter, what nine in ten of them have."""
    if len(lengths) < 3 or max(lengths) >= LENGTH:
        return LENGTH
    return max(int(np.quantile(lengths, 0.1)), 1)


def _windows(documents: list[np.ndarray], length: int) -> Windows:
    """Windows end to end of the documents that are long enough."""
    kept = [document for document in documents if len(document) >= length]
    ends = np.cumsum([len(document) for document in kept], dtype=np.int64)
    bounds = np.stack([ends - [len(document) for document in kept], ends], 1) if kept else np.zeros((0, 2), np.int64)
    points = kept[0] if len(kept) == 1 else np.concatenate(kept) if kept else np.zeros(0, np.uint8)
    return Windows(points, bounds, length, length)


def _joined(documents: list[np.ndarray], options: Options) -> Raw:
    """Documents as code points; raises DataError where all are too short for the windows.

    Where the symbols are to be bytes or tokens the parts are made of blocks of a quarter of the length: a character has
    at most four, so that no text is left out which has enough of them.
    """
    length = options.length or _usual_length([len(document) for document in documents])
    block = length if _size(options.vocabulary) is None else max(length // 4, 1)
    windows = _windows(documents, block)
    kept = windows.bounds
    if len(windows) < 3:
        longest = max(map(len, documents), default=0)
        what = f"a text of {longest} characters is" if len(documents) == 1 else f"texts of at most {longest} are"
        raise DataError(
            f"{what} too short for windows of {length} in three parts; "
            f"pass a smaller length (--length), at most {max(longest // (4 if len(documents) < 3 else 1), 1)}"
        )
    raw = Raw("text", {"train": Part(windows)}, ordered=True, facts={"length": length})
    if len(documents) > 1:
        raw.notes.append(f"{len(documents):,} documents; no window is of two")
    if len(kept) < len(documents):
        raw.notes.append(f"{len(documents) - len(kept):,} documents are shorter than a window: left out")
    return raw


def fit(raw: Raw, options: Options) -> Space:
    """The Space of text: the alphabet of all parts, or a vocabulary. The training part becomes overlapping windows."""
    parts = {name: _block(part.rows) for name, part in raw.parts.items()}
    vocabulary = _vocabulary(options.vocabulary, parts["train"])
    if vocabulary is None:
        found = [np.unique(chunk) for part in parts.values() for chunk in part.chunks()]
        symbols, length = np.unique(np.concatenate(found)), raw.facts["length"]
        alphabet = "".join(map(chr, symbols.tolist()))
    else:
        parts = {name: part.coded(vocabulary) for name, part in parts.items()}
        symbols, alphabet = np.arange(len(vocabulary)), ""
        length = options.length or _usual_length(parts["train"].sizes().tolist())
    space = Space("text", (length,), levels=len(symbols), symbols=alphabet, vocabulary=vocabulary, dtype="str")
    stride = {"train": max(1, length // 4)}
    for name, windows in parts.items():
        raw.parts[name] = Part(_cut(windows, space, stride.get(name, length), symbols, f"the {name} text"))
    what = f"windows of {length} {space.text_symbols}"
    raw.notes.append(f"{what}, in training one every {stride['train']}, else end to end")
    if vocabulary is not None:
        some = next(parts["train"].chunks())
        raw.notes.append(f"{what} stand for {length * vocabulary.characters[some].mean():.1f} characters on average")
        if short := sum(int((part.sizes() < length).sum()) for part in parts.values()):
            raw.notes.append(f"{short:,} documents or ends of them have fewer {space.text_symbols}: left out")
    return space


def in_space(rows: Any, space: Space) -> Any:
    """Windows end to end of other texts as the Space has them; raises DataError where all are too short."""
    if space.vocabulary is None:
        return rows
    windows = _block(rows).coded(space.vocabulary)
    return _cut(windows, space, space.shape[0], np.arange(len(space.vocabulary)), "the text")


def _cut(windows: Windows, space: Space, stride: int, symbols: np.ndarray, what: str) -> Windows:
    length, longest = space.shape[0], windows.sizes().max(initial=0)
    if longest < length:
        raise DataError(
            f"{what} has no document of {length} {space.text_symbols}, at most of {longest}: "
            "pass a smaller length (--length)"
        )
    return windows.cut(length, stride, symbols)


def _vocabulary(asked: str | Vocabulary | None, train: Windows) -> Vocabulary | None:
    """What is asked for, learnt on the training text where it has tokens; None for characters."""
    if isinstance(asked, Vocabulary):
        return asked
    size = _size(asked)
    if size is None:
        return None
    return Vocabulary.learn(train.texts(), size) if size > BYTES else Vocabulary()


def _size(vocabulary: str | Vocabulary | None) -> int | None:
    """How many symbols a vocabulary is to have; None for the characters there are."""
    if isinstance(vocabulary, Vocabulary):
        return len(vocabulary)
    kind, colon, number = (vocabulary or "characters").partition(":")
    if kind == "bpe" and (number.isdecimal() or not colon):
        size = int(number or SIZE)
        if BYTES < size <= MOST:
            return size
        raise DataError(f"vocabulary (--vocabulary) bpe has {BYTES + 1} to {MOST:,} tokens, got {size:,}")
    if colon or kind not in ("characters", "bytes"):
        raise DataError(f"vocabulary (--vocabulary) is characters, bytes, bpe or bpe:{SIZE}, got {vocabulary!r}")
    return BYTES if kind == "bytes" else None


def _block(rows: Any) -> Windows:
    """The text that consecutive windows cover, as one."""
    if not isinstance(rows, Subset):
        return rows
    return _block(rows.rows).within(int(rows.index[0]), int(rows.index[-1]))


def _chunks(points: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(points), CHUNK):
        yield points[start : start + CHUNK]
