"""Transformer blocks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class CausalBlock(nn.Module):
    """A pre-norm decoder block: causal self-attention (survey Eq. 27), then an MLP; `(B, T, width)` to the same.

    Args:
        width: of the features.
        heads: of the attention; must divide the width.
        dropout: share of each branch's outputs that is dropped in training.
        expansion: hidden units of the MLP, as a multiple of the width.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, expansion: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(x)
        return self._rest(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def step(self, x: Tensor, cache: tuple[Tensor, Tensor], position: int) -> Tensor:
        """`forward` at one `position`, `(B, 1, width)`; `cache` keeps keys and values, `(B, heads, T, head)`."""
        q, k, v = self._heads(x)
        keys, values = cache
        keys[:, :, position], values[:, :, position] = k[:, :, 0], v[:, :, 0]
        seen = slice(0, position + 1)
        return self._rest(x, F.scaled_dot_product_attention(q, keys[:, :, seen], values[:, :, seen]))

    def empty_cache(self, n: int, length: int) -> tuple[Tensor, Tensor]:
        """For `n` examples of `length` positions."""
        width = self.merge.in_features
        zeros = self.merge.weight.new_zeros(2, n, self.heads, length, width // self.heads)
        return zeros[0], zeros[1]

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(self.merge(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.mlp(self.before_mlp(x)))
