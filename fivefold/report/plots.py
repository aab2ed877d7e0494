"""Plots as SVG text: no library's look, crisp at any size, in the page's own colours (light and dark).

Every plot is made for 440 units of width, so that its words stay readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 440, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 44
_CHARACTER, _TALL = 6.8, 13  # width of a label's character, and height
_HIDDEN = 0.2  # share of a name that may lie over others


class Point(NamedTuple):
    """A named point of a family (its colour and shape); `error` is of y."""

    name: str
    family: str
    x: float
    y: float
    error: float = 0.0


class Series(NamedTuple):
    """A named curve of a family: points (x, y) in the order of x."""

    name: str
    family: str
    points: Sequence[tuple[float, float]]


class Axis(NamedTuple):
    """An axis: its title and whether it is logarithmic."""

    title: str
    log: bool = False


class _Scale:
    """From values to positions between `start` and `end`."""

    def __init__(self, values: Sequence[float], axis: Axis, start: float, end: float, pad: float = 0.08) -> None:
        self.log, self.start, self.end = axis.log, start, end
        low, high = self._inner(min(values)), self._inner(max(values))
        spare = (high - low) * pad or abs(high) * 0.1 or 0.5
        self.low, self.high = low - spare, high + spare

    def _inner(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def __call__(self, value: float) -> float:
        inner = self._inner(value)
        return self.start + (inner - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside: 1, 2, 5 times powers of ten."""
        if not self.log:
            step = _round_step((self.high - self.low) / 4)
            first = math.ceil(self.low / step)
            return [step * i for i in range(first, math.floor(self.high / step) + 1)]
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        steps = (1, 2, 5) if self.high - self.low < 2 else (1,)
        every = max(1, round((self.high - self.low) / 5))
        values = [(d, s * 10.0**d) for d in decades for s in steps]
        return [v for d, v in values if self.low <= math.log10(v) <= self.high and d % every == 0]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough)


def _tick_text(value: float) -> str:
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:.8f}".rstrip("0").rstrip(".").replace("-", "−")


def _svg(body: list[str], label: str, height: int = HEIGHT) -> Markup:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(body) + "</svg>")


def _frame(
    x: _Scale, y: _Scale, x_title: str, y_title: str, height: int = HEIGHT, right: int = WIDTH - _RIGHT
) -> list[str]:
    """Gridlines, tick labels and axis titles."""
    bottom = height - _BOTTOM
    parts = []
    for tick in y.ticks():
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(
            f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{y(tick) + 4:.1f}">{_tick_text(tick)}</text>'
        )
    for tick in x.ticks():
        parts.append(f'<line class="grid" y1="{_TOP}" y2="{bottom}" x1="{x(tick):.1f}" x2="{x(tick):.1f}"/>')
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{x(tick):.1f}" y="{bottom + 16}">{_tick_text(tick)}</text>'
        )
    middle = (_LEFT + right) / 2
    parts.append(f'<text class="axis" text-anchor="middle" x="{middle}" y="{height - 8}">{escape(x_title)}</text>')
    across = (_TOP + bottom) / 2
    turned = f"translate(12 {across}) rotate(-90)"
    parts.append(f'<text class="axis" text-anchor="middle" transform="{turned}">{escape(y_title)}</text>')
    return parts


_SHAPES = {
    "energy": "M0-5.5L5.5 4.5H-5.5Z",
    "diffusion": "M0-6L6 0 0 6-6 0Z",
    "vae": "M-4.5-4.5H4.5V4.5H-4.5Z",
    "gan": "M0 5.5L5.5-4.5H-5.5Z",
    "autoregressive": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0Z",
    "flow": "M0-6 5.2-3V3L0 6-5.2 3V-3Z",
}
_OTHER_SHAPE = "M-5-1.7H-1.7V-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5Z"


def marker(family: str, x: float, y: float) -> str:
    """The family's shape in its colour."""
    shape = _SHAPES.get(family, _OTHER_SHAPE)
    colour, place = f"color:var(--{family_colour(family)})", f"translate({x:.1f} {y:.1f})"
    return f'<path class="marker" style="{colour}" transform="{place}" d="{shape}"/>'


def family_colour(family: str) -> str:
    """The page's colour name of a family; one for all that are not of the survey's families."""
    return family if family in _SHAPES else "other"


def scatter(points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> Markup:
    """Points with error bars in y; names where they cover next to nothing, those of the lowest points first.

    The others have theirs as a title, as all have.
    """
    points = [p for p in points if all(map(math.isfinite, p[2:])) and not (x_axis.log and p.x <= 0)]
    log_y = y_axis.log and all(p.y > 0 for p in points)
    y_axis = Axis(y_axis.title, log_y)
    if not points:
        return Markup("")
    spread = [p.y for p in points] + [
        p.y + s * p.error for p in points for s in (-1, 1) if not log_y or p.y + s * p.error > 0
    ]
    x = _Scale([p.x for p in points], x_axis, _LEFT, WIDTH - _RIGHT, 0.1)
    y = _Scale(spread, y_axis, HEIGHT - _BOTTOM, _TOP, 0.1)
    parts = _frame(x, y, x_axis.title, y_axis.title)
    spots = [(x(p.x), y(p.y)) for p in points]
    for point, (px, py) in zip(points, spots, strict=True):
        low = y(point.y - point.error) if not log_y or point.error < point.y else HEIGHT - _BOTTOM
        if point.error:
            parts.append(
                f'<line class="error" x1="{px:.1f}" x2="{px:.1f}" y1="{low:.1f}" y2="{y(point.y + point.error):.1f}"/>'
            )
        parts.append(f"<g>{marker(point.family, px, py)}<title>{escape(point.name)}</title></g>")
    for name, (lx, ly, anchor) in _labels([p.name for p in points], spots).items():
        parts.append(f'<text class="name" text-anchor="{anchor}" x="{lx:.1f}" y="{ly:.1f}">{escape(name)}</text>')
    return _svg(parts, f"{y_axis.title} against {x_axis.title}")


_PLACES = ((9, 4, "start"), (-9, 4, "end"), (0, -10, "middle"), (0, 19, "middle"),
           (7, -8, "start"), (7, 16, "start"), (-7, -8, "end"), (-7, 16, "end"))  # fmt: skip
_ANCHORS = {"start": 0.0, "middle": 0.5, "end": 1.0}  # share of a name's width that lies left of its anchor

Box = tuple[float, float, float, float]  # left, top, right, bottom


def _labels(names: list[str], spots: list[tuple[float, float]]) -> dict[str, tuple[float, float, str]]:
    """Anchors of the names' baselines: the place around each point with the least overlap, where that is small."""
    taken: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in spots]
    placed = {}
    for name, (x, y) in sorted(zip(names, spots, strict=True), key=lambda named: -named[1][1]):
        boxes = {(x + dx, y + dy, anchor): _box(name, x + dx, y + dy, anchor) for dx, dy, anchor in _PLACES}
        best = min(boxes, key=lambda place: _covered(boxes[place], taken))
        if _covered(boxes[best], taken) <= _HIDDEN * len(name) * _CHARACTER * _TALL:
            taken.append(boxes[best])
            placed[name] = best
    return placed


def _box(name: str, x: float, y: float, anchor: str) -> Box:
    wide = len(name) * _CHARACTER
    left = x - _ANCHORS[anchor] * wide
    return left, y + 3 - _TALL, left + wide, y + 3


def _covered(box: Box, taken: list[Box]) -> float:
    """Area that a box shares with those taken; being outside the plot counts much more."""
    left, top, right, bottom = box
    outside = max(0.0, _LEFT - left) + max(0.0, right - WIDTH) + max(0.0, _TOP - 8 - top)
    area = sum(max(0.0, min(right, r) - max(left, x)) * max(0.0, min(bottom, b) - max(top, t)) for x, t, r, b in taken)
    return area + 100 * outside


def curve(points: Sequence[tuple[float, float]], family: str, x_title: str, y_title: str, height: int = 190) -> Markup:
    """One curve. Values far off at the start of training do not squeeze the rest (they leave at the edge)."""
    finite = [(a, b) for a, b in points if math.isfinite(a) and math.isfinite(b)]
    if len(finite) < 2:
        return Markup("")
    ys = np.array([b for _, b in finite])
    low, high = np.quantile(ys, [0, 0.95]) if len(ys) > 20 else (ys.min(), ys.max())
    x = _Scale([0.0, max(a for a, _ in finite)], Axis(x_title), _LEFT, WIDTH - _RIGHT, 0.02)
    y = _Scale([float(low), float(high)], Axis(y_title), height - _BOTTOM, _TOP)
    line = " ".join(f"{x(a):.1f},{min(max(y(b), _TOP), height - _BOTTOM):.1f}" for a, b in finite)
    drawn = f'<polyline class="curve" style="color:var(--{family_colour(family)})" points="{line}"/>'
    return _svg([*_frame(x, y, x_title, y_title, height), drawn], f"{y_title} against {x_title}", height)


_LABELS = 118  # width for the names at the right of many curves
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 4")  # tell curves of one family apart


def curves(series: Sequence[Series], x_axis: Axis, y_axis: Axis, window: tuple[float, float]) -> Markup:
    """Many curves in one plot, each named at its right end; what lies outside the `window` of y leaves at the edge."""
    series = [one for one in series if len(one.points) > 1]
    if not series:
        return Markup("")
    height = max(HEIGHT, _TALL * len(series) + _TOP + _BOTTOM)
    right, bottom = WIDTH - _LABELS, height - _BOTTOM
    x = _Scale([a for one in series for a, _ in one.points], x_axis, _LEFT, right, 0.03)
    y = _Scale(window, y_axis, bottom, _TOP, 0.04)
    at = [[(x(a), min(max(y(b), _TOP), bottom)) for a, b in one.points] for one in series]
    parts = _frame(x, y, x_axis.title, y_axis.title, height, right)
    names = _spaced([points[-1][1] for points in at], _TOP + 6, bottom)
    drawn: dict[str, int] = {}
    for one, points, name_y in zip(series, at, names, strict=True):
        dash = _DASHES[drawn.setdefault(one.family, 0) % len(_DASHES)]
        drawn[one.family] += 1
        (end_x, end_y), line = points[-1], " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(
            f'<g class="series" style="color:var(--{family_colour(one.family)})"><title>{escape(one.name)}</title>'
            f'<polyline class="curve" stroke-dasharray="{dash}" points="{line}"/>'
            f'<path class="leader" d="M{end_x:.1f} {end_y:.1f}L{right + 12} {name_y:.1f}"/>'
            f'<text class="name" x="{right + 15}" y="{name_y + 4:.1f}">{escape(one.name)}</text></g>'
        )
    return _svg(parts, f"{y_axis.title} against {x_axis.title}", height)


def _spaced(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """Positions near those wanted, a line of text apart, within the two ends where there is room."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = list(wanted)
    for before, i in zip([None, *order], order, strict=False):
        placed[i] = max(wanted[i], low if before is None else placed[before] + _TALL)
    for after, i in zip([None, *order[::-1]], order[::-1], strict=False):
        placed[i] = min(placed[i], high if after is None else placed[after] - _TALL)
    return placed
