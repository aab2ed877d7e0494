"""What the benchmarks share: naming the machine, keeping data and results, a page of samples, cells of tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from fivefold.machine import processor
from fivefold.report import folder

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """The machine in words: processor, cores, threads, torch."""
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}{accelerator}"


def write_result(name: str, line: str, values: dict[str, Any], place: Path = RESULTS) -> None:
    """Print the headline and keep it with its figures in `results/NAME.json`, or at another place."""
    place.mkdir(exist_ok=True)
    (place / f"{name}.json").write_text(json.dumps({"headline": line, **values}, indent=1) + "\n")
    print(line)


def write_markdown(name: str, line: str, parts: dict[str, list[list[str]]], place: Path = RESULTS) -> None:
    """Tables by title, the first row of each its head, in `results/NAME.md` under the headline."""
    text = [f"# {name.replace('_', ' ').capitalize()}", "", f"{line[0].upper()}{line[1:]}."]
    for title, rows in parts.items():
        head, *cells = ["| " + " | ".join(row) + " |" for row in rows]
        text += ["", f"## {title}", "", head, "|---" * len(rows[0]) + "|", *cells]
    (place / f"{name}.md").write_text("\n".join(text) + "\n")


def kept_arrays(path: Path, make: Callable[[], dict[str, Any]]) -> Path:
    """`path`, with the arrays that `make` gives; made once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.write_arrays(path, make())
    return path


def picture(samples: dict[str, Tensor], path: Path, shown: int = 24) -> None:
    """A row for each name: `shown` images of `(n, 1 or 3, H, W)` in {0..255}, as many as there are."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(samples), 1, figsize=(8, 0.42 * len(samples)))
    for axis, (name, x) in zip(np.atleast_1d(axes), samples.items(), strict=True):
        side, strip = x.shape[-1], x[:shown].permute(2, 0, 3, 1).flatten(1, 2)
        axis.imshow(strip.byte().numpy(), cmap="gray_r", vmin=0, vmax=255)
        axis.set_xlim(-0.5, shown * side - 0.5)
        axis.set_axis_off()
        axis.text(-0.4 * side, x.shape[-2] / 2, name, ha="right", va="center", fontsize=7)
    figure.subplots_adjust(0.18, 0.005, 0.995, 0.995, hspace=0.08)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def figures(row: dict[str, Any]) -> dict[str, Any]:
    """Of a comparison's row the distance of samples, and the density's kind and bits; None where there is none."""
    distance, density = row["quality"].get("frechet") or {}, row["density"]
    return {"frechet": distance.get("value"), "kind": density["kind"], "bits": density.get("bits_per_dim")}


def number(value: float | None, form: str = ".1f") -> str:
    """A cell of a table."""
    return "–" if value is None else format(value, form)


def bits(found: dict[str, Any]) -> str:
    """A cell for the `figures` of a density: its bits with their kind, or the kind alone."""
    return found.get("kind", "–") if found.get("bits") is None else f"{found['bits']:.2f} ({found['kind']})"
