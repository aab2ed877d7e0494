"""Data sets of the Hugging Face hub, by name or from a local folder; what they hold is told by their features."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fivefold.data import audio, images, tables, text
from fivefold.data.raw import Options, Part, Raw, part_of, read_parts
from fivefold.errors import DataError

NAMED = 12  # columns that a message lists


def read(name: str, options: Options) -> Raw:
    """`NAME` or `NAME:CONFIGURATION` of the hub, or a folder that the hub's library saved.

    Raises DataError where it cannot be read.
    """
    if not name.strip():
        raise DataError("hf: alone names no data set: expected hf:NAME, such as hf:mnist, or hf:FOLDER")
    try:
        import datasets
    except ImportError as error:
        raise DataError("data of the hub need the library 'datasets': pip install 'fivefold[hub]'") from error
    saved = any((Path(name) / file).exists() for file in ("dataset_dict.json", "dataset_info.json"))
    wanted, _, configuration = (name, "", "") if Path(name).exists() else name.partition(":")
    try:
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(wanted, configuration or None)
    except Exception as error:  # the library has no common base for its errors
        raise DataError(f"hf:{name} cannot be loaded: {error}") from error
    sets = dict(found) if isinstance(found, dict) else {"train": found}
    parts = {part: value for key, value in sets.items() if (part := part_of(key))}
    if "train" not in parts:
        raise DataError(f"hf:{name} has the splits {', '.join(map(str, sets))}: expected one called train")
    return _from_sets(parts, options, f"hf:{name}")


def _from_sets(parts: dict[str, Any], options: Options, where: str) -> Raw:
    """By the kinds of its columns: images, else sound, else one field of text, else a table."""
    features = parts["train"].features
    pictures, sounds = _of_kind(features, "Image"), _of_kind(features, "Audio")
    strings = [key for key, feature in features.items() if getattr(feature, "dtype", "") in ("string", "large_string")]
    if options.field and options.field not in strings:
        shown = ", ".join(strings[:NAMED]) or "there is none"
        raise DataError(f"{where}: no field {options.field!r} of text; name one with field (--field): {shown}")
    only = len(strings) == 1 and len(features) - len(_of_kind(features, "ClassLabel")) == 1
    if options.field or (only and not pictures and not sounds):
        key = options.field or strings[0]
        raw = read_parts(parts, partial(_texts, key=key, where=where), options)
        return _with_unused(raw, features, key)
    if pictures or sounds:
        key, label = (pictures or sounds)[0], _label(features, options.condition, (pictures or sounds)[0])
        if not pictures:
            options = replace(options, rate=options.rate or getattr(features[key], "sampling_rate", None))
        raw = read_parts(parts, partial(_images if pictures else _sounds, key=key, label=label), options)
        if label is not None and label == options.condition:
            raw.facts["label"] = label
        return _with_unused(raw, features, key, label)
    frames = {part: Part(tables.TableRows(_named(one))) for part, one in parts.items()}
    return Raw("table", frames, facts={"named": True})


def _of_kind(features: dict[str, Any], kind: str) -> list[str]:
    return [key for key, feature in features.items() if type(feature).__name__ == kind]


def _label(features: dict[str, Any], condition: str | None, key: str) -> str | None:
    """The column of labels: what the condition names, else the first of classes."""
    classes = _of_kind(features, "ClassLabel")
    return condition if condition in features and condition != key else classes[0] if classes else None


def _with_unused(raw: Raw, features: dict[str, Any], *used: str | None) -> Raw:
    if unused := [key for key in features if key not in used]:
        raw.notes.append(f"columns not used: {', '.join(unused[:NAMED])}{', ...' if len(unused) > NAMED else ''}")
    return raw


def _named(one: Any) -> pd.DataFrame:
    """The table with class labels by their names."""
    frame = one.to_pandas()
    for key in _of_kind(one.features, "ClassLabel"):
        frame[key] = pd.Categorical.from_codes(frame[key], one.features[key].names)
    return frame


def _labels(one: Any, label: str | None) -> np.ndarray | None:
    """One of each row, classes by their names."""
    if label is None:
        return None
    names = getattr(one.features[label], "names", None)
    values = np.asarray(one[label])
    return np.array(names, dtype=object)[values] if names else values


def _images(one: Any, options: Options, key: str, label: str | None) -> Raw:
    rows = HubImages(one, key, options.size, options.crop)
    layout = "HW" if rows[np.array([0])].ndim == 3 else "HWC"
    return Raw("image", {"train": Part(rows, _labels(one, label))}, facts={"layout": layout, "levels": 256})


def _texts(one: Any, options: Options, key: str, where: str) -> Raw:
    return text.from_field(pd.DataFrame({key: one[key]}), replace(options, field=key), where)


def _sounds(one: Any, options: Options, key: str, label: str | None) -> Raw:
    stored = one.cast_column(key, type(one.features[key])(decode=False))  # as files, which need no other library
    return audio.read([HubSound(stored, key, i) for i in range(len(one))], _labels(one, label), options)


@dataclass(frozen=True, eq=False)
class HubSound:
    """One file of sound; `open` gives its path or its bytes."""

    data: Any
    key: str
    row: int

    def __str__(self) -> str:
        return f"row {self.row}"

    def open(self) -> Any:
        found = self.data[self.row][self.key]
        return found["path"] if found["bytes"] is None else io.BytesIO(found["bytes"])


@dataclass(frozen=True)
class HubImages:
    """The images of one split, decoded as they are needed; grey where the first one is, else RGB."""

    data: Any
    key: str
    size: int | tuple[int, int] | None
    crop: int | None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> np.ndarray:
        mode = "L" if self.data[0][self.key].mode in ("1", "L") else "RGB"
        pictures = [image.convert(mode) for image in self.data[np.asarray(index)][self.key]]
        pictures = [images.framed(picture, self.crop, self.size) for picture in pictures]
        if len({picture.size for picture in pictures}) > 1:
            raise DataError("the images differ in size: pass size (--size 32) to scale and crop them to one")
        return np.stack([np.asarray(picture) for picture in pictures])
