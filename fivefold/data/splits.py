"""A data set in three splits, each giving encoded batches by index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fivefold.space import Batch, Space

SHOWN = 30  # columns that a description lists


@dataclass(frozen=True, eq=False)  # equal is what is the same
class Split:
    """Examples of one split.

    Either `x` holds them encoded (possibly as uint8 or int32 to save memory), or `read` encodes those
    of an index tensor from a memory-mapped or on-disk source, so that a data set larger than memory trains.
    """

    size: int
    x: Tensor | None = None
    condition: Tensor | None = None
    read: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return self.size

    def batch(self, index: Tensor | slice) -> Batch:
        """Encoded examples at `index` (on the CPU unless the split was moved)."""
        if self.x is not None:
            x = self.x.index_select(0, index) if isinstance(index, Tensor) else self.x[index]
            x = x if x.is_floating_point() else x.long()
        else:
            assert self.read is not None
            x = self.read(index if isinstance(index, Tensor) else torch.arange(*index.indices(self.size)))
        return Batch(x, None if self.condition is None else self.condition[index])

    def spread(self, n: int) -> Batch:
        """At most `n` examples spread evenly over the split: always the same ones."""
        if n >= self.size:
            return self.batch(slice(None))
        return self.batch(torch.linspace(0, self.size - 1, n).round().long())

    def to(self, device: torch.device) -> Split:
        """Held on `device` where it is in memory."""
        if self.x is None:
            return self
        condition = None if self.condition is None else self.condition.to(device)
        return Split(self.size, self.x.to(device), condition)


@dataclass(frozen=True)
class Data:
    """A data set: its space (fitted on the training split), its splits and a fingerprint of its content.

    `source` is what the user named, so that a run can find the data again; `notes` are lines for people
    about what was inferred; `entropy` is that of the generating density in nats, where it is known: no
    model's mean log-probability exceeds its negative but by chance.
    """

    name: str
    space: Space
    train: Split
    valid: Split
    test: Split
    fingerprint: str
    source: str = ""
    notes: tuple[str, ...] = field(default=())
    entropy: float | None = None
    arguments: dict[str, Any] = field(default_factory=dict)  # `load_data(source, **arguments)` loads it again

    def describe(self) -> str:
        """Everything that was inferred, in lines for people."""
        sizes = f"{len(self.train):,} train, {len(self.valid):,} valid, {len(self.test):,} test"
        columns = [f"  {line}" for line in self.space.describe_columns()]
        shown = columns if len(columns) <= SHOWN else [*columns[:SHOWN], f"  and {len(columns) - SHOWN} columns more"]
        return "\n".join((f"{self.name}: {self.space.describe()}", *shown, sizes, *self.notes))
