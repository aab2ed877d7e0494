"""Chains that go on from one training step to the next."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fivefold.tools.diffusion import rows


class ReplayBuffer(nn.Module):
    """Where chains ended, with their conditions and ages in training steps (-1: none yet).

    Args:
        size: how many.
        shape: of a state.
        condition: shape of a condition; (0,) for none.
    """

    chains: Tensor
    conditions: Tensor
    ages: Tensor

    def __init__(self, size: int, shape: tuple[int, ...], condition: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("chains", torch.zeros(size, *shape))
        self.register_buffer("conditions", torch.zeros(size, *condition))
        self.register_buffer("ages", torch.full((size,), -1))

    def __len__(self) -> int:
        return len(self.ages)

    def draw(
        self, slots: Tensor, fresh: Tensor, condition: Tensor | None, reset_rate: float, reach: float = math.inf
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """States `(n, ...)`, conditions and ages `(slots,)`: of the slots, and `fresh` ones for the rest and the reset.

        Args:
            slots: whose chains go on; not more than `fresh`.
            fresh: states `(n, ...)`.
            condition: of the fresh ones, `(n, ...)`.
            reset_rate: share of the slots that start afresh.
            reach: a chain with a number beyond it starts afresh.
        """
        count = len(slots)
        gone = self.chains[slots].flatten(1).abs().amax(1) > reach
        reset = (torch.rand(count, device=slots.device) < reset_rate) | (self.ages[slots] < 0) | gone
        chains = torch.cat([rows_where(reset, fresh[:count], self.chains[slots]), fresh[count:]])
        if condition is not None:
            kept = rows_where(reset, condition[:count].to(self.conditions), self.conditions[slots]).to(condition)
            condition = torch.cat([kept, condition[count:]])
        return chains, condition, self.ages[slots].masked_fill(reset, 0)

    def put(self, slots: Tensor, chains: Tensor, condition: Tensor | None, ages: Tensor) -> None:
        """Write back what the slots' chains, the first of all, have become."""
        self.chains[slots], self.ages[slots] = chains[: len(slots)], ages
        if condition is not None:
            self.conditions[slots] = condition[: len(slots)].to(self.conditions)

    def like(self, fresh: Tensor, condition: Tensor | None) -> Tensor:
        """Random chains `(n, ...)`, each of the wanted condition; the `fresh` one where there is none."""
        fits = (self.ages > 0).expand(len(fresh), -1)
        if condition is not None:
            wanted = condition.to(self.conditions).flatten(1)
            fits = fits & (wanted[:, None] == self.conditions.flatten(1)).all(2)
        found = fits.any(1)
        slots = torch.multinomial(torch.where(found[:, None], fits, True).float(), 1).squeeze(1)
        return rows_where(found, self.chains[slots], fresh)


def rows_where(mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Rows of x where `mask` `(B,)`, of y elsewhere."""
    return torch.where(rows(mask, x), x, y)
