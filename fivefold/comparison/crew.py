"""The jobs of a comparison: several at a time, wherever they run, each in a worker of its own."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Sized
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fivefold.comparison.board import Board
from fivefold.comparison.copies import Event
from fivefold.comparison.node import Task, read_result
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
        jobs: in their order, taken as there is room. Of those with the same `tuning` one runs at a time.
        place: where they run.
        console: takes a line for each row.
        module: of the process that does a job.
        most: jobs at a time, where that is fewer than the place does.
        board: on which it is said what runs, for the page; none says nothing.
        heard: takes the name of a job and what it says.
        over: takes a job and its row, in place of the console.
    """

    def __init__(
        self, directory: Path, jobs: Iterable[Job], place: Place, console: Console,
        module: str = "fivefold.comparison.worker", most: int | None = None, board: Board | None = None,
        heard: Callable[[str, Event], None] | None = None, over: Callable[[Job, Row], None] | None = None,
    ) -> None:  # fmt: skip
        self.directory, self.place, self.console, self.module = directory, place, console, module
        self.most, self.board, self.heard, self.over = most, board, heard, over or self._say
        self.total, self.finished = len(jobs) if isinstance(jobs, Sized) else None, 0
        self.coming, self.waiting = iter(jobs), deque[Job]()  # those held back, or to be tried again
        self.ended, self.stopped = False, set[str]()  # whether no more come; jobs that are not wanted any more
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
            with self.progress, self.board or contextlib.nullcontext():
                everything = self.progress.add_task("all rows", phase=f"of {self.total or 'many'}", total=self.total)
                self._fill()
                while self.waiting or self.running or not self.ended:
                    for event in self.place.wait(1.0):
                        self._note(event)
                        self.progress.update(everything, completed=self.finished)
                    self._fill()
        except KeyboardInterrupt:
            self.console.print("stopping: saving what is half trained ...")
            self.place.stop()
            done = f"{self.finished}{'' if self.total is None else f' of {self.total}'}"
            raise Stopped(f"stopped with {done} rows finished; the same command goes on from here") from None
        except BaseException:
            self.place.stop()
            raise

    def stop(self, name: str) -> None:
        """Let go of a job that runs: its row, which is not written, is "stopped"."""
        self.stopped.add(name)
        self.place.stop(name)

    def _fill(self) -> None:
        """Start as many as there is room for."""
        room = self.place.room()
        for _ in range(room if self.most is None else min(room, self.most - len(self.running))):
            job = self._next()
            if job is None:
                return
            self.running[job["name"]] = job
            self.place.start(task_of(job, self.module), self.avoided.get(job["name"], ()))
            if len(self.shown) < SHOWN:
                self.shown[job["name"]] = self.progress.add_task(job["row"]["label"], phase="starting", total=1.0)

    def _next(self) -> Job | None:
        """The next that may begin."""
        for i, job in enumerate(self.waiting):
            if self._may_begin(job):
                del self.waiting[i]
                return job
        for job in self.coming:
            if self._may_begin(job):
                return job
            self.waiting.append(job)
        self.ended = True
        return None

    def _may_begin(self, job: Job) -> bool:
        return "tuning" not in job or all(job["tuning"] != other.get("tuning") for other in self.running.values())

    def _note(self, event: Said | Ended) -> None:
        if isinstance(event, Ended):
            if self.board is not None:
                self.board.end(event.name)
            self._over(self.running.pop(event.name), event)
            return
        if self.board is not None:
            self.board.tell(self.running[event.name], event.event)
        if event.name in self.shown and "phase" in event.event:
            said = event.event
            self.progress.update(self.shown[event.name], completed=said["progress"], phase=said["phase"])
        if self.heard is not None and event.name not in self.stopped:
            self.heard(event.name, event.event)

    def _over(self, job: Job, ended: Ended) -> None:
        """A job has ended: a row, or once more."""
        name = job["name"]
        if name in self.shown:
            self.progress.remove_task(self.shown.pop(name))
        if name in self.stopped:
            self.over(job, {**job["row"], "status": "stopped"})
            return
        result = ended.result or read_result(self._path(job))  # of a machine that is gone, and wrote it before
        row = result or {**job["row"], **self._death(job, ended)}
        way = row["status"], ended.code is None
        if self.place.tries > 1 and (result is None or row["status"] in FROM_OUTSIDE):
            if way not in self.ways.setdefault(name, set()):
                self.ways[name].add(way)
                self.avoided.setdefault(name, set()).update({ended.node} - {""})
                if result is not None:
                    self._path(job).unlink(missing_ok=True)
                self.waiting.appendleft(job)
                said = f"{row['label']}: {row['status']} at {ended.node or 'an unknown machine'}, tried again"
                self.console.print(said, highlight=False, markup=False)
                return
            row = {**row, "error": f"twice: {row['error']}", "log": self._log(job)[-LINES:]}
        if row is not result:
            with contextlib.suppress(OSError):  # a disk that is full has no room for saying so: the row is tried again
                write_json(self._path(job), row)
        self.finished += 1
        self.ways.pop(name, None), self.avoided.pop(name, None)
        self.over(job, row)

    def _say(self, job: Job, row: Row) -> None:
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
