"""The page of a comparison: one HTML file with everything inside."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from numpy.typing import NDArray

from fivefold.catalog import FAMILIES
from fivefold.files import write_text
from fivefold.report import curves, details, pictures, plots, table, trials
from fivefold.report.advice import listed, recommendation
from fivefold.report.columns import NATS, Column, Line, Row, columns, density_column, floors, lines
from fivefold.report.terminal import COMPARED, SHOWN, failures, foremost
from fivefold.space import Space

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Content:
    """What a page is made of.

    `settings` is comparison.json (data, space, budget, machine, ...), `rows` the table's rows, `real`
    encoded held-out examples, `arrays` by row label its `samples`, their `nearest` training examples and, in 2-D, its
    `density`, `tunings` by row label what was tuned, and `race` race.json (both for `fivefold.report.trials`). `whole`
    gives of a row all that it holds, where `rows` have less, and `running` are rows that are being made, of which
    nothing but curves is known.
    """

    settings: dict[str, Any]
    rows: list[Row]
    real: NDArray[Any] | None = None
    arrays: Mapping[str, Arrays] = field(default_factory=dict)
    tunings: dict[str, tuple[Row, Row]] = field(default_factory=dict)
    race: Row | None = None
    whole: Callable[[Row], Row] = lambda row: row
    running: list[Row] = field(default_factory=list)


def write(content: Content, path: Path) -> Path:
    """The page of `content` as one file at `path`, whole or not at all."""
    write_text(path, render(content))
    return path


def render(content: Content, *, served: str = "") -> str:
    """The page as text: no address in it leads anywhere outside.

    One that is `served` (under the name of its version) asks for what a row opens into, and for what has changed; in a
    file it stands there for the `SHOWN` best, who alone are drawn and pictured in either.
    """
    template = details.environment().get_template("page.html")
    return template.render(
        css=Markup(details.template("page.css")),
        js=Markup(details.template("page.js") + (details.template("live.js") if served else "")),
        served=bool(served),
        version=served,
        **_context(content, bool(served)),
    )


def detail(content: Content, label: str) -> Markup:
    """What the line of this label opens into; KeyError where there is none."""
    found = [row for row in content.rows if row["label"] == label]
    if not found:
        raise KeyError(label)
    return _detail(content, Line(label, tuple(found)), gallery=False)


def _detail(content: Content, line: Line, *, gallery: bool) -> Markup:
    """`gallery`: the page shows the line's samples anyway."""
    row = content.whole(line.finished[0]) if line.finished else line.rows[0]
    arrays = content.arrays.get(line.label, {})
    return details.render(line, row, Space.from_json(content.settings["space"]), content.real, arrays, gallery)


def _context(content: Content, served: bool) -> dict[str, Any]:
    every = lines(content.rows)
    finished = [line for line in every if line.finished]
    settings, chosen = content.settings, columns(content.rows)
    good = foremost(finished, chosen, SHOWN)
    entropy = settings.get("entropy")
    limits = floors(finished, chosen) | ({} if entropy is None or not finished else {NATS.key: -entropy})
    failed = [text for line in every for text in failures(line)]
    return {
        "name": settings["data"]["name"],
        "settings": settings,
        "description": Space.from_json(settings["space"]).describe(),
        "written": datetime.date.today().isoformat(),
        "recommendation": recommendation(content.rows),
        "listed": listed,
        "families": {line.family: FAMILIES.get(line.family, line.family) for line in every},
        "marker": table.marker,
        "features": sorted(
            {row["quality"]["features"] for row in content.rows if (row.get("quality") or {}).get("features")}
        ),
        "pictures": _pictures(content, good),
        "plots": _plots(good),
        "over_time": _over_time(good, content.running[:SHOWN]),
        "tuning": trials.race(content.race) + trials.section(content.tunings),
        "failed": failed[:SHOWN],
        "failures": len(failed),
        "compared": COMPARED[any(len(line.finished) > 1 for line in finished)],
        "seeds": max((len(line.rows) for line in every), default=0),
        "columns": chosen,
        "table": _table(finished, every, chosen, limits),
        "floors": limits,
        "parquet": table.has_parquet(),
        "details": {}
        if served
        else {line.label: _detail(content, line, gallery=True) for line in [*good, *_broken(every)]},
        "best": len(good) if len(good) < len(finished) else None,
    }


def _broken(every: list[Line]) -> list[Line]:
    return [line for line in every if not line.finished][:SHOWN]


def _table(good: list[Line], every: list[Line], chosen: list[Column], limits: dict[str, float]) -> Markup:
    """The table as JSON that no text in it can end."""
    text = json.dumps(table.data(good, every, chosen, limits), ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


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


def _over_time(good: list[Line], running: list[Row]) -> list[dict[str, Any]]:
    """Validation over seconds, all systems in one plot: which is best after ten seconds, a minute, ten?"""
    found = []
    rows = [line.finished[0] for line in good] + running
    for name, (title, axis, caption) in _OVER_TIME.items():
        series = [plots.Series(_called(row, name), row["family"], points)
                  for row in rows if len(points := curves.drawn(row, name)) > 1]  # fmt: skip
        if series:
            window = curves.window([[value for _, value in one.points] for one in series], name)
            across = plots.Axis("seconds of training", curves.spreads([one.points for one in series]))
            upwards = axis._replace(log=axis.log and window[0] > 0)
            found.append({"title": title, "svg": plots.curves(series, across, upwards, window), "caption": caption})
    return found


def _called(row: Row, curve: str) -> str:
    """A row's name at its curve: with the kind of its density, and a mark where it is still being trained."""
    if row["status"] == "running":
        return f"{row['label']} …"
    kind = (row.get("density") or {}).get("kind", "none") if curve == "density" else ""
    return {"lower bound": "≥ ", "estimate": "≈ "}.get(kind, "") + row["label"]


def _density_axis(density: Column) -> str:
    return "log-likelihood in nats (more is better)" if density == NATS else f"{density.title.lower()} (less is better)"


def _points(good: list[Line], across: Column, up: Column, *, invert: bool) -> Iterable[plots.Point]:
    for line in good:
        x, y = line.reading(across), line.reading(up)
        if x is not None and y is not None and math.isfinite(x.value) and (x.value > 0 or not invert):
            sign = {"lower bound": "≥ " if across.key == "nats" else "≤ ", "estimate": "≈ "}.get(x.kind, "")
            yield plots.Point(f"{sign}{line.label}", line.family, 1 / x.value if invert else x.value, y.value, y.error)
