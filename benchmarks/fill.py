"""Whether missing numbers are filled in by the law of the data given the rest: a Gaussian of five correlated columns.

    python -m benchmarks.fill [--seconds 60] [--rows 20000] [--draws 2000]

One system of each family learns from samples of a Gaussian whose conditional laws are known in closed form. Two or
three columns of one row are missing; mean and covariance of many draws are held against the truth: the worst error of
a mean in deviations, of a variance as a ratio, and whether all are within three standard errors. Systems have an error
of their own from training too (a `vae` with dropout a larger one, so it trains without); whether the chains are right
for what was learnt `tests/test_fill.py` says. A picture has the digits' lower halves drawn from their upper halves.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import fivefold
from benchmarks.common import RESULTS, machine, write_markdown, write_result
from fivefold.apps.fill import missing_part
from fivefold.data.writers import grid
from fivefold.space.partial import encode_partial

SYSTEMS = ("igebm", "rbm", "ddpm", "score-sde", "vae", "dcgan", "made", "spline-flow")
PICTURED = ("igebm", "ddpm", "vae", "dcgan", "gated-pixelcnn", "glow")
OPTIONS = {"vae": {"dropout": 0}}  # which leaves the law of what is dropped, not that of the data
MASKS = {"last three": (1, 1, 0, 0, 0), "first two": (0, 0, 1, 1, 1)}
GIVEN = torch.tensor([1.0, -1.5, 0.5, 0.8, -0.3])
DIMS = len(GIVEN)


def covariance() -> Tensor:
    """Of unit variances, correlated; float64."""
    factor = torch.randn(DIMS, DIMS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = factor @ factor.T + torch.eye(DIMS)
    scale = whole.diag().sqrt()
    return whole / scale[:, None] / scale


def conditional(known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what is missing."""
    cov, m, k = covariance(), (~known).nonzero()[:, 0], known.nonzero()[:, 0]
    gain = cov[m][:, k] @ torch.linalg.inv(cov[k][:, k])
    return gain @ GIVEN[k].double(), cov[m][:, m] - gain @ cov[k][:, m]


def errors(draws: Tensor, mean: Tensor, cov: Tensor) -> dict[str, Any]:
    """Of draws `(n, d)`: the worst of each kind, and the worst of all in standard errors."""
    n, spread, found = len(draws), cov.diag(), draws.T.cov()
    scale = (spread[:, None] * spread).sqrt()
    off_mean, off_cov = (draws.mean(0) - mean) / spread.sqrt(), (found - cov) / scale
    in_errors = torch.cat([off_mean * math.sqrt(n), (off_cov / ((1 + (cov / scale) ** 2) / n).sqrt()).flatten()])
    return {
        "mean_error_in_deviations": off_mean.abs().max().item(),
        "least_variance_ratio": (found.diag() / spread).min().item(),
        "largest_variance_ratio": (found.diag() / spread).max().item(),
        "worst_in_standard_errors": in_errors.abs().max().item(),
        "within_three": bool(in_errors.abs().max() < 3),
    }


def measure(name: str, data: fivefold.Data, seconds: float, draws: int) -> dict[str, Any]:
    """Of one system trained on the Gaussian's samples: for every mask the errors and the time."""
    system = fivefold.fit(name, data, budget=f"{seconds:g}s", seed=0, **OPTIONS.get(name, {}))
    row: dict[str, Any] = {"system": name, "how": system.filling, "masks": {}}
    for what, mask in MASKS.items():
        known = torch.tensor(mask).bool()
        rows = pd.DataFrame({f"x{i}": [GIVEN[i].item() if known[i] else np.nan] for i in range(DIMS)})
        start = time.perf_counter()
        filled = system.fill_in(rows, draws=draws, seed=0)
        taken = time.perf_counter() - start
        values = torch.tensor(filled[[f"x{i}" for i in range(DIMS) if not known[i]]].to_numpy())
        row["masks"][what] = errors(values, *conditional(known)) | {"seconds": taken}
    return row


def picture(path: Path, seconds: float, count: int = 8, draws: int = 2) -> None:
    """For each system a row of digits: what is known, and draws of the lower halves."""
    data = fivefold.load_data("digits")
    space, x = data.space, data.test.batch(slice(0, count)).x
    given = space.decode(x)
    missing = missing_part("lower", space)
    _, known = encode_partial(space, given, missing)
    rows = [given, space.decode(torch.where(known, x, (space.levels or 1) // 2))]
    for name in PICTURED:
        system = fivefold.fit(name, data, budget=f"{seconds:g}s", seed=0)
        made = system.fill_in(given, missing=missing, draws=draws, seed=0)
        rows += [made[i::draws] for i in range(draws)]
    grid(space, np.concatenate(rows), columns=count).save(path)


HEAD = ["system", "missing", "mean off, deviations", "variances, ratio", "within three standard errors", "seconds"]


def cells(row: dict[str, Any]) -> list[list[str]]:
    """A line of the table for every mask."""
    return [
        [
            f"`{row['system']}`",
            what,
            f"{one['mean_error_in_deviations']:.3f}",
            f"{one['least_variance_ratio']:.2f} to {one['largest_variance_ratio']:.2f}",
            f"{'yes' if one['within_three'] else 'no'} ({one['worst_in_standard_errors']:.1f})",
            f"{one['seconds']:.1f}",
        ]
        for what, one in row["masks"].items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--systems", nargs="*", default=SYSTEMS)
    parser.add_argument("--no-picture", action="store_true")
    given = parser.parse_args()
    noise = torch.randn(given.rows, DIMS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = noise @ torch.linalg.cholesky(covariance()).T
    data = fivefold.load_data(pd.DataFrame(samples.numpy(), columns=[f"x{i}" for i in range(DIMS)]))
    rows = []
    for name in given.systems:
        rows.append(measure(name, data, given.seconds, given.draws))
        print(*map(" ".join, cells(rows[-1])), sep="\n", flush=True)
    right = sum(one["within_three"] for row in rows for one in row["masks"].values())
    rest = f"after {given.seconds:g} s of training on {given.rows:,} rows each, on {machine()}"
    laws = f"{right} of {2 * len(rows)} conditional laws of a Gaussian"
    line = f"{laws} within three standard errors of {given.draws:,} draws, {rest}"
    write_result("fill", line, {"systems": rows}, given.out)
    parts = {
        "Against the truth": [HEAD, *(cell for row in rows for cell in cells(row))],
        "How each draws": [["system", "how"], *([f"`{row['system']}`", row["how"]] for row in rows)],
    }
    write_markdown("fill", line, parts, given.out)
    if not given.no_picture:
        picture(given.out / "fill.png", given.seconds)


if __name__ == "__main__":
    main()
