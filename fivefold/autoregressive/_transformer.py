"""What the transformers share: a stack of causal blocks over the dimensions in raster order (survey 5.1.4)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.autoregressive._system import AutoregressiveSystem
from fivefold.nets.attention import CausalBlock
from fivefold.nets.condition import ConditionEmbedding
from fivefold.nets.embedding import DimEmbedding, Position
from fivefold.nets.states import States
from fivefold.options import depth_option, dropout_option, option, width_option
from fivefold.space import Space


class TransformerSystem(AutoregressiveSystem):
    """A decoder over pixels (each colour a position), characters, audio samples or columns.

    The input at a position is the value before it and what is to be predicted there: learned embeddings, for
    images of row, column and colour.
    """

    order: Tensor

    width: int = width_option(64, "of the features", tune=(8, 256))
    layers: int = depth_option(4, "decoder blocks", tune=(1, 16))
    heads: int = option(4, "of the attention", least=1, tune=(1, 2, 4, 8))
    dropout: float = dropout_option(0.1, "share of each branch's outputs that is dropped in training")

    def build(self) -> None:
        blocks = self.make_blocks()
        super().build()
        self.register_buffer("order", _raster(self.space), persistent=False)
        self.embedding = DimEmbedding(self.space, self.width, scale=0.3)
        self.position = Position(self.space, self.width)
        self.condition = ConditionEmbedding(self.space.condition, self.width)
        self.drop = nn.Dropout(self.dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(self.width)
        self.last = nn.Linear(self.width, self.head.width)

    @abstractmethod
    def make_blocks(self) -> list[CausalBlock]:
        """The decoder's blocks."""

    def conditionals(self, x: Tensor, condition: Tensor | None, extra: Tensor | float = 0.0) -> Tensor:
        """As every autoregressive system; `extra` `(B, 1, width)` is told to every position."""
        before = F.pad(self.embedding(x)[:, self.order[:-1]], (0, 0, 1, 0))
        h = self.drop(before + self._given(condition) + extra)
        for block in self.blocks:
            h = block(h)
        return self.last(self.norm(h))[:, self.order.argsort()]

    def shards(self) -> list[nn.Module]:
        """Block by block."""
        return list(self.blocks)

    def _given(self, condition: Tensor | None) -> Tensor:
        """What each position knows besides earlier values: where it is, and the condition; `(B or 1, D, width)`."""
        where = self.position()[None, self.order]
        context = self.condition(condition)
        return where if context is None else where + context[:, None]

    def _order(self) -> Iterable[int]:
        return self.order.tolist()

    def states(self, n: int, condition: Tensor | None) -> States:
        return _States(self, n, condition)


class _States:
    """Keys and values of all positions so far, and what the next one sees of the value before it."""

    def __init__(self, net: TransformerSystem, n: int, condition: Tensor | None) -> None:
        self.net, self.given, self.position = net, net._given(condition), 0
        self.blocks: list[CausalBlock] = list(net.blocks)  # type: ignore[arg-type]
        self.caches = [block.empty_cache(n, net.space.dims) for block in self.blocks]
        self.before = self.given.new_zeros(n, 1, self.given.shape[-1])

    def params(self, dim: int) -> Tensor:
        h = self.before + self.given[:, self.position, None]
        for block, cache in zip(self.blocks, self.caches, strict=True):
            h = block.step(h, cache, self.position)
        return self.net.last(self.net.norm(h))[:, 0]

    def add(self, dim: int, value: Tensor) -> None:
        self.before = self.net.embedding.of(slice(dim, dim + 1), value[:, None])
        self.position += 1


def _raster(space: Space) -> Tensor:
    """Flattened dimensions in order: of images pixel by pixel, its colours together."""
    dims = torch.arange(space.dims)
    return dims.view(space.shape[0], -1).T.flatten() if space.kind == "image" else dims
