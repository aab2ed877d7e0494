"""From what a reader found to a Data set: split, fit the Space on the training part, encode, fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fivefold.data import audio, images, tables, text
from fivefold.data.raw import PARTS, Options, Part, Raw, Rows, partition
from fivefold.data.splits import Data, Split
from fivefold.data.stored import Stored
from fivefold.errors import DataError
from fivefold.space import Space, label_space

IN_MEMORY = 2**30  # bytes: encoded parts up to this size are held in memory
STORED_IN_MEMORY = 2**28  # and those of a table that was stored for its size
PIECE = 4096  # rows encoded at once
HASHED = 2**26  # bytes: parts up to this size are fingerprinted whole, larger ones by examples spread over them

_FIT: dict[str, Callable[[Raw, Options], Space]] = {
    "image": images.fit,
    "table": tables.fit,
    "text": text.fit,
    "audio": audio.fit,
}
_FOR = {
    "size": ("image",),
    "crop": ("image",),
    "length": ("text", "audio"),
    "rate": ("audio",),
    "vocabulary": ("text",),
}  # options that only some kinds have


def assemble(raw: Raw, options: Options, name: str, source: str) -> Data:
    """The Data set of `raw`; raises DataError where the examples cannot be modelled as they are."""
    for option, kinds in _FOR.items():
        if getattr(options, option) is not None and raw.kind not in kinds:
            raise DataError(f"{option} (--{option}) is for {' and '.join(kinds)} data; these are {raw.kind} data")
    if raw.kind == "table":
        tables.prepare(raw, options)
    raw = partition(raw, options.split_seed)
    conditions, condition_space = _condition(raw, options.condition)
    space = _FIT[raw.kind](raw, options)
    space = replace(space, name=name, condition=condition_space)
    size = sum(_bytes(part.rows, space) for part in raw.parts.values())
    stored = raw.kind == "table" and isinstance(tables.flat(raw.parts["train"].rows).frame, Stored)
    in_memory = size <= (STORED_IN_MEMORY if stored else IN_MEMORY)
    if not in_memory:
        raw.notes.append(f"{size / 2**30:.2f} GiB, encoded: read from disk as they are needed")
    splits = [_split(raw.parts[part].rows, conditions.get(part), space, in_memory) for part in PARTS]
    return Data(
        name=name,
        space=space,
        train=splits[0],
        valid=splits[1],
        test=splits[2],
        fingerprint=_fingerprint(raw, space, conditions),
        source=source,
        notes=tuple(raw.notes),
        entropy=None if condition_space else raw.entropy,
    )


def encode_all(raw: Raw, options: Options, space: Space) -> Split:
    """All examples of `raw` in the order they stand in, encoded by a Space that was fitted on others."""
    if raw.kind != space.kind:
        raise DataError(f"these are {raw.kind} data; the model was trained on {space.kind} data")
    if raw.kind == "table":
        tables.prepare(raw, options)
    if raw.kind == "text":
        raw.parts = {name: replace(part, rows=text.in_space(part.rows, space)) for name, part in raw.parts.items()}
    parts = [raw.parts[name] for name in PARTS if name in raw.parts]
    splits = []
    for part in parts:
        condition = None if space.condition is None else space.condition.encode(_given(part, options.condition))
        splits.append(_split(_modelled(part, space), condition, space, in_memory=True))
    conditions = [split.condition for split in splits if split.condition is not None]
    x = torch.cat([split.x for split in splits if split.x is not None])
    return Split(len(x), x, torch.cat(conditions) if conditions else None)


def _given(part: Part, name: str | None) -> pd.DataFrame:
    """The condition's columns of a part: a table's own, or its labels."""
    rows, names = part.rows, name.split(",") if name else []
    if isinstance(rows, tables.TableRows):
        rows = tables.flat(rows)
        names = [name] if name in rows.columns else names
        if set(names) <= set(rows.columns):
            return pd.DataFrame({one: rows.column(one) for one in names if one})
    if part.labels is None:
        raise DataError(f"the model was trained given {name!r}, which these data lack")
    return pd.DataFrame({"label": part.labels})


def _modelled(part: Part, space: Space) -> Rows:
    """A table's rows with the model's columns; others as they are."""
    if space.kind != "table":
        return part.rows
    rows = tables.flat(part.rows)
    return rows.without(*(set(rows.columns) - {column.name for column in space.columns}))


def _condition(raw: Raw, name: str | None) -> tuple[dict[str, Tensor], Space | None]:
    """The encoded condition of every part, and its Space; a table's column is taken out of the table."""
    labels = {part: raw.parts[part].labels for part in PARTS}
    has_labels = labels["train"] is not None
    columns = tables.flat(raw.parts["train"].rows).columns if raw.kind == "table" else []
    if name is None:
        if has_labels:
            raw.notes.append("labels found: condition='label' (--condition label) uses them")
        return {}, None
    names = [name] if name in columns else [one.strip() for one in name.split(",")]
    if set(names) <= set(columns):
        if len(names) == len(columns):
            raise DataError(f"the condition {name!r} is the only column: nothing is left to model")
        rows = {part: tables.flat(raw.parts[part].rows) for part in PARTS}
        raw.parts = {part: Part(rows[part].without(*names), labels[part]) for part in PARTS}
        given = {part: rows[part].without(*(set(columns) - set(names))) for part in PARTS}
    elif name in ("label", raw.facts.get("label")) and has_labels:
        names = ["label"]
        given = {part: tables.TableRows(pd.DataFrame({"label": values})) for part, values in labels.items()}
    else:
        choices = ", ".join([*columns, *(["label"] if has_labels else [])])
        raise DataError(
            f"no condition {name!r} in these data; " + (f"choose of: {choices}" if choices else "no labels")
        )
    space = _condition_space(given, names, raw.notes)
    if lacking := [column.name for column in space.columns if column.missing]:
        raise DataError(
            f"the condition {', '.join(lacking)} is missing in some rows: leave those out (--missing drop) or fill them"
        )
    raw.notes.append(f"condition: {space.describe()}")
    encoded = {
        part: torch.cat([space.encode(rows[piece]) for piece in _pieces(len(rows))]) for part, rows in given.items()
    }
    for i, column in enumerate(space.columns):
        if column.categories:
            counts = encoded["train"][:, i].long().bincount().tolist()
            if rare := [str(value) for value, count in zip(column.categories, counts, strict=False) if count == 1]:
                raw.notes.append(
                    f"condition {column.name!r}: one training example only of {', '.join(rare[:8])}"
                    f"{', ...' if len(rare) > 8 else ''}: little can be learnt of what is given them"
                )
    return encoded, space


def _condition_space(given: dict[str, tables.TableRows], names: list[str], notes: list[str]) -> Space:
    for name in names:
        values = pd.concat(tables.seen(given, name), ignore_index=True)
        if values.nunique(dropna=False) < 2:
            raise DataError(f"the condition {name!r} has one class only ({values.iloc[0]}): leave it out")
    if names == ["label"] and not pd.api.types.is_float_dtype(values):
        classes = sorted(values.unique().tolist(), key=lambda v: (str(type(v)), v))
        return label_space(tuple(classes), dtype=str(values.dtype))
    return tables.table_space([tables.fit_column(given, name, notes) for name in names], named=True)


def _pieces(size: int) -> list[np.ndarray]:
    """Positions in order, a few thousand at a time."""
    return np.array_split(np.arange(size), max(1, -(-size // PIECE)))


def _bytes(rows: Rows, space: Space) -> int:
    return len(rows) * space.dims * (1 if _is_small(space) else 4)


def _is_small(space: Space) -> bool:
    return space.kind != "table" and space.levels is not None and space.levels <= 256


def _split(rows: Rows, condition: Tensor | None, space: Space, in_memory: bool) -> Split:
    encode = tables.encoder(rows, space) if space.kind == "table" else lambda index: space.encode(rows[index])

    def read(index: Tensor) -> Tensor:
        return encode(index.numpy())

    if not in_memory:
        return Split(len(rows), None, condition, read)
    held = torch.uint8 if _is_small(space) else torch.int32 if space.levels and space.kind != "table" else torch.float32
    x = torch.empty((len(rows), *space.shape), dtype=held)
    for index in map(torch.from_numpy, _pieces(len(rows))):
        x[index[0] : index[-1] + 1] = read(index).to(held)
    return Split(len(rows), x, condition)


def _fingerprint(raw: Raw, space: Space, conditions: dict[str, Tensor]) -> str:
    """Hash of the content as the user has it (not of what was fitted, which may differ in the last bit)."""
    digest = hashlib.sha256(f"{space.kind} {space.shape} {space.symbols} {space.rate}".encode())
    if space.vocabulary is not None:
        digest.update(repr(space.vocabulary.merges).encode())
    for name in PARTS:
        rows = raw.parts[name].rows
        size = _bytes(rows, space)
        count = len(rows) if size <= HASHED else max(256, len(rows) * HASHED // size // 8)
        index = np.unique(np.linspace(0, len(rows) - 1, count).round().astype(np.int64))
        digest.update(f"{name} {len(rows)}".encode())
        for piece in np.array_split(index, -(-len(index) // PIECE)):
            digest.update(_content(rows[piece]))
        if name in conditions:
            digest.update(conditions[name].numpy().round(4).tobytes())
    return digest.hexdigest()[:16]


def _content(examples: np.ndarray | pd.DataFrame) -> bytes:
    if isinstance(examples, pd.DataFrame):
        names = "\0".join(map(str, examples.columns)).encode()
        return names + pd.util.hash_pandas_object(examples, index=False).to_numpy().tobytes()
    return np.ascontiguousarray(examples).tobytes()
