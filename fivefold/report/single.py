"""What the page shows of one trained system."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fivefold.data import Data
from fivefold.evaluation.diagnostics import diagnose
from fivefold.evaluation.evaluate import TRAINING_EXAMPLES, evaluate, recoded
from fivefold.evaluation.features import Features, fit_features, gaps_shown
from fivefold.machine import versions
from fivefold.report import pictures
from fivefold.report.page import Arrays, Content
from fivefold.run import Run
from fivefold.space import Batch
from fivefold.system import Density, System
from fivefold.tools.metrics import distances, spread

_GRID = 64  # points a side of a density's picture
_SECONDS = 10.0  # for drawing a page's samples


def content(directory: Path, trust: str | None = None) -> Content:
    """The page's content for a run: measured now, on the run's own data."""
    run = Run.open(directory, trust=trust)
    data = run.load_data()
    row = evaluate(directory, data, trust=trust)
    row["diagnostics"] = diagnose(run.load_system(), data)
    settings = describe(data) | {"budget": run.record["budget"], "versions": run.record["versions"]}
    drawn = arrays(run.load_system(), data, row, fit_features(data))
    return Content(settings, [row], examples(data), {row["label"]: drawn})


def describe(data: Data) -> dict[str, Any]:
    """Of data and machine what a page says about them; JSON."""
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "data": {
            "name": data.name,
            "source": data.source,
            "fingerprint": data.fingerprint,
            "arguments": data.arguments,
        },
        "space": data.space.to_json(),
        "sizes": {"train": len(data.train), "valid": len(data.valid), "test": len(data.test)},
        "notes": list(data.notes),
        "entropy": data.entropy,
        "machine": f"{place}, {os.cpu_count()} cores",
        "versions": versions(),
    }


def examples(data: Data) -> pictures.Array:
    """Held-out examples, encoded: as many as a page shows."""
    return data.test.spread(pictures.shown(data.space.kind)).x.numpy()


def arrays(system: System, data: Data, row: dict[str, Any], features: Features) -> Arrays:
    """Samples of a system, encoded, with the training examples nearest to the first; in 2-D its log-density on a grid.

    The grid is that of `plane` over the held-out data.
    """
    n = pictures.shown(data.space.kind)
    n = max(min(n, int(_SECONDS * row["cost"]["sample_per_second_64"])), 4)
    condition = None
    if system.data_space.condition is not None:
        condition = data.test.spread(n).condition
        assert condition is not None
        condition = condition[torch.arange(n) % len(condition)].to(system.device)
    samples = system.sample_encoded(n, condition, seed=1).cpu()
    found: Arrays = {"samples": samples.numpy()}
    first = recoded(samples[: pictures.NEIGHBOURS[data.space.kind]], system.data_space, data.space)
    if gaps_shown(first, data.space).isfinite().all():
        found["nearest"] = nearest(first, data, features)
    if (
        pictures.is_plane(system.data_space)
        and system.density is not Density.NONE
        and system.data_space.condition is None
    ):
        x = torch.from_numpy(plane(examples(data))).float()
        found["density"] = system.score_encoded(Batch(x)).log_prob.view(_GRID, _GRID).numpy()
    return found


def nearest(x: torch.Tensor, data: Data, features: Features) -> pictures.Array:
    """For each of the encoded examples `x` the training example nearest to it in the features, encoded."""
    at = distances(features(x), features.of(data.train, TRAINING_EXAMPLES)).argmin(1)
    return data.train.batch(spread(torch.arange(len(data.train)), TRAINING_EXAMPLES)[at]).x.numpy()


def plane(real: pictures.Array) -> pictures.Array:
    """The points `(n * n, 2)` of the grid over the window of `real`, row by row upwards."""
    low, high = pictures.window(real)
    across, up = (np.linspace(low[i], high[i], _GRID) for i in (0, 1))
    return np.stack(np.meshgrid(across, up), -1).reshape(-1, 2)
