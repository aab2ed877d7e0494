"""Samples as a page shows them: images as a grid, tables as points or marginals, text, sound; densities as maps.

Everything becomes text for the page: SVG, or a data URI.
"""

from __future__ import annotations

import base64
import io
import math
import wave
from typing import Any

import numpy as np
import pandas as pd
import torch
from markupsafe import Markup, escape
from numpy.typing import NDArray

from fivefold.report.plots import family_colour
from fivefold.space import AUDIO_OFFSET, Space

Array = NDArray[Any]
IMAGES, TEXTS, SOUNDS, POINTS, MARGINALS = 64, 4, 3, 1000, 9  # how many of each are shown
NEIGHBOURS = {"image": 12, "text": 3, "audio": 2, "table": 4}  # samples that are shown beside their nearest neighbour
_WIDEST = 8  # columns of a table whose values are shown
_SOUND_SECONDS = 3.0  # of each sound, so that the page stays small


def shown(kind: str) -> int:
    """How many examples of a kind of space are worth keeping for the page."""
    return {"image": IMAGES, "text": TEXTS, "audio": SOUNDS}.get(kind, POINTS)


def is_plane(space: Space) -> bool:
    """Whether examples are points of the plane."""
    return space.kind == "table" and space.dims == 2 and not any(space.dim_levels)


def samples(space: Space, x: Array, real: Array, family: str) -> Markup:
    """Encoded examples `x` `(n, *shape)`; `real` are held-out ones, for common axes and for comparison."""
    return _DRAW[space.kind](space, x, real, family)


def beside(space: Space, x: Array, nearest: Array, real: Array, family: str) -> Markup:
    """Samples `x`, and under each of the first the training example nearest to it, of `nearest`."""
    n = len(nearest)
    if space.kind == "image":
        return _images(space, np.concatenate([x[:n], nearest]), real, family, across=n)
    if space.kind == "table":
        return _values(space, x[:n], nearest)
    pairs = [samples(space, np.stack(pair), real, family) for pair in zip(x[:n], nearest, strict=True)]
    return Markup("").join(Markup('<div class="both">{}</div>').format(pair) for pair in pairs)


def _values(space: Space, x: Array, nearest: Array) -> Markup:
    """The values of table rows, each over those of the row nearest to it."""
    frames = [pd.DataFrame(space.decode(torch.from_numpy(part))).iloc[:, :_WIDEST] for part in (x, nearest)]
    head = Markup("").join(Markup("<th scope='col'>{}</th>").format(name) for name in frames[0].columns)
    rows = Markup("").join(
        Markup("<tr class='{0}'><th scope='row'>{0}</th>{1}</tr>").format(
            word, Markup("").join(Markup("<td>{}</td>").format(_short(value)) for value in frame.iloc[i])
        )
        for i in range(len(x))
        for word, frame in zip(("sample", "nearest"), frames, strict=True)
    )
    table = "<table><thead><tr><td></td>{}</tr></thead><tbody>{}</tbody></table>"
    return Markup(f'<div class="scroll">{table}</div>').format(head, rows)


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float | np.floating) else str(value)[:24]


def _images(space: Space, x: Array, real: Array, family: str, across: int | None = None) -> Markup:
    low, high = (0, space.levels - 1) if space.levels else (float(real.min()), float(real.max()))
    scaled = (np.clip((x[:IMAGES].astype(float) - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8)
    return image(grid(scaled if space.shape[0] in (1, 3) else scaled[:, :1], across), "samples")


def grid(images: Array, across: int | None = None, gap: int = 1) -> Array:
    """uint8 images `(n, 1 or 3, H, W)` side by side, as one `(H', W', 1 to 4)` with transparent gaps; near a square."""
    n, _, height, width = images.shape
    across = across or math.ceil(math.sqrt(n))
    down = math.ceil(n / across)
    sheet = np.zeros((down * (height + gap) - gap, across * (width + gap) - gap, 4), np.uint8)
    for i, one in enumerate(images):
        top, left = i // across * (height + gap), i % across * (width + gap)
        sheet[top : top + height, left : left + width, :3] = np.moveaxis(one, 0, -1)
        sheet[top : top + height, left : left + width, 3] = 255
    return sheet


def image(pixels: Array, words: str) -> Markup:
    """An RGBA picture `(H, W, 4)` as an <img>."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return Markup(f'<img class="pixels" alt="{escape(words)}" src="{data_uri(file.getvalue(), "image/png")}">')


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _texts(space: Space, x: Array, real: Array, family: str) -> Markup:
    snippets = space.decode(torch.from_numpy(x[:TEXTS].astype(np.int64)))
    return Markup("").join(Markup("<pre class='snippet'>{}</pre>").format(text[:280]) for text in snippets)


def _sounds(space: Space, x: Array, real: Array, family: str) -> Markup:
    rate = space.rate or 16000
    parts = []
    for one in x[:SOUNDS]:
        signal = (one.astype(np.int64) - AUDIO_OFFSET)[: int(rate * _SOUND_SECONDS)].astype(np.int16)
        file = io.BytesIO()
        with wave.open(file, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(rate)
            sound.writeframes(signal.tobytes())
        parts.append(_waveform(signal, family))
        parts.append(Markup(f'<audio controls preload="none" src="{data_uri(file.getvalue(), "audio/wav")}"></audio>'))
    return Markup("").join(parts)


def _waveform(signal: Array, family: str, width: int = 200, height: int = 48) -> Markup:
    """Lowest and highest value in each of `width` columns."""
    columns = np.array_split(signal.astype(float) / 32768, min(width, len(signal)))
    edges = [(i, height / 2 * (1 - c.max()), height / 2 * (1 - c.min())) for i, c in enumerate(columns)]
    path = "".join(f"M{i} {top:.1f}V{bottom + 0.5:.1f}" for i, top, bottom in edges)
    return Markup(
        f'<svg class="wave" preserveAspectRatio="none" viewBox="0 0 {width} {height}">{_path(path, family, 1)}</svg>'
    )


def _path(path: str, family: str, width: float) -> str:
    return f'<path class="stroke" style="color:var(--{family_colour(family)})" stroke-width="{width}" d="{path}"/>'


def _table(space: Space, x: Array, real: Array, family: str) -> Markup:
    return _points(x, real, family) if is_plane(space) else _marginals(space, x, real, family)


def window(real: Array) -> tuple[Array, Array]:
    """Lower and upper corner `(2,)` of the square that 2-D pictures show: the real data and a margin."""
    low, high = real.astype(float).min(0), real.astype(float).max(0)
    half = float((high - low).max()) * 0.55 or 1.0
    return (low + high) / 2 - half, (low + high) / 2 + half


def _points(x: Array, real: Array, family: str, size: int = 200) -> Markup:
    low, high = window(real)
    at = (x[:POINTS].astype(float) - low) / (high - low) * size
    inside = at[np.isfinite(at).all(1) & (at >= 0).all(1) & (at <= size).all(1)]
    path = "".join(f"M{a:.1f} {size - b:.1f}h0" for a, b in inside)
    return Markup(f'<svg class="points" viewBox="0 0 {size} {size}">{_path(path, family, 2.2)}</svg>')


def _marginals(space: Space, x: Array, real: Array, family: str) -> Markup:
    """Histograms of the first columns, with the real data's as a line."""
    parts = [
        _histogram(column.name, x[:, i].astype(float), real[:, i].astype(float), column.levels, family)
        for i, column in enumerate(space.columns[:MARGINALS])
    ]
    return Markup('<div class="marginals">') + Markup("").join(parts) + Markup("</div>")


def _histogram(
    name: str, x: Array, real: Array, levels: int | None, family: str, size: tuple[int, int] = (100, 56)
) -> Markup:
    wide, high = size
    bins = min(levels, 24) if levels else 24
    low, top = (-0.5, levels - 0.5) if levels else (float(np.nanmin(real)), float(np.nanmax(real)) + 1e-9)
    shares = [
        np.histogram(np.clip(v[np.isfinite(v)], low, top), bins, (low, top))[0] / max(len(v), 1) for v in (x, real)
    ]
    tall = max(max(s.max() for s in shares), 1e-9)
    steps = [_steps(share / tall * (high - 2), wide / bins, high) for share in shares]
    colour = f"color:var(--{family_colour(family)})"
    return Markup(
        f'<figure class="marginal"><svg viewBox="0 0 {wide} {high}"><path class="fill" style="{colour}" '
        f'd="M0 {high}{steps[0]}V{high}Z"/><path class="outline" d="M0 {high}{steps[1]}"/></svg>'
        f"<figcaption>{escape(name)}</figcaption></figure>"
    )


def _steps(heights: Array, width: float, base: int) -> str:
    return "".join(f"V{base - h:.1f}H{(i + 1) * width:.1f}" for i, h in enumerate(heights.astype(float)))


def density(log_prob: Array) -> Markup:
    """A map `(n, n)` of log-densities (rows: second dimension, upwards), scaled by its largest value."""
    values = np.exp(
        np.nan_to_num(log_prob.astype(float), nan=-np.inf, posinf=-np.inf) - np.nanmax(log_prob.astype(float))
    )
    shade = np.sqrt(values)[::-1]  # the root shows low densities too
    alpha = (255 * shade).astype(np.uint8)
    rgb = np.stack([80 + 150 * shade, 70 + 120 * shade**2, 150 - 60 * shade], -1).astype(np.uint8)
    return image(np.concatenate([rgb, alpha[..., None]], -1), "density")


_DRAW = {"image": _images, "text": _texts, "audio": _sounds, "table": _table}
