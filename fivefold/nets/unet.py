"""Networks of a noisy example and its time: a U-Net for images, residual layers for tables."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.condition import ConditionEmbedding
from fivefold.space import Space

_Layer = TypeVar("_Layer", bound=nn.Module)
HEAD_WIDTH = 32  # narrower attention heads waste time


class TimeEmbedding(nn.Module):
    """Times in [0, 1] `(B,)`, with a condition where there is one, as `(B, width)`.

    Args:
        condition: the condition's Space, or None.
        width: of the embedding.
        fourier: standard deviation of random frequencies, in cycles a unit of time (which may then be any
            number); 0 takes a geometric progression.
    """

    frequencies: Tensor

    def __init__(self, condition: Space | None, width: int, fourier: float = 0.0) -> None:
        super().__init__()
        if fourier:
            frequencies = 2 * math.pi * fourier * torch.randn(width // 2)
        else:
            frequencies = 1000 * torch.exp(-math.log(10_000) * torch.linspace(0, 1, width // 2))
        self.register_buffer("frequencies", frequencies, persistent=fourier > 0)
        self.net = nn.Sequential(nn.Linear(width // 2 * 2, width), nn.SiLU(), nn.Linear(width, width))
        self.embed = ConditionEmbedding(condition, width)

    def forward(self, time: Tensor, condition: Tensor | None) -> Tensor:
        angles = time.float()[:, None] * self.frequencies
        embedding = self.net(torch.cat([angles.sin(), angles.cos()], 1))
        extra = self.embed(condition)
        return F.silu(embedding if extra is None else embedding + extra)


class TimedBlock(nn.Module):
    """x + f(x, time), f two 3x3 convolutions; the time scales and shifts between them.

    Args:
        inputs: channels of x.
        outputs: channels of the result.
        time_width: of the time embedding.
    """

    def __init__(self, inputs: int, outputs: int, time_width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulate = nn.Linear(time_width, 2 * outputs)
        self.norm2, self.conv2 = _norm(outputs), _zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulate(time)[:, :, None, None].chunk(2, 1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """x + self-attention over all positions of `(B, C, H, W)`.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // HEAD_WIDTH, 1) if channels % HEAD_WIDTH == 0 else 1
        self.norm, self.qkv = _norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(3, 4).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(2, 3).reshape(x.shape))


class UNet(nn.Module):
    """Images `(B, C, H, W)` and times `(B,)` to images of the same shape (Ronneberger et al. 2015, Ho et al. 2020).

    The sides are halved (rounding up) while the longer is above 4, at most three times, so every size fits;
    attention works at the lowest resolution.

    Args:
        space: of the images.
        channels: at full resolution; doubled once below it.
        blocks: residual blocks per resolution on the way down; one more on the way up.
    """

    def __init__(self, space: Space, channels: int = 32, blocks: int = 1) -> None:
        super().__init__()
        image_channels, *sides = space.shape
        halvings = min(3, max(math.ceil(math.log2(max(sides) / 4)), 0))
        time_width = 4 * channels
        widths = [channels, *[2 * channels] * halvings]
        self.time = TimeEmbedding(space.condition, time_width)
        self.first = nn.Conv2d(image_channels, channels, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        current, skips = channels, [channels]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(_Stage(current, width, time_width, attention=level == halvings))
                skips.append(current := width)
            if level < halvings:
                self.down.append(nn.Conv2d(current, current, 3, stride=2, padding=1))
                skips.append(current)
        self.middle = TimedBlock(current, current, time_width)
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(_Stage(current + skips.pop(), width, time_width, attention=level == halvings))
                current = width
        self.last = nn.Sequential(_norm(current), nn.SiLU(), _zero(nn.Conv2d(current, image_channels, 3, padding=1)))

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        embedding = self.time(time, condition)
        h = self.first(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, _Stage) else layer(h)
            skips.append(h)
        h = self.middle(h, embedding)
        for stage in self.up:
            skip = skips.pop()
            h = h if h.shape[2:] == skip.shape[2:] else F.interpolate(h, skip.shape[2:])
            h = stage(torch.cat([h, skip], 1), embedding)
        return self.last(h)


class _Stage(nn.Module):
    """A residual block, then attention at the lowest resolution."""

    def __init__(self, inputs: int, outputs: int, time_width: int, attention: bool) -> None:
        super().__init__()
        self.block = TimedBlock(inputs, outputs, time_width)
        self.attention = Attention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.attention(self.block(x, time))


class TimedMLP(nn.Module):
    """Tables `(B, D)` and times `(B,)` to `(B, D)`: residual layers, each scaled and shifted by the time.

    Args:
        space: of the examples.
        hidden: width of the layers.
        layers: residual blocks, of two layers each.
    """

    def __init__(self, space: Space, hidden: int = 128, layers: int = 3) -> None:
        super().__init__()
        self.time = TimeEmbedding(space.condition, hidden)
        self.first = nn.Linear(space.dims, hidden)
        self.modulate = nn.ModuleList(nn.Linear(hidden, 2 * hidden) for _ in range(layers))
        self.inner = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.outer = nn.ModuleList(_zero(nn.Linear(hidden, hidden)) for _ in range(layers))
        self.norm, self.last = nn.LayerNorm(hidden), _zero(nn.Linear(hidden, space.dims))

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        embedding = self.time(time, condition)
        h = self.first(x)
        for modulate, inner, outer in zip(self.modulate, self.inner, self.outer, strict=True):
            scale, shift = modulate(embedding).chunk(2, 1)
            normal = F.layer_norm(h, h.shape[1:]) * (1 + scale) + shift
            h = h + outer(F.silu(inner(F.silu(normal))))
        return self.last(F.silu(self.norm(h)))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 8), channels)


def _zero(layer: _Layer) -> _Layer:
    """A layer whose output starts at 0, so that its block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
