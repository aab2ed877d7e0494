"""Statically binarised MNIST (Larochelle & Murray 2011): test log-likelihood in nats beside published figures.

Trains each system for the same time, from scratch or from where a run stopped, and scores the whole
test set. The data are an NPZ with x_train, x_valid, x_test in {0, 1}; without the file nothing is run.
Systems that are not named keep their rows of the results.

    python -m benchmarks.binarized_mnist [SYSTEM ...] --data FILE --budget 10m
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import click

from benchmarks.common import RESULTS, machine
from fivefold import load, load_data
from fivefold.files import write_json, write_text
from fivefold.run import Run
from fivefold.training.fit import fit, resume

# Negative log-likelihood in nats as published, with how it was computed and where.
PUBLISHED = {
    "made": ("86.6 to 88.0", "exact; Germain et al. 2015"),
    "vae": ("87 to 88", "importance samples, one stochastic layer; Burda et al. 2016"),
    "gated-pixelcnn": ("79.2 (PixelRNN)", "exact; van den Oord et al. 2016"),
    "rbm": ("86.3", "500 units, CD-25, AIS; Salakhutdinov & Murray 2008"),
}
TARGETS = {"made": 88.5, "vae": 96.0, "gated-pixelcnn": 88.0, "rbm": 101.0}
SIGNS = {"exact": "", "lower bound": "≤ ", "estimate": "≈ "}


def measure(name: str, directory: Path, seconds: float) -> dict[str, Any]:
    """The test figure of a finished run."""
    system = load(directory)
    if name == "vae":
        system.score_samples = 500  # type: ignore[assignment]
    data = Run.open(directory).load_data()
    score = system.score_encoded(data.test.batch(slice(None)), batch_size=100)
    n = len(score.log_prob)
    # The error of log Z is common to all examples and does not average out; that of sampled bounds does.
    sampled = score.standard_error.mean() if system.density.value == "estimate" else score.standard_error.norm() / n
    error = math.hypot(score.log_prob.std().item() / math.sqrt(n), sampled.item())
    return {
        "system": name,
        "nats": -score.log_prob.mean().item(),
        "error": error,
        "kind": system.density.value,
        "note": system.density_note,
        "parameters": sum(p.numel() for p in system.parameters()),
        "seconds": seconds,
        "machine": machine(),
    }


def table(rows: list[dict[str, Any]], budget: str) -> str:
    """The figures as Markdown."""
    machines = " and ".join(dict.fromkeys(row["machine"] for row in rows))
    lines = [
        f"Statically binarised MNIST: negative log-likelihood of the 10,000 test images after {budget} of training",
        f"each, on {machines}.",
        "",
        "| system | nats | kind | asked | published | how published |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["system"]
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(
            f"| {name} | {SIGNS[row['kind']]}{row['nats']:.2f} ± {row['error']:.2f} | {row['kind']}{note} "
            f"| ≤ {TARGETS[name]:g} | {PUBLISHED[name][0]} | {PUBLISHED[name][1]} |"
        )
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("systems", nargs=-1)
@click.option("--data", default="../shared/data/binarized_mnist.npz", show_default=True)
@click.option("--budget", default="10m", show_default=True)
@click.option("--out", default="runs/binarized-mnist", show_default=True)
def main(systems: tuple[str, ...], data: str, budget: str, out: str) -> None:
    if not Path(data).exists():
        sys.exit(f"skipped: {data} is not there; name the file with --data")
    kept_rows = RESULTS / "binarized_mnist.json"
    found = {row["system"]: row for row in json.loads(kept_rows.read_text())["rows"]} if kept_rows.exists() else {}
    for name in systems or PUBLISHED:
        directory, kept = Path(out) / name, Path(out) / f"{name}.json"
        if not kept.exists():
            if (directory / "run.json").exists():
                resume(directory, budget=budget, watch=_watch)
            else:
                fit(name, load_data(data), out=directory, preset=_preset(name), budget=budget, watch=_watch)
            write_json(kept, measure(name, directory, Run.open(directory).record["seconds"]))
        found[name] = json.loads(kept.read_text())
        rows = [found[each] for each in PUBLISHED if each in found]
        click.echo(table(rows, budget))
        write_text(RESULTS / "binarized_mnist.md", table(rows, budget))
        write_json(kept_rows, {"budget": budget, "rows": rows})


def _preset(name: str) -> str | None:
    from fivefold import catalog

    return "mnist" if "mnist" in catalog.find(name).presets else None


def _watch(event: dict[str, Any]) -> None:
    if "validation" in event:
        click.echo(
            f"  {event['progress']:4.0%} step {event['step']:,} validation {event['validation']:.2f} {event['name']}"
        )


if __name__ == "__main__":
    main()
