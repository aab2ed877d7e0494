"""How good samples of one trained diffusion are after so many evaluations, by every sampler.

    python -m benchmarks.diffusion_samplers [--seconds 120] [--samples 500]

A `ddpm` and a `score-sde` learn the digits once; nothing is trained again for a sampler. Steps are even in time or at
the times that dynamic programming over the errors met in training finds best for the bound. Of samplers that choose
their steps themselves the tolerance is varied. Writes `results/diffusion_samplers.json`, `.md` and `.png`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

import fivefold
from benchmarks.common import RESULTS, machine, write_markdown, write_result
from fivefold import Data, System
from fivefold.evaluation.features import fit_features
from fivefold.tools.metrics import frechet
from fivefold.tools.resampling import difference_error, smooth

SYSTEMS = ("ddpm", "score-sde")
STEPS = (5, 10, 20, 50, 100)
TOLERANCES = (1.0, 0.3, 0.1)
TITLES = {"even": "", "dp-timesteps": ", dp-timesteps"}


class Setting(NamedTuple):
    """A line of the table: attributes of the system, and what varies along it."""

    title: str
    fixed: dict[str, Any]
    varied: str
    values: tuple[Any, ...]


SETTINGS = [
    *(
        Setting(f"{sampler}{TITLES[spacing]}", {"sampler": sampler, "spacing": spacing}, "sampling_steps", STEPS)
        for sampler in ("ancestral", "ddim") for spacing in TITLES
    ),
    Setting("predictor-corrector", {"sampler": "predictor-corrector"}, "sampling_steps", STEPS),
    Setting("adaptive-sde", {"sampler": "adaptive-sde"}, "tolerance", TOLERANCES),
    Setting("probability-flow", {"sampler": "probability-flow"}, "tolerance", TOLERANCES),
]  # fmt: skip


def points(system: Any, data: Data, samples: int) -> Iterator[dict[str, Any]]:
    """For each sampler and number of steps the evaluations that a sample took, and the distance with its error."""
    features = fit_features(data)
    real = features(data.test.batch(slice(None)).x)
    usual = {name: getattr(system, name) for name in ("sampler", "spacing", "sampling_steps", "tolerance")}
    for setting in SETTINGS:
        for value in setting.values:
            for name, what in {**usual, **setting.fixed, setting.varied: value}.items():
                setattr(system, name, what)
            started = time.perf_counter()
            made = features(system.sample_encoded(samples, seed=0))
            seconds = time.perf_counter() - started
            score = smooth(lambda i, j, made=made: [frechet(made[i], real[j])], len(made), len(real))[0]
            distance, error = score.estimate
            yield {
                "sampler": setting.title, setting.varied: value, "evaluations": system.sample_evaluations,
                "frechet": distance, "error": error, "seconds": seconds,
            }  # fmt: skip


def compared(system: Any, data: Data, steps: int = 10, samples: int = 2000) -> dict[str, float]:
    """How much better `ddim` is than `ancestral` at so many even steps, of many samples, and the difference's error."""
    features, scores = fit_features(data), {}
    real = features(data.test.batch(slice(None)).x)
    system.spacing, system.sampling_steps = "even", steps
    for system.sampler in ("ancestral", "ddim"):
        made = features(system.sample_encoded(samples, seed=1))
        scores[system.sampler] = smooth(lambda i, j, made=made: [frechet(made[i], real[j])], len(made), len(real))[0]
    ours, theirs = scores["ddim"], scores["ancestral"]
    found = {name: float(score.value) for name, score in scores.items()}
    return {**found, "better_by": found["ancestral"] - found["ddim"], "error": difference_error(ours, theirs)}


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line for each sampler: distances with errors, and in brackets the evaluations of a sample."""
    head = ["sampler", *(f"{steps} steps" for steps in STEPS)]
    lines = []
    for setting in SETTINGS:
        own = [row for row in rows if row["sampler"] == setting.title]
        name = f"`{setting.title}`" + (" at tolerance 1, 0.3, 0.1" if setting.varied == "tolerance" else "")
        cells = [f"{r['frechet']:.1f} ± {r['error']:.1f} ({r['evaluations']})" for r in own]
        lines.append([name, *cells, *["–"] * (len(STEPS) - len(cells))])
    return [head, *lines]


def picture(results: dict[str, Any], path: Path) -> None:
    """Distance against evaluations, a panel for each system."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(5.2 * len(results), 4.2), sharey=True)
    for axis, (name, result) in zip(axes, results.items(), strict=True):
        for index, setting in enumerate(SETTINGS):
            own = [row for row in result["rows"] if row["sampler"] == setting.title]
            x, y, error = ([row[key] for row in own] for key in ("evaluations", "frechet", "error"))
            style = ":" if "dp" in setting.title else "-"
            axis.errorbar(x, y, error, label=setting.title, ls=style, marker=".", capsize=2, color=f"C{index}")
        axis.axhline(result["floor"], color="grey", lw=0.8, ls="--")
        axis.set(xscale="log", yscale="log", xlabel="evaluations a sample", title=name)
    axes[0].set_ylabel("Fréchet distance (dashed: real against real)")
    axes[-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=140)
    plt.close(figure)


def floor(data: Data) -> float:
    """The distance of real examples of the training split to the test split."""
    features, test = fit_features(data), data.test.batch(slice(None)).x
    return float(frechet(features(data.train.spread(len(test)).x), features(test)).value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="of training, of each system")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--ten", action="store_true", help="only compare ddim with ancestral at ten steps, anew")
    arguments = parser.parse_args()
    data, results = fivefold.load_data("digits"), {}
    for name in SYSTEMS:
        system: System = fivefold.fit(name, data, budget=f"{arguments.seconds:g}s", seed=0)
        rows = []
        for row in [] if arguments.ten else points(system, data, arguments.samples):
            print(name, row, flush=True)
            rows.append(row)
        results[name] = {"rows": rows, "ddim at 10": compared(system, data), "floor": floor(data)}
    if arguments.ten:
        before = json.loads((RESULTS / "diffusion_samplers.json").read_text())["systems"]
        results = {name: {**before[name], "ddim at 10": found["ddim at 10"]} for name, found in results.items()}
    gains = ", ".join(
        f"{result['ddim at 10']['better_by']:.1f} ± {result['ddim at 10']['error']:.1f} of {name}"
        for name, result in results.items()
    )
    line = f"at 10 steps ddim's Fréchet distance is less than ancestral's by {gains} (digits)"
    values = {"machine": machine(), "seconds": arguments.seconds, "samples": arguments.samples, "systems": results}
    write_result("diffusion_samplers", line, values)
    how = "Fréchet distance ± error (evaluations a sample)"
    write_markdown("diffusion_samplers", line, {f"{name}: {how}": table(r["rows"]) for name, r in results.items()})
    picture(results, RESULTS / "diffusion_samplers.png")


if __name__ == "__main__":
    main()
