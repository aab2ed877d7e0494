"""Sampling speed as it is reported, quiet and with busy neighbours: `made` on 180 binary columns.

    python -m benchmarks.neighbours [--busy 2]

The neighbours are processes that multiply matrices without end. Reported is what a row of the table says; beside it
stands what one thread reaches on the quiet machine. Writes `results/neighbours.json`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time

import numpy as np
import pandas as pd
import torch

from benchmarks.common import machine, write_result
from fivefold import fit, load_data
from fivefold.evaluation.evaluate import sampling_cost
from fivefold.machine import load, using

ASKED = 0.7


def binary(columns: int = 180, rows: int = 2000) -> pd.DataFrame:
    """Columns of 0 and 1, each like a noisy copy of a hidden one."""
    draw = np.random.default_rng(0)
    hidden = draw.random((rows, 12)) < 0.5
    noise = draw.random((rows, columns)) < 0.1
    return pd.DataFrame(hidden[:, np.arange(columns) % 12] ^ noise).astype(int).add_prefix("c")


def busy() -> None:
    """Keep a core busy."""
    torch.set_num_threads(1)
    x = torch.randn(500, 500)
    while True:
        x = (x @ x).clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=2)
    neighbours = [multiprocessing.get_context("spawn").Process(target=busy) for _ in range(parser.parse_args().busy)]
    data = load_data(binary())
    system = fit("made", data, budget="200steps", evaluations=1)

    def reported() -> dict[str, float]:
        cost = sampling_cost(system, data)
        return {"rate": cost["sample_per_second_64"], "threads": cost["sample_threads"], "load": load()}

    with using(1):
        quiet = reported()
    free = reported()
    for neighbour in neighbours:
        neighbour.start()
    time.sleep(5.0)  # until they have begun
    crowded = reported()
    for neighbour in neighbours:
        neighbour.kill()
    share = crowded["rate"] / quiet["rate"]
    line = (
        f"made on 180 binary columns, samples a second: {quiet['rate']:.0f} quiet on one thread, {free['rate']:.0f} as "
        f"reported, {crowded['rate']:.0f} with {len(neighbours)} busy neighbours: {share:.2f} ({ASKED} asked)"
    )
    write_result(
        "neighbours", line, {"machine": machine(), "quiet": quiet, "free": free, "crowded": crowded, "share": share}
    )


if __name__ == "__main__":
    main()
