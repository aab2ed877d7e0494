"""The table, its ranking and advice, and the page."""

import re
import shutil

import numpy as np
import pytest
from rich.console import Console

from fivefold.report import advice, columns, page, pictures, terminal
from fivefold.space import Column, Space

IMAGE = Space("image", (1, 8, 8), levels=17, layout="HW", name="digits")
PLANE = Space("table", (2,), columns=(Column("x"), Column("y")), name="moons")
MIXED = Space("table", (2,), columns=(Column("<b>age</b>", "integer", levels=9), Column("income")), name="people")
TEXT = Space("text", (12,), levels=3, symbols="<b>", name="words")
AUDIO = Space("audio", (800,), levels=65536, rate=8000, name="tones")


def row(label, family="flow", kind="exact", bits=2.0, frechet=1.0, *, error=0.02, rate=1000.0, seed=0, **fields):
    """A finished row with the given headline numbers."""
    density = {"kind": kind} if kind in ("none", "unnormalised") else {
        "kind": kind, "note": "16 samples" if kind == "lower bound" else "", "nats": -44.4 * bits,
        "standard_error": 0.3, "bits_per_dim": bits, "bits_error": error, "examples": 300,
    }  # fmt: skip
    floors = {"frechet": 0.3, "kernel": 0.0, "recall": 0.8, "two_sample_accuracy": 0.5, "memorisation": 0.5}
    values = {
        "frechet": frechet,
        "kernel": frechet / 9,
        "recall": 0.8 / frechet,
        "two_sample_accuracy": 0.6,
        "memorisation": 0.5,
    }
    return {
        "system": label, "title": label.upper(), "family": family, "label": label, "seed": seed, "status": "ok",
        "error": None, "command": f"fivefold train {label} --data digits --budget 30s", "density": density,
        "quality": {"features": "a small classifier of the training data", "samples": 500, "reference": 300,
                    **{k: {"value": v, "error": 0.05 * v, "floor": floors[k]} for k, v in values.items()}},
        "cost": {"train_examples_per_second": 9e3, "seconds_to_best": 21.0, "budget_seconds": 30.0,
                 "sample_per_second_1": rate / 50, "sample_per_second_64": rate, "sample_evaluations": 1,
                 "parameters": 123_456, "peak_memory_bytes": 5e8},
        "stars": {"training": 2, "sampling": 5, "parameters": 5, "resolution": 1},
        "facts": {"free_form_jacobian": False, "exact_density": "yes"},
        "curves": {"loss": [[s, 5 / (1 + s)] for s in range(30)], "validation": [[s, 3 / (1 + s)] for s in range(0, 30, 3)]},
        **fields,
    }  # fmt: skip


def failed(label="broken", status="failed", error="ValueError: <script>alert(1)</script>"):
    return {
        "system": label,
        "label": label,
        "family": "gan",
        "seed": 0,
        "status": status,
        "error": error,
        "command": "x",
    }


ELEVEN = [
    row("rbm", "energy", "estimate", 2.9, 6.0, rate=310),
    row("igebm", "energy", "unnormalised", frechet=4.2, rate=85),
    row("ddpm", "diffusion", "lower bound", 3.1, 1.1, rate=140),
    row("vae", "vae", "lower bound", 2.31, 3.4, rate=51_000),
    row("vq-vae", "vae", "lower bound", 2.6, 1.9, rate=2_300),
    row("dcgan", "gan", "none", frechet=1.4, rate=44_000),
    row("gated-pixelcnn", "autoregressive", "exact", 1.86, 0.9, error=0.02, rate=420),
    row("transformer", "autoregressive", "exact", 1.89, 1.0, error=0.02, rate=610),
    row("made", "autoregressive", "exact", 2.12, 2.6, rate=1_500),
    failed("realnvp", "diverged", "the loss of model was not finite at step 310, four times"),
    row("spline-flow", "flow", "lower bound", 2.05, 1.8, rate=8_400),
]


def content(space=IMAGE, rows=ELEVEN, n=64):
    """A page's content with random samples of the space."""
    rng = np.random.default_rng(0)
    draw = {
        "image": lambda: rng.integers(0, space.levels or 1, (n, *space.shape)),
        "table": lambda: np.stack([rng.integers(0, 9, n), rng.normal(size=n)], 1).astype(np.float32),
        "text": lambda: rng.integers(0, 3, (n, *space.shape)),
        "audio": lambda: rng.integers(0, 65536, (n, *space.shape)),
    }[space.kind]
    arrays = {r["label"]: {"samples": draw()} for r in rows if r["status"] == "ok"}
    if space is PLANE:
        arrays[rows[0]["label"]]["density"] = rng.normal(size=(20, 20))
    settings = {
        "data": {"name": space.name, "source": space.name, "fingerprint": "0123abcd"}, "space": space.to_json(),
        "budget": "30s", "machine": "2 cores", "notes": ["<i>labels</i> left out"],
        "sizes": {"train": 1257, "valid": 270, "test": 270}, "versions": {"fivefold": "0.1", "torch": "2", "python": "3"},
    }  # fmt: skip
    return page.Content(settings, list(rows), draw(), arrays)
