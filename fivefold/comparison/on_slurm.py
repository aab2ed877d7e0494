"""Jobs by Slurm, through submitit, on the comparison's folder, which all machines of such a cluster see.

What is begun together is one array. A job's last word is a file beside submitit's own, looked at now and then.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fivefold.comparison.copies import Event, copied
from fivefold.comparison.node import GRACE, SEEN, Home, Task, python_path, run_into, versions
from fivefold.comparison.place import Ended, Said, Standing
from fivefold.errors import OptionError, RunError
from fivefold.files import write_text
from fivefold.training.failures import reason

AT_ONCE = 1000  # jobs given to Slurm at a time, where the user does not say
MINUTES = 24 * 60  # that a job may take, where the user does not say
LOOKED = 2.0  # seconds between two looks


class Slurm:
    """The machines of a Slurm cluster.

    Args:
        given: "slurm", or "slurm:partition=gpu,account=mine,time=600": what submitit takes as `slurm_...`.
        directory: of the comparison.
        cpus: of a job.
        gpus: of a job.
        most: jobs at a time; None takes `AT_ONCE`.

    RunError where there is no Slurm, or no submitit; OptionError where `given` is written otherwise.
    """

    tries = 2
    kind = "slurm"  # of submitit's executors

    def __init__(self, given: str, directory: Path, cpus: int, gpus: int, most: int | None) -> None:
        try:
            import cloudpickle
            import submitit
        except ImportError:
            raise RunError("--cluster slurm needs submitit: pip install 'fivefold[slurm]'") from None
        self.directory, self.most = directory.resolve(), most or AT_ONCE
        self.folder, self.looked = self.directory / "slurm", 0.0
        self.running: dict[str, tuple[Task, Any]] = {}  # by name; submitit's job
        self.begun: dict[tuple[str, tuple[str, ...]], list[Task]] = {}  # by where they must and must not run
        self.words: dict[str, str] = {}  # the last of each job
        for module in (run_into.__module__, copied.__module__):  # a machine need not have them to say so
            cloudpickle.register_pickle_by_value(sys.modules[module])
        try:
            self.executor = submitit.AutoExecutor(self.folder, cluster=self.kind)
        except RuntimeError as error:
            raise RunError(f"no Slurm here: {error}") from error
        asked = {"timeout_min": MINUTES, "cpus_per_task": cpus, "tasks_per_node": 1}
        asked |= {"gpus_per_node": gpus} if gpus else {}
        asked |= {"slurm_array_parallelism": self.most, **_parameters(given)}
        self.executor.update_parameters(**asked)
        word = uuid.uuid4().hex
        write_text(self.directory / SEEN, word)
        self.home = Home(str(self.directory), word, python_path(), str(Path.cwd()), versions())

    @property
    def jobs(self) -> int:
        return self.most

    def room(self) -> int:
        return self.most - len(self.running) - sum(map(len, self.begun.values()))

    def start(self, task: Task, avoid: Collection[str] = ()) -> None:
        self.begun.setdefault((task.node, tuple(sorted(filter(None, avoid)))), []).append(task)

    def _submit(self) -> None:
        """What was begun since, an array for each wish."""
        for (must, avoid), tasks in self.begun.items():
            wishes = {"nodelist": must} if must else {"exclude": ",".join(avoid)} if avoid else {}
            self.executor.update_parameters(slurm_additional_parameters=wishes)
            with self.executor.batch():
                jobs = [self.executor.submit(run_into, task, self.home, str(self._word(task))) for task in tasks]
            self.running |= {task.name: (task, job) for task, job in zip(tasks, jobs, strict=True)}
        self.begun = {}

    def wait(self, seconds: float) -> list[Said | Ended]:
        self._submit()
        time.sleep(min(max(self.looked + LOOKED - time.monotonic(), 0.0), seconds))
        if time.monotonic() - self.looked < LOOKED:
            return []
        self.looked = time.monotonic()
        return [event for task, job in list(self.running.values()) for event in self._look(task, job)]

    def _look(self, task: Task, job: Any) -> list[Said | Ended]:
        """What became of a job since."""
        with contextlib.suppress(OSError, ValueError):
            word = self._word(task).read_text(encoding="utf-8")
            if word != self.words.get(task.name):
                self.words[task.name] = word
                return [Said(task.name, json.loads(word))]
        if not job.done():
            return []
        node = json.loads(self.words.pop(task.name, "{}")).get("node", "")
        self.running.pop(task.name)
        self._word(task).unlink(missing_ok=True)
        try:
            event: Event = job.result()
        except Exception as error:  # cancelled, out of time, its machine gone
            lost = type(error).__name__ == "UncompletedJobError"
            return [Ended(task.name, None if lost else 1, None, node, "" if lost else reason(error))]
        if "refused" in event:
            return [Ended(task.name, 1, None, node, f"{node} {event['refused']}")]
        return [Ended(task.name, event["code"], event["result"], node)]

    def _word(self, task: Task) -> Path:
        return self.folder / f"{task.name}.json"

    def stop(self, name: str | None = None) -> None:
        stopped = [job for task, job in self.running.values() if name in (None, task.name)]
        for job in stopped:
            job.cancel(check=False)
        if name is None:
            self.begun = {}
            until = time.monotonic() + GRACE
            while time.monotonic() < until and not all(job.done(force_check=True) for job in stopped):
                time.sleep(0.2)

    def standing(self, module: str, line: dict[str, Any], threads: int, log: str) -> Standing:
        raise RunError("a race needs processes that answer: --within goes with a Ray cluster, or on this machine")

    def find(self, name: str) -> str:
        return name

    def close(self) -> None:
        with contextlib.suppress(OSError):
            (self.directory / SEEN).unlink()
        shutil.rmtree(self.folder, ignore_errors=True)


def _parameters(given: str) -> dict[str, Any]:
    """submitit's parameters of `slurm:name=value,...`."""
    _, _, text = given.partition(":")
    pairs = [part.split("=", 1) for part in text.split(",") if part]
    if any(len(pair) != 2 for pair in pairs):
        raise OptionError(f"--cluster takes slurm, or slurm:partition=gpu,time=600, got {given!r}")
    return {f"slurm_{name}": int(value) if value.isdigit() else value for name, value in pairs}
