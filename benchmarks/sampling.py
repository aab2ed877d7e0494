"""Incremental sampling against full re-evaluation of every pixel: gated PixelCNN, 10 layers of 128 channels.

    python -m benchmarks.sampling [--whole] [--levels 256] [--size 28] [--batch 16]

Without `--whole` the full time is a few evaluations of the whole network times the number of pixels; with it
every pixel is evaluated, and the samples are checked to be the same. Writes `results/sampling.json` and `.md`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import RESULTS, machine, write_result
from fivefold.autoregressive.gated_pixelcnn import GatedPixelcnn
from fivefold.space import Space


def seconds(f: Callable[[], object], repeats: int) -> float:
    """Median over `repeats`, after one run that is not counted."""
    f()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def compare(size: int, levels: int, batch: int, layers: int, channels: int, whole: bool) -> dict[str, Any]:
    """Seconds of `batch` samples, incrementally and by full evaluation."""
    torch.manual_seed(0)
    space = Space("image", (1, size, size), levels=levels)
    system = GatedPixelcnn(space, layers=layers, channels=channels)
    row: dict[str, Any] = {
        "network": f"gated-pixelcnn, {layers} layers, {channels} channels",
        "data": f"1x{size}x{size}, {levels} levels, batch {batch}",
        "machine": machine(),
    }
    with system.evaluating():
        noise = system.head.noise(batch)
        incremental = seconds(lambda: system._sample_from(noise, None), 3)
        x = system._sample_from(noise, None)
        images = x.view(batch, *space.shape)
        if whole:
            start = time.perf_counter()
            row["same_samples"] = bool(torch.equal(system._sample_full_from(noise, None), x))
            full, how = time.perf_counter() - start, "every pixel evaluated"
        else:
            full = seconds(lambda: system.conditionals(images, None), 3) * space.dims
            how = f"median of 3 evaluations x {space.dims} pixels"
    return {
        **row,
        "incremental_seconds": incremental,
        "full_seconds": full,
        "full_time_is": how,
        "ratio": full / incremental,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"size": 28, "levels": 256, "batch": 16, "layers": 10, "channels": 128}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--whole", action="store_true", help="evaluate every pixel instead of extrapolating")
    row = compare(**vars(parser.parse_args()))
    headline = (
        f"incremental sampling is {row['ratio']:.0f} times faster than full re-evaluation ({row['full_time_is']})"
    )
    write_result("sampling", headline, row)
    shown = [f"| {name.replace('_', ' ')} | {_short(value)} |" for name, value in row.items()]
    page = ["# Incremental against full sampling", "", headline, "", "| what | value |", "|---|---|", *shown]
    (RESULTS / "sampling.md").write_text("\n".join(page) + "\n")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
