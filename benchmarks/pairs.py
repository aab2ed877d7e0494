"""How often two of one system are called different: runs of many seeds, in pairs of groups of some seeds.

    python -m benchmarks.pairs [--runs 24]

Groups of one seed show what is told apart then: runs, not systems. Writes `results/pairs.json` and `.md`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from typing import Any

import numpy as np
import torch

import fivefold
from benchmarks.common import RESULTS, machine, write_result
from fivefold.data import Data
from fivefold.evaluation.evaluate import SAMPLES, Arrays, density
from fivefold.evaluation.features import Features, fit_features
from fivefold.report import pairs
from fivefold.report.columns import NATS, QUALITY, Column, Line, Row, apart
from fivefold.tools.metrics import frechet
from fivefold.tools.resampling import smooth

CASES = (("nice", "wine", "200steps"), ("made", "wine", "200steps"), ("spline-flow", "moons", "100steps"),
         ("nice", "digits", "100steps"))  # fmt: skip
GROUPS = (1, 2, 3, 5)  # seeds in each of the two
PAIRS = 200
FRECHET = next(column for column in QUALITY if column.key == "frechet")
COLUMNS = {"density": NATS, "distance": FRECHET}


def run(name: str, data: Data, features: Features, budget: str, seed: int) -> Row:
    """The parts of a row that are compared: its density and its Fréchet distance, as `evaluate` has them."""
    system = fivefold.fit(name, data, budget=budget, seed=seed, evaluations=2)
    arrays: Arrays = {}
    row: Row = {"label": name, "status": "ok", "density": density(system, data, keep=arrays)}
    x, y = features(system.sample_encoded(SAMPLES, seed=0)), features(data.test.spread(SAMPLES).x)
    [found] = smooth(lambda i, j: [frechet(x[i], y[j])], len(x), len(y))
    row["quality"] = {"frechet": {**found.estimate._asdict(), "own_error": found.own_error}}
    arrays |= {"reference.frechet": found.reference.float().numpy(), "reference_index": np.arange(len(y))}
    return row | {"shared": pairs.of_row(row, arrays)}


def called_different(rows: list[Row], column: Column, size: int, *, paired: bool = True) -> float:
    """The share of `PAIRS` pairs of disjoint groups of `size` of the rows."""
    draw = np.random.default_rng(0)
    rows = rows if paired else [{**row, "shared": {}} for row in rows]
    called = 0
    for _ in range(PAIRS):
        order = draw.permutation(len(rows))
        first, second = (
            Line("", tuple(rows[i] for i in part)).reading(column) for part in (order[:size], order[size : 2 * size])
        )
        assert first is not None
        assert second is not None
        called += apart(column, first, second)
    return called / PAIRS


def measure(name: str, source: str, budget: str, runs: int) -> dict[str, Any]:
    """The shares called different, by column and size of the groups; the spread of seeds beside the paired error."""
    data = fivefold.load_data(source)
    features = fit_features(data)
    rows = [run(name, data, features, budget, seed) for seed in range(runs)]
    found: dict[str, Any] = {"system": name, "data": source, "budget": budget, "runs": runs}
    for title, column in COLUMNS.items():
        readings = [reading for row in rows if (reading := column.read(row)) is not None]
        errors = [pairs.difference(a.side, b.side).error for a, b in itertools.pairwise(readings)]
        spread = math.sqrt(2) * float(np.std([reading.value for reading in readings], ddof=1))
        found[title] = {
            "different": {size: called_different(rows, column, size) for size in GROUPS},
            "one seed, unpaired": called_different(rows, column, 1, paired=False),
            "spread of a difference": spread,
            "paired error": float(np.mean(errors)),
        }
    return found


def page(found: list[dict[str, Any]]) -> str:
    """The table, in Markdown."""
    lines = ["# How often two of one system are called different", "",
             f"Of {PAIRS} pairs of disjoint groups of seeds. One seed: runs are told apart, and they do differ; the "
             "spread of the difference between two runs stands beside its paired error.", "",
             "| system | data | budget | of | " + " | ".join(f"{size} seed{'s' * (size > 1)}" for size in GROUPS)
             + " | spread of two runs | paired error |", "|---" * (6 + len(GROUPS)) + "|"]  # fmt: skip
    for one in found:
        for title in COLUMNS:
            shares = [f"{100 * share:.1f} %" for share in one[title]["different"].values()]
            errors = [f"{one[title][name]:.3f}" for name in ("spread of a difference", "paired error")]
            cells = [one["system"], one["data"], one["budget"], title, *shares, *errors]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"On {machine()}."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=24, help="seeds of each system")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = []
    for case in CASES:
        found.append(measure(*case, given.runs))
        print(json.dumps(found[-1]), flush=True)
    several = [
        share for one in found for title in COLUMNS for size, share in one[title]["different"].items() if size > 1
    ]
    headline = (
        f"two of one system, of several seeds, are called different in at most {max(several):.1%} of {PAIRS} pairs"
    )
    write_result("pairs", headline, {"machine": machine(), "cases": found})
    (RESULTS / "pairs.md").write_text(page(found))


if __name__ == "__main__":
    main()
