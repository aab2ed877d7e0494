"""What of a row depends on the machine, measured again on another one."""

from __future__ import annotations

from pathlib import Path

from fivefold.data import Data
from fivefold.evaluation.evaluate import RATE_SECONDS, Row, resolution_stars, sampling_cost
from fivefold.evaluation.resolution import largest_resolution
from fivefold.machine import choose_device, describe, load
from fivefold.run import Run
from fivefold.training.sizing import rehearse


def speeds(run: Path, data: Data, *, trust: str | None, device: str, resolution: int | None) -> Row:
    """Training and sampling speed of a run here, and where it is asked for the largest resolution.

    Args:
        run: its folder, which is left as it is.
        data: what it was trained on.
        trust: the module names of systems outside the package.
        device: "auto", "cpu", "cuda" or "cuda:1".
        resolution: threads with which the largest resolution is measured; None leaves that out.

    Returns:
        Parts of a row (`fivefold.evaluation.evaluate`): `cost`, `threads`, `machine`; `resolution` and `stars`.
    """
    opened = Run.open(run, trust=trust)
    with opened.trusting():
        system = opened.load_system().to(choose_device(device))
        cost = sampling_cost(system, data)
        settings = opened.record["arguments"]["fit"]
        threads, seconds = rehearse(system, data, settings, RATE_SECONDS / 4)
        cost["train_examples_per_second"] = settings["batch_size"] / seconds
        found = {
            "cost": cost,
            "threads": {"training": threads, "sampling": cost["sample_threads"], "load": load()},
            "machine": describe(system.device),
        }
        if resolution is not None:
            arguments = opened.record["arguments"]["system"]
            found["resolution"] = largest_resolution(opened.record["system"], arguments, data.space, resolution)
            found["stars"] = {"resolution": resolution_stars(found["resolution"]["side"])}
    return found
