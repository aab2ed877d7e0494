"""The processes of a comparison: several jobs at a time, each in a worker of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fivefold.comparison.board import Board
from fivefold.errors import Stopped
from fivefold.files import read_json, write_json
from fivefold.report.columns import Row
from fivefold.report.terminal import headline
from fivefold.training.failures import KILLED

_GRACE = 30.0  # seconds that a process has to save its run


def _stopped(job: dict[str, Any]) -> Row:
    """What stands for the row of a job that was not finished; never written."""
    return {**job["row"], "status": "stopped"}


def _python_path() -> str:
    """This process's own path, so that workers find the modules that it finds, and no others (`-P`)."""
    return os.pathsep.join(place or os.getcwd() for place in sys.path)


def start(module: str, threads: int, lock: int, log: Any) -> subprocess.Popen[str]:
    """A process of ours, in a session of its own so that Ctrl-C reaches it through us alone; it holds the lock too."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        pass_fds=(lock,), env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": _python_path()},
    )  # fmt: skip


class Crew:
    """Runs jobs, several at a time, and shows how they go."""

    def __init__(self, directory: Path, waiting: list[dict[str, Any]], jobs: int, lock: int, console: Console) -> None:
        self.directory, self.waiting, self.jobs, self.lock, self.console = directory, waiting, jobs, lock, console
        self.board = Board(directory, waiting, jobs)
        self.running: set[subprocess.Popen[str]] = set()
        self.stopping = threading.Event()
        self.progress = Progress(
            TextColumn("  {task.description:<24}"), BarColumn(24), TextColumn("{task.fields[phase]:<10}"),
            TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip

    def work(self) -> None:
        """All jobs; raises Stopped where it was interrupted."""
        pool = ThreadPoolExecutor(self.jobs)
        futures = {pool.submit(self._do, job) for job in self.waiting}
        try:
            with self.progress, self.board:
                self._report(futures)
        except KeyboardInterrupt:
            self._stop()
            pool.shutdown(cancel_futures=True)
            finished = sum(1 for job in self.waiting if self._row(job).exists())
            raise Stopped(
                f"stopped with {finished} of {len(self.waiting)} rows finished; the same command goes on from here"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)

    def _report(self, futures: set[Future[Row]]) -> None:
        """A line for each row as it is finished."""
        total, number = len(futures), 0
        everything = self.progress.add_task("all rows", phase=f"of {total}", total=total)
        while futures:
            done, futures = wait(futures, return_when=FIRST_COMPLETED)
            for future in done:
                number += 1
                self.progress.update(everything, completed=number)
                self.console.print(f"{number}/{total}  {headline(future.result())}", highlight=False, markup=False)

    def _do(self, job: dict[str, Any]) -> Row:
        """One job from start to row."""
        if self.stopping.is_set():
            return _stopped(job)
        task = self.progress.add_task(job["row"]["label"], phase="starting", total=1.0)
        self.board.begin(job)
        with (self.directory / "logs" / f"{job['name']}.txt").open("a", encoding="utf-8") as log:
            process = self._start(job, log)
            assert process.stdout is not None
            for line in process.stdout:
                with contextlib.suppress(ValueError, KeyError):
                    event = json.loads(line)
                    self.progress.update(task, completed=event["progress"], phase=event["phase"])
                    self.board.tell(job, event["phase"], event["progress"])
            code = process.wait()
            assert process.stdin is not None
            process.stdin.close()
        self.running.discard(process)
        self.progress.remove_task(task)
        self.board.end(job)
        if self._row(job).exists():
            return read_json(self._row(job))
        if self.stopping.is_set():
            return _stopped(job)
        row = {**job["row"], **self._death(job, code)}
        with contextlib.suppress(OSError):  # a disk that is full has no room for saying so: the row is tried again
            write_json(self._row(job), row)
        return row

    def _start(self, job: dict[str, Any], log: Any) -> subprocess.Popen[str]:
        """The worker's process, with its job."""
        process = start("fivefold.comparison.worker", job["threads"], self.lock, log)
        self.running.add(process)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        if self.stopping.is_set():
            process.terminate()
        return process

    def _death(self, job: dict[str, Any], code: int) -> Row:
        """What to say of a process that ended without a row."""
        log = (self.directory / "logs" / f"{job['name']}.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(log) if line.strip()), "it printed nothing")
        if code == -signal.SIGKILL:
            return {"status": KILLED, "error": "its process was killed (signal 9), as happens when memory runs out"}
        if code < 0:
            ended = code in (-signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT)  # the others are its own doing
            return {
                "status": KILLED if ended else "crashed",
                "error": f"its process ended by {signal.Signals(-code).name}; last words: {last[:300]}",
            }
        return {"status": "crashed", "error": f"its process ended with code {code}; last words: {last[:300]}"}

    def _row(self, job: dict[str, Any]) -> Path:
        return self.directory / "rows" / f"{job['name']}.json"

    def _stop(self) -> None:
        """Let every process save its run, then see that it is gone."""
        self.stopping.set()
        self.console.print("stopping: saving what is half trained ...")
        for process in list(self.running):
            process.terminate()
        for process in list(self.running):
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
