"""Data sets of the Hugging Face hub, by name or from a local folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fivefold.data import images, tables, text
from fivefold.data.raw import Options, Part, Raw, part_of
from fivefold.errors import DataError


def read(name: str, options: Options) -> Raw:
    """`NAME` of the hub, or a folder that the hub's library saved; raises DataError where it cannot be read."""
    if not name:
        raise DataError("hf: alone names no data set: expected hf:NAME, such as hf:mnist, or hf:FOLDER")
    try:
        import datasets
    except ImportError as error:
        raise DataError("data of the hub need the library 'datasets': pip install 'fivefold[hub]'") from error
    saved = any((Path(name) / file).exists() for file in ("dataset_dict.json", "dataset_info.json"))
    try:
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # the library has no common base for its errors
        raise DataError(f"hf:{name} cannot be loaded: {error}") from error
    sets = dict(found) if isinstance(found, dict) else {"train": found}
    parts = {part: value for key, value in sets.items() if (part := part_of(key))}
    if "train" not in parts:
        raise DataError(f"hf:{name} has the splits {', '.join(map(str, sets))}: expected one called train")
    return _from_sets(parts, options)


def _from_sets(parts: dict[str, Any], options: Options) -> Raw:
    features = parts["train"].features
    pictures = [key for key, feature in features.items() if type(feature).__name__ == "Image"]
    if pictures:
        return _images(parts, pictures[0], options)
    strings = [key for key, feature in features.items() if getattr(feature, "dtype", "") in ("string", "large_string")]
    if strings and len(features) - len(_labels(features)) == 1:
        whole = {part: text.from_strings(one[strings[0]], options) for part, one in parts.items()}
        return replace(whole["train"], parts={part: raw.parts["train"] for part, raw in whole.items()})
    frames = {part: Part(tables.TableRows(_named(one))) for part, one in parts.items()}
    return Raw("table", frames, facts={"named": True})


def _labels(features: dict[str, Any]) -> list[str]:
    return [key for key, feature in features.items() if type(feature).__name__ == "ClassLabel"]


def _named(one: Any) -> pd.DataFrame:
    """The table with class labels by their names."""
    frame = one.to_pandas()
    for key in _labels(one.features):
        frame[key] = pd.Categorical.from_codes(frame[key], one.features[key].names)
    return frame


def _images(parts: dict[str, Any], key: str, options: Options) -> Raw:
    labels = _labels(parts["train"].features)
    rows = {part: HubImages(one, key, options.size, options.crop) for part, one in parts.items()}
    layout = "HW" if rows["train"][np.array([0])].ndim == 3 else "HWC"

    def labels_of(one: Any) -> np.ndarray | None:
        if not labels:
            return None
        return np.array(one.features[labels[0]].names, dtype=object)[np.asarray(one[labels[0]])]

    return Raw(
        "image",
        {part: Part(rows[part], labels_of(parts[part])) for part in parts},
        facts={"layout": layout, "levels": 256},
    )


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
