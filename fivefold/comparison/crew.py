"""The jobs of a comparison: several at a time, wherever they run, each in a worker of its own."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fivefold.comparison.node import Task
from fivefold.comparison.place import Ended, Place, Said
from fivefold.errors import Stopped
from fivefold.files import write_json
from fivefold.report.columns import Row
from fivefold.report.terminal import headline
from fivefold.training.failures import FROM_OUTSIDE, KILLED

SHOWN = 16  # jobs whose progress is shown
LINES = 30  # of a log, in the row of a job that was given up
Job = dict[str, Any]


def task_of(job: Job, module: str = "fivefold.comparison.worker") -> Task:
    """A job as places see it."""
    name, into = job["name"], job.get("into", "rows")
    shared = [f"tuning/{job['tuning']}"] if "tuning" in job else []
    gives = (f"{into}/{name}.json", f"{into}/{name}.npz", f"runs/{name}", f"logs/{name}.txt", *shared)
    needs = (f"rows/{name}.json", f"runs/{name}", job.get("file", ""), *shared)
    needs = tuple(part for part in needs if part and not os.path.isabs(part))
    return Task(name, module, job, job["threads"], gives[0], needs, gives, job.get("node", ""))


class Crew:
    """Runs jobs and shows how they go.

    A job that ends from outside (its process killed, its machine gone, memory or disk full) is tried again elsewhere,
    from its last checkpoint, where the place allows that; the second time in the same way it is a row that says so.

    Args:
        directory: of the comparison.
        waiting: the jobs, in their order. Of those with the same `tuning` one runs at a time.
        place: where they run.
        console: takes a line for each row.
        module: of the process that does a job.
        most: jobs at a time, where that is fewer than the place does.
    """

    def __init__(
        self, directory: Path, waiting: list[Job], place: Place, console: Console,
        module: str = "fivefold.comparison.worker", most: int | None = None,
    ) -> None:  # fmt: skip
        self.directory, self.place, self.console, self.module = directory, place, console, module
        self.most = most
        self.waiting, self.total, self.finished = deque(waiting), len(waiting), 0
        self.running: dict[str, Job] = {}
        self.ways: dict[str, set[tuple[str, bool]]] = {}  # in which jobs ended that are tried again
        self.avoided: dict[str, set[str]] = {}  # machines, by job
        self.progress = Progress(
            TextColumn("  {task.description:<24}"), BarColumn(24), TextColumn("{task.fields[phase]:<10}"),
            TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.shown: dict[str, TaskID] = {}

    def work(self) -> None:
        """All jobs; raises Stopped where it was interrupted."""
        try:
            with self.progress:
                everything = self.progress.add_task("all rows", phase=f"of {self.total}", total=self.total)
                while self.waiting or self.running:
                    self._fill()
                    for event in self.place.wait(1.0):
                        self._note(event)
                        self.progress.update(everything, completed=self.finished)
        except KeyboardInterrupt:
            self.console.print("stopping: saving what is half trained ...")
            self.place.stop()
            raise Stopped(
                f"stopped with {self.finished} of {self.total} rows finished; the same command goes on from here"
            ) from None
        except BaseException:
            self.place.stop()
            raise

    def _fill(self) -> None:
        """Start as many as there is room for."""
        held = []
        room = self.place.room()
        for _ in range(room if self.most is None else min(room, self.most - len(self.running))):
            busy = {job.get("tuning") for job in self.running.values()} - {None}
            while self.waiting and self.waiting[0].get("tuning") in busy:
                held.append(self.waiting.popleft())
            if not self.waiting:
                break
            job = self.waiting.popleft()
            self.running[job["name"]] = job
            self.place.start(task_of(job, self.module), self.avoided.get(job["name"], ()))
            if len(self.shown) < SHOWN:
                self.shown[job["name"]] = self.progress.add_task(job["row"]["label"], phase="starting", total=1.0)
        self.waiting.extendleft(reversed(held))

    def _note(self, event: Said | Ended) -> None:
        if isinstance(event, Ended):
            self._over(self.running.pop(event.name), event)
        elif event.name in self.shown and "phase" in event.event:
            self.progress.update(
                self.shown[event.name], completed=event.event["progress"], phase=event.event["phase"]
            )  # fmt: skip

    def _over(self, job: Job, ended: Ended) -> None:
        """A job has ended: a row, or once more."""
        name = job["name"]
        if name in self.shown:
            self.progress.remove_task(self.shown.pop(name))
        row = ended.result or {**job["row"], **self._death(job, ended)}
        way = row["status"], ended.code is None
        if self.place.tries > 1 and (ended.result is None or row["status"] in FROM_OUTSIDE):
            if way not in self.ways.setdefault(name, set()):
                self.ways[name].add(way)
                self.avoided.setdefault(name, set()).add(ended.node)
                self._path(job).unlink(missing_ok=True)
                self.waiting.appendleft(job)
                said = f"{row['label']}: {row['status']} at {ended.node or 'an unknown machine'}, tried again"
                self.console.print(said, highlight=False, markup=False)
                return
            row = {**row, "error": f"twice: {row['error']}", "log": self._log(job)[-LINES:]}
        if row is not ended.result:
            with contextlib.suppress(OSError):  # a disk that is full has no room for saying so: the row is tried again
                write_json(self._path(job), row)
        self.finished += 1
        self.ways.pop(name, None), self.avoided.pop(name, None)
        self.console.print(f"{self.finished}/{self.total}  {headline(row)}", highlight=False, markup=False)

    def _death(self, job: Job, ended: Ended) -> Row:
        """What to say of a process that ended without a row."""
        last = next((line for line in reversed(self._log(job))), "it printed nothing")[:300]
        if ended.error:
            return {"status": "failed", "error": f"it could not be run at {ended.node}: {ended.error}"}
        if ended.code is None:
            return {"status": KILLED, "error": f"its machine was lost ({ended.node or 'before it said which it is'})"}
        if ended.code == -signal.SIGKILL:
            return {"status": KILLED, "error": "its process was killed (signal 9), as happens when memory runs out"}
        if ended.code < 0:
            outside = ended.code in (-signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT)  # the others are its own doing
            return {
                "status": KILLED if outside else "crashed",
                "error": f"its process ended by {signal.Signals(-ended.code).name}; last words: {last}",
            }
        return {"status": "crashed", "error": f"its process ended with code {ended.code}; last words: {last}"}

    def _log(self, job: Job) -> list[str]:
        """The lines of a job's log."""
        with contextlib.suppress(OSError):
            text = (self.directory / "logs" / f"{job['name']}.txt").read_text(encoding="utf-8", errors="replace")
            return [line.strip() for line in text.split("\n") if line.strip()]
        return []

    def _path(self, job: Job) -> Path:
        return self.directory / job.get("into", "rows") / f"{job['name']}.json"
