"""Networks of coupling layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.coders import zero
from fivefold.nets.norm import ActNorm
from fivefold.nets.units import UnitsFirst


class Conditioner(nn.Module):
    """`(B, inputs, *spatial)` and a condition `(B, condition)` to `(B, outputs, *spatial)`; 0 at first.

    Pre-activation residual blocks. Of images 3x3 convolutions (1x1 on a single pixel) with a learned bias at each
    position; with `skips` the bias is the same everywhere and the last layer sees, in place of the residual stream,
    the sum of a 1x1 layer's outputs at its start and after each block (Dinh et al., 2017, 4.1). Without batch
    normalisation, so that an example's output is its own. Of vectors fully connected layers.

    Args:
        inputs: channels in; may be 0.
        outputs: channels out.
        spatial: (H, W) of images, () of vectors.
        hidden: channels of the residual stream.
        blocks: how many residual blocks.
        condition: width of the condition, 0 for none.
        dropout: probability within each block.
        skips: see above.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        spatial: tuple[int, ...] = (),
        hidden: int = 64,
        blocks: int = 2,
        condition: int = 0,
        dropout: float = 0.0,
        skips: bool = False,
    ) -> None:
        super().__init__()
        self.spatial = spatial
        wide, narrow = (_wide(spatial), _convolution(1)) if spatial else (UnitsFirst, UnitsFirst)
        self.first = wide(inputs, hidden) if inputs else None
        everywhere = [1] * len(spatial) if skips else spatial
        self.position = nn.Parameter(torch.zeros(hidden, *everywhere)) if spatial or not inputs else None
        self.condition = (nn.Linear if spatial else UnitsFirst)(condition, hidden) if condition else None
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), wide(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), wide(hidden, hidden))
            for _ in range(blocks)
        )
        self.skips = nn.ModuleList(narrow(hidden, hidden) for _ in range(blocks + 1)) if skips else None
        self.activation = nn.ReLU()
        self.last = zero(narrow(hidden, outputs))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if not self.spatial:
            return self.by_units(x.T, condition).T
        terms = [] if self.first is None else [self.first(x)]
        if self.position is not None:
            terms.append(self.position.expand(len(x), len(self.position), *x.shape[2:]))
        if self.condition is not None and condition is not None:
            terms.append(self.condition(condition)[:, :, None, None])
        return self._go_on(sum(terms[1:], start=terms[0]))

    def by_units(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Of vectors `(inputs, B)` to `(outputs, B)`."""
        terms = [] if self.first is None else [self.first(x)]
        if self.position is not None:
            terms.append(self.position.unsqueeze(1).expand(-1, x.shape[1]))
        if self.condition is not None and condition is not None:
            terms.append(self.condition(condition.T))
        return self._go_on(sum(terms[1:], start=terms[0]))

    def _go_on(self, h: Tensor) -> Tensor:
        stages = [h]
        for block in self.blocks:
            stages.append(stages[-1] + block(stages[-1]))
        if self.skips is None:
            return self.last(self.activation(stages[-1]))
        return self.last(self.activation(sum(skip(h) for skip, h in zip(self.skips, stages, strict=True))))


class ConditionedLayer(nn.Module):
    """A linear layer, or a 3x3 convolution (1x1 on a single pixel), of `(B, inputs, *spatial)` and a condition.

    Args:
        inputs: channels in; may be 0.
        outputs: channels out.
        spatial: (H, W) of images, () of vectors.
        condition: width of the condition, 0 for none.
    """

    def __init__(self, inputs: int, outputs: int, spatial: tuple[int, ...] = (), condition: int = 0) -> None:
        super().__init__()
        self.inputs = inputs
        self.layer: Any = _wide(spatial)(max(inputs, 1), outputs)  # of zeros where there is no input
        self.condition = nn.Linear(condition, outputs, bias=False) if condition else None

    def forward(self, x: Tensor, condition: Tensor | None = None, norm: ActNorm | None = None) -> Tensor:
        """`norm`, where there is one, of the sum."""
        x = x if self.inputs else x.new_zeros(len(x), 1, *x.shape[2:])
        if self.condition is None or condition is None:
            return self.layer(x) if norm is None else norm.after(self.layer, x)
        h = self.layer(x)
        h = h + self.condition(condition).view(*h.shape[:2], *[1] * (h.dim() - 2))
        return h if norm is None else norm(h)


class GlowNet(nn.Module):
    """As `Conditioner`, by three layers, the middle one 1x1, with actnorm between (Kingma and Dhariwal, 2018, 3.3).

    Args:
        inputs: channels in; may be 0.
        outputs: channels out.
        spatial: (H, W) of images, () of vectors.
        hidden: channels between the layers.
        condition: width of the condition, 0 for none.
    """

    def __init__(
        self, inputs: int, outputs: int, spatial: tuple[int, ...] = (), hidden: int = 64, condition: int = 0
    ) -> None:
        super().__init__()
        self.first = ConditionedLayer(inputs, hidden, spatial, condition)
        self.middle = _convolution(1)(hidden, hidden) if spatial else nn.Linear(hidden, hidden)
        self.norms = nn.ModuleList(ActNorm(hidden) for _ in range(2))
        self.last = zero(_wide(spatial)(hidden, outputs))
        if spatial:  # a tenth less time on processors
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        first, second = self.norms
        h = F.relu_(self.first(x, condition, first))
        return self.last(F.relu_(second.after(self.middle, h)))  # type: ignore[operator]


def _wide(spatial: tuple[int, ...]) -> Callable[[int, int], nn.Module]:
    """Makes layers that see neighbours where there are any."""
    return _convolution(1 if math.prod(spatial) == 1 else 3) if spatial else nn.Linear


def _convolution(size: int) -> Callable[[int, int], nn.Module]:
    return lambda inputs, outputs: nn.Conv2d(inputs, outputs, size, padding=size // 2)
