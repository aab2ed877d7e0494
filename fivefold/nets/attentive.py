"""The coupling network of Flow++: gated convolutions and self-attention (Ho et al., 2019, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.errors import OptionError
from fivefold.nets.attention import attend
from fivefold.nets.coders import zero
from fivefold.nets.conditioner import ConditionedLayer


class AttentiveNet(nn.Module):
    """`(B, inputs, *spatial)` and a condition to `(B, outputs, *spatial)`; 0 at first.

    Blocks of a gated convolution and, where there is more than one position, gated attention over all of them, each
    with the identity beside it and a layer norm after it. Where `spatial` is empty, layers are fully connected.

    Args:
        inputs: channels in; may be 0.
        outputs: channels out.
        spatial: (H, W) of maps, () of vectors.
        hidden: channels between, a multiple of `heads`.
        blocks: how many.
        heads: of the attention.
        condition: channels of the condition, `(B, condition)` or maps `(B, condition, H, W)`; 0 for none.
        dropout: within each block.

    Raises:
        ValueError: where the heads do not divide the channels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        spatial: tuple[int, ...] = (),
        hidden: int = 32,
        blocks: int = 2,
        heads: int = 4,
        condition: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if hidden % heads:
            raise OptionError(f"{hidden} hidden channels cannot be shared by {heads} heads of attention")
        self.first = ConditionedLayer(inputs, hidden, spatial)
        attends = len(spatial) > 0 and spatial != (1, 1)
        self.position = nn.Parameter(0.01 * torch.randn(hidden, *spatial)) if attends else None
        parts: list[nn.Module] = []
        for _ in range(blocks):
            parts += [_GatedConvolution(hidden, spatial, condition, dropout), _ChannelNorm(hidden)]
            parts += [_GatedAttention(hidden, heads, dropout), _ChannelNorm(hidden)] if attends else []
        self.parts = nn.ModuleList(parts)
        self.last = zero(ConditionedLayer(hidden, outputs, spatial))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.first(x)
        for part in self.parts:
            h = part(h, self.position if isinstance(part, _GatedAttention) else condition)
        return self.last(h)


class GatedContext(nn.Module):
    """`(B, inputs, *spatial)` and a condition to maps `(B, outputs, *spatial)` that other networks are given.

    A layer and gated convolutions after it.

    Args:
        inputs: channels in.
        outputs: channels out, and between.
        spatial: (H, W) of maps, () of vectors.
        blocks: gated convolutions.
        condition: width of the condition, 0 for none.
        dropout: within each of them.
    """

    def __init__(
        self, inputs: int, outputs: int, spatial: tuple[int, ...], blocks: int, condition: int, dropout: float
    ) -> None:
        super().__init__()
        self.first = ConditionedLayer(inputs, outputs, spatial)
        self.parts = nn.ModuleList(_GatedConvolution(outputs, spatial, condition, dropout) for _ in range(blocks))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.first(x)
        for part in self.parts:
            h = part(h, condition)
        return h


class _GatedConvolution(nn.Module):
    """x + a sigmoid(b), a and b of two layers with a concatenated ELU before each; x alone at first."""

    def __init__(self, width: int, spatial: tuple[int, ...], condition: int, dropout: float) -> None:
        super().__init__()
        self.wide = ConditionedLayer(2 * width, width, spatial)
        self.context = _narrow(2 * condition, width, spatial) if condition else None
        self.dropout = nn.Dropout(dropout)
        self.narrow = zero(_narrow(2 * width, 2 * width, spatial))

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h = self.wide(_concat_elu(x))
        if self.context is not None and condition is not None:
            condition = condition.view(*condition.shape, *[1] * (x.dim() - condition.dim()))
            h = h + self.context(_concat_elu(condition))
        return x + F.glu(self.narrow(self.dropout(_concat_elu(h))), 1)


class _GatedAttention(nn.Module):
    """x + a sigmoid(b), a and b of what all positions say to each; x alone at first."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.dropout = nn.Conv2d(width, 3 * width, 1), nn.Dropout(dropout)
        self.narrow = zero(nn.Conv2d(width, 2 * width, 1))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        qkv = self.qkv(x + position).flatten(2).unflatten(1, (3, self.heads, -1))
        h = attend(*qkv.transpose(3, 4).contiguous().unbind(1)).transpose(2, 3).reshape(x.shape)
        return x + F.glu(self.narrow(self.dropout(h)), 1)


class _ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of `(B, C, ...)`."""

    def forward(self, x: Tensor, _: Tensor | None) -> Tensor:  # type: ignore[override]
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def _narrow(inputs: int, outputs: int, spatial: tuple[int, ...]) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 1) if spatial else nn.Linear(inputs, outputs)


def _concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], 1))
