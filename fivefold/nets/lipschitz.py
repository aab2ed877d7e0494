"""Networks whose Lipschitz constant is known (Chen et al., 2019; Kim et al., 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import torch
from scipy.special import lambertw
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.norm import LearnedOrder, NormBound, Ordered, bounded
from fivefold.tools.spectral import LinearMap


class LipSwish(nn.Module):
    """x sigmoid(beta x) / 1.1, beta > 0 learned: no slope exceeds 1, whatever beta (Chen et al., 2019, 3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(F.softplus(self.raw) * x) / 1.1

    def sloped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the slope, of which there are no second derivatives."""
        return _SlopedLipSwish.apply(x, F.softplus(self.raw))


class _SlopedLipSwish(torch.autograd.Function):
    """Value and slope of LipSwish in a few passes over memory, which are what they cost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        z = beta * x
        gate = torch.sigmoid(z)
        slope = z.mul_(gate).mul_(1 - gate).add_(gate).div_(1.1)
        ctx.save_for_backward(x, beta, gate, slope)
        return (x * gate).div_(1.1), slope

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_value: Tensor, of_slope: Tensor) -> tuple[Tensor, Tensor]:
        x, beta, gate, slope = ctx.saved_tensors
        bend = (1 - gate).mul_(gate).div_(1.1)
        by_z = (1 - 2 * gate).mul_(x).mul_(beta).add_(2).mul_(bend).mul_(of_slope)  # z = beta x
        by_beta = (bend.mul_(x).mul_(of_value).add_(by_z).mul_(x)).sum().view(beta.shape)
        return torch.addcmul(by_z.mul_(beta), of_value, slope), by_beta


class ELU(nn.ELU):
    """exp(x) - 1 below 0, x above."""

    def sloped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self(x)
        return y, torch.where(x > 0, 1, y + 1)


class Identity(nn.Identity):
    """x."""

    def sloped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.new_ones(())


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"lipswish": LipSwish, "elu": ELU}


class Linearised(NamedTuple):
    """A network at a point x: what it gives, and products with its Jacobian J there."""

    value: Tensor
    pull: Callable[[Tensor], Tensor]  # v to J^T v, without a graph
    pair: Callable[[Tensor], Tensor]  # v to v J e `(B,)` of the probe e, with a graph where gradients are enabled


def linearised(net: nn.Module, x: Tensor, condition: Tensor | None, probe: Tensor | None = None) -> Linearised:
    """`net`, of `(x, condition)`, at x `(B, ...)`; `pair` only with a `probe` of that shape."""
    if isinstance(net, ContractiveNet):
        return net.linearised(x, condition, probe)
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        at = x if x.requires_grad else x.detach().requires_grad_()
        value = net(at, condition)

    def pull(v: Tensor, graph: bool = False) -> Tensor:
        return torch.autograd.grad(value, at, v, retain_graph=True, create_graph=graph)[0]

    def pair(v: Tensor) -> Tensor:
        assert probe is not None
        return (pull(v, True) * probe).flatten(1).sum(1)

    return Linearised(value if keep else value.detach(), pull, pair)


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
        self.activations = nn.ModuleList(Identity() if first and i == 0 else make() for i in range(3))
        self.maps: list[LinearMap] = [bound.linear for bound in self.modules() if isinstance(bound, NormBound)]
        self.shift = nn.Linear(condition, hidden) if condition else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        for i, (activation, layer) in enumerate(zip(self.activations, self.layers, strict=True)):
            x = self._shifted(i, layer(activation(x)), condition)
        return x

    def linearised(self, x: Tensor, condition: Tensor | None, probe: Tensor | None = None) -> Linearised:
        """As `lipschitz.linearised`, by slopes taken once: J e goes forward beside x, so no gradient has a gradient."""
        along = probe if torch.is_grad_enabled() else None
        parts: list[tuple[Tensor, LinearMap, Tensor]] = []
        for i, (activation, layer, linear) in enumerate(zip(self.activations, self.layers, self.maps, strict=True)):
            x, slope = activation.sloped(x)  # type: ignore[operator]
            x, weight = self._shifted(i, layer(x), condition), cast(Tensor, layer.weight)
            if along is not None:
                along = linear.apply(weight, slope * along)
            parts.append((slope.detach(), linear, weight.detach()))

        def pair(v: Tensor) -> Tensor:
            assert along is not None, "a probe is needed, and gradients"
            return (v * along).flatten(1).sum(1)

        def pull(v: Tensor) -> Tensor:
            for slope, linear, weight in reversed(parts):
                v = slope * linear.adjoint(weight, v)
            return v

        return Linearised(x, pull, pair)

    def _shifted(self, i: int, h: Tensor, condition: Tensor | None) -> Tensor:
        """What layer `i` gives, moved by the condition after the first."""
        if i > 0 or self.shift is None or condition is None:
            return h
        return h + self.shift(condition).view(*h.shape[:2], *[1] * (h.dim() - 2))


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
