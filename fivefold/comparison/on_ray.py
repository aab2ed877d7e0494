"""Jobs on a Ray cluster: each a core task that runs the same process as on this machine.

Ray finds a machine with room, says when one is gone, and carries what a working copy needs and gives. Which jobs are
tried again is the crew's to say.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fivefold.comparison.copies import COMMON, Arrivals, Event, pack
from fivefold.comparison.node import GRACE, SEEN, Desk, Home, Process, Task, differs, python_path, run, versions
from fivefold.comparison.place import Ended, Said, Standing
from fivefold.errors import OptionError, RunError
from fivefold.files import write_text
from fivefold.training.failures import reason

AHEAD = 2  # jobs for every slot that there is, so that the next is at hand when one ends and a growing cluster grows
LOOKED = 5.0  # seconds between two looks at which machines there are
ANSWERS = 120.0  # seconds until a machine says which it is
_NODE = "ray.io/node-id"
_START = "start one by ray start --head, join one by ray start --address"


def connect(address: str) -> tuple[Any, bool]:
    """Ray, and whether this connected it to the cluster; RunError where it is not installed or there is no cluster."""
    try:
        import ray
    except ImportError:
        raise RunError("--cluster needs Ray: pip install 'fivefold[ray]'") from None
    if "://" in address:
        raise RunError(f"--cluster takes auto, HOST:PORT or slurm, got {address}: run it on a machine of the cluster")
    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        if address not in ("auto", there):
            raise RunError(f"this process is connected to the Ray cluster at {there} already, not to {address}")
        return ray, False
    _probe(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = "" if address == "auto" else f" at {address}"
        why = str(error).strip().splitlines() or ["no reason given"]
        raise RunError(f"no Ray cluster{where}: {why[0][:200]}; {_START}") from error
    return ray, True


def _probe(address: str) -> None:
    """RunError where nothing listens at an address, since Ray waits minutes for it."""
    found = address
    if address == "auto":
        found = os.environ.get("RAY_ADDRESS", "")
        with contextlib.suppress(OSError):  # else Ray says at once that it knows of none
            found = found or Path("/tmp/ray/ray_current_cluster").read_text(encoding="utf-8").strip()
    host, _, port = found.rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), LOOKED).close()
    except OSError as error:
        raise RunError(f"no Ray cluster at {found}: {error.strerror or error}; {_START}") from error


class Ray:
    """The machines of a Ray cluster.

    Args:
        address: "auto", or HOST:PORT.
        directory: of the comparison.
        cpus: of a job.
        gpus: of a job, whole ones.
        most: jobs at a time; None takes as many as fit.
        console: takes sentences.

    Raises:
        RunError: there is no such cluster, or none of its machines will do; says which, and why.
        OptionError: no machine has so many CPUs or GPUs.
    """

    tries = 2

    def __init__(self, address: str, directory: Path, cpus: int, gpus: int, most: int | None, console: Console) -> None:
        self.ray, self.ours = connect(address)
        self.directory, self.cpus, self.gpus, self.most, self.console = directory.resolve(), cpus, gpus, most, console
        self.arrivals = Arrivals(self.directory)
        self.running: dict[Any, Task] = {}  # by the generator of its events
        self.where: dict[str, str] = {}  # by job its machine's id
        self.refused: set[str] = set()  # ids
        self.looked = -LOOKED
        for name in (run.__module__, pack.__module__, __name__):  # a machine need not have them to say so
            self.ray.cloudpickle.register_pickle_by_value(sys.modules[name])
        self.task = self.ray.remote(num_returns="streaming", max_retries=0)(_job)
        self.box: list[Any] = []
        word = uuid.uuid4().hex
        write_text(self.directory / SEEN, word)
        self.home = Home(str(self.directory), word, python_path(), str(Path.cwd()), versions())
        try:
            self.all_see = self._look_into()
            if not self.slots():
                each = f"{cpus} CPUs" + (f" and {gpus} GPUs" if gpus else "")
                raise OptionError(f"no machine of the cluster has {each} (--cpus-per-job, --gpus-per-job)")
        except BaseException:
            self.close()
            raise

    # --- the machines -----------------------------------------------------------------------------

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Those that are alive and will do, by id."""
        if time.monotonic() - self.looked > LOOKED:
            self.alive = {found["NodeID"]: found for found in self.ray.nodes() if found["Alive"]}
            self.looked = time.monotonic()
        return {name: found for name, found in self.alive.items() if name not in self.refused}

    def slots(self) -> int:
        """How many jobs fit on all of them."""
        return sum(_slots(found["Resources"], self.cpus, self.gpus) for found in self.nodes().values())

    @property
    def jobs(self) -> int:
        return min(self.most or self.slots(), self.slots())

    def find(self, name: str) -> str:
        """The id of the machine of that name, host, address or beginning of an id; RunError names those there are."""
        for ident, found in self.nodes().items():
            if name in (found["NodeName"], found["NodeManagerHostname"], found["NodeManagerAddress"]):
                return ident
            if len(name) >= 6 and ident.startswith(name):
                return ident
        raise RunError(f"no machine {name!r} in the cluster: there are {', '.join(map(_name, self.nodes().values()))}")

    def _look_into(self) -> bool:
        """Ask every machine for its versions, and whether it sees the folder; whether all do."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        ask = self.ray.remote(num_cpus=0, max_retries=0)(_asked)
        asked = {
            ident: ask.options(scheduling_strategy=On(ident, soft=False)).remote(self.home) for ident in self.nodes()
        }
        seen = []
        for ident, answer in asked.items():
            try:
                other, sees = self.ray.get(answer, timeout=ANSWERS)
            except self.ray.exceptions.RayError as error:
                other, sees = f"does not answer ({type(error).__name__})", True
            if other:
                self._refuse(ident, other)
            else:
                seen.append(sees)
        return all(seen)

    def _refuse(self, ident: str, why: str) -> None:
        """Leave a machine out; RunError where none is left."""
        self.refused.add(ident)
        text = f"{_name(self.alive[ident]) if ident in self.alive else ident} {why}"
        if not self.nodes():
            raise RunError(f"no machine of the cluster will do: {text}; install there what is here")
        self.console.print(f"left out: {text}", highlight=False, markup=False)

    # --- the jobs ---------------------------------------------------------------------------------

    def room(self) -> int:
        return (self.most or AHEAD * self.slots()) - len(self.running)

    def start(self, task: Task, avoid: Collection[str] = ()) -> None:
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        wrong = {ident for ident, found in self.nodes().items() if _name(found) in avoid}
        wrong = (wrong if len(wrong) < len(self.nodes()) else set()) | self.refused
        if task.node:
            options["label_selector"] = {_NODE: self.find(task.node)}
        elif wrong:
            options["label_selector"] = {_NODE: f"!in({','.join(sorted(wrong))})"}
        self.arrivals.drop(task.name)  # of a driver that was killed
        files = b""
        if not self.all_see:
            self._put_common()
            files = pack(self.directory, task.needs)
        generator = self.task.options(**options).remote(task, self.home, self.box, files, self.gpus)
        self.running[generator] = task

    def _put_common(self) -> None:
        """What every working copy needs into Ray's store, once."""
        if not self.box:
            packed = pack(self.directory, COMMON)
            self.home = replace(self.home, content=hashlib.sha256(packed).hexdigest()[:16])
            self.box = [self.ray.put(packed)]

    def wait(self, seconds: float) -> list[Said | Ended]:
        if not self.running:  # no machine has room
            time.sleep(seconds)
            return []
        ready, _ = self.ray.wait(list(self.running), timeout=seconds)
        if ready:
            ready, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        return [event for generator in ready for event in self._next(generator)]

    def _next(self, generator: Any) -> Iterator[Said | Ended]:
        """What a job that has something to say says."""
        task, errors = self.running[generator], self.ray.exceptions
        try:
            event: Event = self.ray.get(next(generator))
        except (errors.TaskCancelledError, StopIteration):
            ended = Ended(task.name, -signal.SIGTERM)
        except errors.RayTaskError as error:  # on the machine, but not in the job's process
            ended = Ended(task.name, 1, None, self._at(task), reason(error.cause))
        except (errors.WorkerCrashedError, errors.OutOfMemoryError):
            ended = Ended(task.name, -signal.SIGKILL, None, self._at(task))
        except errors.RayError:
            ended = Ended(task.name, None, None, self._at(task))
        else:
            if "node" in event:
                self.where[task.name] = event["node"]
            elif "refused" in event:
                self.running.pop(generator)
                self._refuse(event["id"], event["refused"])
                self.start(task)
                return
            elif "file" in event:
                self.arrivals.take(task.name, event)
                return
            if "code" not in event:
                yield Said(task.name, event)
                return
            self.arrivals.settle(task.name, task.result)
            ended = Ended(task.name, event["code"], event["result"], self._at(task))
        self.arrivals.drop(task.name)
        self.running.pop(generator)
        self.where.pop(task.name, None)
        yield ended

    def _at(self, task: Task) -> str:
        return self.where.get(task.name, "")

    def stop(self, name: str | None = None) -> None:
        for generator, task in self.running.items():
            if name in (None, task.name):
                self.ray.cancel(generator)
        until = time.monotonic() + GRACE + LOOKED
        while name is None and self.running and time.monotonic() < until:
            self.wait(1.0)
        for generator in self.running if name is None else ():
            self.ray.cancel(generator, force=True)

    def standing(self, module: str, line: dict[str, Any], threads: int, log: str) -> Standing:
        if not self.all_see:
            raise RunError(
                f"a race goes on from checkpoints: not all machines see {self.directory}; name another --out"
            )
        actor = self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_concurrency=2)(_Desk)
        line = {**line, "directory": str(self.directory)}
        return _Remote(self.ray, actor.remote(self.home, module, line, threads, log))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            (self.directory / SEEN).unlink()
        if self.ours:
            self.ray.shutdown()


class _Remote:
    """A process that stays, on another machine."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self.ray, self.actor = ray, actor

    def ask(self, line: dict[str, Any] | None, latest: float | None = None) -> Event | None:
        errors = self.ray.exceptions
        try:
            return self.ray.get(self.actor.ask.remote(line, latest), timeout=None if latest is None else latest + GRACE)
        except errors.GetTimeoutError:
            self.ray.kill(self.actor)
            raise TimeoutError from None
        except (errors.ActorDiedError, errors.ActorUnavailableError):
            return None

    def end(self) -> None:
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.get(self.actor.end.remote(), timeout=GRACE + LOOKED)
        self.ray.kill(self.actor)


def _name(found: dict[str, Any]) -> str:
    return found["NodeName"]


def _slots(resources: dict[str, float], cpus: int, gpus: int) -> int:
    """How many jobs fit on a machine."""
    by_gpu = [int(resources.get("GPU", 0) // gpus)] if gpus else []
    return min([int(resources.get("CPU", 0) // cpus), *by_gpu])


# --- on the machines --------------------------------------------------------------------------------


def _job(task: Task, home: Home, box: list[Any], files: bytes, gpus: int) -> Iterator[Event]:
    """A job: a core task."""
    import ray

    ident = ray.get_runtime_context().get_node_id()
    found = next(each for each in ray.nodes() if each["NodeID"] == ident)
    machine = {"node": found["NodeName"], "jobs": _slots(found["Resources"], task.cpus, gpus)}
    for event in run(task, home, machine, lambda: ray.get(box[0]), files):
        yield {**event, "id": ident} if "refused" in event else event


def _asked(home: Home) -> tuple[str, bool]:
    """In what this machine differs, and whether it sees the folder."""
    return differs(home), home.is_seen()


class _Desk:
    """A process that stays: an actor."""

    def __init__(self, home: Home, module: str, line: dict[str, Any], threads: int, log: str) -> None:
        path = Path(home.directory) / "logs" / f"{log}.txt"
        self.desk = Desk(Process(module, line, threads, path, home.path, home.cwd))

    def ask(self, line: dict[str, Any] | None, latest: float | None) -> Event | None:
        return self.desk.ask(line, latest)

    def end(self) -> None:
        self.desk.end()
