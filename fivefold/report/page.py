"""The page of a comparison: one HTML file with everything inside."""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from numpy.typing import NDArray

from fivefold.catalog import FAMILIES
from fivefold.files import write_text
from fivefold.report import curves, pictures, plots, trials
from fivefold.report.advice import listed, recommendation
from fivefold.report.columns import (
    DENSITY,
    NATS,
    Column,
    Line,
    Row,
    cells,
    columns,
    density_column,
    floors,
    lines,
    number,
)
from fivefold.report.terminal import COMPARED, failures
from fivefold.space import Space
from fivefold.tools.metrics import MEASURES

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Content:
    """What a page is made of.

    `settings` is comparison.json (data, space, budget, machine, ...), `rows` the table's rows, `real`
    encoded held-out examples, `arrays` by row label its `samples` and, in 2-D, its `density`, `tunings`
    by row label what was tuned, and `race` race.json (both for `fivefold.report.trials`).
    """

    settings: dict[str, Any]
    rows: list[Row]
    real: NDArray[Any] | None = None
    arrays: dict[str, Arrays] = field(default_factory=dict)
    tunings: dict[str, tuple[Row, Row]] = field(default_factory=dict)
    race: Row | None = None


def write(content: Content, path: Path) -> Path:
    """The page of `content` as one file at `path`, whole or not at all."""
    write_text(path, render(content))
    return path


def render(content: Content) -> str:
    """The page as text: no address in it leads anywhere outside."""
    home = resources.files("fivefold.report")
    read = {name: (home / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(read["html"]).render(
        css=Markup(read["css"]), js=Markup(read["js"]), **_context(content)
    )


def _context(content: Content) -> dict[str, Any]:
    table = lines(content.rows)
    good = [line for line in table if line.finished]
    settings = content.settings
    return {
        "name": settings["data"]["name"],
        "settings": settings,
        "description": Space.from_json(settings["space"]).describe(),
        "written": datetime.date.today().isoformat(),
        "recommendation": recommendation(content.rows),
        "listed": listed,
        "families": {line.family: FAMILIES.get(line.family, line.family) for line in table},
        "colour": plots.family_colour,
        "marker": lambda family: Markup(f'<svg class="key" viewBox="-7 -7 14 14">{plots.marker(family, 0, 0)}</svg>'),
        "features": sorted(
            {row["quality"]["features"] for row in content.rows if (row.get("quality") or {}).get("features")}
        ),
        "pictures": _pictures(content, good),
        "plots": _plots(good),
        "over_time": _over_time(good),
        "curves": [found for line in good if (found := _curves(line))["plots"]],
        "diagnostics": [found for line in good if (found := _diagnostics(line))["plots"]],
        "tuning": trials.race(content.race) + trials.section(content.tunings),
        "failed": [text for line in table for text in failures(line)],
        "notes": [(line.label, note) for line in good for note in line.notes],
        "commands": [(line.label, [row["command"] for row in line.rows if row.get("command")]) for line in table],
        "compared": COMPARED[any(len(line.finished) > 1 for line in good)],
        "seeds": max((len(line.rows) for line in table), default=0),
        **_table(content, good, table),
    }


def _table(content: Content, good: list[Line], table: list[Line]) -> dict[str, Any]:
    chosen = columns(content.rows)
    entropy = content.settings.get("entropy")
    limits = floors(good, chosen) | ({} if entropy is None else {NATS.key: -entropy})
    groups: list[tuple[str, list[Column]]] = []
    for column in chosen:
        if not groups or groups[-1][0] != column.group:
            groups.append((column.group, []))
        groups[-1][1].append(column)
    return {
        "groups": groups,
        "columns": chosen,
        "floors": {key: number(value) for key, value in limits.items()},
        "lines": table,
        "cells": {column.key: cells(column, good) for column in chosen},
    }


def _pictures(content: Content, good: list[Line]) -> list[dict[str, Any]]:
    """Real examples first, then every system's; in 2-D its density beside its samples."""
    if content.real is None:
        return []
    space = Space.from_json(content.settings["space"])
    real = content.real
    found = [
        {
            "label": "held-out data",
            "family": "real",
            "samples": pictures.samples(space, real, real, "real"),
            "density": None,
        }
    ]
    for line in good:
        arrays = content.arrays.get(line.label, {})
        if "samples" in arrays:
            drawn = pictures.samples(space, arrays["samples"], real, line.family)
            density = pictures.density(arrays["density"]) if "density" in arrays else None
            found.append({"label": line.label, "family": line.family, "samples": drawn, "density": density})
    return found


def _plots(good: list[Line]) -> list[dict[str, Any]]:
    """Quality against sampling time, and against the density where there is one."""
    chosen = {column.key: column for column in columns(row for line in good for row in line.rows)}
    density = density_column(row for line in good for row in line.rows)
    better = "right" if density == NATS else "left"
    wanted = [
        ("Quality and sampling time", "sample_64", plots.Axis("seconds a sample, 64 at a time", True),
         "Best at the lower left."),
        ("Quality and density", density.key, plots.Axis(_density_axis(density)),
         f"Best at the lower {better}. Bounds (≤, ≥) are drawn where they are: the truth lies to their {better}. "
         "Estimates (≈) can err either way. Samplers without a density are not here."),
    ]  # fmt: skip
    found = []
    for title, key, axis, caption in wanted:
        if key in chosen and "frechet" in chosen:
            points = list(_points(good, chosen[key], chosen["frechet"], invert=key == "sample_64"))
            if points:
                drawn = plots.scatter(points, axis, plots.Axis(f"{chosen['frechet'].title} (less is better)", True))
                found.append({"title": title, "svg": drawn, "caption": caption})
    return found


_OVER_TIME = {  # of a curve: the plot's title, its axis, and what is best
    "distance": ("Distance of samples", plots.Axis("Fréchet distance, validation split", True), "Best at the bottom."),
    "density": (
        "Density",
        plots.Axis("log-likelihood in nats, validation split"),
        "Best at the top. Of bounds (≥) the truth lies above; estimates (≈) can err either way.",
    ),
}


def _over_time(good: list[Line]) -> list[dict[str, Any]]:
    """Validation over seconds, all systems in one plot: which is best after ten seconds, a minute, ten?"""
    found = []
    for name, (title, axis, caption) in _OVER_TIME.items():
        series = [plots.Series(f"{_sign(line) if name == 'density' else ''}{line.label}", line.family, points)
                  for line in good if len(points := curves.drawn(line.finished[0], name)) > 1]  # fmt: skip
        if series:
            window = curves.window([[value for _, value in one.points] for one in series], name)
            across = plots.Axis("seconds of training", curves.spreads([one.points for one in series]))
            upwards = axis._replace(log=axis.log and window[0] > 0)
            found.append({"title": title, "svg": plots.curves(series, across, upwards, window), "caption": caption})
    return found


def _sign(line: Line) -> str:
    kind = (line.finished[0].get("density") or {}).get("kind", "none")
    return {"lower bound": "≥ ", "estimate": "≈ "}.get(kind, "")


def _density_axis(density: Column) -> str:
    return "log-likelihood in nats (more is better)" if density == NATS else f"{density.title.lower()} (less is better)"


def _points(good: list[Line], across: Column, up: Column, *, invert: bool) -> Iterable[plots.Point]:
    for line in good:
        x, y = line.reading(across), line.reading(up)
        if x is not None and y is not None and math.isfinite(x.value) and (x.value > 0 or not invert):
            sign = {"lower bound": "≥ " if across.key == "nats" else "≤ ", "estimate": "≈ "}.get(x.kind, "")
            yield plots.Point(f"{sign}{line.label}", line.family, 1 / x.value if invert else x.value, y.value, y.error)


def _diagnostics(line: Line) -> dict[str, Any]:
    """Of the line's first row: quality as each dial turns, and distortion as a hierarchy's rate grows."""
    found = line.finished[0].get("diagnostics") or {}
    drawn = []
    for name, points in (found.get("dials") or {}).items():
        by_evaluations = len({point["evaluations"] for point in points}) == len(points) > 1
        across = "evaluations a sample" if by_evaluations else name.replace("_", " ")
        for key in ("frechet", "recall"):
            xy = [(p["evaluations" if by_evaluations else "value"], p[key]["value"]) for p in points if key in p]
            drawn.append(plots.curve(sorted(xy), line.family, across, MEASURES[key].title))
    levels = found.get("levels") or []
    rates = list(itertools.accumulate(level["nats"] for level in levels))
    distortions = [(rate, level["distortion"]) for rate, level in zip(rates, levels, strict=True)]
    drawn.append(plots.curve(distortions, line.family, "rate in nats, levels from the top", "distortion"))
    return {"label": line.label, "family": line.family, "plots": [plot for plot in drawn if plot]}


def _curves(line: Line) -> dict[str, Any]:
    row = line.finished[0]
    history = row.get("curves") or {}
    has_density = (row.get("density") or {}).get("kind") in DENSITY
    name = "validation, nats" if has_density else "validation distance"  # what the best weights are chosen by
    drawn = [
        plots.curve([(a, b) for a, b in history.get(key) or ()], line.family, "seconds of training", title)
        for key, title in (("loss", "training loss"), ("validation", name))
    ]
    monitor = {name.replace("_", " "): number(value) for name, value in (row.get("monitor") or {}).items()}
    return {"label": line.label, "family": line.family, "plots": [plot for plot in drawn if plot], "monitor": monitor}
