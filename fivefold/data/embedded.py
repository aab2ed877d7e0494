"""Data that come with the package's own dependencies: real ones, and two-dimensional densities."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from fivefold.data import tables, text, toy
from fivefold.data.raw import SHARES, Options, Part, Raw
from fivefold.errors import DataError

TILE = 64  # pixels: photos are cut into tiles, and whole tiles go to a part


def digits(options: Options) -> Raw:
    """Handwritten digits, 8x8, 17 levels, labelled (scikit-learn)."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    return Raw("image", {"train": Part(raw.images.astype(np.uint8), raw.target)}, facts={"layout": "HW", "levels": 17})


def photos(options: Options) -> Raw:
    """Patches of scikit-learn's two sample photographs, 32x32x3 or `size`; no two parts share a pixel."""
    from sklearn.datasets import load_sample_images

    size = options.size or 32
    if not isinstance(size, int) or not 1 <= size <= TILE:
        raise DataError(f"photos are patches of size 1 to {TILE}, got {size}")
    pictures = load_sample_images().images
    height, width = pictures[0].shape[:2]
    tiles = [
        (which, top, left)
        for which in range(len(pictures))
        for top in range(0, height - TILE + 1, TILE)
        for left in range(0, width - TILE + 1, TILE)
    ]
    order = np.random.default_rng(options.split_seed).permutation(len(tiles))
    ends = np.round(np.cumsum(list(SHARES.values())) * len(tiles)).astype(int)
    parts = {}
    for name, own in zip(SHARES, np.split(order, ends[:-1]), strict=True):
        stride = max(1, size // 8) if name == "train" else max(1, size // 4)
        patches, labels = [], []
        for which, top, left in (tiles[i] for i in np.sort(own)):
            tile = pictures[which][top : top + TILE, left : left + TILE]
            windows = np.lib.stride_tricks.sliding_window_view(tile, (size, size), (0, 1))[::stride, ::stride]
            patches.append(np.moveaxis(windows, 2, -1).reshape(-1, size, size, 3))
            labels += [("china", "flower")[which]] * len(patches[-1])
        parts[name] = Part(np.concatenate(patches), np.array(labels, dtype=object))
    note = f"patches overlap within a part, never between parts ({TILE}-pixel tiles): standard errors are too small"
    return Raw("image", parts, notes=[note], facts={"layout": "HWC", "levels": 256})


def _table(loader: str, options: Options) -> Raw:
    import sklearn.datasets

    raw = getattr(sklearn.datasets, loader)()
    frame = pd.DataFrame(raw.data, columns=list(raw.feature_names))
    return tables.from_frame(frame, labels=np.asarray(raw.target_names, dtype=object)[raw.target])


def pydocs(options: Options) -> Raw:
    """Python's own documentation as characters; it differs a little between versions of Python."""
    from pydoc_data.topics import topics

    return text.from_strings((topics[name] for name in sorted(topics)), options)


def _toy(name: str, options: Options) -> Raw:
    density = toy.TOYS[name]
    x, label = density.sample(np.random.default_rng(0), toy.SIZE)
    frame = pd.DataFrame(x, columns=["x0", "x1"])
    note = f"entropy {density.entropy:.4f} nats: no model has a higher mean log-probability than {-density.entropy:.4f}"
    parts = {"train": Part(tables.TableRows(frame), label)}
    return Raw("table", parts, notes=[note], facts={"named": False}, entropy=density.entropy)


EMBEDDED: dict[str, Callable[[Options], Raw]] = {
    "digits": digits,
    "photos": photos,
    "cancer": partial(_table, "load_breast_cancer"),
    "wine": partial(_table, "load_wine"),
    "pydocs": pydocs,
    **{name: partial(_toy, name) for name in toy.TOYS},
}
