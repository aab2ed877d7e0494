"""A table too large for memory: its rows, typed, in a temporary file; and the values that tell what its columns are.

What a column is is told from a sample of its rows and from its *telling* values, met while the file is written: the
smallest and largest numbers, the first that is no multiple of each step, every category, one that is missing. So its
range, step and categories are those of all rows, while shares, curves and scaling are estimates of the sample.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fivefold.data.columns import MOST_ATOMS, MOST_DECIMALS, SAMPLED
from fivefold.errors import DataError
from fivefold.space import Column, Space
from fivefold.space.column import multiples
from fivefold.space.dates import STEPS, Dates, dates_of

MOST_WORDS = 2**16  # different texts of a column that are kept as codes
READ = 256  # rows read at once: the pages around each count as memory while they are
SCANNED = 2**18  # rows read at once where all are read in order
MARGIN = 8  # bytes that a text may be longer than those seen first
NONE = b"\xff"  # in no text: a missing one


class TooMany(Exception):
    """A column has more different texts than codes: it is kept as text."""

    def __init__(self, name: str) -> None:
        self.name = name


class Kept(Protocol):
    """How one column is kept: `kind` is its NumPy type in the file."""

    kind: str
    missing: int

    def pack(self, values: pd.Series, row: int) -> np.ndarray:
        """Values from `row` on as they stand in the file, `(N,)`; looks which are telling."""

    def unpack(self, packed: np.ndarray) -> pd.Series:
        """Back to what a DataFrame has."""

    def telling(self) -> np.ndarray:
        """The telling values, as they stand in the file."""


class Stored:
    """As much of a DataFrame as rows of a table need, of rows that are read from a temporary file.

    The file has no name where the system allows that, so nothing is left however the process ends.

    Args:
        columns: how each is kept, by name.
    """

    def __init__(self, columns: dict[str, Kept]) -> None:
        self.kept, self.size = columns, 0
        self.record = np.dtype([(str(i), kept.kind) for i, kept in enumerate(columns.values())])
        self.file = tempfile.TemporaryFile(prefix="fivefold-")  # noqa: SIM115

    def __len__(self) -> int:
        return self.size

    @property
    def columns(self) -> list[str]:
        return list(self.kept)

    def append(self, frame: pd.DataFrame) -> None:
        """More rows; DataError where they do not fit on the disk."""
        rows = np.empty(len(frame), self.record)
        for i, (name, kept) in enumerate(self.kept.items()):
            rows[str(i)] = kept.pack(frame[name], self.size)
        try:
            self.file.write(rows.tobytes())
            self.file.flush()
        except OSError as error:
            where = tempfile.gettempdir()
            raise DataError(f"{where} is too small for this table ({error}); TMPDIR names another folder") from error
        self.size += len(rows)

    def take(self, places: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
        """The rows at `places`, of the columns `names`."""
        packed = self._packed(places, names)
        return pd.DataFrame({name: self.kept[name].unpack(values) for name, values in packed.items()})

    def encoder(self, columns: Sequence[Column]) -> Callable[[np.ndarray], Tensor]:
        """What gives the codes `(N, D)`, float32, that `columns` have for the rows at some places; with few detours."""
        encoders = {column.name: _encoder(self.kept[column.name], column) for column in columns}

        def encode(places: np.ndarray) -> Tensor:
            packed = self._packed(places, list(encoders))
            return torch.stack([encoders[name](values) for name, values in packed.items()], 1)

        return encode

    def _packed(self, places: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        pieces = np.array_split(places, max(1, -(-len(places) // READ)))
        rows = np.concatenate([self._mapped()[piece] for piece in pieces])
        which = {name: str(i) for i, name in enumerate(self.kept)}
        return {name: np.ascontiguousarray(rows[which[name]]) for name in names}

    def column(self, name: str, places: np.ndarray | None) -> pd.Series:
        """One column of all rows, or of those at `places`; in memory."""
        which = str(self.columns.index(name))
        starts = range(0, self.size, SCANNED)
        packed = np.concatenate([self._mapped()[start : start + SCANNED][which] for start in starts])
        return self.kept[name].unpack(packed if places is None else packed[places]).rename(name)

    def decimals(self, name: str, seen: int) -> int | None:
        """How many the numbers of a column have at most, `seen` in the first; None where they have very many."""
        kept = self.kept[name]
        return kept.decimals(seen) if isinstance(kept, _Numbers) else None

    def telling(self, name: str) -> pd.Series:
        """The telling values of a column."""
        return self.kept[name].unpack(self.kept[name].telling()).rename(name)

    def _mapped(self) -> np.ndarray:
        """The file, mapped anew each time, so that what was read does not stay counted as memory."""
        return np.frombuffer(mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ), self.record)


def kept_as(values: pd.Series, words: bool, truths: bool, told: str | None) -> Kept:
    """How a column is kept.

    Args:
        values: the first of them.
        words: whether texts are kept as codes, which fails where there are too many.
        truths: whether the words True and False are truth values.
        told: what the user says the column is.
    """
    categories = told in ("category", "ordered")
    if pd.api.types.is_datetime64_any_dtype(values):
        return _Times(values)
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return _Numbers(values, categories)
    if words or categories:
        return _Words(values, truths, categories)
    return _Texts(values, (told or "").removeprefix("date").removeprefix(":"))


def _few_enough(count: int, name: str) -> None:
    """DataError for too many categories."""
    if count > MOST_WORDS:
        raise DataError(f"column {name!r} has over {MOST_WORDS:,} categories: leave it out (--columns '{name}=drop')")


def _encoder(kept: Kept, column: Column) -> Callable[[np.ndarray], Tensor]:
    """From what stands in the file to codes."""
    alone = Space("table", (1,), columns=(column,))

    def encode(packed: np.ndarray) -> Tensor:
        return alone.encode(pd.DataFrame({column.name: kept.unpack(packed)}))[:, 0]

    if isinstance(kept, _Numbers):
        return lambda packed: torch.from_numpy(column.encode(packed))
    if isinstance(kept, _Words):
        table, first = encode(kept.telling()), int(kept.missing > 0)
        return lambda packed: table[torch.from_numpy(packed + first)]
    return encode


class _Odd:
    """Finds the first numbers that are no multiples of steps, from the longest on."""

    def __init__(self, steps: Sequence[float], odd: Callable[[np.ndarray, float], np.ndarray]) -> None:
        self.steps, self.odd = list(steps), odd

    def find(self, x: np.ndarray) -> list[int]:
        """Where the first stand; each step is asked of until it fails once."""
        found = []
        while self.steps:
            few = self.odd(x[:SAMPLED], self.steps[0])
            odd = few if few.any() else self.odd(x, self.steps[0])
            if not odd.any():
                break
            found.append(int(odd.argmax()))
            self.steps.pop(0)
        return found


class _Numbers:
    """As float64; whole ones beyond 2^53 lose their last digits."""

    kind = "f8"

    def __init__(self, values: pd.Series, categories: bool) -> None:
        self.dtype, self.missing, self.categories = values.dtype, 0, categories
        self.all = np.empty(0)  # of categories
        steps = [10.0**exponent for exponent in range(3, -MOST_DECIMALS - 1, -1)]
        self.odd = _Odd(steps, lambda x, step: multiples(x, step) != x)
        self.least, self.most = np.empty(0), np.empty(0)
        self.others, self.positive = list[float](), np.inf  # the least that has a logarithm

    def pack(self, values: pd.Series, row: int) -> np.ndarray:
        x = values.to_numpy(np.float64, na_value=np.nan)
        given = x[~np.isnan(x)]
        self.missing += len(x) - len(given)
        if len(given):
            self.others += given[self.odd.find(given)].tolist()
            full = len(self.least) > MOST_ATOMS  # one more than may be points of their own mass
            small = given[given < self.least[-1]] if full else given
            self.least = np.unique(np.concatenate([self.least, small]))[: MOST_ATOMS + 1]
            self.most = np.append(self.most, given.max()).max(keepdims=True)
            self.positive = min(self.positive, float(given[given > 0].min(initial=np.inf)))
        if self.categories:
            self.all = np.union1d(self.all, given)
            _few_enough(len(self.all), str(values.name))
        return x

    def _dtype(self) -> Any:
        """Whole numbers stay so as long as all are, and none is missing."""
        whole = isinstance(self.dtype, np.dtype) and self.dtype.kind in "iu"
        broken = self.missing or not self.odd.steps or self.odd.steps[0] < 1
        return np.dtype(np.float64) if whole and broken else self.dtype

    def decimals(self, seen: int) -> int | None:
        """How many numbers have at most, `seen` in the first; None of numbers in full precision."""
        if not self.odd.steps:  # more than are looked for
            return seen if seen > MOST_DECIMALS else None
        return max(seen, -round(np.log10(self.odd.steps[0])))

    def unpack(self, packed: np.ndarray) -> pd.Series:
        return pd.Series(packed).astype(self._dtype())

    def telling(self) -> np.ndarray:
        positive = [] if np.isinf(self.positive) else [self.positive]
        missing = [np.nan] if self.missing else []
        return np.array([*self.least, *self.most, *positive, *self.others, *self.all, *missing])


class _Words:
    """Texts, truth values and categories as codes."""

    kind = "i4"

    def __init__(self, values: pd.Series, truths: bool, categories: bool) -> None:
        self.dtype, self.missing, self.truths, self.categories = values.dtype, 0, truths, categories
        self.codes: dict[Hashable, int] = {}

    def pack(self, values: pd.Series, row: int) -> np.ndarray:
        found = values.astype("category").cat
        for word in found.categories:
            self.codes.setdefault(word, len(self.codes))
        if self.categories:
            _few_enough(len(self.codes), str(values.name))
        elif len(self.codes) > MOST_WORDS:
            raise TooMany(str(values.name))
        packed = np.array([*(self.codes[word] for word in found.categories), -1], np.int32)[found.codes]
        self.missing += int((packed < 0).sum())
        return packed

    def unpack(self, packed: np.ndarray) -> pd.Series:
        words = list(self.codes)
        if isinstance(self.dtype, pd.CategoricalDtype):
            return pd.Series(pd.Categorical.from_codes(packed, words, ordered=self.dtype.ordered))
        if self.truths and not self.missing and set(words) == {"True", "False"}:
            return pd.Series(np.array([word == "True" for word in words])[packed])
        dtype = np.dtype(object) if self.missing and pd.api.types.is_bool_dtype(self.dtype) else self.dtype
        return pd.Series(np.array([*words, None], dtype=object)[packed], dtype=dtype)

    def telling(self) -> np.ndarray:
        return np.arange(-1 if self.missing else 0, len(self.codes), dtype=np.int32)


class _Times:
    """Datetimes, in UTC where they have zones."""

    def __init__(self, values: pd.Series) -> None:
        self.dtype, self.missing = values.dtype, 0
        self.kind = self._plain(values[:1]).dtype.str
        self.ends = _Ends()

    def pack(self, values: pd.Series, row: int) -> np.ndarray:
        packed = self._plain(values)
        given = packed[~np.isnat(packed)]
        self.missing += len(packed) - len(given)
        self.ends.look(given.astype("M8[us]").astype(np.int64), given)
        return packed

    @staticmethod
    def _plain(values: pd.Series) -> np.ndarray:
        zoned = isinstance(values.dtype, pd.DatetimeTZDtype)
        return (values.dt.tz_convert("UTC").dt.tz_localize(None) if zoned else values).to_numpy()

    def unpack(self, packed: np.ndarray) -> pd.Series:
        found = pd.Series(packed)
        zoned = isinstance(self.dtype, pd.DatetimeTZDtype)
        return found.dt.tz_localize("UTC").astype(self.dtype) if zoned else found

    def telling(self) -> np.ndarray:
        none = [np.array(["NaT"], self.kind)] if self.missing else []
        return np.concatenate([np.array(self.ends.found, self.kind), *none])


class _Texts:
    """Texts nearly all different, such as codes and times, in as many bytes each; dates are looked at."""

    def __init__(self, values: pd.Series, form: str) -> None:
        self.dtype, self.missing = values.dtype, 0
        self.width = MARGIN + int(values.dropna().map(lambda text: len(text.encode())).max())
        self.kind = f"S{self.width}"
        found = dates_of(values, form)
        self.dates: Dates | None = None if found is None else found[0]
        self.ends = _Ends()

    def pack(self, values: pd.Series, row: int) -> np.ndarray:
        given = values.notna().to_numpy()
        texts = [text.encode() if known else NONE for text, known in zip(values, given, strict=True)]
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        if (lengths > self.width).any():
            at = int(lengths.argmax())
            raise DataError(
                f"column {values.name!r} holds a text of {lengths[at]} bytes in row {row + at + 1:,}, others at most "
                f"{self.width - MARGIN}: free text; leave the column out (--columns '{values.name}=drop')"
            )
        self.missing += int((~given).sum())
        if self.dates is not None:
            known = values[given]
            numbers = _dates(self.dates, known, np.flatnonzero(given) + row)
            self.ends.look(np.rint(numbers * self.dates.step * 1e6).astype(np.int64), known.to_numpy(object))
        return np.array(texts, self.kind)

    def unpack(self, packed: np.ndarray) -> pd.Series:
        return pd.Series([None if text == NONE else text.decode() for text in packed.tolist()], dtype=self.dtype)

    def telling(self) -> np.ndarray:
        found = [str(text).encode() for text in self.ends.found]
        return np.array([*found, *([NONE] if self.missing else [])], self.kind)


class _Ends:
    """The first and last of some times, and those that are no multiples of days, minutes, ...: `found`."""

    def __init__(self) -> None:
        steps = [round(step * 1e6) for step in STEPS]
        self.odd, self.span, self.found = _Odd(steps, lambda x, step: x % int(step) != 0), (0, 0), list[Any]()

    def look(self, microseconds: np.ndarray, values: np.ndarray) -> None:
        if not len(values):
            return
        at = self.odd.find(microseconds)
        low, high = int(microseconds.argmin()), int(microseconds.argmax())
        if not self.found or microseconds[low] < self.span[0] or microseconds[high] > self.span[1]:
            at += [low, high]
            known = list(self.span) if self.found else []
            self.span = (min([*known, int(microseconds[low])]), max([*known, int(microseconds[high])]))
        self.found += values[at].tolist() if values.dtype == object else list(values[at])


def _dates(dates: Dates, values: pd.Series, rows: np.ndarray) -> np.ndarray:
    """Their numbers; a DataError names the column and the first row that holds another."""
    try:
        return dates.numbers(values)
    except DataError as error:
        if len(values) == 1:
            raise DataError(
                f"column {values.name!r}, row {rows[0] + 1:,}: {error}; mend it, leave it empty, or read the column as "
                f"categories (--columns '{values.name}=category')"
            ) from error
        half = len(values) // 2
        _dates(dates, values[:half], rows[:half])
        return _dates(dates, values[half:], rows[half:])
