"""What tuning tried, drawn: how each trial went, and which options mattered."""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from fivefold import catalog
from fivefold.errors import FivefoldError
from fivefold.files import read_json, write_text
from fivefold.options import Slot, label, slot_of
from fivefold.report import plots
from fivefold.report.columns import number
from fivefold.report.details import environment, template
from fivefold.report.table import marker

TRIALS, SETTINGS, REPORT = "trials.json", "tuning.json", "report.html"  # of a tuning's folder
ENOUGH = 4  # finished trials below which nothing is said of what mattered
_BAR = 22  # height of a bar and its gap

Record = dict[str, Any]


def section(tunings: Mapping[str, tuple[Record, Record]]) -> Markup:
    """The page's part on tuning: of each system by its label, what `tuning.json` and `trials.json` hold."""
    if not tunings:
        return Markup("")
    found = [_drawn(label, *records) for label, records in tunings.items()]
    return Markup(environment().get_template("trials.html").render(tunings=found, marker=marker))


def write(directory: Path) -> Path:
    """The page of one tuning's folder as one file in it."""

    settings, trials = (read_json(directory / name) for name in (SETTINGS, TRIALS))
    css = template("page.css")
    title = f"{settings['system']} on {settings['data']['name']}: tuned"
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style>{css}</style></head><body><main><header><p class="wordmark">fivefold</p><h1>{escape(title)}</h1>'
        "</header>"
        f"{section({settings['system']: (settings, trials)})}"
        f"<footer>Written by fivefold on {datetime.date.today().isoformat()}.</footer></main></body></html>"
    )
    write_text(directory / REPORT, text)
    return directory / REPORT


def read(directory: Path) -> dict[str, tuple[Record, Record]]:
    """By the label of the row what was tuned for it: the tunings in a comparison's folder of them."""

    places = [place for place in sorted(directory.glob("*")) if (place / TRIALS).exists()]
    found = [(read_json(place / SETTINGS), read_json(place / TRIALS)) for place in places]
    return {label(Slot(each[0]["system"], each[0]["preset"], each[0]["given"])): each for each in found}


def race(record: Record | None) -> Markup:
    """The page's part on a race (`race.json`): how every configuration stood after each turn."""
    if record is None:
        return Markup("")
    entries = sorted(record["entries"], key=lambda e: (-len(e["turns"]), e["turns"][-1]["value"] if e["turns"] else 0))
    turns = range(max((len(entry["turns"]) for entry in entries), default=0))
    best = [min(e["turns"][i]["value"] for e in entries if len(e["turns"]) > i) for i in turns]
    return Markup(environment().get_template("race.html").render(
        record=record, entries=entries, turns=turns, best=best, number=number, words=in_words,
        seconds=[statistics.median(e["turns"][i]["trained"] for e in entries if len(e["turns"]) > i) for i in turns],
    ))  # fmt: skip


def _drawn(label: str, settings: Record, found: Record) -> Record:
    """What the template shows of one system."""
    family, trials = _family(settings["system"]), found["trials"]
    finished = [trial for trial in trials if trial["state"] == "ok"]
    best = min(finished, key=lambda trial: trial["value"], default=None)
    importances = {name: share for name, share in found["importances"].items() if _varied(name, finished)}
    what = {
        "density": "−ln p on the validation split, in nats",
        "distance": "distance of samples from the validation split",
    }
    return {
        "label": label,
        "family": family,
        "settings": settings,
        "by": what.get(settings["by"], "the validation value: −ln p where there is a density, else a distance"),
        "trials": [_row(trial, trial is best) for trial in trials],
        "curves": curves([(t["curve"], t is best, t["number"] == 0) for t in trials], family, settings["by"]),
        "bars": bars(importances, family) if len(finished) >= ENOUGH else Markup(""),
        "finished": len(finished),
    }


def _family(system: str) -> str:
    try:
        return catalog.find(system).family
    except FivefoldError:  # a module of the user's that is not trusted here
        return "own"


def _varied(name: str, trials: Iterable[Record]) -> bool:
    return len({repr(trial["options"].get(name)) for trial in trials}) > 1


def _row(trial: Record, is_best: bool) -> Record:
    value = trial["value"]
    return {
        "number": trial["number"],
        "state": trial["state"] + (f": {trial['error']}" if trial["error"] else ""),
        "value": "" if value is None else number(value),
        "seconds": f"{trial['seconds']:.0f}",
        "options": in_words(trial["options"]) or "as it is",
        "best": is_best,
    }


def in_words(options: Mapping[str, Any]) -> str:
    """`lr 0.00213, layers 3`: options that a trial changed."""
    return ", ".join(f"{name} {_value(value)}" for name, value in options.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(slot_of(value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# --- pictures ---------------------------------------------------------------------------------------


def bars(shares: Mapping[str, float], family: str, most: int = 10) -> Markup:
    """A bar for each option, by the share of the value's variance that it explains; the smallest are left out."""
    shown = [(name, share) for name, share in shares.items() if math.isfinite(share)][:most]
    if not shown:
        return Markup("")
    left = 12 + 6.8 * max(len(name) for name, _ in shown)
    wide = plots.WIDTH - left - 46
    parts = []
    for i, (name, share) in enumerate(shown):
        y = 4 + i * _BAR
        parts.append(f'<text class="tick" text-anchor="end" x="{left - 8:.1f}" y="{y + 13}">{escape(name)}</text>')
        parts.append(
            f'<rect style="fill:var(--{plots.family_colour(family)})" x="{left:.1f}" y="{y + 2}" '
            f'width="{max(wide * share, 1):.1f}" height="{_BAR - 8}"/>'
        )
        parts.append(f'<text class="tick" x="{left + wide * share + 6:.1f}" y="{y + 13}">{share:.0%}</text>')
    return plots._svg(parts, "share of the validation value's variance by option", 8 + _BAR * len(shown))


def curves(trials: list[tuple[list[list[float]], bool, bool]], family: str, by: str, height: int = 240) -> Markup:
    """Validation over seconds for every trial (its curve, whether it is the best, whether the system as it is)."""
    drawn = [(points, best, usual) for points, best, usual in trials if len(points) > 1]
    if not drawn:
        return Markup("")
    last = [min(value for _, value in points) for points, _, _ in drawn]
    first = [points[0][1] for points, _, _ in drawn]
    title = {"density": "−ln p, nats", "distance": "distance"}.get(by, "validation value")
    x = plots._Scale([0.0, max(p[-1][0] for p, _, _ in drawn)], plots.Axis("seconds of training"), plots._LEFT,
                     plots.WIDTH - plots._RIGHT, 0.02)  # fmt: skip
    # What is far worse than the best trial began with leaves at the edge.
    top = min(max(first), min(last) + 2 * (sorted(first)[len(first) // 2] - min(last)) + 1e-9)
    y = plots._Scale([min(last), top], plots.Axis(title), height - plots._BOTTOM, plots._TOP)
    parts = plots._frame(x, y, "seconds of training", title, height)
    for points, best, usual in sorted(drawn, key=lambda each: (each[1], each[2])):
        line = " ".join(f"{x(a):.1f},{min(max(y(b), plots._TOP), height - plots._BOTTOM):.1f}" for a, b in points)
        colour = plots.family_colour(family) if best else "ink" if usual else "soft"
        style = f"color:var(--{colour});opacity:{1 if best or usual else 0.45}"
        dashes = ' stroke-dasharray="5 4"' if usual and not best else ""
        parts.append(f'<polyline class="curve" style="{style}"{dashes} points="{line}"/>')
    return plots._svg(parts, f"{title} of every trial against seconds of training", height)
