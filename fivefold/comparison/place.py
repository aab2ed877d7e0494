"""Where jobs run: the interface that this machine, Ray and Slurm have in common, and this machine.

A place starts a job with what it takes of a machine, says what happens to it, knows how it ended, and stops it. It
knows nothing of systems: a job is a `node.Task`.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fivefold.comparison.copies import Event
from fivefold.comparison.node import Desk, Process, Task, python_path, read_result
from fivefold.errors import RunError


class Said(NamedTuple):
    """What a job says of itself."""

    name: str
    event: Event


class Ended(NamedTuple):
    """How a job ended: its process's exit code, minus the signal that ended it, None where its machine is gone.

    `result` is what it wrote, `node` where it ran, and `error` what kept its process from being run there.
    """

    name: str
    code: int | None
    result: dict[str, Any] | None = None
    node: str = ""
    error: str = ""


class Standing(Protocol):
    """A process that stays, and answers."""

    def ask(self, line: dict[str, Any] | None, latest: float | None = None) -> Event | None:
        """What it answers to `line` (None: to what it was started with); None where it has ended.

        TimeoutError where it does not within `latest` seconds, after which it is no more.
        """

    def end(self) -> None:
        """Let it save, and see that it is gone."""


class Place(Protocol):
    """Where jobs run.

    `tries` is how often a job that fails in the same way from outside is tried.
    """

    tries: int

    @property
    def jobs(self) -> int:
        """As many at a time."""

    def room(self) -> int:
        """How many more jobs can be started now."""

    def start(self, task: Task, avoid: Collection[str] = ()) -> None:
        """Begin a job, not on the machines of these names where there are others."""

    def wait(self, seconds: float) -> list[Said | Ended]:
        """What happened; waits so long where nothing did."""

    def stop(self, name: str | None = None) -> None:
        """Tell a job to save and end; of all, and see that they are gone, where none is named."""

    def standing(self, module: str, line: dict[str, Any], threads: int, log: str) -> Standing:
        """Begin a process that stays."""

    def find(self, name: str) -> str:
        """What the place calls the machine of that name; RunError where it has none."""

    def close(self) -> None:
        """Leave it."""


@dataclass
class Local:
    """This machine: `jobs` processes at a time in the comparison's `directory`, which hold its `lock` too."""

    directory: Path
    jobs: int
    lock: int
    tries: int = 1
    running: dict[str, Process] = field(default_factory=dict)
    happened: queue.Queue[Said | Ended] = field(default_factory=queue.Queue)

    def room(self) -> int:
        return self.jobs - len(self.running)

    def start(self, task: Task, avoid: Collection[str] = ()) -> None:
        line = {**task.line, "directory": str(self.directory), "machine": {"jobs": self.jobs}}
        process = self._process(task.module, line, task.cpus, task.name)
        self.running[task.name] = process
        self.happened.put(Said(task.name, {"node": socket.gethostname()}))
        threading.Thread(target=self._follow, args=(task, process), daemon=True).start()

    def _process(self, module: str, line: dict[str, Any], threads: int, log: str) -> Process:
        return Process(module, line, threads, self.directory / "logs" / f"{log}.txt", python_path(), lock=self.lock)

    def _follow(self, task: Task, process: Process) -> None:
        while (event := process.hear()) is not None:
            self.happened.put(Said(task.name, event))
        self.happened.put(Ended(task.name, process.wait(), read_result(self.directory / task.result)))

    def wait(self, seconds: float) -> list[Said | Ended]:
        try:
            found = [self.happened.get(timeout=seconds)]
        except queue.Empty:
            return []
        while not self.happened.empty():
            found.append(self.happened.get())
        for event in found:
            if isinstance(event, Ended):
                self.running.pop(event.name, None)
        return found

    def stop(self, name: str | None = None) -> None:
        for task, process in list(self.running.items()):
            if name in (None, task):
                process.stop()
        if name is None:
            for process in self.running.values():
                process.end()

    def standing(self, module: str, line: dict[str, Any], threads: int, log: str) -> Standing:
        return Desk(self._process(module, {**line, "directory": str(self.directory)}, threads, log))

    def find(self, name: str) -> str:
        raise RunError(f"no machine {name!r} without a cluster: speeds are measured again on 'here' or with --cluster")

    def close(self) -> None:
        pass
