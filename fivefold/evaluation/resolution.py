"""Resolution scaling, measured: the largest images of which a training step fits a stated memory and time.

In a process of its own, `python -m fivefold.evaluation.resolution`, whose memory is limited, so that what does not fit
ends there: a job of JSON on standard input, a line of JSON for each resolution on standard output.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

from fivefold import catalog
from fivefold.space import Batch, Space
from fivefold.system import System

MEMORY = 4 * 2**30  # bytes of the whole process
SECONDS = 2.0  # a training step
EXAMPLES = 8  # in its batch
SIDES = (8, 16, 32, 64, 128, 256, 512, 1024)
PATIENCE = 60.0  # seconds for all of it
LIMITS = f"a training step of {EXAMPLES} images within {MEMORY // 2**30} GiB and {SECONDS:g} s"


def largest_resolution(name: str, arguments: dict[str, Any], space: Space, threads: int) -> dict[str, Any]:
    """`side`, the largest of `SIDES` that fits (None: not even the first), and `why` the next does not.

    Args:
        name: of the system.
        arguments: of its constructor.
        space: of images; its channels, levels and condition are kept.
        threads: of the processor.
    """
    job = {"system": name, "arguments": arguments, "space": space.to_json(), "threads": threads}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fivefold.evaluation.resolution"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path)},
    )  # fmt: skip
    try:
        printed, _ = process.communicate(json.dumps(job), PATIENCE)
        end = "out of memory"  # of a process that was killed
    except subprocess.TimeoutExpired:
        process.kill()
        printed, end = process.communicate()[0], f"not within {PATIENCE:.0f} s"
    steps = [json.loads(line) for line in printed.splitlines()]
    fitting = [step["side"] for step in steps if not step["why"]]
    failed = next((step for step in steps if step["why"]), None)
    if failed is None and len(steps) < len(SIDES):
        failed = {"side": SIDES[len(steps)], "why": end}
    why = f"{failed['side']}: {failed['why']}" if failed else ""
    return {"side": fitting[-1] if fitting else None, "why": why, "limits": LIMITS}


def _measure(job: dict[str, Any]) -> None:
    """A line for every side in turn, until one does not fit."""
    import torch

    torch.set_num_threads(job["threads"])
    space = Space.from_json(job["space"])
    with catalog.trusting(job["system"]):  # the parent's user typed it
        cls = catalog.class_of(job["system"])
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    for side in SIDES:
        why = _step(cls, job["arguments"], replace(space, shape=(space.shape[0], side, side)))
        print(json.dumps({"side": side, "why": why}), flush=True)
        if why:
            return


def _step(cls: type[System], arguments: dict[str, Any], space: Space) -> str:
    """Why a training step does not fit; empty where it does."""
    try:
        system = cls(space, **arguments)
        # what grows with progress is largest at the end, and of two stages either may be the larger
        seconds = max(_warm_seconds(system, progress) for progress in (1.0, 0.0))
    except Exception as error:  # whatever it is, the table wants its word
        memory = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        return "out of memory" if memory else " ".join(str(error).split())[:200]
    return f"{seconds:.1f} s a step" if seconds > SECONDS else ""


def _warm_seconds(system: System, progress: float) -> float:
    """Of a training step, measured again where the first may have been slow for being the first."""
    seconds = _seconds(system, progress)
    return _seconds(system, progress) if SECONDS < seconds < 4 * SECONDS else seconds


def _seconds(system: System, progress: float) -> float:
    """Of one training step on random images: losses, gradients and optimisers of all players."""
    import torch

    space = system.space
    x = torch.randint(space.levels, (EXAMPLES, *space.shape)) if space.levels else torch.randn(EXAMPLES, *space.shape)
    condition = None
    if space.condition is not None:
        values = torch.zeros(EXAMPLES, *space.condition.shape)
        condition = values.long() if space.condition.discrete else values
    optimizers = system.optimizers()
    started = time.perf_counter()
    steps, reply = system.updates(Batch(x, condition), progress), None
    while True:
        try:
            update = steps.send(reply)  # type: ignore[attr-defined]  # a generator, by the contract
        except StopIteration:
            return time.perf_counter() - started
        parameters = [p for p in update.player.parameters() if p.requires_grad]
        update.loss.backward(inputs=parameters)
        optimizers[update.player].step()
        reply = dict(update.stats)


if __name__ == "__main__":
    _measure(json.loads(sys.stdin.readline() or "{}"))
