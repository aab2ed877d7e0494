"""DDPM++ and NCSN++: U-Nets whose sums are rescaled and whose resolution changes within residual blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.coders import zero
from fivefold.nets.unet import Attention, TimeEmbedding, group_norm
from fivefold.space import Space
from fivefold.tools.resample import conv_down, downsample, upsample

_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear)
Resample = Callable[[Tensor], Tensor]
FOURIER_SCALE = 16.0  # standard deviation of NCSN++'s random frequencies
HALF = math.sqrt(0.5)  # on a sum of two paths: it keeps the variance


class ScoreUNet(nn.Module):
    """Images `(B, C, H, W)` and times `(B,)` to images of the same shape (Song et al. 2021, appendix H).

    Both networks: BigGAN's residual blocks, which also change the resolution; sums of two paths divided by sqrt 2;
    attention at one resolution and in the middle. NCSN++ adds low-pass filters wherever the resolution changes,
    random Fourier features of the time, and the image itself, brought down beside the features and added to them.
    Sides are halved, rounding up, while the longer is above 4, at most three times, so every size fits.

    Args:
        space: of the images.
        channels: at full resolution; doubled below it.
        blocks: residual blocks per resolution on the way down; one more on the way up.
        attention: resolution (the longer side) whose blocks attend to all positions.
        dropout: in residual blocks.
        plus: NCSN++ rather than DDPM++.
    """

    def __init__(
        self,
        space: Space,
        channels: int = 32,
        blocks: int = 1,
        attention: int = 0,
        dropout: float = 0.0,
        plus: bool = False,
    ) -> None:
        super().__init__()
        image_channels, *sides = space.shape
        halvings = min(3, max(math.ceil(math.log2(max(sides) / 4)), 0))
        widths = [channels, *[2 * channels] * halvings]
        attends = [-(-max(sides) // 2**level) == attention for level in range(halvings + 1)]

        def block(inputs: int, outputs: int, attend: bool = False, change: str = "") -> RescaledBlock:
            return RescaledBlock(inputs, outputs, 4 * channels, attend, dropout, RESAMPLERS[plus].get(change))

        features, fourier = (2 * channels, FOURIER_SCALE) if plus else (channels, 0.0)
        self.time = TimeEmbedding(space.condition, 4 * channels, features, fourier)
        self.first = _uniform(nn.Conv2d(image_channels, channels, 3, padding=1))
        self.down, self.up, self.image = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        current, skips = channels, [channels]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(block(current, width, attends[level]))
                skips.append(current := width)
            if level < halvings:
                self.down.append(block(current, current, change="down"))
                skips.append(current)
                if plus:
                    self.image.append(FilteredConv(widths[level - 1] if level else image_channels, current))
        self.middle = nn.ModuleList([block(current, current, attend=True), block(current, current)])
        for level, width in reversed(list(enumerate(widths))):
            for i in range(blocks + 1):
                self.up.append(block(current + skips.pop(), width, attends[level] and i == blocks))
                current = width
            if level:
                self.up.append(block(current, current, change="up"))
        self.last = nn.Sequential(
            group_norm(current), nn.SiLU(), zero(nn.Conv2d(current, image_channels, 3, padding=1))
        )

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        embedding = self.time(time, condition)
        h = self.first(x)
        skips, images = [h], iter(self.image)
        for block in self.down:
            h = block(h, embedding)
            if self.image and block.resample is not None:
                h = x = HALF * (h + next(images)(x))
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for block in self.up:
            if block.resample is not None:
                h = block(h, embedding)[..., : skips[-1].shape[2], : skips[-1].shape[3]]  # where a side was odd
            else:
                h = block(torch.cat([h, skips.pop()], 1), embedding)
        return self.last(h)


class RescaledBlock(nn.Module):
    """(x + f(x, time)) / sqrt 2, f two 3x3 convolutions between which the time is added; both paths may be resampled.

    Args:
        inputs: channels of x.
        outputs: channels of the result.
        time_width: of the time embedding.
        attend: with self-attention after it.
        dropout: before the second convolution.
        resample: changes the resolution; None keeps it.
    """

    def __init__(
        self, inputs: int, outputs: int, time_width: int, attend: bool, dropout: float, resample: Resample | None
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm1, self.conv1 = group_norm(inputs), _uniform(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.time = _uniform(nn.Linear(time_width, outputs))
        self.norm2, self.conv2 = group_norm(outputs), zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.drop = nn.Dropout(dropout)
        same = inputs == outputs and resample is None
        self.skip = nn.Identity() if same else _uniform(nn.Conv2d(inputs, outputs, 1))
        self.attention = Attention(outputs) if attend else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h) + self.time(time)[:, :, None, None]
        h = self.conv2(self.drop(F.silu(self.norm2(h))))
        h = HALF * (self.skip(x) + h)
        return h if self.attention is None else HALF * self.attention(h)


class FilteredConv(nn.Module):
    """A low-pass filter and a 3x3 convolution that halves the sides, rounding up.

    Args:
        inputs: channels.
        outputs: channels.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(outputs, inputs, 3, 3)))
        self.bias = nn.Parameter(torch.zeros(outputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return conv_down(_even(x), self.weight) + self.bias


def _even(x: Tensor) -> Tensor:
    """With a row or a column of zeros more where a side is odd."""
    return F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0)


def _halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True)


def _halve_filtered(x: Tensor) -> Tensor:
    return downsample(_even(x))


RESAMPLERS: dict[bool, dict[str, Resample]] = {
    False: {"down": _halve, "up": _double},
    True: {"down": _halve_filtered, "up": upsample},
}


def _uniform(layer: _Layer) -> _Layer:
    """A layer that keeps the variance on the average of both ways, without bias at first."""
    nn.init.xavier_uniform_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
