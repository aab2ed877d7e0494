"""The contract of the parts of a flow, and their composition (survey Eq. 29, 30)."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Bijection(nn.Module, ABC):
    """An invertible, differentiable map of examples, possibly given a condition.

    Both directions return the image and ln |det Jacobian| `(B,)` in nats of that direction, so the
    log-determinant of `inverse` at y is minus that of `forward` at the same pair.
    """

    @abstractmethod
    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data towards noise."""

    @abstractmethod
    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise towards data."""


class Chain(Bijection):
    """One bijection after another; log-determinants add (survey Eq. 30).

    Args:
        parts: in the order in which `forward` applies them.
    """

    def __init__(self, *parts: Bijection) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for part in self.parts:
            x, term = part(x, condition)
            log_det = log_det + term
        return x, log_det

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = y.new_zeros(len(y))
        for part in reversed(self.parts):
            y, term = part.inverse(y, condition)  # type: ignore[operator]
            log_det = log_det + term
        return y, log_det


def sum_dims(values: Tensor) -> Tensor:
    """Sum over all but the first dimension: `(B, ...)` to `(B,)`."""
    return values.flatten(1).sum(1)
