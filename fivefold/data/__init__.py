"""Data: embedded sets by name, the user's own by path, arrays and DataFrames in memory."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from fivefold.data import arrays, dialect, folders, hub, pieces, tables, text
from fivefold.data.build import assemble, encode_all
from fivefold.data.embedded import EMBEDDED
from fivefold.data.raw import Options, Raw, read_parts
from fivefold.data.splits import Data, Split
from fivefold.errors import DataError
from fivefold.space import Space, Vocabulary

__all__ = ["EMBEDDED", "Data", "DataError", "Split", "load_data", "load_examples"]


def load_data(
    source: Any = "digits",
    *,
    condition: str | None = None,
    test: Any = None,
    size: int | tuple[int, int] | None = None,
    length: int | None = None,
    missing: str = "model",
    split_seed: int = 0,
    read: str = "",
    crop: int | None = None,
    skip_bad: bool = False,
    columns: str = "",
    keep: str = "",
    field: str | None = None,
    rate: int | None = None,
    trim: bool = False,
    vocabulary: str | Vocabulary | None = None,
) -> Data:
    """A data set in three splits, its Space fitted on the training split; everything inferred is in its notes.

    The splits are the user's own where there are any (`test`, a column `split`, folders `train/` and
    `test/`, arrays x_train and x_test), otherwise 75/10/15, always the same.

    Args:
        source: name of an embedded set, path of a folder, NPZ, NPY, CSV, Parquet or text file, hf:NAME, or an array or
            DataFrame.
        condition: column, several ("sex,age"), or "label", that models are conditioned on.
        test: a source of the same kind whose examples are the test split.
        size: images are scaled and cropped to this height and width (one number: a square).
        length: characters (bytes, tokens) of a text window (64), samples of a sound window (1024).
        missing: numbers: "model" them as a value of a probability of its own, "drop" such rows or "refuse" them.
        split_seed: seed of the random split.
        read: how a text file of rows is written, where that is told wrongly: "sep=;,decimal=,", also thousands,
            encoding, comment, header (lines of names).
        crop: of images only a square of so many pixels round the centre is taken, before they are scaled.
        columns: what columns of a table are, where that is told wrongly: "zip=category,income=real"; real, integer,
            category, ordered, identifier (made anew in samples) or drop.
        keep: relations that samples keep exactly: between numbers, "total=p1+p2,pay=rate*hours", and what a category
            tells, "country=city"; the result is not modelled but follows. Those that hold in the data are in the notes.
        field: of JSON lines, Parquet and the hub, which holds the text; Parquet is a table otherwise.
        rate: samples a second that sound is resampled to; the commonest of the files' own unless given.
        trim: of sound, what is 60 dB below the loudest at both ends is cut off.
        vocabulary: what text is made of: "characters" (the alphabet of all parts), "bytes" (of UTF-8), "bpe" or
            "bpe:512", so many tokens of several bytes learnt on the training text; or that of a trained model's Space.
        skip_bad: files of images or sound that cannot be read are left out, and named in the notes.

    Raises:
        DataError: the data cannot be modelled as they are; says why and how to mend it.
    """
    if missing not in ("model", "drop", "refuse"):
        raise DataError(f"missing is 'model', 'drop' or 'refuse', got {missing!r}")
    for name, value in (("length", length), ("size", size), ("crop", crop), ("rate", rate)):
        if isinstance(value, int) and value < 1:
            raise DataError(f"{name} is at least 1, got {value}")
    size = tuple(size) if isinstance(size, list) else size  # as it comes back from JSON
    vocabulary = Vocabulary.from_json(vocabulary) if isinstance(vocabulary, dict) else vocabulary
    options = Options(
        condition, size, length, missing, split_seed, read, crop, skip_bad, columns, keep, field, rate, trim, vocabulary
    )
    try:
        sources = {"train": source} if test is None else {"train": source, "test": test}
        raw = read_parts(sources, read_raw, options)
    except OSError as error:
        raise DataError(f"{error.filename or source} cannot be read: {error.strerror or error}") from error
    named = isinstance(source, str | Path)
    arguments = {**asdict(options), "test": test} if named and isinstance(test, str | Path | None) else {}
    data = assemble(raw, options, Path(source).stem if named else "data", str(source) if named else "")
    return replace(data, arguments={name: _plain(value) for name, value in arguments.items()})


def _plain(argument: Any) -> Any:
    """As JSON holds it, and `load_data` takes it back."""
    return (
        asdict(argument)
        if isinstance(argument, Vocabulary)
        else str(argument)
        if isinstance(argument, Path)
        else argument
    )


def load_examples(source: Any, space: Space, **arguments: Any) -> Split:
    """All examples of a source in the order they stand in, encoded by a Space that was fitted on other data.

    Args:
        source: as `load_data` takes.
        space: of a trained model.
        arguments: those `load_data` was called with for the training data.
    """
    known = {f.name for f in fields(Options)}
    given = {key: value for key, value in arguments.items() if key in known}
    options = as_trained(Options(**given), space)
    return encode_all(read_raw(source, options), options, space)


def as_trained(options: Options, space: Space) -> Options:
    """For other examples of a Space: text and sound in its windows, at its rate, in its vocabulary."""
    length = space.shape[0] if space.kind in ("text", "audio") else None
    return replace(options, length=length, rate=space.rate, vocabulary=space.vocabulary)


def read_raw(source: Any, options: Options) -> Raw:
    """What is found at `source`, neither split nor fitted; see `load_data`."""
    if not isinstance(source, str | Path):
        return arrays.from_memory(source, options)
    name, path = str(source), Path(source).expanduser()
    if name in EMBEDDED:
        return EMBEDDED[name](options)
    if name.startswith("hf:"):
        return hub.read(name.removeprefix("hf:"), options)
    if path.is_dir():
        return folders.read(path, options)
    file = path if path.exists() else arrays.map_key(path)[0]
    if not file.is_file():
        near = difflib.get_close_matches(name, EMBEDDED, 1, 0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"no data {name!r}{hint} Expected one of {', '.join(EMBEDDED)}, hf:NAME, or a path: {_PATHS}")
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"cannot tell what {path} is by its suffix {file.suffix!r}; expected {_PATHS}")
    return reader(path, options)


def _read_csv(path: Path, options: Options) -> Raw:
    """A file of rows; one without a line of names comes back as arrays."""
    if pieces.is_large(path):
        raw = pieces.read_csv(path, options)
    else:
        frame, found, forms = dialect.read(path, dialect.given(options.read) if options.read else {})
        raw = tables.from_frame(frame, named=found.header > 0)
        raw.dialect, raw.written = found, forms
    assert raw.dialect is not None
    if not raw.dialect.header:
        raw.notes.append("the first line is numbers: read without a header")
    if words := raw.dialect.describe():
        raw.notes.append(f"read with {words} (--read says otherwise)")
    return raw


def _read_parquet(path: Path, options: Options) -> Raw:
    try:
        if not options.field and pieces.is_large(path):
            return pieces.read_parquet(path, options)
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise DataError("Parquet files need the library 'pyarrow': pip install 'fivefold[parquet]'") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    return text.from_field(frame, options, str(path)) if options.field else tables.from_frame(frame)


_PATHS = "a folder of images, of sound or of text, or a file .npz, .npy, .csv, .tsv, .parquet, .txt, .jsonl"
_READERS: dict[str, Callable[[Path, Options], Raw]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".tab": _read_csv,
    ".psv": _read_csv,
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
    ".npz": arrays.read_npz,
    ".npy": arrays.read_npy,
    ".txt": text.read,
    ".text": text.read,
    ".md": text.read,
    ".jsonl": text.read_lines,
    ".ndjson": text.read_lines,
}
