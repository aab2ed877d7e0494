"""What runs in a comparison at the moment, and how long it still takes: `progress.json`, which its crew writes.

The file is there while a crew works, and is written every few seconds: one that has grown old was left by a crew that
was killed. Times are seconds since the epoch.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from fivefold.errors import RunError
from fivefold.evaluation.evaluate import curves
from fivefold.files import read_json
from fivefold.report import details, folder
from fivefold.report.columns import Row
from fivefold.report.table import marker
from fivefold.run import Run

BEAT = 5.0  # seconds after which the file is written anew, though nothing changed
OLD = 4 * BEAT
LISTED = 50  # jobs, at most, that are named


class Job(NamedTuple):
    """A job that runs: where, since when, and in which phase; `trained` says when training ended."""

    name: str
    label: str
    family: str
    seed: int | None
    where: str
    since: float
    phase: str = "starting"
    progress: float = 0.0
    first: tuple[float, float] | None = None  # of the training: when it was first heard of, and its progress then
    trained: float | None = None

    def left(self, now: float, mean: float, after: float) -> float:
        """Seconds that it still takes, from the rate of its own training; else from what jobs take in the mean."""
        if self.trained is not None:
            return max(after - (now - self.trained), 0.0)
        if self.first is not None and self.progress > self.first[1]:
            at, before = self.first
            return (now - at) / (self.progress - before) * (1 - self.progress) + after
        return max(mean - (now - self.since), 0.0)


class Progress(NamedTuple):
    """A crew's work: rows in all and finished, jobs at a time, what a job takes in the mean, and after its training."""

    total: int
    finished: int
    at_once: int
    mean: float
    after: float
    running: list[Job]

    def left(self, now: float) -> float:
        """Seconds that all still takes."""
        each = [job.left(now, self.mean, self.after) for job in self.running]
        waiting = self.total - self.finished - len(each)
        return max([(sum(each) + waiting * self.mean) / self.at_once, *each])


def read(directory: Path) -> Progress | None:
    """What runs; None where nothing does."""
    path = directory / folder.PROGRESS
    try:
        if time.time() - path.stat().st_mtime > OLD:
            return None
        found = read_json(path)
    except (OSError, RunError):  # gone in between
        return None
    return Progress(**{**found, "running": [Job(**job) for job in found["running"]]})


def rows(directory: Path, progress: Progress) -> list[Row]:
    """The curves so far of the jobs that are named, as rows."""
    return [row(directory, job) for job in progress.running[:LISTED]]


def row(directory: Path, job: Job) -> Row:
    """The curves so far of one job."""
    log = Run(directory / "runs" / job.name, {}).log()
    return {"label": job.label, "family": job.family, "status": "running", "curves": curves(log)}


def render(directory: Path, progress: Progress, opened: set[str]) -> Markup:
    """The page's part on it; jobs whose names are `opened` with their curves."""
    now = time.time()
    jobs: list[dict[str, Any]] = [
        {
            **job._asdict(),
            "marker": marker(job.family),
            "left": duration(job.left(now, progress.mean, progress.after)),
            "curves": details.curves(row(directory, job), job.family) if job.name in opened else None,
        }
        for job in progress.running[:LISTED]
    ]
    template = details.environment().get_template("running.html")
    return Markup(template.render(progress=progress, jobs=jobs, left=duration(progress.left(now))))


def duration(seconds: float) -> str:
    """As people say it: `about 40 s`, `about 3 min`, `about 2.5 h`, `a moment`."""
    if seconds < 2:
        return "a moment"
    if seconds < 100:
        return f"about {seconds:.0f} s" if seconds < 10 else f"about {round(seconds, -1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 6000 else f"about {seconds / 3600:.1f} h"
