"""Many systems on the same data and budget, each in a process of its own, as the rows of one table.

What is finished is a file in the comparison's folder (`report.folder` describes it), so a comparison
that was killed goes on where it stopped, and a finished one takes further systems later.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group

from fivefold import catalog
from fivefold.comparison import plan as planning
from fivefold.comparison.crew import Crew
from fivefold.data import Data, load_data
from fivefold.options import Slot, label, slot_of
from fivefold.report import folder, page
from fivefold.report.advice import recommendation
from fivefold.report.columns import Line, Row, columns
from fivefold.report.survey import TABLE_1
from fivefold.report.terminal import table
from fivefold.training.budget import Budget


@dataclass(frozen=True)
class Comparison:
    """A comparison's folder."""

    directory: Path

    @cached_property
    def rows(self) -> list[Row]:
        """The finished rows, as `fivefold.evaluation.evaluate` describes them."""
        return folder.read_rows(self.directory)

    @property
    def report(self) -> Path:
        """The page."""
        return self.directory / folder.REPORT

    def table(self) -> Group:
        """For `rich.print`: the table, best marked."""
        return table(self.rows)

    @property
    def recommendation(self) -> str:
        """What the numbers recommend, a line for each need, and where they do not decide."""
        return "\n".join(map(str, recommendation(self.rows)))


def compare(
    systems: Sequence[str | type | Slot] | None = None,
    data: Any = "digits",
    *,
    budget: str = "30s",
    seeds: int = 1,
    jobs: int = 1,
    samples: Mapping[str, str | Path] = {},
    condition: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    features: str = "fitted",
    table1: bool = False,
    preset: str | None = None,
    diagnostics: bool = True,
    console: Console | None = None,
    **options: Any,
) -> Comparison:
    """Train systems on the same data and budget, measure them the same way, and write the table and its page.

    Args:
        systems: ids, dotted module names, or with a preset or options `"transformer:small"`,
            `slot("vae", prior="spline-flow")`; None takes every system of the catalogue that fits the data.
        data: what `load_data` takes, or its result.
        budget: of training, the same for every system: 30s, 5000steps or 20epochs.
        seeds: how many runs of each system; with several the table shows mean and error.
        jobs: how many processes at a time; each gets its share of the processor's cores.
        samples: files or folders of other people's samples, by the name of their row.
        condition: column, or "label", that the systems are conditioned on.
        out: the comparison's folder; one that exists is gone on with, and nothing finished is repeated.
            None takes `compare-DATA`. Rows that failed from outside (killed, out of memory, disk full) are tried again.
        device: "auto", "cpu", "cuda" or "cuda:1".
        features: what samples are compared in: "fitted" (a network fitted on the training data), or
            "inception" or "inception:WEIGHTS" for the standard network.
        table1: the systems of the survey's Table 1, each with its published figures beside the measured ones.
        preset: of every system that has one of this name; the others keep their defaults, and rows say which.
        diagnostics: measure too what turning dials does and the largest resolution, which takes minutes a large system.
        console: where progress is shown; None takes standard output.
        options: of every system or of `fit`, such as `batch_size`.

    Raises:
        RunError: the folder holds a comparison on other data, or with another budget or options.
        Stopped: interrupted; says how to go on.
    """
    Budget.parse(budget)
    data = data if isinstance(data, Data) else load_data(data, condition=condition)
    usual = [name for name in TABLE_1 if name in catalog.entries()] if table1 else catalog.fitting(data.space.kind)
    rows = {label(content): content for content in map(slot_of, systems or usual)}
    chosen, names = list(rows.values()), [content.name for content in rows.values()]
    with catalog.trusting(*names):
        planning.check(chosen, samples, preset, options)
    directory = Path(out or f"compare-{data.name}")
    console = console or Console(width=None if sys.stdout.isatty() else 132)
    shared = {
        "budget": budget,
        "device": device,
        "features": features,
        "jobs": jobs,
        "threads": max(1, torch.get_num_threads() // jobs),
        "preset": preset,
        "diagnostics": diagnostics,
        "options": options,
    }
    with planning.locked(directory) as lock:
        planning.settle(directory, data, shared)
        with catalog.trusting(*names):
            planned = planning.plan(directory, data, chosen, seeds, samples, shared)
        if table1:
            planning.print_beside(planned)
        waiting = planning.waiting(directory, planned)
        console.print(planning.announcement(directory, data, planned, waiting, budget, jobs), highlight=False)
        Crew(directory, waiting, jobs, lock, console).work()
    done = Comparison(directory)
    page.write(folder.content(directory), done.report)
    console.print(done.table())
    console.print(f"\n{done.recommendation}\n\nreport: {done.report}", highlight=False, markup=False)
    return done


def show_row(row: Row) -> str:
    """One row for a terminal, a line a column."""
    line = Line(row["label"], (row,))
    shown = [(c, r) for c in columns([row]) if (r := line.reading(c)) is not None]
    lines = [f"{c.title:<26}{c.show(r, True)}{'' if r.floor is None else f'  (floor {r.floor:.3g})'}" for c, r in shown]
    return "\n".join([f"{row['label']}: {row['status']}", *lines, *line.notes])
