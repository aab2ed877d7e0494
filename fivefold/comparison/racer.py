"""Processes that train one configuration after another for so many seconds: both ends of each.

`Racer` is the parent's end; `main` is the process, `python -m fivefold.comparison.racer`. The first line on standard
input says where the comparison is; every further one is a turn: a configuration, begun or gone on with, and the seconds
of the clock that it has, building, validating and saving included. Each is answered by a line of JSON. Where standard
input closes, the parent is gone, and so is this process.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from fivefold import catalog
from fivefold.comparison.place import Place, Standing
from fivefold.comparison.worker import read_data
from fivefold.data import Data
from fivefold.errors import Stopped
from fivefold.evaluation.features import fit_features
from fivefold.options import names_in
from fivefold.run import Run
from fivefold.training.failures import reason, status
from fivefold.training.fit import fit, resume
from fivefold.training.tuning import usual_sizes

TRAINING = 0.7  # of a configuration's seconds on the clock, at its first turn: the rest is building and validation
SLACK = 0.95  # of what is left that is planned to be used: saving takes the rest
GRACE = 0.25  # of a turn's seconds that it may last longer for a first validation
EVALUATIONS = 4  # parts of the budget after which to validate: turns are short

Turn = dict[str, Any]


class Racer:
    """A process that takes turns; where one dies, the next turn has a new one."""

    def __init__(self, directory: Path, threads: int, place: Place, number: int) -> None:
        self.directory, self.threads, self.place, self.number = directory, threads, place, number
        self.process: Standing | None = None
        self.ended = False

    def wait_ready(self) -> None:
        """Until it has the data and the features."""
        if self.process is None and not self.ended:
            given = {"directory": str(self.directory), "threads": self.threads}
            module, log = "fivefold.comparison.racer", f"racer-{self.number}"
            self.process = self.place.standing(module, given, self.threads, log)
            self.process.ask(None)

    def take(self, turn: Turn, latest: float) -> Turn:
        """The answer to a turn; what to say of a process that dies or has none after `latest` seconds.

        Where the place may lose machines, a turn whose process died is taken up by another, from its last checkpoint.
        """
        for _ in range(self.place.tries):
            self.wait_ready()
            if self.process is None:
                return {"state": "killed", "error": "no process"}
            try:
                answer = self.process.ask(turn, latest)
            except TimeoutError:
                self.process = None
                return {"state": "too slow", "error": f"no answer within {latest:.0f} s"}
            if answer is not None:
                return answer
            self.process = None
        return {"state": "killed", "error": "its process ended, as happens when memory runs out"}

    def end(self) -> None:
        """Let it save what it trains, then see that it is gone."""
        self.ended = True
        if self.process is not None:
            self.process.end()


# --- the process ------------------------------------------------------------------------------------


def main() -> None:
    """Answer one turn after another."""
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    given = json.loads(lines.get())
    torch.set_num_threads(given["threads"])
    answers = os.dup(1)
    os.dup2(2, 1)  # what a system prints belongs in the log
    data = read_data(Path(given["directory"]))
    fit_features(data, Path(given["directory"]) / "features.safetensors")
    _warm_up()
    os.write(answers, b'{"ready": true}\n')
    while True:
        turn = json.loads(lines.get())
        try:
            with catalog.trusting(turn["system"], *names_in_options(turn["options"])):
                answer = take(turn, data)
        except Exception as error:
            traceback.print_exc()
            answer = {"state": status(error), "error": reason(error)}
        os.write(answers, json.dumps(answer).encode() + b"\n")


def _warm_up() -> None:
    """A step of nothing: what torch loads when it first optimises shall not count for the first configuration."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], fused=True)
    weight.sum().backward()
    optimizer.step()


def _listen(lines: queue.Queue[str]) -> None:
    """What the parent says; where it is gone, save and end as by a termination signal, in ten seconds at the latest."""
    for line in sys.stdin:
        lines.put(line)
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(10)
    os._exit(1)


def names_in_options(options: dict[str, Any]) -> list[str]:
    """The names of what fills slots."""
    return [name for value in options.values() if isinstance(value, dict) for name in names_in(value)]


def take(turn: Turn, data: Data) -> Turn:
    """Say what sizes a system gets; or train for the turn's seconds.

    Of a training: the best validation value so far, all of them, and what the training took of the time.
    """
    if "size" in turn:
        cls, given = catalog.class_of(turn["system"]), {**turn["options"], "budget": turn["size"]}
        return {"state": "ok", "sized": usual_sizes(cls, turn["preset"], given, data, turn["device"])}
    began = time.monotonic()
    end = began + turn["seconds"]
    directory, trust = Path(turn["run"]), ",".join([turn["system"], *names_in_options(turn["options"])])
    before = Run.open(directory, trust=trust).record.get("seconds") if (directory / "run.json").exists() else None
    ours, seen = False, before is not None

    def watch(event: dict[str, Any]) -> None:
        nonlocal ours, seen
        seen = seen or "validation" in event
        late = time.monotonic() > end + (0.0 if seen else GRACE * turn["seconds"])
        if late and not ours and event.get("progress", 1.0) < 1:
            ours = True
            signal.raise_signal(signal.SIGTERM)  # ends the training after this step, saved

    training = SLACK * turn["seconds"] * turn["share"]
    try:
        if before is None:
            options = {
                "evaluations": EVALUATIONS,
                "device": turn["device"],
                "preset": turn["preset"],
                **turn["options"],
            }
            fit(turn["system"], data, out=directory, budget=f"{training:.3f}s", seed=0, watch=watch, **options)
        else:
            resume(directory, data=data, budget=f"{before + training:.3f}s", trust=trust, watch=watch)
    except Stopped:
        if not ours:
            raise
    run = Run.open(directory, trust=trust)
    run.update(status="finished")  # for this turn; what is gone on with says so itself
    curve = [[event["seconds"], event["validation"]] for event in run.log() if "validation" in event]
    took, trained = time.monotonic() - began, run.record["seconds"] - (before or 0.0)
    best = run.record["best"]
    return {
        "state": "ok" if best else "too slow",
        "error": None if best else f"not validated once within {turn['seconds']:.0f} s",
        "value": best["value"] if best else None,
        "name": best["name"] if best else "",
        "curve": curve,
        "trained": run.record["seconds"],
        "seconds": took,
        "share": min(max(trained / took, 0.05), 1.0),
    }


if __name__ == "__main__":
    main()
