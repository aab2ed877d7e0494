"""What a comparison will do: its folder, its settings and its jobs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fivefold import catalog
from fivefold.comparison.node import SEEN
from fivefold.comparison.worker import DATA, FEATURES, keep_data
from fivefold.data import Data
from fivefold.errors import FivefoldError, RunError
from fivefold.evaluation.features import named_features
from fivefold.files import is_temporary, read_json, write_json
from fivefold.machine import using
from fivefold.options import Slot, flags, label, plain, presets_of
from fivefold.report import folder, single
from fivefold.report.survey import TABLE_1
from fivefold.training.budget import Budget
from fivefold.training.failures import FROM_OUTSIDE
from fivefold.training.options import arguments

MEASURING_SECONDS = 20.0  # what measuring a row takes on the default data, beside its budget
_SAME = ("features", "budget", "device", "jobs", "threads", "preset", "options", "tune", "within")  # in comparable rows


def check(systems: list[Slot], samples: Mapping[str, str | Path], preset: str | None, options: dict[str, Any]) -> None:
    """What can be known to fail before hours are spent: names, options, files."""
    for system in systems:
        cls = catalog.find(name_of(system)).load()
        if options or preset or system.preset or system.options:
            arguments(cls, own_preset(system, preset), {**options, **system.options})
    every = [*systems, *map(Slot, catalog.entries())]
    if preset and not any(own_preset(system, preset) for system in every):
        raise RunError(f"no system has a preset {preset!r}")
    for name, file in samples.items():
        if name in map(label, systems) or not name:
            raise RunError(f"samples need a name of their own, got {name!r}")
        if not Path(file).exists():
            raise RunError(f"no samples at {file}")


def name_of(system: Slot) -> str:
    """Its id, or dotted name."""
    return system.name if isinstance(system.name, str) else catalog.name_of(system.name)


def own_preset(system: Slot, preset: str | None) -> str | None:
    """The row's own preset; else `preset` where the system has one of that name."""
    if system.preset:
        return system.preset
    return preset if preset and preset in presets_of(catalog.class_of(name_of(system))) else None


def settle(directory: Path, data: Data, shared: dict[str, Any]) -> None:
    """Begin the folder, or see that it holds a comparison to which further rows are comparable."""
    path = directory / folder.SETTINGS
    settings = json.loads(json.dumps(single.describe(data) | shared))
    if path.exists():
        old = read_json(path)
        if old["data"]["fingerprint"] != data.fingerprint:
            raise RunError(f"{directory} compares systems on other data ({old['data']['name']}): name another --out")
        for name in _SAME:
            was, now = old.get(name), settings[name]
            if was != now and not (name in ("tune", "jobs") and None in (was, now)):
                same = {"jobs": " (or the same --jobs)", "threads": f" (or --cpus-per-job {was})"}.get(name, "")
                raise RunError(
                    f"{directory} was made with {name} {_words(was)}, not {_words(now)}: rows would not be comparable; "
                    f"name another --out{same}"
                )
        if shared["tune"] and not old.get("tune"):  # rows that nobody tuned stay what they are
            write_json(path, old | {"tune": shared["tune"]})
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


def prepare(directory: Path, data: Data, shared: dict[str, Any]) -> None:
    """What jobs on a cluster must not each make: features, and data for machines that cannot load them."""
    if data.train.x is not None and not (directory / DATA).exists():
        keep_data(data, directory)
    if shared["features"] == "fitted":
        with using(shared["threads"]), contextlib.suppress(FivefoldError):  # rows will say so
            named_features("fitted", data, directory / FEATURES)


def give(directory: Path, job: dict[str, Any]) -> dict[str, Any]:
    """A job that measures samples, with its file or folder copied to the comparison's: other machines see no other."""
    if job["kind"] != "samples":
        return job
    file, to = Path(job["file"]), Path("given") / f"{job['name']}{Path(job['file']).suffix}"
    (directory / "given").mkdir(exist_ok=True)
    if file.is_dir():
        shutil.copytree(file, directory / to, dirs_exist_ok=True)
    else:
        shutil.copy2(file, directory / to)
    return {**job, "file": str(to)}


PLACES = ("rows", "runs", "logs")


def _is_of_a_beginning(item: Path) -> bool:
    """Whether a comparison that was killed before it had its settings left this."""
    if item.is_dir():
        return item.name in PLACES and not any(item.iterdir())
    return item.name in (".lock", SEEN, DATA, "real.npz") or is_temporary(item)


def _words(value: Any) -> str:
    return "none" if value in ({}, None) else str(value)


def plan(
    directory: Path,
    data: Data,
    systems: list[Slot],
    seeds: int,
    samples: Mapping[str, str | Path],
    shared: dict[str, Any],
) -> list[dict[str, Any]]:
    """The jobs of all rows, finished or not: what `fivefold.comparison.worker` takes."""
    source = data.source or "DATA"
    jobs = []
    for position, system in enumerate(systems):
        entry, name = catalog.find(name_of(system)), name_of(system)
        place = list(catalog.entries()).index(name) if name in catalog.entries() else 1000 + position
        facts: dict[str, Any] = {"system": entry.id, "title": entry.title, "family": entry.family}
        facts |= {"label": label(system), "position": place + position / 1000}
        facts["threads"] = {"given": shared.get("threads")}
        facts["preset"] = preset = own_preset(system, shared.get("preset"))
        own = plain({**shared["options"], **system.options})
        for seed in range(seeds):
            words = ["fivefold", "train", name, "--data", source, "--budget", shared["budget"], "--seed", str(seed)]
            words += [*(["--preset", preset] if preset else []), *flags(own)]
            row = {**facts, "seed": seed, "command": shlex.join(words)}
            jobs.append({"kind": "train", "name": folder.file_name(label(system), seed), "row": row, "options": own})
            if shared.get("tune"):
                jobs.append(_tuned(jobs[-1], shared["tune"]))
    for position, (name, file) in enumerate(samples.items()):
        command = shlex.join(["fivefold", "compare", "--data", source, "--samples", f"{name}={file}"])
        row = {"system": None, "title": name, "family": "samples", "label": name, "seed": None, "command": command}
        row["position"] = 2000 + position
        jobs.append(
            {"kind": "samples", "name": folder.file_name(name, None), "row": row, "file": str(Path(file).resolve())}
        )
    return [{**shared, **job, "directory": str(directory)} for job in jobs]


def waiting(directory: Path, planned: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The jobs that are to be done: those without a row, and those whose row failed from outside."""
    rows = {job["name"]: directory / "rows" / f"{job['name']}.json" for job in planned}
    done = {name: read_json(path)["status"] for name, path in rows.items() if path.exists()}
    for name in done:
        if done[name] in FROM_OUTSIDE:
            rows[name].unlink()
    return [job for job in planned if done.get(job["name"], FROM_OUTSIDE[0]) in FROM_OUTSIDE]


def _tuned(job: dict[str, Any], tune: dict[str, Any]) -> dict[str, Any]:
    """The job of the row beside another: tuned first. Seeds share the trials."""
    row = job["row"]
    called = {"label": f"{row['label']} (tuned over {tune['trials']})", "position": row["position"] + 1e-4}
    name = folder.file_name(called["label"], row["seed"])
    return {**job, "kind": "tuned", "name": name, "tuning": folder.file_name(row["label"], None), "row": row | called}


def print_beside(planned: list[dict[str, Any]]) -> None:
    """The survey's published figures into the rows of its systems."""
    for job in planned:
        published = TABLE_1.get(job["row"]["system"])
        if published is not None:
            job["row"]["survey"] = published._asdict()


def announcement(
    directory: Path, data: Data, planned: list[dict[str, Any]], waiting: list[dict[str, Any]], budget: str, jobs: int
) -> str:
    """What is about to be done, how long it takes and where the report will be."""
    names = dict.fromkeys(job["row"]["label"] for job in waiting)
    amount = Budget.parse(budget)
    seconds = sum(map(expected_seconds, waiting)) / jobs
    text = [f"{data.describe()}", ""]
    if len(waiting) < len(planned):
        text.append(f"{len(planned) - len(waiting)} of {len(planned)} rows are finished and are not repeated")
    if waiting:
        text.append(f"{len(waiting)} row{'s' * (len(waiting) > 1)}: {', '.join(names)}")
        text.append(f"each trained for {budget} and measured, {jobs} at a time: about {_duration(seconds)}"
                    + ("" if amount.unit == "seconds" else f" and what {budget} take"))  # fmt: skip
    return "\n".join([*text, f"report: {directory / folder.REPORT}", ""])


def expected_seconds(job: dict[str, Any]) -> float:
    """What is known beforehand of a job's time: that of its trials and its own training, and of measuring it.

    The finalists of a race are trained.
    """
    if job["within"]:
        return MEASURING_SECONDS
    tune = job["tune"] if job["kind"] == "tuned" else {"trials": 0, "budget": job["budget"]}
    amounts = [(Budget.parse(tune["budget"]), tune["trials"]), (Budget.parse(job["budget"]), job["kind"] != "samples")]
    return MEASURING_SECONDS + sum(count * amount.amount for amount, count in amounts if amount.unit == "seconds")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
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
