"""Small systems that the trainer's tests train."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from fivefold import Batch, Density, System, Update, option


class Regression(System):
    """One player, no noise: a linear autoencoder, its parameters a function of the data alone."""

    densities = {"table": Density.UNNORMALISED}

    lr = 1e-2
    poison_at: int = option(-1, "the step whose loss is not a number")

    def build(self) -> None:
        self.net = nn.Linear(self.space.dims, self.space.dims)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        loss = (self.net(batch.x) - batch.x).square().mean()
        poisoned = loss * float("nan") if int(self.steps) == self.poison_at else loss
        yield Update(self, poisoned)
        self.steps += 1

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        return {self: torch.optim.SGD(self.parameters(), self.lr)}

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return self.net(torch.randn(n, *self.space.shape))

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return -(self.net(x) - x).square().sum(1)


class Game(System):
    """Two players and a running statistic that moves once a step by what `yield` returns."""

    densities = {"table": Density.NONE}

    lr = 1e-2

    def build(self) -> None:
        dims = self.space.dims
        self.critic, self.generator = nn.Linear(dims, 1), nn.Linear(2, dims)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("total", torch.zeros(dims))

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        with torch.no_grad():
            fake = self.generator(torch.randn(len(batch.x), 2))
        stats = {"count": torch.tensor(float(len(batch.x))), "sum": batch.x.sum(0)}
        summed = yield Update(self.critic, (self.critic(fake) - self.critic(batch.x)).mean(), stats)
        if summed is not None:
            self.seen += summed["count"]
            self.total += summed["sum"]
        yield Update(self.generator, -self.critic(self.generator(torch.randn(len(batch.x), 2))).mean())

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        return {player: torch.optim.SGD(player.parameters(), self.lr) for player in (self.critic, self.generator)}

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return self.generator(torch.randn(n, 2))


def follow(counts: np.ndarray, expected: np.ndarray, significance: float = 1e-4) -> bool:
    """Whether counts of cells agree with those expected, by a chi-square test; rare cells are counted together."""
    counts, expected = counts.astype(np.float64), expected.astype(np.float64)
    often = expected > 5
    observed, wanted = (np.append(part[often], part[~often].sum() + 1e-9) for part in (counts, expected))
    return bool(stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > significance)
