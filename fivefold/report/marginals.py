"""A picture of a data set: of a table the marginal of every column, of images a grid of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fivefold.data.splits import Data
from fivefold.data.writers import grid
from fivefold.errors import DataError
from fivefold.files import replacing
from fivefold.space import Column, Space

MOST, ROWS, BARS, IMAGES = 60, 20_000, 20, 64  # columns, rows counted, categories named, images shown


def draw(data: Data, path: Path | str) -> Path:
    """Draw the training split into a PNG file; DataError for text and sound, which are read and heard."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise DataError(f"the picture of data is a PNG file, got {path.name!r}")
    if data.space.kind not in ("table", "image"):
        raise DataError(f"there is no picture of {data.space.kind} data: leave out --out")
    x = data.train.spread(IMAGES if data.space.kind == "image" else ROWS).x
    with replacing(path) as temporary:
        if data.space.kind == "image":
            grid(data.space, data.space.decode(x)).save(temporary, format="PNG")
        else:
            _histograms(data.space, x.numpy()).savefig(temporary, format="png", dpi=110)
    return path


def _histograms(space: Space, x: np.ndarray) -> Any:
    """A figure with one histogram a column, in the column's own units."""
    from matplotlib.figure import Figure

    columns = space.columns[:MOST]
    across = min(4, len(columns))
    down = -(-len(columns) // across)
    figure = Figure(figsize=(3.1 * across, 2.1 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis, column, codes in zip(axes, columns, x.T[:MOST], strict=False):
        _histogram(axis, column, codes)
    for axis in axes[len(columns) :]:
        axis.set_axis_off()
    return figure


def _histogram(axis: Any, column: Column, codes: np.ndarray) -> None:
    axis.set_title(column.name, fontsize=8)
    axis.tick_params(labelsize=6)
    axis.spines[["top", "right"]].set_visible(False)
    if column.categories:
        counts = np.bincount(codes.astype(int), minlength=len(column.categories))
        order = np.argsort(-counts, kind="stable")[:BARS]
        order = np.sort(order) if column.dtype.startswith("ordered") else order
        names = ["(missing)" if column.categories[i] is None else str(column.categories[i])[:14] for i in order]
        axis.bar(range(len(order)), counts[order], color="#4c78a8")
        axis.set_xticks(range(len(order)), names, rotation=0 if sum(map(len, names)) < 30 else 60, ha="center")
        return
    numbers = np.asarray(column.decode(codes[~np.isnan(codes)]), dtype=np.float64)
    values = numbers if len(numbers) else np.zeros(1)
    if column.missing:
        axis.set_title(f"{column.name} ({np.isnan(codes).mean():.0%} missing)", fontsize=8)
    few = column.levels is not None and column.levels <= 40
    bins: Any = np.arange(values.min(), values.max() + 2) - 0.5 if few else 40
    if column.curve == "log":
        zeros, values = np.mean(values <= 0), values[values > 0]
        axis.set_xscale("log")
        bins = np.geomspace(values.min(), values.max(), 41)
        if zeros:
            axis.set_title(f"{column.name} ({zeros:.0%} not positive)", fontsize=8)
    axis.hist(values, bins, color="#4c78a8", rwidth=0.85 if few else None)
    if few:
        axis.locator_params(axis="x", integer=True)
    if column.dates is not None:
        ticks = np.linspace(values.min(), values.max(), 3).round()
        axis.set_xticks(ticks, [text[:10] for text in column.dates.write(ticks)])
