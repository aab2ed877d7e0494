"""Autoregressive flows: each dimension is transformed as those before it say."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.base import Bijection, Chain, Exactness, sum_dims
from fivefold.bijections.shape import Permutation
from fivefold.bijections.transforms import Transform, inverse_exactness
from fivefold.nets.coders import zero
from fivefold.nets.masked import MaskedLinear, degree_mask, spread_degrees
from fivefold.nets.pixelcnn import GatedPixelCNN
from fivefold.space import Space


class MaskedAutoregressive(Bijection):
    """y_i = h(x_i; parameters(x_<i)) on vectors `(B, D)` (Papamakarios et al., 2017; survey 6.1.3).

    From data to noise all dimensions at once, by a masked network; back one after another. The identity at first.

    Args:
        dims: D.
        transform: h.
        hidden: units of each of the network's two hidden layers.
        condition: width of the condition, 0 for none.
    """

    position: Tensor
    degrees: Tensor

    def __init__(self, dims: int, transform: Transform, hidden: int, condition: int = 0) -> None:
        super().__init__()
        self.transform, self.dims = transform, dims
        self.register_buffer("position", torch.arange(dims), persistent=False)
        self.register_buffer("degrees", spread_degrees(hidden, dims), persistent=False)
        self.first, self.second = MaskedLinear(dims, hidden), MaskedLinear(hidden, hidden)
        self.context = nn.Linear(condition, hidden) if condition else None
        self.last = zero(MaskedLinear(hidden, dims * transform.size))

    def parameters_of(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """`(P, B, D)`, those of a dimension from the dimensions before it alone."""
        h = self.first(x, degree_mask(self.position, self.degrees, strict=True))
        if self.context is not None and condition is not None:
            h = h + self.context(condition)
        h = h + self.second(F.silu(h), degree_mask(self.degrees, self.degrees))
        params = self.last(F.silu(h), degree_mask(self.degrees, self.position))
        return params.unflatten(1, (self.dims, -1)).movedim(-1, 0)

    @property
    def exactness(self) -> Exactness:
        return inverse_exactness(self.transform)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_slope = self.transform.forward(x, self.parameters_of(x, condition))
        return y, sum_dims(log_slope)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = torch.zeros_like(y)
        for dim in range(self.dims):
            known, log_slope = self.transform.inverse(y, self.parameters_of(x, condition))
            x = torch.cat([x[:, :dim], known[:, dim : dim + 1], x[:, dim + 1 :]], 1)
        return x, sum_dims(log_slope)


class AutoregressiveMaps(Bijection):
    """As `MaskedAutoregressive`, of maps `(C, H, W)` that come as vectors `(B, D)`, by a gated PixelCNN.

    Places follow one another in raster order, the channels of each in turn; back, nothing is computed twice.

    Args:
        shape: (C, H, W).
        transform: h.
        hidden: features of the network, which has two gated layers.
        condition: width of the condition, 0 for none.
    """

    def __init__(self, shape: tuple[int, ...], transform: Transform, hidden: int, condition: int = 0) -> None:
        super().__init__()
        self.transform, self.shape = transform, shape
        maps, width = Space("image", shape, dtype="float32"), transform.size
        self.net = GatedPixelCNN(maps, width, channels=hidden, layers=2, embedding=1, embedded=condition)
        zero(self.net.last)

    @property
    def exactness(self) -> Exactness:
        return inverse_exactness(self.transform)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_slope = self.transform.forward(x, self.net(x.view(-1, *self.shape), condition).movedim(-1, 0))
        return y, sum_dims(log_slope)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self.net.fill(torch.zeros_like(y), condition, lambda d, p: self.transform.inverse(y[:, d], p.T)[0])
        return x, -self.forward(x, condition)[1]


def masked_autoregressive_flow(
    dims: int, steps: int, transform: Transform, hidden: int, condition: int = 0
) -> Bijection:
    """`steps` of `MaskedAutoregressive`, the order reversed in between."""
    return in_alternating_order(dims, [MaskedAutoregressive(dims, transform, hidden, condition) for _ in range(steps)])


def in_alternating_order(dims: int, flows: Iterable[Bijection]) -> Bijection:
    """Flows of vectors `(B, dims)` one after another, the order of the dimensions reversed in between."""
    parts: list[Bijection] = []
    for flow in flows:
        parts += [Permutation(torch.arange(dims).flip(0)), flow] if parts else [flow]
    return Chain(*parts)
