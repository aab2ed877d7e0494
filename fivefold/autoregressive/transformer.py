"""Transformer: attention over everything that came before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.autoregressive._system import AutoregressiveSystem
from fivefold.nets.attention import CausalBlock
from fivefold.nets.condition import ConditionEmbedding
from fivefold.nets.embedding import DimEmbedding
from fivefold.nets.heads import Likelihood
from fivefold.space import Space
from fivefold.system import Density, Unfit

LONGEST = 16_384  # positions


class Transformer(AutoregressiveSystem):
    """Transformer (survey 5.1.4, Eq. 27; Vaswani et al., 2017).

    A decoder of pre-norm blocks over pixels (each colour a position), characters, audio samples or columns.
    The input at a position is the value before it and what is to be predicted there: learned embeddings, for
    images of row, column and colour.

    Args:
        space: what the examples are.
        width: of the features.
        layers: decoder blocks.
        heads: of the attention.
        dropout: share of each branch's outputs that is dropped in training.
        mixtures: components where an output is a mixture of logistics.
        likelihood: distribution of each dimension: auto | categorical | logistic-mixture | gaussian.
    """

    densities: ClassVar[dict[str, Density]] = {
        "image": Density.EXACT,
        "table": Density.EXACT,
        "text": Density.EXACT,
        "audio": Density.EXACT,
    }
    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "autoregressive"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"lr": 3e-3, "batch_size": 32, "ema": 0.995, "clip": 100.0}
    }

    order: Tensor

    def __init__(
        self,
        space: Space,
        *,
        width: int = 64,
        layers: int = 4,
        heads: int = 4,
        dropout: float = 0.1,
        mixtures: int = 8,
        likelihood: Likelihood = "auto",
    ) -> None:
        super().__init__(space, mixtures, likelihood)
        dims = space.dims
        if dims > LONGEST:
            gigabytes = heads * dims**2 * 4 / 2**30
            raise Unfit(
                f"Transformer attends to every pair of positions: {dims:,} of them would take {gigabytes:,.0f} GiB "
                f"a layer and example; the longest it takes is {LONGEST:,}"
            )
        self.register_buffer("order", _raster(space), persistent=False)
        self.embedding = DimEmbedding(space, width, scale=0.3)
        self.position = _Position(space, width)
        self.condition = ConditionEmbedding(space.condition, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(CausalBlock(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, self.head.width)

    def conditionals(self, x: Tensor, condition: Tensor | None) -> Tensor:
        before = F.pad(self.embedding(x)[:, self.order[:-1]], (0, 0, 1, 0))
        h = self.dropout(before + self._given(condition))
        for block in self.blocks:
            h = block(h)
        return self.last(self.norm(h))[:, self.order.argsort()]

    def _given(self, condition: Tensor | None) -> Tensor:
        """What each position knows besides earlier values: where it is, and the condition; `(B or 1, D, width)`."""
        where = self.position()[None, self.order]
        context = self.condition(condition)
        return where if context is None else where + context[:, None]

    def _order(self) -> Iterable[int]:
        return self.order.tolist()

    def _sample_from(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        x, given = self._blank(len(noise)), self._given(condition)
        caches = [block.empty_cache(*noise.shape[:2]) for block in self.blocks]  # type: ignore[operator]
        before = noise.new_zeros(len(noise), 1, given.shape[-1])
        for position, dim in enumerate(self._order()):
            h = before + given[:, position, None]
            for block, cache in zip(self.blocks, caches, strict=True):
                h = block.step(h, cache, position)  # type: ignore[operator]
            x[:, dim] = self.head.sample_dim(dim, self.last(self.norm(h))[:, 0], noise[:, dim])
            before = self.embedding.of(slice(dim, dim + 1), x[:, dim : dim + 1])
        return x


class _Position(nn.Module):
    """Learned vectors `(D, width)` of the flattened dimensions; for images a sum over colour, row and column."""

    def __init__(self, space: Space, width: int) -> None:
        super().__init__()
        self.axes = nn.ParameterList(nn.Parameter(0.3 * torch.randn(n, width)) for n in space.shape)

    def forward(self) -> Tensor:
        total = self.axes[0]
        for axis in self.axes[1:]:
            total = total.unsqueeze(-2) + axis
        return total.flatten(0, -2)


def _raster(space: Space) -> Tensor:
    """Flattened dimensions in order: of images pixel by pixel, its colours together."""
    dims = torch.arange(space.dims)
    return dims.view(space.shape[0], -1).T.flatten() if space.kind == "image" else dims
