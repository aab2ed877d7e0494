"""The board on which a crew says what it does: `progress.json` in the comparison's folder (`report.progress`)."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any, Self

from fivefold.comparison import plan
from fivefold.files import write_json
from fivefold.report import folder
from fivefold.report.progress import BEAT, Job, Progress

_EVERY = 1.0  # second, at most, that the file is behind


class Board:
    """What runs, in a file that is there while the board is open.

    Args:
        directory: of the comparison.
        waiting: its jobs.
        at_once: how many run at a time.
    """

    def __init__(self, directory: Path, waiting: list[dict[str, Any]], at_once: int) -> None:
        self.path, self.total, self.at_once = directory / folder.PROGRESS, len(waiting), at_once
        self.running: dict[str, Job] = {}
        self.took: list[float] = []
        self.measured: list[float] = []
        expected = [plan.expected_seconds(job) for job in waiting]
        self.expected = _mean(expected, 0.0), plan.MEASURING_SECONDS  # until jobs have told what they take
        self.guard, self.over = threading.Lock(), threading.Event()
        self.changed = True

    def __enter__(self) -> Self:
        threading.Thread(target=self._write, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with self.guard:
            self.over.set()
            self.path.unlink(missing_ok=True)

    def tell(self, job: dict[str, Any], event: dict[str, Any]) -> None:
        """What a job says: the `node` where it starts, or how far it is."""
        now, row, name = time.time(), job["row"], job["name"]
        if "node" in event and name not in self.running:
            self._set(Job(name, row["label"], row["family"], row["seed"], event["node"], now))
        if "phase" not in event or name not in self.running:
            return
        known, phase, progress = self.running[name], event["phase"], event["progress"]
        changes: dict[str, Any] = {"phase": phase, "progress": progress}
        if phase == "training" and known.first is None:
            changes["first"] = (now, progress)
        if phase != "training" and known.phase == "training":
            changes["trained"] = now
        self._set(known._replace(**changes))

    def end(self, name: str) -> None:
        """A job is over, whatever came of it."""
        with self.guard:
            known, now = self.running.pop(name, None), time.time()
            if known is None:
                return
            self.took.append(now - known.since)
            if known.trained is not None:
                self.measured.append(now - known.trained)
            self.changed = True

    def _set(self, job: Job) -> None:
        with self.guard:
            self.running[job.name] = job
            self.changed = True

    def _write(self) -> None:
        written = -BEAT
        while True:
            with self.guard, contextlib.suppress(OSError):  # a full disk stops no training
                if not self.over.is_set() and (self.changed or time.monotonic() - written > BEAT):
                    write_json(self.path, self._progress())
                    written, self.changed = time.monotonic(), False
            if self.over.wait(_EVERY):
                return

    def _progress(self) -> dict[str, Any]:
        mean, after = _mean(self.took, self.expected[0]), _mean(self.measured, self.expected[1])
        found = Progress(self.total, len(self.took), self.at_once, mean, after, list(self.running.values()))
        return {**found._asdict(), "running": [job._asdict() for job in found.running]}


def _mean(told: list[float], usual: float) -> float:
    return sum(told) / len(told) if told else usual
