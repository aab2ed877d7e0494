"""Held-out log-densities of tables after equal time: our flows beside zuko's NSF and MAF.

    pip install -c constraints.txt -e ".[peers]"
    python -m benchmarks.tables FILE [--tables wine_red ...] [--systems spline-flow maf-flow] [--budget 60]

FILE is an NPZ archive of numeric tables, which are cleaned (`clean`) in the manner of RNADE (Uria et al., 2013) and MAF
(Papamakarios et al., 2017). The peers' inputs are standardised; they train by Adam with the same batch size for the
same time and keep their best weights by validation, as ours do. Writes `results/tables.json` and `.md`, in which tables
that are not named keep their figures.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import fivefold
from benchmarks.common import RESULTS, machine, write_result
from fivefold import catalog
from fivefold.data import Data

CORRELATED = 0.98  # of two columns with a larger correlation one goes
DISTINCT = 0.5  # a column with fewer distinct values than this share of the rows is discretised
VALIDATIONS = 20  # of a peer, at equal parts of its time
BATCH = 256
AUTOREGRESSIVE = "spline-flow, autoregressive"
CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {  # ours: systems with options
    "spline-flow": ("spline-flow", {}),
    AUTOREGRESSIVE: ("spline-flow", {"wrapper": "autoregressive", "hidden": 128}),
    "maf-flow": ("maf-flow", {}),
    "realnvp": ("realnvp", {}),
}


class Cleaned(NamedTuple):
    """A table, and what was done to it.

    Args:
        x: rows of real columns `(N, D)`.
        kept: numbers of the columns that are left `(D,)`.
        noisy: numbers of those that were given noise.
    """

    x: np.ndarray
    kept: np.ndarray
    noisy: np.ndarray


def clean(x: np.ndarray, seed: int = 0) -> Cleaned:
    """Rows that are complete; no constant column, of each correlated pair the first, discretised ones with noise.

    The noise is uniform over one step of the column's resolution, its smallest distance of two values, so that a
    density cannot rise without end at repeated values.

    Args:
        x: `(N, D)`, with NaN where a value is missing.
        seed: of the noise.
    """
    x = x[np.isfinite(x).all(1)].astype(np.float64)
    varies = np.flatnonzero(x.max(0) > x.min(0))
    correlation = np.abs(np.atleast_2d(np.corrcoef(x[:, varies], rowvar=False)))
    chosen: list[int] = []
    for i in range(len(varies)):
        if not (correlation[i, chosen] > CORRELATED).any():
            chosen.append(i)
    kept = varies[chosen]
    x = x[:, kept]
    generator, noisy = np.random.default_rng(seed), []
    for column in range(x.shape[1]):
        values = np.unique(x[:, column])
        if len(values) < DISTINCT * len(x):
            x[:, column] += resolution(values) * generator.uniform(-0.5, 0.5, len(x))
            noisy.append(int(kept[column]))
    return Cleaned(x, kept, np.array(noisy, dtype=int))


def resolution(values: np.ndarray) -> float:
    """The smallest distance of ascending `values`, but for differences that rounding makes."""
    steps = np.diff(values)
    return float(steps[steps > 1e-9 * np.abs(values).max()].min())


def split(x: np.ndarray, seed: int = 0) -> Data:
    """Shuffled: a tenth for testing, a tenth of the others for validation."""
    x = x[np.random.default_rng(seed).permutation(len(x))]
    test = len(x) // 10
    valid = (len(x) - test) // 10
    parts = {"x_test": x[:test], "x_valid": x[test : test + valid], "x_train": x[test + valid :]}
    return fivefold.load_data(parts)


# --- the contestants --------------------------------------------------------------------------------


def ours(contestant: str, data: Data, seconds: float) -> Tensor:
    """ln p `(N,)` of the test rows, in nats of the columns' own units."""
    system, options = CONTESTANTS[contestant]
    preset = "small" if len(data.train) < 2000 and "small" in catalog.class_of(system).presets else None
    model = fivefold.fit(system, data, preset=preset, budget=f"{seconds:g}s", batch_size=BATCH, **options)
    return model.score_encoded(data.test.batch(slice(None))).log_prob


def peer(flow: nn.Module, data: Data, seconds: float, lr: float = 1e-3) -> Tensor:
    """As `ours`, of one of zuko's, by a plain loop; validation is not counted as time, as it is not with ours."""
    train, valid, test = (part.batch(slice(None)).x for part in (data.train, data.valid, data.test))
    optimizer = torch.optim.Adam(flow.parameters(), lr)
    best, weights, spent, marks = -float("inf"), copy.deepcopy(flow.state_dict()), 0.0, 0
    while spent < seconds:
        started = time.perf_counter()
        for index in torch.randperm(len(train)).split(BATCH):
            optimizer.zero_grad()
            (-flow().log_prob(train[index]).mean()).backward()
            optimizer.step()
            if spent + time.perf_counter() - started >= seconds:
                break
        spent += time.perf_counter() - started
        if spent >= seconds * (marks + 1) / VALIDATIONS:
            marks = int(spent / seconds * VALIDATIONS)
            value = _scored(flow, valid).mean().item()
            if value > best:
                best, weights = value, copy.deepcopy(flow.state_dict())
    flow.load_state_dict(weights)
    return _scored(flow, test) + data.space.log_det(test)


@torch.no_grad()
def _scored(flow: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([flow().log_prob(part) for part in x.split(1000)]).double()


def peers(dims: int) -> dict[str, nn.Module]:
    """Five transforms, each with two hidden layers of 128."""
    import zuko

    sizes = {"transforms": 5, "hidden_features": (128, 128)}
    return {"zuko NSF": zuko.flows.NSF(dims, **sizes), "zuko MAF": zuko.flows.MAF(dims, **sizes)}


# --- the table --------------------------------------------------------------------------------------


def measure(x: np.ndarray, systems: list[str], seconds: float) -> dict[str, Any]:
    """Mean test ln p of every contestant, and of each of ours the paired difference from the best peer."""
    cleaned = clean(x)
    data = split(cleaned.x)
    torch.manual_seed(0)
    theirs = {name: peer(flow, data, seconds) for name, flow in peers(data.space.dims).items()}
    mine = {name: ours(name, data, seconds) for name in systems}
    best = max(theirs, key=lambda name: theirs[name].mean().item())
    return {
        "rows": len(cleaned.x), "columns": data.space.dims, "noisy": len(cleaned.noisy), "machine": machine(),
        "seconds": seconds, "nats": {name: value.mean().item() for name, value in {**mine, **theirs}.items()},
        "best_peer": best, "differences": {name: paired(value, theirs[best]) for name, value in mine.items()},
    }  # fmt: skip


def paired(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Mean difference over the same examples, and its standard error."""
    difference = first - second
    return difference.mean().item(), (difference.std() / len(difference) ** 0.5).item()


def page(rows: dict[str, dict[str, Any]]) -> str:
    """The table, in Markdown."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row["nats"]))
    lines = ["# Tables: held-out nats after equal time", ""]
    lines += ["In brackets: the difference from the best peer, and its standard error over the test rows.", ""]
    lines += [
        "| " + " | ".join(["table", "rows", "columns", "seconds", *names]) + " |",
        "|---" * (4 + len(names)) + "|",
    ]
    for table, row in rows.items():
        cells = [_cell(row, name) for name in names]
        lines.append(f"| {table} | {row['rows']:,} | {row['columns']} | {row['seconds']:g} | {' | '.join(cells)} |")
    machines = dict.fromkeys(row["machine"] for row in rows.values())
    return "\n".join([*lines, "", *[f"On {name}." for name in machines]]) + "\n"


def _cell(row: dict[str, Any], name: str) -> str:
    if name not in row["nats"]:
        return "–"
    value = f"{row['nats'][name]:.2f}"
    if name not in row["differences"]:
        return value
    difference, error = row["differences"][name]
    return f"{value} ({difference:+.2f} ± {error:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--tables", nargs="*", help="arrays of the file; all that are tables by default")
    parser.add_argument(
        "--systems", nargs="*", choices=CONTESTANTS, default=["spline-flow", AUTOREGRESSIVE, "maf-flow"]
    )
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of training each")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    path = RESULTS / "tables.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() and given.tables else {}
    with np.load(given.file, allow_pickle=False) as arrays:
        numeric = [name for name in arrays.files if arrays[name].ndim == 2 and arrays[name].dtype.kind == "f"]
        for name in given.tables or [name for name in numeric if not name.endswith("_raw")]:
            rows[name] = measure(arrays[name], list(given.systems), given.budget)
            print(name, rows[name]["nats"], rows[name]["differences"], flush=True)
            won = sum(max(mean for mean, _ in row["differences"].values()) > 0 for row in rows.values())
            headline = f"on {won} of {len(rows)} tables the best of ours is above the best of zuko's"
            write_result("tables", headline, {"rows": rows})
            (RESULTS / "tables.md").write_text(page(rows))


if __name__ == "__main__":
    main()
