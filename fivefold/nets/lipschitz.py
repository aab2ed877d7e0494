"""Networks whose Lipschitz constant is known (Chen et al., 2019)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.norm import bounded


class LipSwish(nn.Module):
    """x sigmoid(beta x) / 1.1, beta > 0 learned: no slope exceeds 1, whatever beta (Chen et al., 2019, 3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(F.softplus(self.raw) * x) / 1.1


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"lipswish": LipSwish, "elu": nn.ELU}


class ContractiveNet(nn.Module):
    """Three layers of norms at most `limit`, an activation before each: Lipschitz in x with limit^3, below 1.

    Convolutions of 3x3, 1x1 and 3x3 on images `(B, C, H, W)`, linear layers on `(B, D)`. A condition is added to the
    first hidden layer, so that it moves the bend of every unit and no slope beyond its bound.

    Args:
        shape: of one example, which is that of the result too.
        hidden: channels or units in the middle.
        condition: width of its embedding, 0 for none.
        limit: of every layer's norm.
        activation: one of ACTIVATIONS.
        first: whether the first activation is left out, as on data.
    """

    def __init__(
        self, shape: tuple[int, ...], hidden: int, condition: int, limit: float, activation: str, first: bool = False
    ) -> None:
        super().__init__()
        widths, spatial = (shape[0], hidden, hidden, shape[0]), shape[1:]

        def layer(i: int) -> nn.Module:
            if not spatial:
                return bounded(nn.Linear(widths[i], widths[i + 1]), limit)
            kernel = 1 if i == 1 else 3
            return bounded(nn.Conv2d(widths[i], widths[i + 1], kernel, padding=kernel // 2), limit, spatial)

        self.layers = nn.ModuleList(layer(i) for i in range(3))
        make = ACTIVATIONS[activation]
        self.activations = nn.ModuleList(nn.Identity() if first and i == 0 else make() for i in range(3))
        self.shift = nn.Linear(condition, hidden) if condition else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        for i, (activation, layer) in enumerate(zip(self.activations, self.layers, strict=True)):
            x = layer(activation(x))
            if i == 0 and self.shift is not None and condition is not None:
                x = x + self.shift(condition).view(*x.shape[:2], *[1] * (x.dim() - 2))
        return x
