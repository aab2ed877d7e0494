"""Many systems on the same data and budget, each in a process of its own, as the rows of one table.

What is finished is a file in the comparison's folder (`report.folder` describes it), so a comparison
that was killed goes on where it stopped, and a finished one takes further systems later.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fivefold import catalog
from fivefold.comparison.worker import keep_data
from fivefold.data import Data, load_data
from fivefold.errors import RunError, Stopped
from fivefold.files import is_temporary, write_json
from fivefold.options import presets_of
from fivefold.report import folder, page, single
from fivefold.report.advice import recommendation
from fivefold.report.columns import Line, Row, columns
from fivefold.report.survey import TABLE_1
from fivefold.report.terminal import headline, table
from fivefold.training.budget import Budget
from fivefold.training.options import arguments

MEASURING_SECONDS = 20.0  # what measuring a row takes on the default data, beside its budget
_GRACE = 30.0  # seconds that a process has to save its run
_SAME = ("features", "budget", "device", "threads", "preset", "options")  # in comparable rows, beside the data


@dataclass(frozen=True)
class Comparison:
    """A comparison's folder."""

    directory: Path

    @cached_property
    def rows(self) -> list[Row]:
        """The finished rows, as `fivefold.evaluation.evaluate` describes them."""
        return folder.read_rows(self.directory)

    @property
    def report(self) -> Path:
        """The page."""
        return self.directory / folder.REPORT

    def table(self) -> Group:
        """For `rich.print`: the table, best marked."""
        return table(self.rows)

    @property
    def recommendation(self) -> str:
        """What the numbers recommend, a line for each need, and where they do not decide."""
        return "\n".join(map(str, recommendation(self.rows)))


def compare(
    systems: Sequence[str] | None = None,
    data: Any = "digits",
    *,
    budget: str = "30s",
    seeds: int = 1,
    jobs: int = 1,
    samples: Mapping[str, str | Path] = {},
    condition: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    features: str = "fitted",
    table1: bool = False,
    preset: str | None = None,
    diagnostics: bool = True,
    console: Console | None = None,
    **options: Any,
) -> Comparison:
    """Train systems on the same data and budget, measure them the same way, and write the table and its page.

    Args:
        systems: ids or dotted module names; None takes every system of the catalogue that fits the data.
        data: what `load_data` takes, or its result.
        budget: of training, the same for every system: 30s, 5000steps or 20epochs.
        seeds: how many runs of each system; with several the table shows mean and error.
        jobs: how many processes at a time; each gets its share of the processor's cores.
        samples: files or folders of other people's samples, by the name of their row.
        condition: column, or "label", that the systems are conditioned on.
        out: the comparison's folder; one that exists is gone on with, and nothing finished is repeated.
            None takes `compare-DATA`.
        device: "auto", "cpu", "cuda" or "cuda:1".
        features: what samples are compared in: "fitted" (a network fitted on the training data), or
            "inception" or "inception:WEIGHTS" for the standard network.
        table1: the systems of the survey's Table 1, each with its published figures beside the measured ones.
        preset: of every system that has one of this name; the others keep their defaults, and rows say which.
        diagnostics: measure too what turning dials does and the largest resolution, which takes minutes a large system.
        console: where progress is shown; None takes standard output.
        options: of every system or of `fit`, such as `batch_size`.

    Raises:
        RunError: the folder holds a comparison on other data, or with another budget or options.
        Stopped: interrupted; says how to go on.
    """
    Budget.parse(budget)
    data = data if isinstance(data, Data) else load_data(data, condition=condition)
    usual = [name for name in TABLE_1 if name in catalog.entries()] if table1 else catalog.fitting(data.space.kind)
    chosen = list(dict.fromkeys(systems or usual))
    with catalog.trusting(*chosen):
        _check(chosen, samples, preset, options)
    directory = Path(out or f"compare-{data.name}")
    console = console or Console(width=None if sys.stdout.isatty() else 132)
    shared = {
        "budget": budget,
        "device": device,
        "features": features,
        "threads": max(1, torch.get_num_threads() // jobs),
        "preset": preset,
        "diagnostics": diagnostics,
        "options": options,
    }
    with _locked(directory) as lock:
        _settle(directory, data, shared)
        with catalog.trusting(*chosen):
            planned = _plan(directory, data, chosen, seeds, samples, shared)
        if table1:
            _print_beside(planned)
        waiting = [job for job in planned if not (directory / "rows" / f"{job['name']}.json").exists()]
        console.print(_announcement(directory, data, planned, waiting, budget, jobs), highlight=False)
        _Crew(directory, waiting, jobs, lock, console).work()
    done = Comparison(directory)
    page.write(folder.content(directory), done.report)
    console.print(done.table())
    console.print(f"\n{done.recommendation}\n\nreport: {done.report}", highlight=False, markup=False)
    return done


def show_row(row: Row) -> str:
    """One row for a terminal, a line a column."""
    line = Line(row["label"], (row,))
    shown = [(c, r) for c in columns([row]) if (r := line.reading(c)) is not None]
    lines = [f"{c.title:<26}{c.show(r, True)}{'' if r.floor is None else f'  (floor {r.floor:.3g})'}" for c, r in shown]
    return "\n".join([f"{row['label']}: {row['status']}", *lines, *line.notes])


# --- before -----------------------------------------------------------------------------------------


def _check(systems: list[str], samples: Mapping[str, str | Path], preset: str | None, options: dict[str, Any]) -> None:
    """What can be known to fail before hours are spent: names, options, files."""
    for name in systems:
        entry = catalog.find(name)
        if options or preset:
            arguments(entry.load(), _own_preset(name, preset), options)
    if preset and not any(_own_preset(name, preset) for name in [*systems, *catalog.entries()]):
        raise RunError(f"no system has a preset {preset!r}")
    for name, file in samples.items():
        if name in systems or not name:
            raise RunError(f"samples need a name of their own, got {name!r}")
        if not Path(file).exists():
            raise RunError(f"no samples at {file}")


def _own_preset(name: str, preset: str | None) -> str | None:
    """`preset` where the system has one of that name."""
    return preset if preset and preset in presets_of(catalog.class_of(name)) else None


def _settle(directory: Path, data: Data, shared: dict[str, Any]) -> None:
    """Begin the folder, or see that it holds a comparison to which further rows are comparable."""
    path = directory / folder.SETTINGS
    settings = json.loads(json.dumps(single.describe(data) | shared))
    if path.exists():
        old = folder.read_json(path)
        if old["data"]["fingerprint"] != data.fingerprint:
            raise RunError(f"{directory} compares systems on other data ({old['data']['name']}): name another --out")
        for name in _SAME:
            was, now = old.get(name), settings[name]
            if was != now:
                raise RunError(
                    f"{directory} was made with {name} {_words(was)}, not {_words(now)}: rows would not be comparable; "
                    f"name another --out{' (or the same --jobs)' if name == 'threads' else ''}"
                )
        return
    others = [item for item in directory.iterdir() if not _is_of_a_beginning(item)]
    if others:
        raise RunError(f"{directory} is not empty and holds no comparison: name another --out")
    for part in PLACES:
        (directory / part).mkdir(exist_ok=True)
    if not data.source:
        keep_data(data, directory)
    folder.write_arrays(directory / "real.npz", {"samples": single.examples(data)})
    write_json(path, settings)


PLACES = ("rows", "runs", "logs")


def _is_of_a_beginning(item: Path) -> bool:
    """Whether a comparison that was killed before it had its settings left this."""
    if item.is_dir():
        return item.name in PLACES and not any(item.iterdir())
    return item.name in (".lock", "data.pt", "real.npz") or is_temporary(item)


def _words(value: Any) -> str:
    return "none" if value in ({}, None) else str(value)


def _plan(
    directory: Path,
    data: Data,
    systems: list[str],
    seeds: int,
    samples: Mapping[str, str | Path],
    shared: dict[str, Any],
) -> list[dict[str, Any]]:
    """The jobs of all rows, finished or not: what `fivefold.comparison.worker` takes."""
    source = data.source or "DATA"
    jobs = []
    for position, name in enumerate(systems):
        entry = catalog.find(name)
        place = list(catalog.entries()).index(name) if name in catalog.entries() else 1000 + position
        facts = {"system": entry.id, "title": entry.title, "family": entry.family, "label": name, "position": place}
        facts["preset"] = preset = _own_preset(name, shared.get("preset"))
        for seed in range(seeds):
            words = ["fivefold", "train", name, "--data", source, "--budget", shared["budget"], "--seed", str(seed)]
            row = {**facts, "seed": seed, "command": shlex.join([*words, *(["--preset", preset] if preset else [])])}
            jobs.append({"kind": "train", "name": folder.file_name(name, seed), "row": row})
    for position, (name, file) in enumerate(samples.items()):
        command = shlex.join(["fivefold", "compare", "--data", source, "--samples", f"{name}={file}"])
        row = {"system": None, "title": name, "family": "samples", "label": name, "seed": None, "command": command}
        row["position"] = 2000 + position
        jobs.append({"kind": "samples", "name": folder.file_name(name, None), "row": row, "file": str(file)})
    return [{**job, "directory": str(directory), **shared} for job in jobs]


def _print_beside(planned: list[dict[str, Any]]) -> None:
    """The survey's published figures into the rows of its systems."""
    for job in planned:
        published = TABLE_1.get(job["row"]["system"])
        if published is not None:
            job["row"]["survey"] = published._asdict()


def _announcement(
    directory: Path, data: Data, planned: list[dict[str, Any]], waiting: list[dict[str, Any]], budget: str, jobs: int
) -> str:
    """What is about to be done, how long it takes and where the report will be."""
    training = sum(job["kind"] == "train" for job in waiting)
    names = dict.fromkeys(job["row"]["label"] for job in waiting)
    amount = Budget.parse(budget)
    seconds = (len(waiting) * MEASURING_SECONDS + training * (amount.amount if amount.unit == "seconds" else 0)) / jobs
    text = [f"{data.describe()}", ""]
    if len(waiting) < len(planned):
        text.append(f"{len(planned) - len(waiting)} of {len(planned)} rows are finished and are not repeated")
    if waiting:
        text.append(f"{len(waiting)} row{'s' * (len(waiting) > 1)}: {', '.join(names)}")
        text.append(f"each trained for {budget} and measured, {jobs} at a time: about {_duration(seconds)}"
                    + ("" if amount.unit == "seconds" else f" and what {budget} take"))  # fmt: skip
    return "\n".join([*text, f"report: {directory / folder.REPORT}", ""])


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """The folder for this process and its workers alone; workers that outlive a killed parent hold the lock too."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise RunError(f"cannot write to {directory}: {error.strerror or error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle
    except BlockingIOError:
        raise RunError(f"another compare works in {directory} (or is just ending): wait for it") from None
    finally:
        os.close(handle)


# --- the processes ----------------------------------------------------------------------------------


def _stopped(job: dict[str, Any]) -> Row:
    """What stands for the row of a job that was not finished; never written."""
    return {**job["row"], "status": "stopped"}


def _python_path() -> str:
    """This process's own path, so that workers find the modules that it finds, and no others (`-P`)."""
    return os.pathsep.join(place or os.getcwd() for place in sys.path)


class _Crew:
    """Runs jobs, several at a time, and shows how they go."""

    def __init__(self, directory: Path, waiting: list[dict[str, Any]], jobs: int, lock: int, console: Console) -> None:
        self.directory, self.waiting, self.jobs, self.lock, self.console = directory, waiting, jobs, lock, console
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
            with self.progress:
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
        with (self.directory / "logs" / f"{job['name']}.txt").open("a", encoding="utf-8") as log:
            process = self._start(job, log)
            assert process.stdout is not None
            for line in process.stdout:
                with contextlib.suppress(ValueError, KeyError):
                    event = json.loads(line)
                    self.progress.update(task, completed=event["progress"], phase=event["phase"])
            code = process.wait()
            assert process.stdin is not None
            process.stdin.close()
        self.running.discard(process)
        self.progress.remove_task(task)
        if not self._row(job).exists() and not self.stopping.is_set():
            write_json(self._row(job), {**job["row"], **self._death(job, code)})
        return folder.read_json(self._row(job)) if self._row(job).exists() else _stopped(job)

    def _start(self, job: dict[str, Any], log: Any) -> subprocess.Popen[str]:
        """The worker's process, in a session of its own so that Ctrl-C reaches it through us alone."""
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fivefold.comparison.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            pass_fds=(self.lock,),
            env={**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "PYTHONPATH": _python_path()},
        )  # fmt: skip
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
            return {
                "status": "out of memory",
                "error": "its process was killed (signal 9), as happens when memory runs out",
            }
        if code < 0:
            return {
                "status": "crashed",
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
