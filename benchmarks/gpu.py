"""Steps on a GPU: plain, in bf16, compiled and as CUDA graphs, and the memory they take beside the plan's.

    python -m benchmarks.gpu [--minutes 8]

The six systems of `make compare` at their papers' sizes for CIFAR-10, on noise of that shape. What does not fit into
the minutes is left out, and said.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common import machine, number, write_markdown, write_result
from fivefold import Data, catalog, load_data
from fivefold.errors import FivefoldError
from fivefold.training.forecast import Forecast, Way
from fivefold.training.options import Settings, arguments
from fivefold.training.trainer import Trainer

SYSTEMS = ("igebm", "ddpm", "vae", "dcgan", "gated-pixelcnn", "glow")
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"precision": "bf16"},
    "compiled": {"compile": True},
    "graphs": {"graphs": True},
    "graphs, bf16": {"graphs": True, "precision": "bf16"},
}
BATCH, WARM, STEPS = 64, 5, 20


def on_gpu() -> int:
    """Bytes that this process holds on the GPU, by nvidia-smi (its context included), else by torch."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return int(found.stdout.split()[0]) << 20 if found.returncode == 0 else torch.cuda.memory_reserved()


def measured(name: str, data: Data, options: dict[str, Any]) -> dict[str, float]:
    """Seconds a step (the median of single ones) and the memory after them."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = on_gpu()
    split = arguments(catalog.class_of(name), "cifar10", {"batch_size": BATCH, "accumulate": 1, **options})
    torch.manual_seed(0)
    system = catalog.build(name, data.space, **split["system"]).to("cuda")
    trainer = Trainer(system, data, None, lambda event: None, **split["fit"])
    system.train()
    trainer.good = trainer.state()
    seconds = []
    for _ in range(WARM + STEPS):
        started = time.perf_counter()
        trainer._iterate()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return {
        "step_ms": 1e3 * median(seconds[WARM:]),
        "most": float(torch.cuda.max_memory_allocated()),
        "nvidia_smi": float(on_gpu() - before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8)
    until = time.monotonic() + 60 * parser.parse_args().minutes
    if not torch.cuda.is_available():
        raise SystemExit("this measures a GPU, and there is none")
    noise = np.random.default_rng(0).integers(0, 256, (2000, 3, 32, 32), dtype=np.uint8)
    data, rows = load_data(noise), list[dict[str, Any]]()
    for mode, options in MODES.items():  # the slow ones, which compile, last
        for name in SYSTEMS:
            row: dict[str, Any] = {"system": name, "mode": mode}
            if time.monotonic() > until - 45:
                row["error"] = "no time left"
            else:
                try:
                    row |= measured(name, data, options)
                except (FivefoldError, RuntimeError) as error:
                    row["error"] = str(error)[:200]
                torch.compiler.reset()
            rows.append(row)
            print(row)
    for row in rows:
        if row["mode"] == "plain":
            split = arguments(catalog.class_of(row["system"]), "cifar10", {"accumulate": 1})
            cpu = torch.device("cpu")
            said = Forecast(catalog.class_of(row["system"]), data, split["system"], Settings(**split["fit"]), cpu)
            need = said.need(Way(BATCH))
            row["planned"] = need.total - 2 * need.model  # no best weights are kept here
    line = f"steps of {BATCH} images at the sizes for CIFAR-10; {machine()}"
    write_result("gpu", line, {"rows": rows})
    cells = [
        [row["system"], row["mode"], number(row.get("step_ms"))]
        + [number(row[key] / 1e6, ",.0f") if key in row else "–" for key in ("most", "nvidia_smi", "planned")]
        + [row.get("error", "")]
        for row in rows
    ]
    head = ["system", "mode", "ms a step", "allocated MB", "nvidia-smi MB", "planned MB", ""]
    write_markdown("gpu", line, {"Steps": [head, *cells]})


if __name__ == "__main__":
    main()
