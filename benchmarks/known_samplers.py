"""Samplers whose right order is known.

python -m benchmarks.known_samplers
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.data import Data, Split, load_data
from fivefold.tools.baselines import IndependentDims

SAMPLES = 500  # of each sampler and of the test split; fewer where a third of the data is fewer
SLIGHT = 0.1  # of a column's standard deviation; one level of images


def split_anew(name: str, seed: int) -> Data:
    """An embedded set with labels, cut anew: `valid` and `test` have as many examples as each sampler draws."""
    data = load_data(name, condition="label")
    x, label = whole(data)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    n = min(SAMPLES, len(x) // 3)
    pieces = order[2 * n :], order[:n], order[n : 2 * n]
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
