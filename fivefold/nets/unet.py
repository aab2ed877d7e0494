"""Networks of a noisy example and its time: a U-Net for images, residual layers for tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.attention import attend
from fivefold.nets.coders import zero
from fivefold.nets.condition import ConditionEmbedding
from fivefold.space import Space

HEAD_WIDTH = 32  # narrower attention heads waste time


class TimeEmbedding(nn.Module):
    """Times in [0, 1] `(B,)`, with a condition where there is one, as `(B, width)`.

    Args:
        condition: the condition's Space, or None.
        width: of the embedding.
        features: sines and cosines of the time.
        fourier: standard deviation of random frequencies, in cycles a unit of time (which may then be any
            number); 0 takes a geometric progression.
    """

    frequencies: Tensor

    def __init__(self, condition: Space | None, width: int, features: int, fourier: float = 0.0) -> None:
        super().__init__()
        if fourier:
            frequencies = 2 * math.pi * fourier * torch.randn(features // 2)
        else:
            frequencies = 1000 * torch.exp(-math.log(10_000) * torch.linspace(0, 1, features // 2))
        self.register_buffer("frequencies", frequencies, persistent=fourier > 0)
        self.net = nn.Sequential(nn.Linear(features // 2 * 2, width), nn.SiLU(), nn.Linear(width, width))
        self.embed = ConditionEmbedding(condition, width)

    def forward(self, time: Tensor, condition: Tensor | None) -> Tensor:
        angles = time.float()[:, None] * self.frequencies
        embedding = self.net(torch.cat([angles.sin(), angles.cos()], 1))
        extra = self.embed(condition)
        return F.silu(embedding if extra is None else embedding + extra)


class TimedBlock(nn.Module):
    """x + f(x, time), f two 3x3 convolutions between which the time is added.

    Args:
        inputs: channels of x.
        outputs: channels of the result.
        time_width: of the time embedding.
        attend: with self-attention after it.
        dropout: before the second convolution.
    """

    def __init__(self, inputs: int, outputs: int, time_width: int, attend: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time_width, outputs)
        self.norm2, self.conv2 = group_norm(outputs), zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.attention = Attention(outputs) if attend else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        h = self.conv2(self.drop(F.silu(self.norm2(h))))
        return self.attention(self.skip(x) + h)


class Attention(nn.Module):
    """x + self-attention over all positions of `(B, C, H, W)`.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // HEAD_WIDTH, 1) if channels % HEAD_WIDTH == 0 else 1
        self.norm, self.qkv = group_norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, 3, self.heads, channels // self.heads, height * width)
        h = attend(*qkv.transpose(3, 4).contiguous().unbind(1))
        return x + self.out(h.transpose(2, 3).reshape(x.shape))


class UNet(nn.Module):
    """Images `(B, C, H, W)` and times `(B,)`, or one for all, to such images (Ho et al. 2020, appendix B).

    The sides are halved (rounding up) while the longer is above 4 and there are multipliers, so every size fits.
    Attention works at one resolution and in the middle.

    Args:
        space: of the images.
        channels: at full resolution.
        multipliers: of the channels at each resolution, the full one first.
        blocks: residual blocks per resolution on the way down; one more on the way up.
        attention: resolution (the longer side) whose blocks attend to all positions; 0 for the lowest.
        dropout: in residual blocks.
        inputs: channels in; those of the space unless given.
        outputs: channels out; as many as go in unless given.
    """

    def __init__(
        self,
        space: Space,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 1,
        attention: int = 0,
        dropout: float = 0.0,
        inputs: int | None = None,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        image_channels, *sides = space.shape
        image_channels = inputs or image_channels
        halvings = min(len(multipliers) - 1, max(math.ceil(math.log2(max(sides) / 4)), 0))
        widths = [multiplier * channels for multiplier in multipliers[: halvings + 1]]
        attends = [-(-max(sides) // 2**i) == attention or (not attention and i == halvings) for i in range(len(widths))]

        def block(inputs: int, outputs: int, attend: bool) -> TimedBlock:
            return TimedBlock(inputs, outputs, 4 * channels, attend, dropout)

        self.time = TimeEmbedding(space.condition, 4 * channels, channels)
        self.first = nn.Conv2d(image_channels, channels, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        current, skips = channels, [channels]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(block(current, width, attends[level]))
                skips.append(current := width)
            if level < halvings:
                self.down.append(nn.Conv2d(current, current, 3, stride=2, padding=1))
                skips.append(current)
        self.middle = nn.ModuleList([block(current, current, True), block(current, current, False)])
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(block(current + skips.pop(), width, attends[level]))
                current = width
            if level:
                self.up.append(nn.Conv2d(current, current, 3, padding=1))
        self.last = nn.Sequential(
            group_norm(current), nn.SiLU(), zero(nn.Conv2d(current, outputs or image_channels, 3, padding=1))
        )

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        embedding = self.time(time, condition)
        h = self.first(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, TimedBlock) else layer(h)
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for layer in self.up:
            if isinstance(layer, TimedBlock):
                h = layer(torch.cat([h, skips.pop()], 1), embedding)
            else:
                h = layer(F.interpolate(h, skips[-1].shape[2:]))
        return self.last(h)


class TimedMLP(nn.Module):
    """Tables `(B, D)` and times `(B,)` to `(B, D)`: residual layers, each scaled and shifted by the time.

    Args:
        space: of the examples.
        hidden: width of the layers.
        layers: residual blocks, of two layers each.
        inputs: numbers in; D unless given.
        outputs: numbers out; as many as go in unless given.
    """

    def __init__(
        self, space: Space, hidden: int = 128, layers: int = 3, inputs: int | None = None, outputs: int | None = None
    ) -> None:
        super().__init__()
        inputs = inputs or space.dims
        self.time = TimeEmbedding(space.condition, hidden, hidden)
        self.first = nn.Linear(inputs, hidden)
        self.modulate = nn.ModuleList(nn.Linear(hidden, 2 * hidden) for _ in range(layers))
        self.inner = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.outer = nn.ModuleList(zero(nn.Linear(hidden, hidden)) for _ in range(layers))
        self.norm, self.last = nn.LayerNorm(hidden), zero(nn.Linear(hidden, outputs or inputs))

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        embedding = self.time(time, condition)
        h = self.first(x)
        for modulate, inner, outer in zip(self.modulate, self.inner, self.outer, strict=True):
            scale, shift = modulate(embedding).chunk(2, 1)
            normal = F.layer_norm(h, h.shape[1:]) * (1 + scale) + shift
            h = h + outer(F.silu(inner(F.silu(normal))))
        return self.last(F.silu(self.norm(h)))


def group_norm(channels: int) -> nn.GroupNorm:
    """Over 32 groups of channels, fewer where a group would have less than four."""
    return nn.GroupNorm(math.gcd(channels, min(max(channels // 4, 1), 32)), channels)
