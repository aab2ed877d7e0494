"""Autoregressive flows: each dimension is transformed as those before it say."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.base import Bijection, Chain, sum_dims
from fivefold.bijections.shape import Permutation
from fivefold.bijections.transforms import Transform
from fivefold.nets.coders import zero
from fivefold.nets.masked import MaskedLinear, degree_mask, spread_degrees


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
        self.last = zero(MaskedLinear(hidden, dims * transform.parameters))

    def parameters_of(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """`(P, B, D)`, those of a dimension from the dimensions before it alone."""
        h = self.first(x, degree_mask(self.position, self.degrees, strict=True))
        if self.context is not None and condition is not None:
            h = h + self.context(condition)
        h = h + self.second(F.silu(h), degree_mask(self.degrees, self.degrees))
        params = self.last(F.silu(h), degree_mask(self.degrees, self.position))
        return params.unflatten(1, (self.dims, -1)).movedim(-1, 0)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_slope = self.transform.forward(x, self.parameters_of(x, condition))
        return y, sum_dims(log_slope)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = torch.zeros_like(y)
        for dim in range(self.dims):
            known, log_slope = self.transform.inverse(y, self.parameters_of(x, condition))
            x = torch.cat([x[:, :dim], known[:, dim : dim + 1], x[:, dim + 1 :]], 1)
        return x, sum_dims(log_slope)


def masked_autoregressive_flow(
    dims: int, steps: int, transform: Transform, hidden: int, condition: int = 0
) -> Bijection:
    """`steps` of them, the order reversed in between."""
    parts: list[Bijection] = []
    for step in range(steps):
        if step:
            parts.append(Permutation(torch.arange(dims).flip(0)))
        parts.append(MaskedAutoregressive(dims, transform, hidden, condition))
    return Chain(*parts)
