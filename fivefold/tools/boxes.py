"""Numbers confined to intervals, as numbers on the line, where chains move freely."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Box(NamedTuple):
    """Intervals from `low` to `high`, tensors of the states' shape; infinite where a number is free on the line.

    y = low + (high - low) sigmoid(u) takes the line to each finite one.
    """

    low: Tensor
    high: Tensor

    @property
    def bounded(self) -> Tensor:
        return self.low.isfinite()

    def inside(self, u: Tensor) -> Tensor:
        """y `(B, ...)`."""
        return torch.where(self.bounded, self._start + self._width * torch.sigmoid(u), u)

    def line(self, y: Tensor, eps: float = 1e-3) -> Tensor:
        """u; y at an end, or nearer to it than the width times eps, is taken for that point near it."""
        return torch.where(self.bounded, torch.logit((y - self._start) / self._width, eps=eps), y)

    def energy(self, energy: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Of an energy of y that of u: less ln |dy/du|, so that u has the law that makes y's exp(-E)."""

        def of_line(u: Tensor) -> Tensor:
            slope = self._width.log() + F.logsigmoid(u) + F.logsigmoid(-u)
            return energy(self.inside(u)) - torch.where(self.bounded, slope, 0.0).flatten(1).sum(1)

        return of_line

    @property
    def _start(self) -> Tensor:
        return torch.where(self.bounded, self.low, 0.0)

    @property
    def _width(self) -> Tensor:
        return torch.where(self.bounded, self.high - self.low, 1.0)
