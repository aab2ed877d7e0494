"""Data: embedded sets by name, the user's own by path."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from fivefold.data.splits import Data, Split
from fivefold.space import DataError, Space, label_space

__all__ = ["Data", "DataError", "Split", "load_data"]


def load_data(source: Any = "digits", *, condition: str | None = None) -> Data:
    from sklearn.datasets import load_digits

    raw = load_digits()
    x, y = torch.tensor(raw.images).to(torch.uint8)[:, None], torch.tensor(raw.target).float()[:, None]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    space = Space("image", (1, 8, 8), levels=17, layout="HW", name="digits")
    if condition:
        space = space.conditioned_on(label_space(tuple(range(10))))
    a, b = int(len(x) * 0.75), int(len(x) * 0.85)
    parts = [Split(len(i), x[i], y[i] if condition else None) for i in (order[:a], order[a:b], order[b:])]
    return Data("digits", space, *parts, hashlib.sha256(x.numpy().tobytes()).hexdigest()[:16], "digits")
