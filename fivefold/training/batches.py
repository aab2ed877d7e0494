"""The order of examples: a function of seed and step alone, so that nothing of it need be stored."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from fivefold.data.splits import Split
from fivefold.errors import RunError
from fivefold.space import Batch
from fivefold.training import ranks


class Batches:
    """The batches of each step, in epochs of random order.

    Args:
        split: what they are drawn from.
        size: examples of a batch, over all ranks and parts.
        parts: micro-batches of a rank.
        seed: of the order.
        balanced: whether every class of the condition is drawn equally often, the examples of each in turn.
    """

    def __init__(self, split: Split, size: int, parts: int, seed: int, balanced: bool = False) -> None:
        self.split, self.parts, self.seed, self.examples = split, parts, seed, len(split)
        self.size = min(size, self.examples)
        share = ranks.world() * parts
        if self.size % share:
            raise RunError(f"batch size {self.size} does not divide into {ranks.world()} ranks x {parts} micro-batches")
        self.epoch, self.order = -1, torch.empty(0)
        self.members = _by_class(split) if balanced else []
        self.pool = ThreadPoolExecutor(1) if split.x is None else None
        self.ahead: tuple[int, Future[list[Batch]]] | None = None

    def at(self, step: int) -> list[Batch]:
        """The micro-batches of this rank at `step`; read ahead where they come from disk."""
        if self.pool is None:
            return self._read(step)
        ready = self.ahead[1] if self.ahead and self.ahead[0] == step else self.pool.submit(self._read, step)
        batches = ready.result()
        self.ahead = (step + 1, self.pool.submit(self._read, step + 1))
        return batches

    def _read(self, step: int) -> list[Batch]:
        mine = self._indices(step)
        if ranks.world() > 1:
            mine = mine.chunk(ranks.world())[ranks.rank()]
        return [self.split.batch(part) for part in (mine.chunk(self.parts) if self.parts > 1 else (mine,))]

    def _indices(self, step: int) -> Tensor:
        epoch, first = divmod(step * self.size, self.examples)
        self._permute(epoch)
        index = self.order[first : first + self.size]
        if len(index) < self.size:  # the batch runs on into the next epoch
            self._permute(epoch + 1)
            index = torch.cat([index, self.order[: self.size - len(index)]])
        return index

    def _permute(self, epoch: int) -> None:
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch, 1))
            device = "cpu" if self.split.x is None else self.split.x.device
            order = _balanced(self.members, self.examples, generator) if self.members else None
            self.order = (torch.randperm(self.examples, generator=generator) if order is None else order).to(device)
            self.epoch = epoch


def _by_class(split: Split) -> list[Tensor]:
    """The examples of every class of the condition, by position."""
    if split.condition is None:
        raise RunError("balance needs a condition, whose classes are drawn equally often: name one (--condition)")
    classes, index = split.condition.flatten(1).unique(dim=0, return_inverse=True)
    if len(classes) > len(split) / 2:
        raise RunError(f"balance needs classes: the condition has {len(classes):,} values in {len(split):,} examples")
    return [(index == i).nonzero()[:, 0].cpu() for i in range(len(classes))]


def _balanced(members: list[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """`count` positions: classes drawn alike, and of each its examples in random order again and again."""
    chosen = torch.randint(len(members), (count,), generator=generator)
    order = torch.empty(count, dtype=torch.long)
    for i, own in enumerate(members):
        places = (chosen == i).nonzero()[:, 0]
        rounds = [own[torch.randperm(len(own), generator=generator)] for _ in range(-(-len(places) // len(own)))]
        order[places] = torch.cat([*rounds, own[:0]])[: len(places)]
    return order


def mix(*numbers: int) -> int:
    """A 63-bit hash of small numbers (splitmix64's multipliers), so that neighbouring seeds are unrelated."""
    mixed = 0
    for number in numbers:
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        mixed ^= mixed >> 31
    return mixed >> 1
