"""Samplers whose right order is known.

python -m benchmarks.known_samplers
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import machine, write_markdown, write_result
from fivefold.data import Data, Split, load_data
from fivefold.evaluation.evaluate import columns_beside
from fivefold.evaluation.features import fit_features
from fivefold.tools.baselines import IndependentDims
from fivefold.tools.metrics import MEASURES, Score, score
from fivefold.tools.resampling import difference_error

SAMPLES = 500  # of each sampler and of the test split; fewer where a third of the data is fewer
TRAINING = 2000  # examples at most: copies of a denser set are no nearer to it than the next example
SLIGHT = 0.1  # of a column's standard deviation; one level of images


def split_anew(name: str, seed: int) -> Data:
    """An embedded set with labels, cut anew: `valid` and `test` have as many examples as each sampler draws."""
    data = load_data(name, condition="label")
    x, label = whole(data)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    n = min(SAMPLES, len(x) // 3)
    pieces = order[2 * n :][:TRAINING], order[:n], order[n : 2 * n]
    train, valid, test = (Split(len(i), x[i], label[i]) for i in pieces)
    return replace(data, train=train, valid=valid, test=test, fingerprint=f"{data.fingerprint}-{seed}")


def whole(data: Data) -> tuple[Tensor, Tensor]:
    """Every example of labelled data, encoded, and its label."""
    parts = [split.batch(slice(None)) for split in (data.train, data.valid, data.test)]
    return torch.cat([part.x for part in parts]), torch.cat([part.condition for part in parts])


def samplers(data: Data, seed: int = 0) -> dict[str, Tensor]:
    """Encoded samples `(n, *shape)` of each sampler, as many as `data.valid` has, which is the sampler of the truth.

    Args:
        data: labelled, of images or of a table; as `split_anew` gives it.
        seed: of what is drawn.
    """
    draw = torch.Generator().manual_seed(seed)
    real, label = data.valid.batch(slice(None))
    training = data.train.batch(slice(None)).x
    n = len(real)
    assert label is not None
    label = label.flatten().long()
    classes = int(label.max()) + 1
    copied = training[torch.randperm(len(training), generator=draw)[:n]]
    marginals = IndependentDims(data.space, training).sample(n, seed=seed).to(real.dtype)
    columns = torch.rand(real.flatten(1).shape, generator=draw).argsort(0)
    found = {
        "held-out data": real,
        "memoriser": copied,
        "memoriser with slight noise": valid(_noisy(copied, training, draw), data),
        "half copies, half noise": torch.cat([copied[: n // 2], marginals[n // 2 :]]),
        "slight noise": valid(_noisy(real, training, draw), data),
        "one class dropped": _refilled(real, label != 0, draw),
        "half the classes dropped": _refilled(real, label >= max(classes // 2, min(2, classes - 1)), draw),
        "twenty examples repeated": real[torch.randint(min(20, n), (n,), generator=draw)],
        "one Gaussian": valid(gaussian(training, n, draw), data),
        "shuffled columns": real.flatten(1).gather(0, columns).view(real.shape),
    }
    if data.space.kind == "image":
        blurred = F.avg_pool2d(F.pad(real.float(), (1, 1, 1, 1), mode="replicate"), 3, 1)
        found["blur"] = valid(blurred, data)
    return found


def _refilled(x: Tensor, keep: Tensor, draw: torch.Generator) -> Tensor:
    """As many examples as `x`: those that are kept, some of them again in place of the rest."""
    kept = x[keep]
    again = torch.cat([torch.randperm(len(kept), generator=draw) for _ in range(-(-len(x) // len(kept)))])
    return kept[again[: len(x)]]


def _noisy(x: Tensor, training: Tensor, draw: torch.Generator) -> Tensor:
    noise = torch.randn(x.shape, generator=draw)
    return x + (noise if x.dim() > 2 else SLIGHT * training.float().std(0) * noise)


def gaussian(training: Tensor, n: int, draw: torch.Generator) -> Tensor:
    """Of the training examples' mean and covariance."""
    flat = training.flatten(1).double()
    mean, covariance = flat.mean(0), torch.cov(flat.T)
    root = torch.linalg.eigh(covariance)
    factor = root.eigenvectors * root.eigenvalues.clamp(min=0).sqrt()
    noise = torch.randn(n, flat.shape[1], dtype=torch.float64, generator=draw)
    return (mean + noise @ factor.T).view(n, *training.shape[1:])


def valid(x: Tensor, data: Data) -> Tensor:
    """Rounded to whole numbers within the levels where a dimension has levels."""
    levels = torch.tensor([count or 0 for count in data.space.dim_levels]).view(data.space.shape)
    whole = x.round().clamp(min=torch.zeros(()), max=(levels - 1).to(x.dtype))
    dtype = torch.long if data.space.kind == "image" else torch.float32
    return torch.where(levels > 0, whole, x).to(dtype)


# --- what each measure is to see --------------------------------------------------------------------

SPLITS = 20
DATA = ("wine", "digits", "rings", "gaussians")
TRUTH = "held-out data"
CODED = ("memoriser", "half copies, half noise")
LOST = ("half the classes dropped", "twenty examples repeated")
SPOILT = ("half copies, half noise", "one Gaussian", "shuffled columns", "blur")
CLAIMS = {
    "frechet": (*SPOILT, *LOST, "one class dropped"),
    "kernel": ("half the classes dropped", "twenty examples repeated"),
    "precision": ("shuffled columns", "half copies, half noise"),
    "recall": LOST,
    "density": ("shuffled columns", "half copies, half noise"),
    "coverage": LOST,
    "two_sample_accuracy": ("one Gaussian", "shuffled columns", "half the classes dropped", "twenty examples repeated"),
    "memorisation": CODED,
    "copies": CODED,
    "column_shapes": LOST,
    "column_pairs": (),
}


def worse(measure: str, x: Score, truth: Score) -> float:
    """By how many of the difference's errors `x` is worse than the truth; infinite where the error is 0."""
    best, value, at_truth = MEASURES[measure].best, float(x.value), float(truth.value)
    if isinstance(best, float):
        value, at_truth = abs(value - best), abs(at_truth - best)
    excess = at_truth - value if best == "high" else value - at_truth
    error = difference_error(x, truth)
    return excess / error if error else math.copysign(math.inf, excess) if excess else 0.0


def measured(name: str, splits: int) -> dict[str, dict[str, Any]]:
    """By sampler and measure: mean value, and in how many splits it is worse than held-out data, and by two errors."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    by: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(splits):
        data = split_anew(name, seed)
        features, test = fit_features(data), data.test.batch(slice(None)).x
        real, training = features(test), features.of(data.train, len(data.train))
        scores = {sampler: score(features(x), real, training, columns=columns_beside(x, test, data.space))
                  for sampler, x in samplers(data, seed).items()}  # fmt: skip
        for sampler, found in scores.items():
            for key, value in found.items():
                values[sampler][key].append(float(value.value))
                by[sampler][key].append(worse(key, value, scores[TRUTH][key]))
    return {
        sampler: {
            key: {
                "mean": float(np.mean(row[key])),
                "worse": sum(errors > 0 for errors in by[sampler][key]),
                "seen": sum(errors > 2 for errors in by[sampler][key]),
            }
            for key in row
        }
        for sampler, row in values.items()
    }


def claimed(found: dict[str, dict[str, Any]]) -> list[int]:
    """In how many splits each claim held: worse than held-out data."""
    return [found[sampler][key]["worse"] for key, them in CLAIMS.items() for sampler in them
            if key in found.get(sampler, {})]  # fmt: skip


def table(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row for each sampler: means, and in how many splits worse than held-out data; in bold what is claimed."""

    def cell(sampler: str, key: str) -> str:
        values = found[sampler][key]
        text = f"{values['mean']:.2f}" + ("" if sampler == TRUTH else f" ({values['worse']}, {values['seen']})")
        return f"**{text}**" if sampler in CLAIMS[key] else text

    keys = [key for key in CLAIMS if key in found[TRUTH]]
    return [["", *(MEASURES[key].title for key in keys)],
            *([sampler, *(cell(sampler, key) for key in keys)] for sampler in found)]  # fmt: skip


def main() -> None:
    """Measure, print and keep."""
    torch.set_num_threads(1)
    started, results = time.perf_counter(), {}
    for name in DATA:
        results[name] = measured(name, SPLITS)
        held = [count for found in results.values() for count in claimed(found)]
        line = (
            f"a measure puts the samplers that it claims to see behind held-out data in {sum(held)} of "
            f"{SPLITS * len(held)} cases ({SPLITS} splits of {', '.join(results)})"
        )
        seconds = time.perf_counter() - started
        write_result("known_samplers", line, {"machine": machine(), "seconds": seconds, "data": results})
        how = "mean (splits in which it is worse than held-out data, by over two errors); bold: claimed"
        write_markdown("known_samplers", line, {f"{k}: {how}": table(found) for k, found in results.items()})


if __name__ == "__main__":
    main()
