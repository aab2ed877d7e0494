"""Transformer blocks, and which of the positions before it each position attends to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.errors import OptionError, Unfit

MOST_SCORES = 24.0  # GiB, of dense attention for one example in training


class Attending(NamedTuple):
    """What a layer of dense attention scores for one example: every query against every key, in all heads."""

    queries: int
    keys: int
    heads: int = 1


def refuse_dense(system: str, layers: Sequence[Attending], instead: str) -> None:
    """Raises `Unfit` where the scores of one example would pass MOST_SCORES in training.

    Every layer's are held, at 4 bytes, from the forward pass to the backward one, where two more of their size come
    beside the largest. A fused kernel holds none of them; but whether there is one depends on the device, the
    precision and the widths, and the work grows as the scores do.

    Args:
        system: its name.
        layers: all that are held at once.
        instead: what to take.
    """
    pairs = [math.prod(layer) for layer in layers]
    gibibytes = 4 * (sum(pairs) + 2 * max(pairs, default=0)) / 2**30
    if gibibytes > MOST_SCORES:
        raise Unfit(
            f"{system} attends densely, from {max(layer.queries for layer in layers):,} positions: without a fused "
            f"kernel the scores take {gibibytes:,.0f} GiB for one example in training, and it allows {MOST_SCORES:g}. "
            f"Take {instead}"
        )


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    """Scaled dot-product attention by torch's fused kernel, on processors always in single precision.

    There, in training, its bf16 kernel takes a third longer for 256 positions and ten times as long for 16; for 1,024
    it would take a sixth less.

    Args:
        q: queries `(..., T, head)`, contiguous: else all scores would be held.
        k: keys `(..., S, head)`.
        v: values `(..., S, head)`.
        mask: which of S each of T attends to.
        options: of torch's `scaled_dot_product_attention`.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask, **options)
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype), mask, **options).to(q.dtype)


class Pattern(Protocol):
    """Which positions a position attends to; of a causal block never one after it.

    `attend` takes queries, keys and values `(B, heads, T, head)` to `(B, heads, T, head)`, a position with
    nothing to attend to getting zeros; `seen` gives the same positions of one, as an index.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...
    def seen(self, position: int) -> slice | list[int]: ...


@dataclass(frozen=True)
class Everywhere:
    """All positions, those after it too: T^2 pairs. For blocks that need not be causal."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q.contiguous(), k, v)

    def seen(self, position: int) -> slice:
        return slice(None)


@dataclass(frozen=True)
class Dense:
    """All before it and itself (survey Eq. 27): T^2 / 2 pairs."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, is_causal=True)

    def seen(self, position: int) -> slice:
        return slice(0, position + 1)


@dataclass(frozen=True)
class Local:
    """The `stride` positions before it and itself: at most T * (stride + 1) pairs, computed as 2 T stride."""

    stride: int

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[2]
        q, k, v = (_rows(x, self.stride) for x in (q, k, v))
        k, v = (torch.cat([F.pad(x, (0, 0, 0, 0, 1, -1)), x], -2) for x in (k, v))  # the row before it, and its own
        offset = torch.arange(self.stride, device=q.device)
        near = torch.cat([offset >= offset[:, None], offset <= offset[:, None]], 1).repeat(q.shape[2], 1, 1)
        near[0, :, : self.stride] = False  # there is no row before the first
        return _unrows(attention(q, k, v, near), length)

    def seen(self, position: int) -> slice:
        return slice(max(0, position - self.stride), position + 1)


@dataclass(frozen=True)
class Strided:
    """Every `stride`-th position before it and itself, an image's column: T^2 / (2 stride) pairs."""

    stride: int

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[2]
        q, k, v = (_rows(x, self.stride).transpose(2, 3) for x in (q, k, v))
        return _unrows(attention(q, k, v, _causal(q)).transpose(2, 3), length)

    def seen(self, position: int) -> slice:
        return slice(position % self.stride, position + 1, self.stride)


@dataclass(frozen=True)
class Block:
    """Those of its own block of `stride` up to itself: T * stride / 2 pairs."""

    stride: int

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[2]
        q, k, v = (_rows(x, self.stride) for x in (q, k, v))
        return _unrows(attention(q, k, v, _causal(q)), length)

    def seen(self, position: int) -> slice:
        return slice(position - position % self.stride, position + 1)


@dataclass(frozen=True)
class Summary:
    """The last `cells` of every block of `stride` up to itself: T^2 cells / stride pairs."""

    stride: int
    cells: int

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[-2]
        kept = torch.tensor(self.seen(length - 1), dtype=torch.long, device=q.device)
        if not len(kept):
            return torch.zeros_like(v)
        before = kept <= torch.arange(length, device=q.device)[:, None]
        some = before.any(1, keepdim=True)
        # A softmax over nothing is not a number: such a row looks at anything and is then left out.
        return attend(q, k[:, :, kept], v[:, :, kept], before | ~some) * some

    def seen(self, position: int) -> list[int]:
        return [i for i in range(position + 1) if i % self.stride >= self.stride - self.cells]


class TransformerBlock(nn.Module):
    """A pre-norm block: self-attention (survey Eq. 27), then an MLP; `(B, T, width)` to the same.

    Args:
        width: of the features.
        heads: of the attention; must divide the width.
        dropout: share of each branch's outputs that is dropped in training.
        expansion: hidden units of the MLP, as a multiple of the width.
        patterns: what the heads attend to, an equal share of them each.
        key_width: of the queries and keys of all heads; the features' by default.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        expansion: int = 4,
        patterns: Sequence[Pattern] = (Everywhere(),),
        key_width: int | None = None,
    ) -> None:
        super().__init__()
        key_width = key_width or width
        if width % heads or key_width % heads:
            raise OptionError(f"width {width} and key width {key_width} must be multiples of {heads} heads")
        if heads % len(patterns):
            raise OptionError(f"{heads} heads cannot be shared by {len(patterns)} patterns of attention")
        self.heads, self.patterns, self.widths = heads, tuple(patterns), [key_width, key_width, width]
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, sum(self.widths)), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(x)
        shares = zip(*(h.chunk(len(self.patterns), 1) for h in (q, k, v)), strict=True)
        attended = [pattern.attend(*share) for pattern, share in zip(self.patterns, shares, strict=True)]
        return self._rest(x, torch.cat(attended, 1))

    def _heads(self, x: Tensor) -> list[Tensor]:
        parts = self.qkv(self.before_attention(x)).split(self.widths, -1)
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(self.merge(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.mlp(self.before_mlp(x)))


class CausalBlock(TransformerBlock):
    """A decoder block, whose positions see none after them; it can go on position by position.

    Args:
        width: of the features.
        heads: of the attention.
        dropout: share of each branch's outputs that is dropped in training.
        expansion: hidden units of the MLP, as a multiple of the width.
        patterns: what the heads attend to, all of them causal.
        key_width: of the queries and keys of all heads.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        expansion: int = 4,
        patterns: Sequence[Pattern] = (Dense(),),
        key_width: int | None = None,
    ) -> None:
        super().__init__(width, heads, dropout, expansion, patterns, key_width)

    def step(self, x: Tensor, cache: tuple[Tensor, Tensor], position: int) -> Tensor:
        """`forward` at one `position`, `(B, 1, width)`; `cache` keeps keys and values, `(B, heads, T, head)`."""
        q, k, v = self._heads(x)
        keys, values = cache
        keys[:, :, position], values[:, :, position] = k[:, :, 0], v[:, :, 0]
        shares = zip(*(h.chunk(len(self.patterns), 1) for h in (q, keys, values)), strict=True)
        attended = []
        for pattern, (q, keys, values) in zip(self.patterns, shares, strict=True):
            seen = pattern.seen(position)
            attended.append(attend(q, keys[:, :, seen], values[:, :, seen]))
        return self._rest(x, torch.cat(attended, 1).nan_to_num())  # nothing seen: zeros, as `attend` has it

    def empty_cache(self, n: int, length: int) -> tuple[Tensor, Tensor]:
        """For `n` examples of `length` positions."""
        zeros = [self.merge.weight.new_zeros(n, self.heads, length, w // self.heads) for w in self.widths[1:]]
        return zeros[0], zeros[1]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Of small blocks `(..., T, head)`, for which the library's has no fused kernel and takes twice as long.

    Every query must see something by the `mask`, which broadcasts to `(..., T, S)`.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.masked_fill(~mask, -math.inf).softmax(-1).to(v.dtype) @ v


def _causal(q: Tensor) -> Tensor:
    """Which of its block each place sees, `(T, T)`."""
    place = torch.arange(q.shape[-2], device=q.device)
    return place <= place[:, None]


def _rows(x: Tensor, stride: int) -> Tensor:
    """`(B, heads, T, head)` as `(B, heads, rows, stride, head)`, filled up at the end, where nothing looks."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % stride)).unflatten(2, (-1, stride))


def _unrows(x: Tensor, length: int) -> Tensor:
    return x.flatten(2, 3)[:, :, :length]
