"""Velocities of continuous flows: networks of a point and the time, smooth in both."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.coders import zero
from fivefold.nets.condition import with_maps

TimeLayer = Literal["concat", "concatsquash"]


class Rates(NamedTuple):
    """What changes at one time along a continuous flow, of each example.

    Args:
        velocity: dx/dt `(B, ...)`.
        divergence: the trace of its Jacobian, `(B,)`.
        costs: `(B, 2)`, the squared speed, and what this kind of velocity may be held to.
    """

    velocity: Tensor
    divergence: Tensor
    costs: Tensor


class Velocity(nn.Module):
    """Points `(B, *shape)`, a time and a condition `(B, condition)` to dx/dt `(B, *shape)`; 0 at first.

    Layers with softplus between: 3x3 convolutions of images `(C, H, W)`, else fully connected.

    Args:
        shape: of one point; flat, `(D,)`, for a fully connected network.
        hidden: width of the hidden layers.
        layers: how many hidden layers.
        condition: width of the condition, 0 for none.
        time_layer: how a layer takes time and condition, see `ConcatLayer` and `SquashLayer`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        hidden: int = 64,
        layers: int = 3,
        condition: int = 0,
        time_layer: TimeLayer = "concatsquash",
    ) -> None:
        super().__init__()
        make = {"concat": ConcatLayer, "concatsquash": SquashLayer}[time_layer]
        spatial, widths = len(shape) > 1, [shape[0], *[hidden] * layers, shape[0]]
        self.layers = nn.ModuleList(make(i, o, 1 + condition, spatial) for i, o in pairwise(widths))
        zero(self.layers[-1])

    def forward(self, time: float, x: Tensor, condition: Tensor | None = None) -> Tensor:
        context = x.new_full((1, 1), time)  # one row for all where there is no condition
        if condition is not None:
            context = torch.cat([context.expand(len(x), 1), condition.to(x.dtype)], 1)
        h = self.layers[0](x, context)
        for layer in self.layers[1:]:
            h = layer(F.softplus(h), context)
        return h


class ConcatLayer(nn.Module):
    """A layer of `(B, inputs, ...)` and a context `(B, context)`, which is more channels, constant over positions.

    Args:
        inputs: channels in.
        outputs: channels out.
        context: width of the context.
        spatial: whether it is a 3x3 convolution, else fully connected.
    """

    def __init__(self, inputs: int, outputs: int, context: int, spatial: bool) -> None:
        super().__init__()
        self.layer = _layer(inputs + context, outputs, spatial, bias=True)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.layer(with_maps(x, context.expand(len(x), -1)))


class SquashLayer(nn.Module):
    """As `ConcatLayer`, but the context `(B or 1, context)` scales (by a sigmoid) and shifts each channel."""

    def __init__(self, inputs: int, outputs: int, context: int, spatial: bool) -> None:
        super().__init__()
        self.layer = _layer(inputs, outputs, spatial, bias=False)
        self.modulate = nn.Linear(context, 2 * outputs)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.layer(x)
        gate, shift = self.modulate(context).view(len(context), -1, *[1] * (x.dim() - 2)).chunk(2, 1)
        return h * gate.sigmoid() + shift


def _layer(inputs: int, outputs: int, spatial: bool, bias: bool) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias) if spatial else nn.Linear(inputs, outputs, bias)
