"""Densely connected networks of coupling layers."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.coders import zero
from fivefold.nets.conditioner import ConditionedLayer


class DenseConditioner(nn.Module):
    """`(B, inputs, *spatial)` and a condition `(B, condition)` to `(B, outputs, *spatial)`.

    Each layer, a 1x1 and a 3x3 convolution (linear on vectors), sees what all before it gave and adds its own
    features (Hoogeboom et al., 2019, appendix: their coupling networks).

    Args:
        inputs: channels in; may be 0.
        outputs: channels out.
        spatial: (H, W) of images, () of vectors.
        hidden: features that all layers add together.
        depth: how many layers.
        condition: width of the condition, 0 for none.
        normed: group normalisation (of one group) and swish in place of ReLU (van den Berg et al., 2020, 5).
        zeroed: whether the output is 0 at first.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        spatial: tuple[int, ...] = (),
        hidden: int = 64,
        depth: int = 3,
        condition: int = 0,
        normed: bool = False,
        zeroed: bool = True,
    ) -> None:
        super().__init__()
        self.inputs, self.activation = inputs, F.silu if normed else F.relu
        ends = [max(inputs, 1) + hidden * layer // depth for layer in range(depth + 1)]
        pairs = [(start, end - start) for start, end in pairwise(ends) if end > start]
        self.narrow = nn.ModuleList(nn.Conv2d(n, n, 1) if spatial else nn.Linear(n, n) for n, _ in pairs)
        self.wide = nn.ModuleList(ConditionedLayer(n, growth, spatial, condition) for n, growth in pairs)
        self.norms = nn.ModuleList(nn.GroupNorm(1, n) if normed else nn.Identity() for pair in pairs for n in pair)
        self.last = ConditionedLayer(ends[-1], outputs, spatial, condition)
        if zeroed:
            zero(self.last)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = x if self.inputs else x.new_zeros(len(x), 1, *x.shape[2:])
        for i, (narrow, wide) in enumerate(zip(self.narrow, self.wide, strict=True)):
            within = self.activation(self.norms[2 * i](narrow(h)))
            h = torch.cat([h, self.activation(self.norms[2 * i + 1](wide(within, condition)))], 1)
        return self.last(h, condition)
