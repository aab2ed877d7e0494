"""Space: what one example is, and all that was fitted on the training split to encode it.

Encoded examples are what networks see:

| kind  | encoded tensor                                                         |
|-------|------------------------------------------------------------------------|
| image | int64 `(B, C, H, W)` in {0..levels-1}; float32, standardised, if real  |
| text  | int64 `(B, T)`, indices of `symbols`, or codes of `vocabulary`         |
| audio | int64 `(B, T)` in {0..65535}, 16-bit samples shifted by 32,768         |
| table | float32 `(B, D)`: real columns standardised, integer columns minus     |
|       | their minimum, categorical columns as codes; missing numbers NaN       |

The user's own form (what `decode` returns and `encode` takes) is a NumPy array in the user's
layout and dtype for images and audio, a list of strings for text, and for tables a DataFrame
where the data had named columns, otherwise a NumPy array.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from fivefold.errors import DataError
from fivefold.space.column import Column, LeftOut
from fivefold.space.vocabulary import Vocabulary
from fivefold.space.written import Dialect

AUDIO_OFFSET = 32768  # 16-bit samples -32768..32767 are encoded as 0..65535


class Batch(NamedTuple):
    """Encoded examples `x` and, in a conditional space, their encoded `condition` (both `(B, ...)`)."""

    x: Tensor
    condition: Tensor | None = None


@dataclass(frozen=True)
class Space:
    """What one example is: see the module's table.

    `shape` is the encoded shape of one example: (C, H, W), (T,) or (D,). `levels` is the number of
    values of every dimension when they are all discrete with the same count, None otherwise.
    """

    kind: str
    shape: tuple[int, ...]
    levels: int | None = None
    columns: tuple[Column, ...] = ()
    location: float = 0.0  # of real images: encoded = (value - location) / scale
    scale: float = 1.0
    layout: str = "CHW"  # of the user's image arrays: "HW", "HWC" or "CHW"
    dtype: str = "uint8"  # of the user's arrays
    symbols: str = ""  # of text: the alphabet, in code order
    vocabulary: Vocabulary | None = None  # of text in bytes or tokens, which then has no `symbols`
    rate: int | None = None  # of audio: samples per second
    sound: str = field(default="", compare=False)  # of audio: what libsndfile calls the samples of the user's files
    frame: bool = False  # tables: come back as a DataFrame
    condition: Space | None = None
    made: tuple[LeftOut, ...] = field(default=(), compare=False)  # columns of a table that are not modelled
    dialect: Dialect | None = field(default=None, compare=False)  # of the file that a table was read from
    lifted: bool = False  # whether it is what `Lift` made of another, which is lifted no further
    name: str = field(default="", compare=False)  # of the data, for messages

    @property
    def dims(self) -> int:
        """Number of dimensions D of one example."""
        return math.prod(self.shape)

    @cached_property
    def dim_levels(self) -> tuple[int | None, ...]:
        """Per flattened dimension the number of values, None where it is real."""
        if self.columns:
            return tuple(column.levels for column in self.columns)
        return (self.levels,) * self.dims

    @property
    def text_symbols(self) -> str:
        """What the symbols of text are called: characters, bytes or tokens."""
        return "characters" if self.vocabulary is None else self.vocabulary.name

    @property
    def discrete(self) -> bool:
        """True when every dimension is discrete, so that densities are probabilities."""
        return all(levels is not None for levels in self.dim_levels)

    @property
    def unit(self) -> str:
        """What bits are counted per: "dimension", or of text "character"."""
        return "character" if self.kind == "text" else "dimension"

    def units(self, x: Tensor) -> Tensor:
        """How many of these encoded examples stand for, `(B,)` float64: of text those that begin in its symbols."""
        if self.vocabulary is None:
            return torch.full((len(x),), float(self.dims), dtype=torch.float64)
        return torch.from_numpy(self.vocabulary.characters)[x.long().cpu()].sum(1).double()

    def log_det(self, x: Tensor) -> Tensor:
        """ln |det d encoded / d value| in nats at encoded examples, `(B,)` float64, of the encoding alone.

        `log p(value) = log p(encoded) + log_det`.
        """
        if not self.columns:
            constant = 0.0 if self.discrete else -self.dims * math.log(self.scale)
            return torch.full((len(x),), constant, dtype=torch.float64, device=x.device)
        return torch.stack([column.log_det(x[:, i].double()) for i, column in enumerate(self.columns)]).sum(0)

    def encode(self, data: Any) -> Tensor:
        """The user's examples as the encoded tensor `(B, *shape)`; raises DataError where they do not fit."""
        return _ENCODE[self.kind](self, data)

    def decode(self, x: Tensor) -> Any:
        """Encoded examples `(B, *shape)` in the user's own form."""
        return _DECODE[self.kind](self, x.detach().cpu())

    def conditioned_on(self, condition: Space | None) -> Self:
        return replace(self, condition=condition)

    def parse(self, text: str) -> Any:
        """One example of a table from comma-separated words, as a command line gives a condition: `(1, D)`."""
        words = [word.strip() for word in text.split(",")]
        if len(words) != len(self.columns):
            raise DataError(f"{text!r}: expected a value for each of {', '.join(c.name for c in self.columns)}")
        values = np.empty((1, len(words)), dtype=object)
        values[0] = [column.parse(word) for column, word in zip(self.columns, words, strict=True)]
        return values

    def describe(self) -> str:
        """One line for people: kind, shape, levels, columns, rate."""
        words = {
            "image": lambda: f"{'x'.join(map(str, self.shape))} (channels x height x width)",
            "table": lambda: _describe_columns(self.columns),
            "text": lambda: f"{self.shape[0]} {self.text_symbols} of {self.levels or len(self.symbols)} symbols",
            "audio": lambda: f"{self.shape[0]} samples at {self.rate} Hz",
        }[self.kind]()
        levels = f", {self.levels} levels" if self.levels else ", real values"
        condition = f"; given {self.condition.describe()}" if self.condition else ""
        return f"{self.kind}: {words}{levels if self.kind == 'image' else ''}{condition}"

    def describe_columns(self) -> list[str]:
        """A line for every column of a table, one for those that are alike and follow one another."""
        described = [(column.name, column.describe().removeprefix(f"{column.name}: ")) for column in self.columns]
        lines = []
        for what, group in groupby(described, key=lambda one: one[1]):
            names = [name for name, _ in group]
            lines.append(f"{names[0]}{f' … {names[-1]}' if len(names) > 1 else ''}: {what}")
        return lines

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}
        record = {key: value for key, value in record.items() if key in known}
        columns = tuple(map(Column.from_json, record.pop("columns", ())))
        made = record.pop("made", ())
        condition, dialect = record.pop("condition", None), record.pop("dialect", None)
        vocabulary = record.pop("vocabulary", None)
        return cls(
            **{**record, "shape": tuple(record["shape"])},
            columns=columns,
            vocabulary=Vocabulary.from_json(vocabulary) if vocabulary else None,
            made=tuple(map(LeftOut.from_json, made)),
            dialect=Dialect(**{**dialect, "lines": tuple(map(tuple, dialect["lines"]))}) if dialect else None,
            condition=cls.from_json(condition) if condition else None,
        )


def _describe_columns(columns: tuple[Column, ...]) -> str:
    shown = ", ".join(
        f"{c.name} {'dates' if c.dates else c.kind}" + (f" ({c.levels})" if c.levels else "") for c in columns[:6]
    )
    return f"{len(columns)} columns: {shown}{', ...' if len(columns) > 6 else ''}" if len(columns) > 1 else shown


def label_space(categories: tuple[Any, ...], name: str = "label", dtype: str = "int64") -> Space:
    """The Space of one categorical label, as conditions use it: encoded `(B, 1)`."""
    column = Column(name, "categorical", dtype, levels=len(categories), categories=tuple(categories))
    return Space("table", (1,), levels=len(categories), columns=(column,))


def _encode_image(space: Space, data: Any) -> Tensor:
    x = np.asarray(data)
    channels, height, width = space.shape
    expected = {"HW": (height, width), "HWC": (height, width, channels), "CHW": (channels, height, width)}[space.layout]
    if x.shape[1:] != expected:
        raise DataError(f"expected images of shape (N, {', '.join(map(str, expected))}), got {x.shape}")
    if space.layout == "HW":
        x = x[:, None]
    elif space.layout == "HWC":
        x = np.moveaxis(x, -1, 1)
    if space.levels is None:
        _refuse_nonfinite(x)
        return torch.from_numpy(((x - space.location) / space.scale).astype(np.float32))
    return _integers(x, space.levels)


def _encode_text(space: Space, data: Any) -> Tensor:
    if isinstance(data, np.ndarray) and data.dtype != object and data.dtype.kind in "iu":
        return _integers(data, space.levels or len(space.symbols))  # already codes, as memory-mapped text is kept
    length = space.shape[0]
    found = list(data) if space.vocabulary is None else [space.vocabulary.encode(text) for text in data]
    wrong = [len(symbols) for symbols in found if len(symbols) != length]
    if wrong:
        raise DataError(f"expected texts of {length} {space.text_symbols}, got one of {wrong[0]}")
    if space.vocabulary is not None:
        return torch.from_numpy(np.array(found, np.int64).reshape(-1, length))
    codes = {symbol: code for code, symbol in enumerate(space.symbols)}
    unknown = sorted({symbol for text in data for symbol in text} - codes.keys())
    if unknown:
        raise DataError(f"symbols not in the training text: {' '.join(map(repr, unknown[:8]))}")
    return torch.tensor([[codes[symbol] for symbol in text] for text in data])


def _encode_audio(space: Space, data: Any) -> Tensor:
    x = np.asarray(data)
    if x.ndim != 2 or x.shape[1] != space.shape[0]:
        raise DataError(f"expected 16-bit audio of shape (N, {space.shape[0]}), got {x.shape}")
    return _integers(x.astype(np.int64) + AUDIO_OFFSET, 65536)


def _encode_table(space: Space, data: Any) -> Tensor:
    if hasattr(data, "columns"):  # a DataFrame: by name, in any order
        given = {str(name): data[name] for name in data.columns}
        missing = [c.name for c in space.columns if c.name not in given]
        if missing:
            raise DataError(f"columns missing: {', '.join(missing)}; given: {', '.join(given)}")
        columns = [_values(column, given[column.name]) for column in space.columns]
        left_out = [(one, given[one.name].to_numpy()) for one in space.made if one.name in given]
    else:
        x = np.asarray(data)
        places = {one.place for one in space.made}
        if x.ndim != 2 or x.shape[1] != len(space.columns) + len(places):
            raise DataError(f"expected a table of shape (N, {len(space.columns) + len(places)}), got {x.shape}")
        columns = [values for place, values in enumerate(x.T) if place not in places]
        left_out = [(one, x[:, one.place]) for one in space.made]
    by_name = {column.name: values for column, values in zip(space.columns, columns, strict=True)}
    for one, values in left_out:
        one.check(values, by_name)
    encoded = [column.encode(values) for column, values in zip(space.columns, columns, strict=True)]
    return torch.from_numpy(np.stack(encoded, axis=1))


def _values(column: Column, series: Any) -> np.ndarray:
    """A pandas Series as an array; missing categories, of which pandas has several, as None."""
    if column.kind != "categorical":
        return series.to_numpy()
    return series.astype(object).where(series.notna(), None).to_numpy()


def _integers(x: np.ndarray, levels: int) -> Tensor:
    if x.dtype.kind == "f":
        _refuse_nonfinite(x)
    if x.size and (x.min() < 0 or x.max() >= levels):
        raise DataError(f"expected whole numbers in 0..{levels - 1}, got {x.min()}..{x.max()}")
    if x.dtype.kind == "f" and (x != np.round(x)).any():
        raise DataError(f"expected whole numbers in 0..{levels - 1}, got fractions")
    return torch.from_numpy(np.ascontiguousarray(x).astype(np.int64))


def _refuse_nonfinite(x: np.ndarray) -> None:
    bad = int((~np.isfinite(x)).sum())
    if bad:
        raise DataError(f"{bad} values are missing (NaN) or infinite; remove or fill them first")


def _decode_image(space: Space, x: Tensor) -> np.ndarray:
    if space.levels is None:
        values = (x.double() * space.scale + space.location).numpy()
    else:
        values = x.round().clamp(0, space.levels - 1).numpy()
    if space.layout == "HW":
        values = values[:, 0]
    elif space.layout == "HWC":
        values = np.moveaxis(values, 1, -1)
    return values.astype(space.dtype)


def _decode_text(space: Space, x: Tensor) -> list[str]:
    if space.vocabulary is not None:
        return [space.vocabulary.decode(row) for row in x.tolist()]
    return ["".join(space.symbols[code] for code in row) for row in x.tolist()]


def _decode_audio(space: Space, x: Tensor) -> np.ndarray:
    return (x.round().clamp(0, 65535) - AUDIO_OFFSET).numpy().astype(np.int16)


def _decode_table(space: Space, x: Tensor) -> Any:
    columns = [column.decode(codes) for column, codes in zip(space.columns, x.numpy().T, strict=True)]
    given = {c.name: v for c, v in zip(space.columns, columns, strict=True)}
    if not space.frame:
        pairs = zip(space.columns, columns, strict=True)
        plain = [v.astype(c.dtype) if c.dtype in np.sctypeDict and None not in c.categories else v for c, v in pairs]
        for one in space.made:  # in the order of their places
            plain.insert(one.place, one.make(len(x), given).astype(one.dtype))
        if any(values.dtype.kind not in "biuf" for values in plain):  # numbers stay numbers beside text
            plain = [values.astype(object) for values in plain]
        return np.stack(plain, axis=1)
    import pandas as pd

    def series(column: Column, values: np.ndarray) -> Any:
        if column.dates is not None:
            return column.dates.values(values, column.dtype)
        if not column.dtype.endswith("category"):
            return pd.Series(values, dtype=column.dtype)
        known = [category for category in column.categories if category is not None]
        return pd.Series(pd.Categorical(values, known, ordered=column.dtype.startswith("ordered")))

    frame = pd.DataFrame({c.name: series(c, v) for c, v in zip(space.columns, columns, strict=True)})
    for one in space.made:  # in the order of their places
        made = pd.Series(one.make(len(frame), given)).astype(one.dtype)
        frame.insert(min(one.place, len(frame.columns)), one.name, made)
    return frame


_ENCODE = {"image": _encode_image, "text": _encode_text, "audio": _encode_audio, "table": _encode_table}
_DECODE = {"image": _decode_image, "text": _decode_text, "audio": _decode_audio, "table": _decode_table}
