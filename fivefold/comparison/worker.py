"""One row of a comparison, made in a process of its own: `python -m fivefold.comparison.worker`.

The job is a line of JSON on standard input, which the parent keeps open: where it closes, the parent is
gone, and the worker saves its run and ends. What happens goes out as lines of JSON on standard output.
The row is written as a file; a process that ends without one has crashed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fivefold import catalog
from fivefold.comparison.node import is_done
from fivefold.comparison.speed import speeds
from fivefold.data import Data, load_data
from fivefold.data.examples import read_examples
from fivefold.data.raw import PARTS
from fivefold.data.splits import Split
from fivefold.errors import RunError, Stopped
from fivefold.evaluation.diagnostics import diagnose
from fivefold.evaluation.evaluate import SAMPLE_SECONDS, Arrays, Row, evaluate, evaluate_samples, resolution_stars
from fivefold.evaluation.features import named_features
from fivefold.evaluation.resolution import largest_resolution
from fivefold.files import read_json, replacing, write_json
from fivefold.machine import choose_device
from fivefold.options import names_in, plain
from fivefold.report import folder, pictures, single
from fivefold.report.trials import in_words
from fivefold.run import Run, load
from fivefold.space import Space
from fivefold.training.failures import FROM_OUTSIDE, reason, status
from fivefold.training.fit import fit, resume
from fivefold.training.tuning import attempt, tune

DATA, FEATURES = "data.pt", "features.safetensors"  # of the comparison, in its folder
Tell = Callable[[dict[str, Any]], None]
Job = dict[str, Any]


def main() -> None:
    """Do the job on standard input and write its row."""
    job: Job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if is_done(row_path(job)):
        return
    torch.set_num_threads(job["threads"])
    events = os.dup(1)
    os.dup2(2, 1)  # what a system prints belongs in the log

    def tell(event: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the parent is gone: `_end_with_parent` sees to it
            os.write(events, json.dumps(event).encode() + b"\n")

    try:
        with catalog.trusting(job["row"]["system"], *_slots(job.get("options", {}))):  # the parent's user typed them
            row = _WORK[job["kind"]](job, tell)
    except Stopped:
        sys.exit(130)
    except Exception as error:
        traceback.print_exc()
        row = {**job["row"], "status": status(error), "error": reason(error)}
    both = {part: {**job["row"].get(part, {}), **row.get(part, {})} for part in ("threads", "machine")}
    if job["kind"] != "speeds":
        both["machine"] |= job["machine"]
    write_json(row_path(job), {**job["row"], **row, **both, "position": job["row"]["position"]})


def row_path(job: Job) -> Path:
    return Path(job["directory"]) / job.get("into", "rows") / f"{job['name']}.json"


def _train(job: Job, tell: Tell) -> Row:
    """Train (or finish training), measure, draw."""
    directory, run_path = Path(job["directory"]), Path(job["directory"]) / "runs" / job["name"]
    data = read_data(directory)
    trust, device = ",".join([name := job["row"]["system"], *_slots(job["options"])]), choose_device(job["device"])

    def watch(event: dict[str, Any]) -> None:
        tell({"phase": "training", "progress": event.get("progress", 0.0)})

    begun = (run_path / "run.json").exists()
    finished = begun and Run.open(run_path, trust=trust).record["status"] == "finished"
    if begun and not finished:
        resume(run_path, data=data, trust=trust, watch=watch)
    elif not begun:
        options = {"device": job["device"], "preset": job["row"]["preset"], **job["options"]}
        fit(name, data, out=run_path, budget=job["budget"], seed=job["row"]["seed"], watch=watch, **options)
    tell({"phase": "measuring", "progress": 1.0})
    features = named_features(job["features"], data, directory / FEATURES)
    shared: Arrays = {}
    row = evaluate(
        run_path, data, features=features, trust=trust, device=device, keep=shared,
        sample_seconds=job.get("sample_seconds", SAMPLE_SECONDS),
    )  # fmt: skip
    if finished:
        row["cost"]["peak_memory_bytes"] = None  # training's was another process's
    system = load(run_path, trust=trust).to(device)
    if job["diagnostics"]:
        tell({"phase": "diagnosing", "progress": 1.0})
        row["diagnostics"] = diagnose(system, data, features)
    if job["diagnostics"] and data.space.kind == "image":
        arguments = Run.open(run_path, trust=trust).record["arguments"]["system"]
        row["resolution"] = largest_resolution(name, arguments, data.space, job["threads"])
        row["stars"]["resolution"] = resolution_stars(row["resolution"]["side"])
    tell({"phase": "drawing", "progress": 1.0})
    folder.write_arrays(row_path(job).with_suffix(".npz"), single.arrays(system, data, row, features) | shared)
    return {**row, "label": job["row"]["label"]}


def _tuned(job: Job, tell: Tell) -> Row:
    """Tune on the validation split (or finish that), then as any row with the best options."""
    directory, count = Path(job["directory"]), job["tune"]["trials"]

    def watch(trial: int, event: dict[str, Any]) -> None:
        tell({"phase": f"trial {trial}/{count}", "progress": event.get("progress", 0.0)})

    found = tune(
        job["row"]["system"], read_data(directory), trials=count, budget=job["tune"]["budget"], watch=watch,
        out=directory / folder.TUNING / job["tuning"], preset=job["row"]["preset"], device=job["device"],
        sized_for=job["budget"], **job["options"],
    )  # fmt: skip
    row = _train({**job, "options": plain(found.options)}, tell)
    chosen = in_words(found.best.options) or "the system's own options, which were the best"
    note = "; ".join(filter(None, [row["note"], f"tuned over {count} trials of {job['tune']['budget']}: {chosen}"]))
    row["cost"]["peak_memory_bytes"] = None  # the largest trial's
    return {**row, "note": note, "tuned": {**job["tune"], "options": plain(found.best.options)}}


def _speeds(job: Job, tell: Tell) -> Row:
    """A finished row with its speeds measured again, here."""
    directory, row = Path(job["directory"]), job["row"]
    tell({"phase": "timing", "progress": 1.0})
    with contextlib.suppress(FileExistsError):
        row_path(job).parent.mkdir()
    row = read_json(directory / "rows" / f"{job['name']}.json")
    found = speeds(
        directory / "runs" / job["name"], read_data(directory), trust=job["trust"], device=job["device"],
        resolution=job["threads"] if "resolution" in row else None,
    )  # fmt: skip
    timed = found.pop("machine") | job["machine"]
    return {**row, **{part: {**row[part], **values} for part, values in found.items()}, "timed": timed}


def _trial(job: Job, tell: Tell) -> Row:
    """One trial of a tuning."""

    def watch(event: dict[str, Any]) -> None:
        said = {name: event[name] for name in ("validation", "seconds") if "validation" in event}
        tell({"phase": "training", "progress": event.get("progress", 0.0), **said})

    cls, data = catalog.class_of(job["row"]["system"]), read_data(Path(job["directory"]))
    found = attempt(cls, data, job["number"], job["changed"], job["options"], job["preset"], job["device"], watch)
    outside = found.state in FROM_OUTSIDE
    return {"status": found.state if outside else "ok", "error": found.error, "trial": asdict(found)}


def _slots(options: dict[str, Any]) -> list[str]:
    """The names of what fills slots."""
    return [name for value in options.values() if isinstance(value, dict) for name in names_in(value)]


def _measure(job: Job, tell: Tell) -> Row:
    """Measure other people's samples."""
    directory = Path(job["directory"])
    data = read_data(directory)
    tell({"phase": "measuring", "progress": 1.0})
    samples = read_examples(str(directory / job["file"]), data.space)
    features = named_features(job["features"], data, directory / FEATURES)
    shared: Arrays = {}
    row = evaluate_samples(job["row"]["label"], samples, data, features=features, keep=shared)
    shown = data.space.encode(samples)[: pictures.shown(data.space.kind)].numpy()
    folder.write_arrays(row_path(job).with_suffix(".npz"), {"samples": shown} | shared)
    return {**row, "command": job["row"]["command"]}


_WORK: dict[str, Callable[[Job, Tell], Row]] = {
    "train": _train,
    "tuned": _tuned,
    "samples": _measure,
    "speeds": _speeds,
    "trial": _trial,
}


# --- the data ---------------------------------------------------------------------------------------


def keep_data(data: Data, directory: Path) -> None:
    """Keep data for workers that cannot load them; RunError where they are too large for that."""
    splits = {name: getattr(data, name) for name in PARTS}
    if any(split.x is None for split in splits.values()):
        raise RunError("data larger than memory are compared by their path: give compare the path")
    tensors = {name: {"x": s.x, "condition": s.condition} for name, s in splits.items()}
    with replacing(directory / DATA) as path:
        torch.save(tensors, path)


def read_data(directory: Path) -> Data:
    """The comparison's data; RunError where they changed since it began."""
    settings = read_json(directory / folder.SETTINGS)
    named = settings["data"]
    if (directory / DATA).exists():
        tensors = torch.load(directory / DATA, weights_only=True)
        train, valid, test = (Split(len(t["x"]), t["x"], t["condition"]) for t in (tensors[name] for name in PARTS))
        return Data(
            named["name"], Space.from_json(settings["space"]), train, valid, test, named["fingerprint"],
            named["source"], tuple(settings["notes"]), settings["entropy"], named["arguments"],
        )  # fmt: skip
    data = load_data(named["source"], **named["arguments"])
    if data.fingerprint != named["fingerprint"]:
        raise RunError(f"{named['source']} changed since the comparison began: name another --out")
    return data


def _end_with_parent() -> None:
    """Wait until the parent is gone; then save and end as by a termination signal, in ten seconds at the latest."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(10)
    os._exit(1)


if __name__ == "__main__":
    main()
