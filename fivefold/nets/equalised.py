"""Layers with equalised learning rates, and what keeps their signals in bounds (Karras et al., 2018).

Weights are drawn from N(0, 1) and scaled at run time by He's constant, so that under Adam, whose steps do not
depend on a gradient's size, all layers learn at the same speed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.condition import ConditionEmbedding
from fivefold.space import Space


def leaky(x: Tensor) -> Tensor:
    """LeakyReLU of slope 0.2, times sqrt(2): keeps the variance of its input, roughly."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def pixel_norm(x: Tensor) -> Tensor:
    """Each position's vector along dimension 1 at a mean square of 1."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class EqualLinear(nn.Module):
    """A linear layer with equalised learning rate.

    Args:
        inputs: its width.
        outputs: of the result.
        bias: where the biases start.
        gain: of the weights' scale beside 1 / sqrt(inputs).
        rate: of learning, relative to other layers.
    """

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, gain: float = 1.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale, self.rate = gain * rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class EqualConv(nn.Module):
    """A convolution with equalised learning rate that keeps the sides.

    Args:
        inputs: channels.
        outputs: channels of the result.
        kernel: odd side of the kernel.
        gain: of the weights' scale beside 1 / sqrt(inputs kernel^2).
        bias: whether it has any.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, gain: float = 1.0, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.padding = gain / math.sqrt(inputs * kernel**2), kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


def with_deviation(x: Tensor, group: int = 4, batches: int = 1) -> Tensor:
    """`x` `(B, C, H, W)` with one more channel: how much examples differ from others of their batch.

    The standard deviation over groups of at most `group` examples, its mean over channels and positions: it lets a
    critic see a lack of variety. Where `group` does not divide a batch, the largest number below it that does.
    `x` is of so many `batches`, one after another, and no group has examples of two.
    """
    n = len(x) // batches
    size = next(size for size in range(min(group, n), 0, -1) if n % size == 0)
    groups = x.view(batches, size, -1, *x.shape[1:])
    variance = (groups - groups.mean(1, keepdim=True)).square().mean(1)
    spread = (variance + 1e-8).sqrt().flatten(2).mean(2)
    maps = spread.repeat(1, size).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
    return torch.cat([x, maps], 1)


class CriticHead(nn.Module):
    """The end of a critic: the deviation within the batch as one more channel, a convolution, two dense layers.

    A condition enters as the inner product of its embedding with the last features (projection).

    Args:
        space: of images.
        channels: of what enters.
        sides: of what enters.
        group: examples that the deviation is taken over; 1 for none.
    """

    def __init__(self, space: Space, channels: int, sides: tuple[int, int], group: int) -> None:
        super().__init__()
        self.group = group
        self.conv = EqualConv(channels + (group > 1), channels)
        self.dense = EqualLinear(channels * math.prod(sides), channels)
        self.embed = ConditionEmbedding(space.condition, channels)
        self.out = EqualLinear(channels, max(1, self.embed.width))

    def forward(self, x: Tensor, condition: Tensor | None = None, batches: int = 1) -> Tensor:
        x = leaky(self.conv(with_deviation(x, self.group, batches) if self.group > 1 else x))
        y, embedded = self.out(leaky(self.dense(x.flatten(1)))), self.embed(condition)
        return y.squeeze(1) if embedded is None else (y * pixel_norm(embedded)).sum(1) / math.sqrt(y.shape[1])
