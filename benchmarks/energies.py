"""Energies, score matching and diffusion (survey 2) on digits: distances and bits, tilted models, unusual examples.

    python -m benchmarks.energies digits [SYSTEM ...] [--budget 60s] [--jobs 1] [--out energies]
    python -m benchmarks.energies tilted [--budget 60s]
    python -m benchmarks.energies unusual [--out energies]

`digits` compares every system of the family after an equal time on one core; half of independent pixels' distance is
asked. `jem` is trained with labels beside it: its accuracy, its calibration, and how many of the samples of a class a
classifier takes for it. `tilted` tells, over three seeds, what chains make better of the models that they start from.
`unusual` is the area under the curve by which each density or energy tells digits from patches of photographs and from
digits whose pixels are shuffled, by the runs of `digits`. Each writes a part of `results/energies.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from sklearn.svm import SVC
from torch import Tensor

from benchmarks.common import RESULTS, bits, figures, machine, number, picture, write_markdown
from benchmarks.equal_chances import trivial
from fivefold import catalog, compare, fit, load, load_data
from fivefold.evaluation.evaluate import SAMPLES
from fivefold.evaluation.features import fit_features
from fivefold.space import Batch
from fivefold.system import Density
from fivefold.tools.metrics import frechet_distance
from fivefold.tools.roc import roc_area

FAMILIES = ("energy", "diffusion")
TILTED = {"gebm": "sample_steps", "vaebm": "sample_steps", "nt-ebm": "sample_steps", "coopnets": "sample_steps"}
SEEDS = 3


def digits(given: argparse.Namespace) -> dict[str, Any]:
    """A row for each system, and `jem` with labels."""
    names = given.systems or [n for n, entry in catalog.entries().items() if entry.family in FAMILIES and n != "jem"]
    data = load_data("digits")
    done = compare(names, data, budget=given.budget, jobs=given.jobs, diagnostics=False, out=given.out / "digits")
    base, rows = trivial(data), []
    for row in done.rows:
        found = figures(row) if row["status"] == "ok" else {}
        wrong = [] if found else [f"{row['status']}: {row['error']}"]
        wrong += ["distance"] * bool(found and found["frechet"] > base["frechet"] / 2)
        wrong += ["bits"] * bool(found.get("bits") and found["bits"] > base["bits"])
        rows.append({"system": row["label"], **found, "wrong": wrong})
    samples = {}
    for path in sorted((given.out / "digits" / "runs").glob("*-seed0")):
        samples[path.name.removesuffix("-seed0")] = load(path).sample_encoded(24, seed=0) * 255 // 16
    picture(samples, RESULTS / "energies.png")
    return {"trivial": base, "budget": given.budget, "rows": rows, "jem": recognised(given)}


def recognised(given: argparse.Namespace) -> dict[str, float]:
    """Of `jem` with labels: accuracy, calibration error, and the share of samples that a classifier recognises."""
    data = load_data("digits", condition="label")
    system = fit("jem", data, budget=given.budget, seed=0)
    test, train = data.test.batch(slice(None)), data.train.batch(slice(None))
    assert test.condition is not None
    assert train.condition is not None
    judge = SVC(gamma=0.001).fit(train.x.flatten(1).numpy(), train.condition[:, 0].numpy())
    wanted = torch.arange(10.0).repeat_interleave(30)[:, None]
    made = system.sample_encoded(len(wanted), wanted, seed=0)
    seen = system.eval().monitor(test)
    return {
        "accuracy": seen["accuracy"], "calibration_error": seen["calibration_error"],
        "classifier": float(judge.score(test.x.flatten(1).numpy(), test.condition[:, 0].numpy())),
        "recognised": float(judge.score(made.flatten(1).numpy(), wanted[:, 0].numpy())),
    }  # fmt: skip


def tilted(given: argparse.Namespace) -> dict[str, Any]:
    """Distances of samples with chains and without, by seed, and the mean gain with its error over the seeds."""
    data = load_data("digits")
    features, test = fit_features(data), data.test.batch(slice(None)).x
    found = {}
    for name, dial in TILTED.items():
        pairs = []
        for seed in range(SEEDS):
            system = fit(name, data, budget=given.budget, seed=seed)
            usual = getattr(system, dial)
            pair = []
            for steps in (0, usual):
                with system.turned(**{dial: steps}):
                    made = system.sample_encoded(SAMPLES, seed=seed)
                pair.append(float(frechet_distance(features(made), features(test))))
            pairs.append(pair)
        gain = torch.tensor([base - tilted for base, tilted in pairs])
        error = (gain.std() / math.sqrt(SEEDS)).item()
        found[name] = {"pairs": pairs, "gain": gain.mean().item(), "error": error}
        print(name, found[name], flush=True)
    return found


def unusual(given: argparse.Namespace) -> dict[str, Any]:
    """Areas under the curve of minus the density or with the energy, and their errors."""
    data = load_data("digits")
    test = data.test.batch(slice(None)).x
    others = {"photographs": patches(len(test)), "shuffled pixels": shuffled(test)}
    found: dict[str, Any] = {}
    for path in sorted((given.out / "digits" / "runs").glob("*-seed0")):
        system = load(path)
        if system.density is Density.NONE:
            continue
        own = -system.score_encoded(Batch(test)).log_prob.numpy()
        areas = {n: roc_area(own, -system.score_encoded(Batch(x)).log_prob.numpy()) for n, x in others.items()}
        name = path.name.removesuffix("-seed0")
        found[name] = {"kind": system.density.value, **{n: [a.value, a.error] for n, a in areas.items()}}
        print(name, found[name], flush=True)
    return found


def patches(n: int) -> Tensor:
    """`n` patches of photographs, of the digits' size and levels, grey."""
    x = load_data("photos").test.spread(n).x.float().mean(1, keepdim=True)
    return torch.nn.functional.avg_pool2d(x, 4).mul(17 / 256).long()


def shuffled(x: Tensor) -> Tensor:
    """Each image with its pixels in an order of its own."""
    flat = x.flatten(1)
    order = torch.rand(flat.shape, generator=torch.Generator().manual_seed(0)).argsort(1)
    return flat.gather(1, order).view_as(x)


def tables(kept: dict[str, Any]) -> dict[str, list[list[str]]]:
    """The page's, of what has been measured."""
    found: dict[str, list[list[str]]] = {}
    if "digits" in kept:
        part = kept["digits"]
        title = (
            f"{part['budget']} each on one core (independent pixels: {part['trivial']['frechet']:.1f}, "
            f"{part['trivial']['bits']:.2f} bits)"
        )
        found[title] = [["system", "Fréchet distance", "bits per dimension", "not as asked"]]
        found[title] += [
            [f"`{row['system']}`", number(row.get("frechet")), bits(row), "; ".join(row["wrong"])]
            for row in part["rows"]
        ]
        found["`jem` with labels"] = [["measure", "value"], *([n, f"{v:.3f}"] for n, v in part["jem"].items())]
    if "tilted" in kept:
        rows = [
            [
                f"`{n}`",
                *(f"{sum(p[i] for p in v['pairs']) / SEEDS:.2f}" for i in (0, 1)),
                f"{v['gain']:.2f} ± {v['error']:.2f}",
            ]
            for n, v in kept["tilted"].items()
        ]
        found[f"Chains beside what they start from, {SEEDS} seeds"] = [["system", "without", "with", "gain"], *rows]
    if "unusual" in kept:
        names = ["photographs", "shuffled pixels"]
        rows = [
            [f"`{n}`", v["kind"], *(f"{v[other][0]:.3f} ± {v[other][1]:.3f}" for other in names)]
            for n, v in kept["unusual"].items()
        ]
        found["Area under the curve, digits against"] = [["system", "density", *names], *rows]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("digits", "tilted", "unusual"))
    parser.add_argument("systems", nargs="*")
    parser.add_argument("--budget", default="60s")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("energies"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "energies.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[given.part] = {"digits": digits, "tilted": tilted, "unusual": unusual}[given.part](given)
    kept["machine"] = machine()
    path.write_text(json.dumps(kept, indent=1) + "\n")
    write_markdown("energies", f"Section 2 of the survey on digits; {machine()}", tables(kept))


if __name__ == "__main__":
    main()
