"""Block neural autoregressive flow (De Cao et al., 2019; survey 6.1.3, Table 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.base import Bijection, Exactness
from fivefold.tools.roots import invert_increasing

MOST_WEIGHTS = 2**24


class BlockLinear(nn.Module):
    """A linear layer of D groups of units, each seeing its own group with positive weights and those before freely.

    Its weights are exp(v) in the blocks on the diagonal, v in those below, every row scaled to a learned norm.

    Args:
        dims: D.
        inputs: units of a group that come in.
        outputs: units of a group that go out.
    """

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dims, self.inputs, self.outputs = dims, inputs, outputs
        self.weight = nn.Parameter(torch.randn(dims * outputs, dims * inputs) / (dims * inputs) ** 0.5)
        # Positive weights do not cancel: with a norm of 1 a group would be steeper at every layer.
        self.log_norm = nn.Parameter(torch.full((dims * outputs,), -0.5 * math.log(inputs)))
        self.bias = nn.Parameter(torch.rand(dims * outputs) - 0.5)

    def weights(self) -> tuple[Tensor, Tensor]:
        """The blocks below the diagonal as a matrix `(D outputs, D inputs)`, those on it `(D, outputs, inputs)`."""
        group = torch.arange(self.dims, device=self.weight.device)
        row, column = group.repeat_interleave(self.outputs)[:, None], group.repeat_interleave(self.inputs)
        below = self.weight * (row > column)
        blocks = self.weight.unflatten(0, (self.dims, -1)).unflatten(2, (self.dims, -1))
        own = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0).exp()
        squares = below.square().sum(1).unflatten(0, (self.dims, -1)) + own.square().sum(2)
        scale = self.log_norm.exp().unflatten(0, (self.dims, -1)) * squares.rsqrt()
        return below * scale.view(-1, 1), own * scale.unsqueeze(2)


class BlockAutoregressive(Bijection):
    """y = (1 - g) x + g net(x) of vectors `(B, D)`, in which y_i increases in x_i and sees no later dimension.

    The net is a tanh network of block lower triangular weights whose blocks on the diagonal are positive; dy_i / dx_i
    is a product of those blocks and slopes of tanh. The gate g in (0, 1) makes every y reachable, for tanh alone is
    bounded, and keeps the slope above 1 - g, so that its logarithm is safe.

    The inverse solves all dimensions at once, each an increasing function of its own units, given what those before it
    said at the last guess. The first k dimensions are right after k sweeps; few are needed where they depend on one
    another smoothly. It cannot be differentiated.

    Args:
        dims: D.
        width: units of each dimension in a hidden layer; fewer where a layer would pass 2^24 weights.
        layers: hidden layers.
        condition: width of a condition that moves the first hidden layer, 0 for none.
        tolerance: of the inverse.
    """

    def __init__(self, dims: int, width: int, layers: int = 1, condition: int = 0, tolerance: float = 1e-6) -> None:
        super().__init__()
        self.dims, self.tolerance, self.sweeps = dims, tolerance, 0  # of the last inverse
        width = max(1, min(width, math.isqrt(MOST_WEIGHTS) // dims))
        widths = [1, *[width] * layers, 1]
        self.layers = nn.ModuleList(BlockLinear(dims, widths[i], widths[i + 1]) for i in range(layers + 1))
        self.context = nn.Linear(condition, dims * width, bias=False) if condition else None
        self.gate = nn.Parameter(torch.zeros(()))

    @property
    def exactness(self) -> Exactness:
        return Exactness(inverse="iterative")

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weights = self._weights()
        y, log_slope = self._own(x, self._given(x, condition, weights), weights)
        return y, log_slope.sum(1)

    @torch.no_grad()
    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weights, share = self._weights(), torch.sigmoid(self.gate)
        reach = weights[-1][1].sum((1, 2))  # how far a dimension's own units move the net, where tanh ends
        x, self.sweeps = y, 0
        for _ in range(self.dims):
            self.sweeps += 1
            given = self._given(x, condition, weights)
            low, high = ((y - share * (given[-1][:, :, 0] + end)) / (1 - share) for end in (reach, -reach))
            new, _ = invert_increasing(
                lambda x, given=given: self._own(x, given, weights),  # type: ignore[misc]
                y,
                low,
                high,
                self.tolerance,
            )
            step, x = (new - x).abs(), new
            if bool((step <= self.tolerance * (1 + x.abs())).all()):
                break
        return x, -self.forward(x, condition)[1]

    def _weights(self) -> list[tuple[Tensor, Tensor]]:
        return [layer.weights() for layer in self.layers]  # type: ignore[operator]

    def _given(self, x: Tensor, condition: Tensor | None, weights: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """What every unit of a layer is told by the dimensions before its own: `(B, D, n)` of each layer."""
        given: list[Tensor] = []
        h = x.unsqueeze(2)
        for layer, (below, own) in zip(self.layers, weights, strict=True):
            told = F.linear(h.flatten(1), below, layer.bias)  # type: ignore[arg-type]
            if not given and self.context is not None and condition is not None:
                told = told + self.context(condition)
            given.append(told.unflatten(1, (self.dims, -1)))
            h = torch.tanh(given[-1] + _by_group(own, h))
        return given

    def _own(self, x: Tensor, given: list[Tensor], weights: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Each y_i and ln of its slope in x_i, `(B, D)`, the dimensions before it having told what is `given`."""
        h, slope = x.unsqueeze(2), torch.ones_like(x).unsqueeze(2)
        for i, (told, (_, own)) in enumerate(zip(given, weights, strict=True)):
            h, slope = told + _by_group(own, h), _by_group(own, slope)
            if i < len(given) - 1:
                h = torch.tanh(h)
                slope = slope * (1 - h.square())
        share = torch.sigmoid(self.gate)
        return torch.lerp(x, h[:, :, 0], share), torch.log(torch.lerp(torch.ones_like(x), slope[:, :, 0], share))


def _by_group(own: Tensor, h: Tensor) -> Tensor:
    """`(D, n, m)` of `(B, D, m)` to `(B, D, n)`, every group by its own matrix."""
    return torch.bmm(h.transpose(0, 1), own.mT).transpose(0, 1)
