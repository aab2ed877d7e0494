"""Memory of a process: the model whole or in shards, and what the plan says beside what a training takes.

    python -m benchmarks.sharding [--steps N]

Every case is a training in processes of its own (gloo), whose memory is the kernel's: the most that is resident, less
what was before there was a model. Processes that share cores say nothing about speed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine, write_markdown, write_result
from fivefold import catalog, load_data
from fivefold.training import ranks
from fivefold.training.fit import _trainer
from fivefold.training.forecast import Forecast, Way
from fivefold.training.options import Settings, arguments

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # a large model, and one with large activations
    "transformer": ("digits", "width 256", {"width": 256, "dropout": 0.0}),
    "gated-pixelcnn": ("digits", "as declared", {"dropout": 0.0}),
}
WAYS = (
    Way(32), Way(32, accumulate=4), Way(32, recompute=True), Way(32, devices=2), Way(32, devices=2, shard=True),
    Way(32, devices=4), Way(32, devices=4, shard=True),
)  # fmt: skip


def resident(most: bool) -> int:
    """Bytes of this process in memory, now or at the most."""
    name = "VmHWM" if most else "VmRSS"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def process(rank: int, way: Way, port: int, system: str, steps: int, out: str) -> None:
    """One of the processes of a case: trains, and keeps what it held."""
    torch.set_num_threads(1)
    if way.devices > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(way.devices), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        ranks.start(torch.device("cpu"))
    warm = replace(way, batch_size=4 * way.devices, accumulate=1)
    trainer = trained(warm, system, 1)  # what libraries take when they are first used is not the model's
    del trainer
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident(most=False)
    Path("/proc/self/clear_refs").write_text("5")  # the most that is resident counts anew
    trainer = trained(way, system, steps)
    held = sum(_local(p) for p in trainer.system.parameters())
    moments = sum(
        _local(value)
        for optimizer in trainer.optimizers.values()
        for state in optimizer.state.values()
        for value in state.values()
    )
    found = {"parameters": held, "moments": moments, "most": resident(most=True) - before}
    torch.save(found, f"{out}/{rank}.pt")


def trained(way: Way, system: str, steps: int) -> Any:
    data, _, options = CASES[system]
    given = {**options, "batch_size": way.batch_size, "accumulate": way.accumulate, "recompute": way.recompute}
    split = arguments(catalog.class_of(system), None, {**given, "shard": way.shard, "budget": f"{steps}steps"})
    trainer = _trainer(system, split, load_data(data), torch.device("cpu"), lambda event: None)

    def remember() -> None:  # as a validation does, which is no part of what is planned
        trainer.good = trainer.state()

    trainer._validate = remember  # type: ignore[method-assign]
    trainer.train()
    return trainer


def _local(value: Any) -> int:
    tensor = value.to_local() if hasattr(value, "to_local") else value
    return int(tensor.numel() * tensor.element_size())


def measured(way: Way, system: str, steps: int) -> dict[str, int]:
    """The most of any process."""
    with tempfile.TemporaryDirectory() as out:
        port = 20_000 + os.getpid() % 20_000
        arguments_of = (way, port, system, steps, out)
        torch.multiprocessing.start_processes(process, arguments_of, nprocs=way.devices, start_method="spawn")
        found = [torch.load(f"{out}/{rank}.pt") for rank in range(way.devices)]
    return {name: max(one[name] for one in found) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    steps = parser.parse_args().steps
    rows: dict[str, list[dict[str, Any]]] = {}
    for system, (data, _, options) in CASES.items():
        cls = catalog.class_of(system)
        split = arguments(cls, None, options)
        forecast = Forecast(cls, load_data(data), split["system"], Settings(), torch.device("cpu"))
        for way in WAYS:
            need = forecast.need(way)
            planned = need.total - 2 * need.model  # no best weights are kept here, nor gone back to
            found = measured(way, system, steps)
            rows.setdefault(system, []).append({"devices": way.devices, "way": str(way), "planned": planned, **found})
            print(system, rows[system][-1])
    line = f"memory of a process as planned and as measured; {machine()}"
    write_result("sharding", line, {"rows": rows})
    head = ["processes", "way", "parameters MB", "moments MB", "most resident MB", "planned MB"]
    tables = {
        f"{system}, {CASES[system][1]}": [
            head,
            *(
                [str(row["devices"]), row["way"]]
                + [f"{row[name] / 1e6:,.0f}" for name in ("parameters", "moments", "most", "planned")]
                for row in found
            ),
        ]
        for system, found in rows.items()
    }
    write_markdown("sharding", line, tables)


if __name__ == "__main__":
    main()
