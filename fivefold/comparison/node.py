"""What runs on the machine of a job: the process that does it, in the comparison's folder or in a working copy of it.

Clusters send this module along by value, so that a machine whose fivefold is another one can say so: nothing but the
standard library is used here. Nothing here knows of systems: a job is a module, a line of JSON, and files (`copies`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fivefold.comparison.copies import Event, copied, pieces

GRACE = 30.0  # seconds that a process has to save its run
EVERY = 0.5  # seconds between two words of how far a job is, from another machine
SEEN = ".cluster"  # a file of the comparison's folder: who reads the right word there sees the folder


@dataclass(frozen=True)
class Task:
    """A job as places see it.

    `module` is run as a process that gets `line` as JSON, with `directory` in it; it writes lines of JSON, and `result`
    in the end. `needs` and `gives` are files and folders beneath the directory, which a working copy gets and sends.
    """

    name: str
    module: str
    line: dict[str, Any]
    cpus: int
    result: str
    needs: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    node: str = ""  # where it must run, if not anywhere


@dataclass(frozen=True)
class Home:
    """What all jobs of a comparison share: its folder and the `word` in it, where Python looks for modules, the working
    directory, the versions that a machine must have, and by which name (of its content) what it is sent is kept there.
    """

    directory: str
    word: str
    path: tuple[str, ...]
    cwd: str
    versions: dict[str, str]
    content: str = ""

    def is_seen(self) -> bool:
        """Whether this machine sees the comparison's folder."""
        try:
            return (Path(self.directory) / SEEN).read_text(encoding="utf-8") == self.word
        except OSError:
            return False


def python_path() -> tuple[str, ...]:
    """This process's own path, so that workers find the modules that it finds, and no others (`-P`)."""
    return tuple(place or os.getcwd() for place in sys.path)


# --- the process ------------------------------------------------------------------------------------


class Process:
    """A process of ours, in a session of its own so that Ctrl-C reaches it through us alone.

    Args:
        module: run by `python -m`.
        line: the first that it gets.
        threads: of the processor.
        log: where what it prints goes, appended.
        path: where Python looks for modules; those places that exist here.
        cwd: the working directory, where it exists here.
        lock: a file descriptor that it holds too.
    """

    def __init__(
        self, module: str, line: dict[str, Any], threads: int, log: Path, path: tuple[str, ...], cwd: str = "",
        lock: int | None = None,
    ) -> None:  # fmt: skip
        there = os.pathsep.join(place for place in path if os.path.exists(place))
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as kept:
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "-m", module], cwd=cwd if cwd and os.path.isdir(cwd) else None,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=kept, text=True, start_new_session=True,
                pass_fds=() if lock is None else (lock,),
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": there},
            )  # fmt: skip
        self.send(line)

    def send(self, line: dict[str, Any]) -> None:
        """A further line; one that is gone hears nothing."""
        assert self.popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.write(json.dumps(line) + "\n")
            self.popen.stdin.flush()

    def hear(self) -> Event | None:
        """What it says next; None where it has ended."""
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            with contextlib.suppress(ValueError):
                heard = json.loads(line)
                if isinstance(heard, dict):
                    return heard
        return None

    def wait(self) -> int:
        """Its exit code; minus the signal that ended it."""
        code = self.popen.wait()
        assert self.popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.close()
        return code

    def stop(self) -> None:
        """Tell it to save and end."""
        self.popen.terminate()

    def end(self) -> None:
        """Let it save and end, and see that it is gone."""
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            self.popen.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


class Desk:
    """A process that stays, and answers a line with a line."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def ask(self, line: dict[str, Any] | None, latest: float | None = None) -> Event | None:
        """What it answers to `line` (None: to what it was started with); None where it has ended.

        TimeoutError where it does not within `latest` seconds, after which it is no more.
        """
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.process.popen.kill()

        timer = threading.Timer(latest, give_up) if latest is not None else None
        if timer is not None:
            timer.start()
        if line is not None:
            self.process.send(line)
        answer = self.process.hear()
        if timer is not None:
            timer.cancel()
        if answer is None and late.is_set():
            raise TimeoutError
        return answer

    def end(self) -> None:
        """Let it save, and see that it is gone."""
        self.process.end()


def is_done(result: Path) -> bool:
    """Whether a job's process is not needed any more: another one wrote its result.

    For the process itself: one whose machine was thought gone may still save and end, so it waits for that one's lock
    on the log, which is its own standard error.
    """
    with contextlib.suppress(OSError):  # that is no file, or its disk has no locks
        fcntl.flock(2, fcntl.LOCK_EX)
    return result.exists()


def read_result(path: Path) -> dict[str, Any] | None:
    """The result of a job; None where it has none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# --- a job on another machine -----------------------------------------------------------------------


def run(task: Task, home: Home, machine: dict[str, Any], sent: Callable[[], bytes], files: bytes) -> Iterator[Event]:
    """Do a job here, and say what happens.

    Args:
        task: the job.
        home: of its comparison.
        machine: what the job's row is to say of this machine beside what it finds itself; its `node` is its name.
        sent: fetches what all jobs need on a machine that does not see the folder, packed (`pack`).
        files: what this one needs beside it there, packed.

    Yields:
        `node`, the process's own events, pieces of `file`s of a working copy, and last `code` with `result`; or
        `refused`, why this machine does none. Closing the iterator ends the process.
    """
    yield {"node": machine["node"]}
    why = differs(home)
    if why:
        yield {"refused": why}
    elif home.is_seen():
        yield from _work(task, Path(home.directory), home, machine)
    elif not home.content:
        yield {"refused": f"does not see {home.directory}, as those did that were there first"}
    else:
        with copied(home.content, sent, files) as place:
            for event in _work(task, place, home, machine):
                if "code" in event:
                    for name in task.gives:
                        yield from pieces(place, name)
                yield event


def _work(task: Task, place: Path, home: Home, machine: dict[str, Any]) -> Iterator[Event]:
    """The job's process, in this folder."""
    line = {**task.line, "directory": str(place), "machine": machine}
    process = Process(task.module, line, task.cpus, place / "logs" / f"{task.name}.txt", home.path, home.cwd)
    said: queue.Queue[Event | None] = queue.Queue()

    def listen() -> None:
        while (event := process.hear()) is not None:
            said.put(event)
        said.put(None)

    try:
        threading.Thread(target=listen, daemon=True).start()
        phase, last = "", -EVERY
        while True:
            with contextlib.suppress(queue.Empty):
                event = said.get(timeout=0.2)  # a cancelled task is interrupted here
                if event is None:
                    break
                now = time.monotonic()
                if now - last > EVERY or event.get("phase") != phase or "validation" in event:
                    phase, last = event.get("phase", ""), now
                    yield event
        code = process.wait()
    finally:
        process.end()
    yield {"code": code, "result": read_result(place / task.result)}


def run_into(task: Task, home: Home, place: str) -> Event:
    """`run` on a machine that sees the folder; its last word and where it is said are in the file `place`."""
    node, event = socket.gethostname(), {}
    for event in run(task, home, {"node": node}, lambda: b"", b""):
        if "code" not in event:
            writing = Path(f"{place}.writing")
            writing.write_text(json.dumps({**event, "node": node}), encoding="utf-8")
            writing.replace(place)
    return event


def differs(home: Home) -> str:
    """In which versions this machine differs; nothing where it does not."""
    theirs = _versions_here(home.path)
    if theirs is None:
        return "has no fivefold that works on a cluster"
    wrong = [f"{name} {theirs.get(name)}, not {ours}" for name, ours in home.versions.items() if theirs[name] != ours]
    return f"has {' and '.join(wrong)}" if wrong else ""


_KNOWN: dict[tuple[str, ...], dict[str, str] | None] = {}  # by path


def _versions_here(path: tuple[str, ...]) -> dict[str, str] | None:
    """As a job's process would find them; asked once."""
    if path not in _KNOWN:
        program = "import json; from fivefold.comparison.node import versions; print(json.dumps(versions()))"
        there = os.pathsep.join(place for place in path if os.path.exists(place))
        found = subprocess.run(
            [sys.executable, "-P", "-c", program], env={**os.environ, "PYTHONPATH": there},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        _KNOWN[path] = json.loads(found.stdout) if found.returncode == 0 else None
    return _KNOWN[path]


def versions() -> dict[str, str]:
    """Of fivefold, with a digest of its code, and of torch."""
    import fivefold

    home, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(home.rglob("*.py")):
        digest.update(f"{file.relative_to(home)}\n".encode() + file.read_bytes())
    return {
        "fivefold": f"{fivefold.__version__} ({digest.hexdigest()[:8]})",
        "torch": importlib.metadata.version("torch"),
    }
