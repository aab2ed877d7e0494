"""The comparison table in a terminal."""

from __future__ import annotations

import itertools
import math

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fivefold.report.columns import DENSITY, NATS, Column, Line, Row, cells, columns, floors, lines, number, score

# Terminals are narrow: these columns, in two tables; the page has all.
_SHOWN = (
    ("Density and sample quality",
     ("bits", "nats", "frechet", "kernel", "recall", "two_sample_accuracy", "memorisation")),
    ("Cost", ("train_rate", "to_best", "at_end", "validation", "sample_1", "sample_64", "evaluations", "parameters",
      "memory", "machine", "resolution")),
    ("The survey's columns",
     ("stars_training", "stars_sampling", "stars_parameters", "stars_resolution", "free_form", "exact")),
    ("Measured here, and as the survey prints it for CIFAR-10 (others' models)",
     ("frechet", "survey_fid", "bits", "survey_bits")),
)  # fmt: skip
SHOWN = 60  # lines at most, and as many failures
_STYLE = {"best": "bold green", "tie": "green", "": ""}
LEGEND = (
    "bold green: best of its kind of density or of its column; green: tied with it within two standard errors of the "
    "difference, of {}"
)
MACHINES = "speeds, times and memory are marked among those of one kind of machine: --measure-on measures them on one"
COMPARED = {False: "these runs, one of each system", True: "the systems, with the spread between their seeds"}


def table(rows: list[Row]) -> Group:
    """The table of rows, best marked by column; then what failed and why."""
    everything = lines(rows)
    finished = [line for line in everything if line.finished]
    good = foremost(finished, columns(rows), SHOWN)
    known = {column.key: column for column in columns(rows)}
    parts: list[Table | Text] = []
    seen: set[str] = set()
    for title, keys in _SHOWN:
        chosen = [known[key] for key in keys if key in known]
        if good and any(column.key not in seen for column in chosen):  # a table that repeats columns has new ones too
            parts.append(_table(title, chosen, good, finished))
        seen |= set(keys)
    if "machine" in known:
        parts.append(Text(MACHINES, style="dim"))
    if good:
        parts.append(Text(LEGEND.format(COMPARED[any(len(line.finished) > 1 for line in finished)]), style="dim"))
    if len(good) < len(finished):
        said = f"shown: {len(good)} of {len(finished):,}, the best by density, quality and speed of sampling"
        parts.append(Text(said, style="dim"))
    parts += [Text(f"{line.label}: {note}", style="dim") for line in good for note in line.notes]
    failed = [text for line in everything for text in failures(line)]
    parts += [Text(text, style="red") for text in failed[:SHOWN]]
    if len(failed) > SHOWN:
        parts.append(Text(f"and {len(failed) - SHOWN:,} more failed", style="red"))
    return Group(*parts)


def foremost(table: list[Line], chosen: list[Column], most: int) -> list[Line]:
    """At most so many lines in their order: the best of density, of quality and of sampling speed by turns."""
    if len(table) <= most:
        return table
    wanted = [column for column in chosen if column.key in ("bits", "nats", "frechet", "sample_64")]
    orders = []
    for column in wanted:
        read = {line.label: reading for line in table if (reading := line.reading(column)) is not None}
        scores = {label: score(column, reading) for label, reading in read.items() if math.isfinite(reading.value)}
        orders.append(sorted(scores, key=scores.__getitem__))
    best = dict.fromkeys(label for labels in itertools.zip_longest(*orders) for label in labels if label is not None)
    kept = set(itertools.islice(best, most))
    return [line for line in table if line.label in kept]


def headline(row: Row) -> str:
    """One finished row in one line: its headline numbers, or what went wrong."""
    line = Line(row["label"], (row,))
    if not line.finished:
        return failures(line)[0]
    known = {column.key: column for column in columns([row])}
    if (row.get("density") or {}).get("kind", "none") not in DENSITY:
        known.pop(NATS.key, None)
    chosen = [known[key] for key in ("bits", "nats", "frechet", "sample_64") if key in known]
    texts = [f"{c.title[0].lower()}{c.title[1:]} {cells(c, [line])[line.label].text}" for c in chosen]
    return f"{row['label']}: {', '.join(texts)}"


def failures(line: Line) -> list[str]:
    """One sentence for every seed of the line that did not finish."""
    several = len(line.rows) > 1
    return [
        f"{line.label}{_seed(row) if several else ''}: {row['status']}: {row.get('error') or 'no reason given'}"
        for row in line.rows
        if row["status"] != "ok"
    ]


def _seed(row: Row) -> str:
    return f", seed {row.get('seed')}"


def _table(title: str, chosen: list[Column], good: list[Line], finished: list[Line]) -> Table:
    """The `good` lines, marked as the best of all that are `finished` are."""
    found = Table(title=title, title_justify="left", title_style="bold", header_style="", box=None, pad_edge=False)
    found.add_column("system", no_wrap=True)
    for column in chosen:
        found.add_column(column.title, justify="right" if column.best is not None else "center")
    by_column = [cells(column, finished) for column in chosen]
    for line in good:
        texts = [Text(cell[line.label].text, style=_STYLE[cell[line.label].mark]) for cell in by_column]
        found.add_row(Text(line.label), *texts)
    floor = floors(finished, chosen)
    if floor:
        values = [number(floor[column.key]) if column.key in floor else "" for column in chosen]
        found.add_row("floor: real data", *values, style="dim")
    return found
