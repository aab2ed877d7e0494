"""Peak memory and time to the first step on a table of ten million rows, from CSV and from Parquet.

Both files are made in a temporary folder, a piece at a time. Each is read and trained on by a process of its own, so
that its peak is its own: the most memory resident at once, imports and the parts of files that are mapped included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.common import machine, write_markdown, write_result

ROWS, PIECE, STEPS = 10_000_000, 250_000, 200
SYSTEMS = ("spline-flow",)


def piece(start: int, count: int) -> pd.DataFrame:
    """Ten columns of every sort: real, rounded, missing, skewed, mostly zero, whole, categories, dates."""
    draw = np.random.default_rng(start)
    height, people = draw.normal(1.7, 0.1, count), draw.poisson(2, count)
    income = draw.lognormal(10, 0.8, count)
    return pd.DataFrame({
        "height": height,
        "weight": (22 * height**2 + draw.normal(0, 5, count)).round(1),
        "pulse": np.where(draw.random(count) < 0.1, np.nan, draw.normal(70, 10, count).round()),
        "income": income.round(2),
        "donation": np.where(draw.random(count) < 0.8, 0.0, (income * draw.random(count) / 100).round(2)),
        "people": people,
        "kilometres": draw.integers(0, 1_000_000, count),
        "work": draw.choice(["full", "half", "home", "school", "retired"], count, p=[0.4, 0.2, 0.1, 0.1, 0.2]),
        "town": np.char.add("town", draw.integers(0, 50, count).astype(str)),
        "day": (np.datetime64("2015-01-01") + draw.integers(0, 3650, count)).astype(str),
    })  # fmt: skip


def make(folder: Path, rows: int) -> list[Path]:
    """`large.csv` and `large.parquet` of the same rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths, writer = [folder / "large.csv", folder / "large.parquet"], None
    for start in range(0, rows, PIECE):
        frame = piece(start, min(PIECE, rows - start))
        frame.to_csv(paths[0], mode="a", header=not start, index=False)
        table = pa.Table.from_pandas(frame)
        writer = writer or pq.ParquetWriter(paths[1], table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return paths


def measured(path: str, system: str) -> None:
    """Reads and trains, in this process; prints what that took as JSON."""
    started = time.perf_counter()
    import resource

    import fivefold
    from fivefold.training.trainer import Trainer

    data = fivefold.load_data(path)
    loaded = time.perf_counter() - started
    took, step = list[float](), Trainer._iterate

    def timed(trainer: Trainer) -> None:
        step(trainer)
        took.append(time.perf_counter() - started)

    Trainer._iterate = timed  # type: ignore[method-assign]
    fivefold.fit(system, data, budget=f"{STEPS}steps", batch_size=256)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (10 if sys.platform == "linux" else 20)
    print(json.dumps({"loaded": loaded, "first_step": took[0], "steps": took[-1] - took[0], "peak_mib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "SYSTEM"))
    asked = parser.parse_args()
    if asked.measure:
        return measured(*asked.measure)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in make(Path(folder), asked.rows):
            for system in SYSTEMS:
                command = [sys.executable, "-m", "benchmarks.large", "--measure", str(path), system]
                line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
                found[f"{path.suffix[1:]} {system}"] = {"file_mib": path.stat().st_size / 2**20, **json.loads(line)}
    peak, first = (max(one[key] for one in found.values()) for key in ("peak_mib", "first_step"))
    line = f"{asked.rows:,} rows of 10 columns: at most {peak:,.0f} MiB of memory and {first:.0f} s to the first step"
    write_result("large", line, {"machine": machine(), "rows": asked.rows, "steps": STEPS, "measured": found})
    head = ["file", "system", "size", "loaded", "first step", f"a step of {STEPS}", "peak memory"]
    rows = [
        [*name.split(), f"{one['file_mib']:,.0f} MiB", f"{one['loaded']:.0f} s", f"{one['first_step']:.0f} s",
         f"{1000 * one['steps'] / (STEPS - 1):.0f} ms", f"{one['peak_mib']:,.0f} MiB"]
        for name, one in found.items()
    ]  # fmt: skip
    write_markdown("large", line, {"Ten columns, batches of 256": [head, *rows]})


if __name__ == "__main__":
    main()
