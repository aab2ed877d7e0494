"""Incremental sampling against re-evaluating the whole network for every dimension.

    python -m benchmarks.sampling [SYSTEM ...] [--whole] [--levels 256] [--size 28] [--batch 16]

The full time is that of re-evaluating for the first few dimensions, times how many there are; with `--whole` all
are evaluated. Those evaluated are checked to give the same samples. Writes `results/sampling.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import time
from operator import attrgetter
from typing import Any
from unittest import mock

import torch

from benchmarks.common import RESULTS, machine, write_result
from fivefold import catalog, slot
from fivefold.space import Space

EVALUATED = 16  # dimensions, unless all of them
NETWORKS: dict[str, dict[str, Any]] = {
    "gated-pixelcnn": {"layers": 10, "channels": 128},
    "sparse-transformer": {"layers": 8, "width": 64},
    "pixeliqn": {"layers": 8, "channels": 64},
    "pixelrnn": {"layers": 8, "channels": 64},
    "vlae": {"decoder": slot("gated-pixelcnn", layers=8, channels=64, kernel=1, first_kernel=3)},
}
PARTS = {"vlae": "decoder.system"}  # what is sampled dimension by dimension, where it is not the whole


def compare(name: str, space: Space, batch: int, whole: bool) -> dict[str, Any]:
    """Seconds of `batch` samples, incrementally and by full evaluation."""
    torch.manual_seed(0)
    whole_system = catalog.build(name, space, **NETWORKS[name])
    system: Any = attrgetter(PARTS[name])(whole_system) if name in PARTS else whole_system
    above = system.space.condition
    condition = None if above is None else torch.randn(batch, *above.shape)
    dims = space.dims if whole else EVALUATED
    order = list(system._order())[:dims]
    with system.evaluating():
        noise = system.head.noise(batch)
        system._sample_from(noise, condition)
        start = time.perf_counter()
        fast = system._sample_from(noise, condition)
        incremental = time.perf_counter() - start
        with mock.patch.object(system, "_order", return_value=order):
            start = time.perf_counter()
            slow = system._sample_full_from(noise, condition)
            full = (time.perf_counter() - start) * space.dims / dims
    return {
        "system": name,
        "network": ", ".join(f"{value} {key}" for key, value in NETWORKS[name].items()),
        "data": f"{'x'.join(map(str, space.shape))}, {space.levels} levels, batch {batch}",
        "machine": machine(),
        "incremental_seconds": incremental,
        "full_seconds": full,
        "evaluated_dimensions": dims,
        "same_samples": (fast[:, order] == slow[:, order]).double().mean().item(),
        "ratio": full / incremental,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help=f"of {', '.join(NETWORKS)}; all by default")
    for name, default in {"size": 28, "levels": 256, "batch": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--whole", action="store_true", help="evaluate every dimension instead of extrapolating")
    chosen = parser.parse_args()
    space = Space("image", (1, chosen.size, chosen.size), levels=chosen.levels)
    path = RESULTS / "sampling.json"
    kept = json.loads(path.read_text()).get("rows", []) if path.exists() else []
    rows = {row["system"]: row for row in kept}
    for name in chosen.systems or NETWORKS:
        rows[name] = compare(name, space, chosen.batch, chosen.whole)
        headline = f"incremental sampling of {name} is {rows[name]['ratio']:.0f} times faster than full re-evaluation"
        write_result("sampling", headline, {"rows": list(rows.values())})
    columns = list(next(iter(rows.values())))
    lines = ["| " + " | ".join(_short(row[name]) for name in columns) + " |" for row in rows.values()]
    head = ["| " + " | ".join(name.replace("_", " ") for name in columns) + " |", "|---" * len(columns) + "|"]
    page = ["# Incremental against full sampling", "", *head, *lines]
    (RESULTS / "sampling.md").write_text("\n".join(page) + "\n")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
