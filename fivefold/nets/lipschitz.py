"""Networks whose Lipschitz constant is known (Chen et al., 2019; Kim et al., 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from scipy.special import lambertw
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.norm import LearnedOrder, Ordered, bounded


class LipSwish(nn.Module):
    """x sigmoid(beta x) / 1.1, beta > 0 learned: no slope exceeds 1, whatever beta (Chen et al., 2019, 3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(F.softplus(self.raw) * x) / 1.1


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"lipswish": LipSwish, "elu": nn.ELU}


Norm = Literal["2", "1", "inf", "learned"]  # of the vectors between which Lipschitz constants are measured


class ContractiveNet(nn.Module):
    """Three layers of norms at most `limit`, an activation before each: Lipschitz in x with limit^3, below 1.

    Convolutions of 3x3, 1x1 and 3x3 on images `(B, C, H, W)`, linear layers on `(B, D)`. A condition is added to the
    first hidden layer, so that it moves the bend of every unit and no slope beyond its bound.

    Norms are those that p-norms of the vectors before and after a layer induce (Chen et al., 2019, 3.3): an activation
    that works on every number alone is Lipschitz in all of them, and what goes round in a contraction is the first p,
    which is also the last. "2" is the spectral norm. "1" and "inf" are sums of weights, without iterations. "learned"
    makes the orders parameters, the hidden layers' apart; their norms have no certificate (`spectral.induced_norm`).

    Args:
        shape: of one example, which is that of the result too.
        hidden: channels or units in the middle.
        condition: width of its embedding, 0 for none.
        limit: of every layer's norm.
        activation: one of ACTIVATIONS.
        first: whether the first activation is left out, as on data.
        norm: 2, 1, inf or learned.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        hidden: int,
        condition: int,
        limit: float,
        activation: str,
        first: bool = False,
        norm: Norm = "2",
    ) -> None:
        super().__init__()
        widths, spatial = (shape[0], hidden, hidden, shape[0]), shape[1:]
        orders: list[Ordered] = [float(norm)] * 4 if norm in ("1", "inf") else []
        if norm == "learned":
            self.orders = nn.Parameter(torch.zeros(3))  # from 2
            orders = [LearnedOrder(self.orders, i % 3) for i in range(4)]

        def layer(i: int) -> nn.Module:
            between = (orders[i], orders[i + 1]) if orders else None
            if not spatial:
                return bounded(nn.Linear(widths[i], widths[i + 1]), limit, orders=between)
            kernel = 1 if i == 1 else 3
            convolution = nn.Conv2d(widths[i], widths[i + 1], kernel, padding=kernel // 2)
            return bounded(convolution, limit, spatial, between)

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


class LipschitzAttention(nn.Module):
    """L2 self-attention over the positions of `(B, C, ...)`, divided by a bound on its slope and multiplied by `limit`.

    Scores are squared distances -|W_h^T x_i - W_h^T x_j|^2 / sqrt(d) with one matrix for queries and keys: attention
    by products has no Lipschitz constant at all. Head h gives sum_j P_ij A_h x_j with A_h = W_h W_h^T / sqrt(d), then
    come values and a last matrix as usual (Kim et al., 2021, 3.2). Before it each position's learnt place and the
    condition are added, and an activation is applied whose slope is at most 1.

    The bound, in the 2-norm of all positions together: with B^2 = A, v_j = B (x_j - x_i) and t what B makes of a step,
    row i of the Jacobian gives B (sum_j P_ij t_j + 2 sum_j P_ij (v_j - mean v) v_j . (t_i - t_j)) for one head. By
    Cauchy and Schwarz the second sum is within 2 sqrt(2) E |t|, E = sum_j P_ij |v_j|^2, which is at most the c of
    c exp(c + 1) = N - 1 as P_ij goes as exp(-|v_j|^2). So with N rows, |A| = |W|^2 / sqrt(d), and heads side by side:

        sqrt(N / d) (1 + 2 sqrt(2) c) sqrt(sum_h |W_h|^4 |V_h|^2) |O|

    (Kim et al. have 1 + 4 c.)

    Args:
        shape: (C, H, W) of one example, or (C, N).
        heads: of C / heads channels each, rounded down to at least 1.
        condition: width of its embedding, 0 for none.
        limit: the Lipschitz constant.
        activation: one of ACTIVATIONS.
    """

    def __init__(self, shape: tuple[int, ...], heads: int, condition: int, limit: float, activation: str) -> None:
        super().__init__()
        channels, self.positions = shape[0], math.prod(shape[1:])
        self.width, self.limit = max(channels // heads, 1), limit
        self.place = nn.Parameter(0.1 * torch.randn(*shape))
        self.shift = nn.Linear(condition, channels) if condition else None
        self.activation = ACTIVATIONS[activation]()
        self.query = nn.Parameter(torch.randn(heads, channels, self.width) / math.sqrt(channels))
        self.value = nn.Parameter(torch.randn(heads, channels, self.width) / math.sqrt(channels))
        self.out = nn.Parameter(torch.randn(heads * self.width, channels) / math.sqrt(heads * self.width))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = x + self.place
        if self.shift is not None and condition is not None:
            h = h + self.shift(condition).view(*x.shape[:2], *[1] * (x.dim() - 2))
        h = self.activation(h).flatten(2).mT  # (B, N, C)
        mixed = self._attention(h) @ h[:, None] @ (self.query @ self.query.mT / math.sqrt(self.width)) @ self.value
        y = mixed.transpose(1, 2).flatten(2) @ self.out
        return (self.limit / self.bound() * y).mT.reshape(x.shape)

    def _attention(self, h: Tensor) -> Tensor:
        """P `(B, heads, N, N)`."""
        q = h[:, None] @ self.query
        q = q - q.mean(2, keepdim=True)  # which no distance sees, but the rounding does
        squares = q.square().sum(3)
        distances = squares[..., None] - 2 * q @ q.mT + squares[..., None, :]
        return (-distances / math.sqrt(self.width)).softmax(3)

    def bound(self) -> Tensor:
        """On the Lipschitz constant before it is divided by this."""
        query, value = (torch.linalg.matrix_norm(w, 2) for w in (self.query, self.value))
        heads = (query**4 * value**2).sum().sqrt()
        growth = 1 + 2 * math.sqrt(2) * _most_spread(self.positions)
        return math.sqrt(self.positions / self.width) * growth * heads * torch.linalg.matrix_norm(self.out, 2)


def _most_spread(positions: int) -> float:
    """c of c exp(c + 1) = positions - 1: the largest mean of r_j under weights exp(-r_j), one of the r_j being 0."""
    return float(lambertw((positions - 1) / math.e).real)
