"""CTGAN, TVAE and SDMetrics for `mixed_tables`, by their public interfaces and in an environment of their own.

    PYTHON -m benchmarks.peers_tables train FOLDER     request.json and train.parquet to samples.parquet and answer.json
    PYTHON -m benchmarks.peers_tables report FOLDER    request.json, real.parquet and samples.parquet to answer.json

Needs ctgan, sdmetrics and pyarrow, nothing of ours.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

SEED = 0
TRIED = 3  # epochs that are timed first


def train(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """A model of `ctgan`, trained for the number of epochs that fills the seconds, and its samples.

    `fit` begins anew at each call and takes a number of epochs: a short one tells what an epoch takes. The seconds are
    from the first word of its progress to the last: the preparation (Gaussian mixtures of the numbers) is not
    counted, as reading the data is not with ours.
    """
    table = pd.read_parquet(folder / "train.parquet")
    discrete: list[str] = request["discrete"]
    table = table.astype({name: object if name in discrete else float for name in table})
    _, took = _fitted(request["model"], table, discrete, TRIED)
    epochs = max(1, round(request["seconds"] * TRIED / took["seconds"]))
    model, took = _fitted(request["model"], table, discrete, epochs)
    started = time.perf_counter()
    model.sample(request["rows"]).to_parquet(folder / "samples.parquet", index=False)
    sampling = time.perf_counter() - started
    return {"epochs": epochs, **took, "rows_per_second": request["rows"] / sampling}


class _Clock(io.StringIO):
    """A place for words of progress, that notes when they come."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def write(self, text: str) -> int:
        self.times.append(time.perf_counter())
        return len(text)


def _fitted(name: str, table: pd.DataFrame, discrete: list[str], epochs: int) -> tuple[Any, dict[str, float]]:
    """A model after so many epochs, and what they and all of `fit` took."""
    import ctgan

    torch.manual_seed(SEED)
    np.random.seed(SEED)
    model = getattr(ctgan, name)(epochs=epochs, enable_gpu=False, verbose=True)
    clock, started = _Clock(), time.perf_counter()
    with contextlib.redirect_stderr(clock):
        model.fit(table, discrete)
    return model, {"seconds": clock.times[-1] - clock.times[0], "wall": time.perf_counter() - started}


def report(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Scores of SDMetrics' quality report of a single table, by column and by pair, the worst first.

    As it comes it looks at those pairs only that depend on each other clearly in the real table; "all pairs" are with
    both of its limits at 0.
    """
    from sdmetrics.reports.single_table import QualityReport

    real, samples = (pd.read_parquet(folder / f"{name}.parquet") for name in ("real", "samples"))
    kinds = {name: "categorical" if name in request["categories"] else "numerical" for name in real}
    metadata = {"columns": {name: {"sdtype": kind} for name, kind in kinds.items()}}
    usual, every = QualityReport(), QualityReport()
    every.real_correlation_threshold = every.real_association_threshold = 0
    for made in (usual, every):
        made.generate(real, samples, metadata, verbose=False)
    shapes, pairs, all_pairs = (
        made.get_details(kind).dropna(subset="Score").sort_values("Score")
        for made, kind in ((usual, "Column Shapes"), (usual, "Column Pair Trends"), (every, "Column Pair Trends"))
    )
    return {
        "shapes": _mean(usual, "Column Shapes"), "by_column": dict(zip(shapes["Column"], shapes["Score"], strict=True)),
        "pairs": _mean(usual, "Column Pair Trends"), "by_pair": _by_pair(pairs),
        "all_pairs": _mean(every, "Column Pair Trends"), "by_all_pairs": _by_pair(all_pairs),
    }  # fmt: skip


def _mean(made: Any, kind: str) -> float:
    return float(made.get_properties().set_index("Property")["Score"][kind])


def _by_pair(details: pd.DataFrame) -> dict[str, float]:
    names = zip(details["Column 1"], details["Column 2"], strict=True)
    return dict(zip(map(" × ".join, names), details["Score"].round(4), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("train", "report"))
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    request = json.loads((given.folder / "request.json").read_text())
    answer = {"train": train, "report": report}[given.work](given.folder, request)
    (given.folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
