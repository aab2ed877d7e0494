"""What a row opens into: how it is made again, its curves, samples with their nearest neighbours, diagnostics."""

from __future__ import annotations

import functools
import itertools
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from fivefold.report import pictures, plots
from fivefold.report.columns import Line, Row, number
from fivefold.space import Space
from fivefold.tools.metrics import MEASURES

CURVES = {  # of a row: what each curve is called
    "loss": "training loss",
    "validation": "validation",
    "density": "validation, nats",
    "distance": "validation distance",
}


@functools.cache
def environment() -> jinja2.Environment:
    """What renders the package's templates; made once, since it keeps them compiled."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(template), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip


def template(name: str) -> str:
    """The text of a file of this package."""
    return (resources.files("fivefold.report") / name).read_text(encoding="utf-8")


def render(line: Line, row: Row, space: Space, real: Any, arrays: dict[str, Any], gallery: bool) -> Markup:
    """An opened line; `row` is its first finished row with all that it holds, `arrays` are that row's.

    Where the page has the line's samples in its `gallery` they are not repeated: its script takes them from there.
    """
    drawn = real is not None and "samples" in arrays
    return Markup(environment().get_template("detail.html").render(
        line=line,
        failed=[row for row in line.rows if row["status"] != "ok"],
        curves=curves(row, line.family),
        monitor={name.replace("_", " "): number(value) for name, value in (row.get("monitor") or {}).items()},
        drawn=drawn,
        samples=pictures.samples(space, arrays["samples"], real, line.family) if drawn and not gallery else None,
        density=pictures.density(arrays["density"]) if "density" in arrays and not gallery else None,
        neighbours=pictures.beside(space, arrays["samples"], arrays["nearest"], real, line.family)
        if drawn and "nearest" in arrays else None,
        dials=dials(row, line.family),
        kind=space.kind,
    ))  # fmt: skip


def curves(row: Row, family: str) -> list[Markup]:
    """Of a finished row, or one that is being trained: losses, and validation in each of its measures."""
    history = row.get("curves") or {}
    measured = [key for key in ("density", "distance") if history.get(key)] or ["validation"]
    found = [(CURVES[key], [(at, value) for at, value, *_ in history.get(key) or ()]) for key in ("loss", *measured)]
    drawn = [plots.curve(points, family, "seconds of training", title) for title, points in found]
    return [plot for plot in drawn if plot]


def dials(row: Row, family: str) -> list[Markup]:
    """Quality as each dial turns, and distortion as a hierarchy's rate grows."""
    found = row.get("diagnostics") or {}
    drawn = []
    for name, points in (found.get("dials") or {}).items():
        by_evaluations = len({point["evaluations"] for point in points}) == len(points) > 1
        across = "evaluations a sample" if by_evaluations else name.replace("_", " ")
        for key in ("frechet", "recall"):
            xy = [(p["evaluations" if by_evaluations else "value"], p[key]["value"]) for p in points if key in p]
            drawn.append(plots.curve(sorted(xy), family, across, MEASURES[key].title))
    levels = found.get("levels") or []
    rates = list(itertools.accumulate(level["nats"] for level in levels))
    distortions = [(rate, level["distortion"]) for rate, level in zip(rates, levels, strict=True)]
    drawn.append(plots.curve(distortions, family, "rate in nats, levels from the top", "distortion"))
    return [plot for plot in drawn if plot]
