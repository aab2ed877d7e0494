"""What the trainer costs beside a bare PyTorch loop: the same model, optimiser, batches and number of steps.

Alternating runs in one process; the ratio of medians is the claim (at most 1.10 on a step of about 0.4 ms).
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import machine, write_result
from fivefold import Batch, Density, System, load_data, option
from fivefold.data import Data
from fivefold.training.trainer import Trainer

STEPS, ROUNDS, BATCH = 6000, 7, 64


class TinyRegression(System):
    """A two-layer autoencoder with a Gaussian error: a step of about 0.4 ms."""

    densities = {"table": Density.UNNORMALISED}

    hidden: int = option(768, "units", least=1)

    def build(self) -> None:
        dims = self.space.dims
        self.net = nn.Sequential(nn.Linear(dims, self.hidden), nn.ReLU(), nn.Linear(self.hidden, dims))

    def loss(self, batch: Batch) -> Tensor:
        return (self.net(batch.x) - batch.x).square().mean()

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return torch.randn(n, *self.space.shape)


def bare(data: Data) -> float:
    """Seconds of a plain loop over permuted in-memory tensors."""
    torch.manual_seed(0)
    model, x = TinyRegression(data.space), data.train.x
    assert x is not None
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    started, order, position = time.perf_counter(), torch.randperm(len(x)), 0
    for _ in range(STEPS):
        if position + BATCH > len(x):
            order, position = torch.randperm(len(x)), 0
        batch = x[order[position : position + BATCH]]
        position += BATCH
        loss = model.loss(Batch(batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()
    return time.perf_counter() - started


def trained(data: Data) -> float:
    """Seconds of the trainer's clock for the same steps, its guard, logging and bookkeeping included."""
    torch.manual_seed(0)
    system = TinyRegression(data.space)
    trainer = Trainer(system, data, None, lambda event: None, budget=f"{STEPS}steps", batch_size=BATCH, evaluations=1)
    trainer.train()
    return trainer.seconds


def main() -> None:
    torch.set_num_threads(2)
    data = load_data(np.random.default_rng(0).normal(size=(20_000, 64)))
    bare(data), trained(data)
    pairs = [(bare(data), trained(data)) for _ in range(ROUNDS)]
    plain, ours = (statistics.median(side) / STEPS * 1e3 for side in zip(*pairs, strict=True))
    ratios = sorted(b / a for a, b in pairs)
    write_result(
        "trainer",
        f"bare loop {plain:.3f} ms a step, trainer {ours:.3f} ms: ratio {ours / plain:.3f} "
        f"(pairs {ratios[0]:.3f} to {ratios[-1]:.3f})",
        {"bare_ms": plain, "trainer_ms": ours, "ratio": ours / plain, "pairs": ratios, "machine": machine()},
    )


if __name__ == "__main__":
    main()
