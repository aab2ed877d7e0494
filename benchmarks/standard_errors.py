"""Printed standard errors beside the spread of values over independent draws of both samples, for every measure.

    python -m benchmarks.standard_errors

A law that can be drawn from at will is fitted to an embedded set: one Gaussian a class, rounded to its levels. The
training set and the features are drawn once and stay; samples and test examples are new in each of the repetitions.
For each sampler and measure: root mean square of the printed error over the standard deviation of the value, and the
same for the difference of two samplers against one test set.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import machine, write_markdown, write_result
from benchmarks.known_samplers import gaussian, valid, whole
from fivefold.data import Data, Split, load_data
from fivefold.evaluation.evaluate import columns_beside
from fivefold.evaluation.features import fit_features
from fivefold.tools.metrics import MEASURES, Score, score
from fivefold.tools.resampling import difference_error

REPETITIONS = 200
LAWS = {  # the embedded set: training examples, samples, test examples
    "wine": (133, 133, 50),
    "digits": (1000, 500, 500),
    "cancer": (1000, 500, 500),
}

Draw = Callable[[int], tuple[Tensor, Tensor]]  # encoded examples and labels


def law(data: Data, generator: torch.Generator) -> Draw:
    """Examples like those of `data`: of each class a Gaussian, correlations shrunk by a tenth."""
    x, label = whole(data)
    flat, label = x.flatten(1).double(), label.flatten().long()
    classes = [flat[label == c] for c in range(int(label.max()) + 1)]
    shares = torch.bincount(label).double()
    means, covariances = torch.stack([part.mean(0) for part in classes]), [torch.cov(part.T) for part in classes]
    factors = [torch.linalg.cholesky(0.9 * c + (0.1 * c.diagonal() + 1e-6).diag()) for c in covariances]

    def draw(n: int) -> tuple[Tensor, Tensor]:
        of = torch.multinomial(shares, n, replacement=True, generator=generator)
        noise = torch.randn(n, flat.shape[1], dtype=torch.float64, generator=generator)
        moved = (torch.stack(factors)[of] @ noise[..., None])[..., 0] + means[of]
        return valid(moved.view(n, *x.shape[1:]).to(torch.float32), data), of[:, None]

    return draw


def drawn(data: Data, draw: Draw, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Samplers whose examples are independent: the law itself, half copies, one Gaussian."""
    training = data.train.batch(slice(None)).x
    copied = training[torch.randint(len(training), (n,), generator=generator)]
    half = (torch.rand(n, generator=generator) < 0.5).view(-1, *[1] * (training.dim() - 1))
    return {
        "the law": draw(n)[0],
        "half copies": torch.where(half, copied, draw(n)[0]),
        "one Gaussian": valid(gaussian(training, n, generator), data),
    }


def ratios(name: str, repetitions: int = REPETITIONS, sizes: tuple[int, int, int] | None = None) -> dict[str, Any]:
    """Of each sampler, and of each pair's difference, the printed error over the spread; None without spread."""
    train, n, m = sizes or LAWS[name]
    data, generator = load_data(name, condition="label"), torch.Generator().manual_seed(0)
    draw = law(data, generator)
    parts = [Split(size, *draw(size)) for size in (train, m, m)]
    data = replace(data, train=parts[0], valid=parts[1], test=parts[2], fingerprint="law")
    features = fit_features(data)
    training = features.of(data.train, train)
    found: dict[str, dict[str, list[Score]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(repetitions):
        test = draw(m)[0]
        real = features(test)
        for sampler, x in drawn(data, draw, n, generator).items():
            scores = score(features(x), real, training, columns=columns_beside(x, test, data.space))
            for key, value in scores.items():
                found[sampler][key].append(value)
    of_one = {sampler: {key: _of_one(v) for key, v in scores.items()} for sampler, scores in found.items()}
    of_two = {
        f"{a} - {b}": {key: _of_two(v, found[b][key]) for key, v in found[a].items()}
        for a, b in itertools.combinations(found, 2)
    }
    return {"sizes": [train, n, m], "alone": of_one, "paired": of_two}


def _of_one(scores: list[Score]) -> float | None:
    return _ratio([float(s.value) for s in scores], [s.estimate.error for s in scores])


def _of_two(a: list[Score], b: list[Score]) -> float | None:
    pairs = list(zip(a, b, strict=True))
    return _ratio([float(p.value - q.value) for p, q in pairs], [difference_error(p, q) for p, q in pairs])


def _ratio(values: list[float], errors: list[float]) -> float | None:
    spread = float(np.std(values, ddof=1))
    return float(np.sqrt(np.mean(np.square(errors)))) / spread if spread > 0 else None


def table(found: dict[str, dict[str, float | None]]) -> list[list[str]]:
    """A row for each measure, a column for each sampler."""
    keys = [key for key in MEASURES if any(key in row for row in found.values())]
    cells = [[MEASURES[key].title, *(f"{r:.2f}" if (r := row.get(key)) else "–" for row in found.values())]
             for key in keys]  # fmt: skip
    return [["Printed error / spread", *found], *cells]


def main() -> None:
    """Measure, print and keep."""
    torch.set_num_threads(1)
    started, results = time.perf_counter(), {}
    for name in LAWS:
        results[name] = ratios(name)
        keep(results, time.perf_counter() - started)


def keep(results: dict[str, dict[str, Any]], seconds: float) -> None:
    """Write what is known so far."""
    alone = [r for found in results.values() for row in found["alone"].values() for r in row.values() if r]
    line = (
        f"printed errors are {min(alone):.2f} to {max(alone):.2f} of the spread over {REPETITIONS} draws "
        f"({sum(0.8 <= r <= 1.25 for r in alone)} of {len(alone)} within 0.8 and 1.25)"
    )
    write_result("standard_errors", line, {"machine": machine(), "seconds": seconds, "laws": results})
    titles = {"alone": "values", "paired": "differences on the same test examples"}
    parts = {f"{name}, {kind} ({found['sizes'][1]} samples, {found['sizes'][2]} test examples)": table(found[key])
             for name, found in results.items() for key, kind in titles.items()}  # fmt: skip
    write_markdown("standard_errors", line, parts)


if __name__ == "__main__":
    main()
