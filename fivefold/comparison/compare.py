"""Many systems on the same data and budget, each in a process of its own, as the rows of one table.

What is finished is a file in the comparison's folder (`report.folder` describes it), so a comparison
that was killed goes on where it stopped, and a finished one takes further systems later.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console, Group

from fivefold import catalog
from fivefold.comparison import plan as planning
from fivefold.comparison import racing, timing
from fivefold.comparison.board import Board
from fivefold.comparison.crew import Crew
from fivefold.comparison.place import Local
from fivefold.comparison.where import HERE, Where
from fivefold.data import Data, load_data
from fivefold.errors import OptionError
from fivefold.options import Slot, label, slot_of
from fivefold.report import folder
from fivefold.report.advice import recommendation
from fivefold.report.columns import Line, Row, columns
from fivefold.report.rows import Shelf, write_page
from fivefold.report.serve import server, serving
from fivefold.report.survey import TABLE_1
from fivefold.report.terminal import table
from fivefold.training.budget import Budget


@dataclass(frozen=True)
class Comparison:
    """A comparison's folder."""

    directory: Path

    @cached_property
    def rows(self) -> list[Row]:
        """The finished rows, as `fivefold.evaluation.evaluate` describes them; read when they are first asked for."""
        return folder.read_rows(self.directory)

    @cached_property
    def shelf(self) -> Shelf:
        """The same rows as the table needs them."""
        return Shelf(self.directory)

    @property
    def report(self) -> Path:
        """The page."""
        return self.directory / folder.REPORT

    def table(self) -> Group:
        """For `rich.print`: the table, best marked."""
        return table(self.shelf.read())

    @property
    def recommendation(self) -> str:
        """What the numbers recommend, a line for each need, and where they do not decide."""
        return "\n".join(map(str, recommendation(self.shelf.read())))


def compare(
    systems: Sequence[str | type | Slot] | None = None,
    data: Any = "digits",
    *,
    budget: str = "30s",
    seeds: int = 1,
    jobs: int | None = None,
    samples: Mapping[str, str | Path] = {},
    condition: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    features: str = "fitted",
    table1: bool = False,
    preset: str | None = None,
    diagnostics: bool = True,
    tune: int = 0,
    tune_budget: str = "20s",
    within: str | None = None,
    serve: int | None = None,
    cluster: str | None = None,
    cpus_per_job: int | None = None,
    gpus_per_job: float = 0,
    measure_on: str | None = None,
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
        jobs: how many processes at a time, each with its share of the processor's cores; None takes one, and on a
            cluster as many as fit.
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
        tune: how many trials each system gets to tune its options on the validation split (`fivefold.tune`), for a row
            beside its own; 0 leaves that out.
        tune_budget: of each trial.
        within: instead of the same budget for each: how long all may take (10m, 1h), measuring included. Systems and
            their configurations race (`fivefold.comparison.racing`), and the last few are the rows. What decides is
            `by`, "distance" unless given.
        serve: port of 127.0.0.1 at which the page is served while this works; 0 takes any that is free.
        cluster: where the jobs run: "auto" or HOST:PORT of a Ray cluster, "slurm", or None: this machine.
        cpus_per_job: cores and threads of each job; None takes the share of `jobs`, on a cluster the comparison's or 1.
        gpus_per_job: whole ones, of each job on a cluster.
        measure_on: the machine of the cluster, or "here", on which the speeds of all rows are measured again in the
            end, so that they can be ranked.
        console: where progress is shown; None takes standard output.
        options: of every system or of `fit`, such as `batch_size`.

    Raises:
        RunError: the folder holds a comparison on other data, or with another budget or options; there is no such
            cluster.
        Stopped: interrupted; says how to go on.
    """
    started = racing.clock()
    where = Where(cluster, jobs, cpus_per_job, gpus_per_job)
    Budget.parse(budget), Budget.parse(tune_budget)
    limit = Budget.parse(within) if within else None
    if limit and (limit.unit != "seconds" or seeds > 1 or tune):
        raise OptionError("within is a time, as 10m, and takes one seed and no tune: it chooses configurations itself")
    data = data if isinstance(data, Data) else load_data(data, condition=condition)
    usual = [name for name in TABLE_1 if name in catalog.entries()] if table1 else catalog.fitting(data.space.kind)
    rows = {label(content): content for content in map(slot_of, systems or usual)}
    chosen, names = list(rows.values()), [planning.name_of(content) for content in rows.values()]
    with catalog.trusting(*names):
        planning.check(chosen, samples, preset, options)
        if limit:
            options["by"] = "density" if options.get("by") == "density" else "distance"
            chosen = racing.entered(chosen, preset, options["by"], data.space.kind, bool(systems))
    directory = Path(out or f"compare-{data.name}")
    console = console or Console(width=None if sys.stdout.isatty() else 132)
    shared: dict[str, Any] = {
        "budget": budget,
        "device": device,
        "features": features,
        "jobs": None if cluster else where.local_jobs,
        "threads": where.threads(directory),
        "preset": preset,
        "diagnostics": diagnostics and not limit,
        "options": options,
        "tune": {"trials": tune, "budget": tune_budget} if tune else None,
        "within": None,
    }
    with (
        planning.locked(directory) as lock,
        catalog.trusting(*names),
        where.open(directory, lock, shared["threads"], console) as place,
        contextlib.ExitStack() as stack,
    ):
        if measure_on and measure_on != HERE:
            place.find(measure_on)
        if limit:
            shared |= racing.terms(directory, chosen, limit.amount, place.jobs)
        planning.settle(directory, data, shared)
        if serve is not None:
            address = stack.enter_context(serving(server(directory, serve)))
            console.print(f"serving {address}", highlight=False)
        if cluster:
            planning.prepare(directory, data, shared)
        if limit:
            racing.race(directory, data, chosen, shared, limit.amount, place, started, console)
        planned = planning.plan(directory, data, [] if limit else chosen, seeds, samples, shared)
        if table1:
            planning.print_beside(planned)
        waiting = planning.waiting(directory, planned)
        waiting = [planning.give(directory, job) for job in waiting] if cluster else waiting
        if not limit:
            said = planning.announcement(directory, data, planned, waiting, budget, place.jobs)
            console.print(said, highlight=False)
        Crew(directory, waiting, place, console, board=Board(directory, waiting, place.jobs)).work()
        if measure_on:
            at = Local(directory, 1, lock) if measure_on == HERE else place
            timing.again(directory, measure_on, names, at, shared, console)
    done = Comparison(directory)
    write_page(done.shelf)
    console.print(done.table())
    console.print(f"\n{done.recommendation}\n\nreport: {done.report}", highlight=False, markup=False)
    return done


def show_row(row: Row) -> str:
    """One row for a terminal, a line a column."""
    line = Line(row["label"], (row,))
    shown = [(c, r) for c in columns([row]) if (r := line.reading(c)) is not None]
    lines = [f"{c.title:<26}{c.show(r, True)}{'' if r.floor is None else f'  (floor {r.floor:.3g})'}" for c, r in shown]
    return "\n".join([f"{row['label']}: {row['status']}", *lines, *line.notes])
