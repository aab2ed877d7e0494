"""`compare --within 10m` beside `compare --tune 8` of the same six systems: does it end in time, with as good a winner?

    python -m benchmarks.within [--data digits wine] [--within 10m] [--jobs 2] [--out within]

The winner of the race is the row of the least Fréchet distance on the test split; so is the best of the tuned
comparison, which trains every system for a minute as it is and with the best of 8 trials of 20 s. The two are of the
same test examples and features, and compared in pairs. Writes `results/within.json` and `.md`. Both comparisons lie in
the folder `--out`: what is finished there is not repeated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine, write_markdown, write_result
from fivefold import compare
from fivefold.comparison.compare import Comparison
from fivefold.files import read_json
from fivefold.report import folder
from fivefold.report.columns import QUALITY, Line, apart, score
from fivefold.training.budget import Budget

SYSTEMS = {  # one of every family that fits
    "digits": ("igebm", "ddpm", "vae", "dcgan", "gated-pixelcnn", "glow"),
    "wine": ("rbm", "igebm", "ddpm", "vae", "made", "spline-flow"),  # no adversarial system fits tables
}
TUNED = {"budget": "60s", "tune": 8, "tune_budget": "20s"}
LATEST = 1.1  # times the time that was given
[FRECHET] = [column for column in QUALITY if column.key == "frechet"]


def best(done: Comparison) -> Line:
    """The row of the least distance."""
    found = [Line(row["label"], (row,)) for row in done.rows if row["status"] == "ok"]
    return min(found, key=lambda line: score(FRECHET, line.reading(FRECHET)))  # type: ignore[arg-type]


def measured(data: str, within: str, jobs: int, out: Path) -> dict[str, Any]:
    """Both comparisons of one data set, and what separates their best rows."""
    names, places = SYSTEMS[data], (out / f"{data}-within", out / f"{data}-tuned")
    started = time.monotonic()
    race = compare(names, data, within=within, jobs=jobs, out=places[0])
    seconds = time.monotonic() - started
    kept = read_json(places[0] / folder.RACE)["elapsed"]  # of a race that was begun before
    tuned = compare(names, data, jobs=jobs, diagnostics=False, out=places[1], **TUNED)
    first, second = best(race), best(tuned)
    a, b = first.reading(FRECHET), second.reading(FRECHET)
    assert a is not None
    assert b is not None
    return {
        "data": data, "systems": names, "seconds": max(seconds, kept), "limit": LATEST * Budget.parse(within).amount,
        "winner": first.label, "distance": a.value, "error": a.error,
        "best": second.label, "best_distance": b.value, "best_error": b.error,
        "apart": apart(FRECHET, a, b) and score(FRECHET, a) > score(FRECHET, b),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--within", default="10m")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("within"))
    given = parser.parse_args()
    torch.set_num_threads(given.jobs)  # a core each
    found = [measured(data, given.within, given.jobs, given.out) for data in given.data]
    words = [
        f"{one['data']}: {one['seconds']:.0f} s, {'behind' if one['apart'] else 'within error of'} the best tuned row"
        for one in found
    ]
    head = ["data", "time", "winner", "its distance", "best of `--tune 8`", "its distance"]
    rows = [
        [one["data"], f"{one['seconds']:.0f} s", one["winner"], f"{one['distance']:.3g} ± {one['error']:.2g}",
         one["best"], f"{one['best_distance']:.3g} ± {one['best_error']:.2g}"]
        for one in found
    ]  # fmt: skip
    line = f"--within {given.within}: {'; '.join(words)}"
    write_result("within", line, {"machine": machine(), "jobs": given.jobs, "data": found})
    write_markdown("within", line, {f"{machine()}; {given.jobs} at a time": [head, *rows]})


if __name__ == "__main__":
    main()
