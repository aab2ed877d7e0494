"""Block neural autoregressive flow (De Cao et al., 2019; survey 6.1.3, Table 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.base import Bijection, Exactness
from fivefold.tools.roots import invert_increasing

MOST_WEIGHTS = 2**26


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
        self.log_norm = nn.Parameter(0.5 * math.log(inputs) - torch.rand(dims * outputs))
        self.bias = nn.Parameter(torch.randn(dims * outputs) / 4)

    def weights(self) -> tuple[Tensor, Tensor]:
        """The matrix `(D outputs, D inputs)` and the logarithms of its diagonal blocks `(D, outputs, inputs)`."""
        group = torch.arange(self.dims, device=self.weight.device)
        row, column = group.repeat_interleave(self.outputs)[:, None], group.repeat_interleave(self.inputs)
        free = torch.where(row == column, self.weight.exp(), self.weight * (row > column))
        log_scale = (self.log_norm - 0.5 * free.square().sum(1).log()).unsqueeze(1)
        blocks = self.weight.unflatten(0, (self.dims, -1)).unflatten(2, (self.dims, -1))
        logs = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)
        return free * log_scale.exp(), logs + log_scale.unflatten(0, (self.dims, -1))


class BlockAutoregressive(Bijection):
    """y = (1 - g) x + g net(x) of vectors `(B, D)`, in which y_i increases in x_i and sees no later dimension.

    The net is a tanh network of block lower triangular weights whose blocks on the diagonal are positive. The
    derivative dy_i / dx_i is a product of those blocks and slopes of tanh, here of their logarithms by logsumexp. The
    gate g in (0, 1) makes every y reachable: tanh alone is bounded. The inverse goes dimension by dimension, each the
    root of a function of one group of units alone, so that no weight is used twice but those of the diagonal blocks.

    Args:
        dims: D.
        width: units of each dimension in a hidden layer; fewer where a layer would pass 2^26 weights.
        layers: hidden layers.
        condition: width of a condition that moves the first hidden layer, 0 for none.
        tolerance: of the inverse.
    """

    def __init__(self, dims: int, width: int, layers: int = 1, condition: int = 0, tolerance: float = 1e-6) -> None:
        super().__init__()
        self.dims, self.tolerance = dims, tolerance
        width = max(1, min(width, math.isqrt(MOST_WEIGHTS) // dims))
        widths = [1, *[width] * layers, 1]
        self.layers = nn.ModuleList(BlockLinear(dims, widths[i], widths[i + 1]) for i in range(layers + 1))
        self.context = nn.Linear(condition, dims * width, bias=False) if condition else None
        self.gate = nn.Parameter(torch.zeros(()))

    @property
    def exactness(self) -> Exactness:
        return Exactness(inverse="iterative")

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h, log_slope = x, x.new_zeros(len(x), self.dims, 1)
        for i, (layer, (weight, logs)) in enumerate(self._weights()):
            h = F.linear(h, weight, layer.bias) + (self._moved(condition) if i == 0 else 0)
            h, log_slope = self._through(i, h.unflatten(1, (self.dims, -1)), log_slope, logs)
            h = h.flatten(1)
        y, log_slope = self._gated(x, h, log_slope.squeeze(2))
        return y, log_slope.sum(1)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        layers, moved = self._weights(), self._moved(condition)
        known = [y.new_zeros(len(y), 0) for _ in range(len(layers) + 1)]  # the units of the dimensions before
        log_det = y.new_zeros(len(y))
        share = torch.sigmoid(self.gate)
        for dim in range(self.dims):
            rows = [slice(dim * layer.outputs, (dim + 1) * layer.outputs) for layer, _ in layers]
            given = [
                F.linear(before, weight[row, : before.shape[1]], layer.bias[row])
                for before, row, (layer, (weight, _)) in zip(known, rows, layers, strict=False)
            ]
            given[0] = given[0] + (moved[:, rows[0]] if isinstance(moved, Tensor) else 0)
            logs = [blocks[dim] for _, (_, blocks) in layers]

            def increasing(
                x: Tensor, given: list[Tensor] = given, logs: list[Tensor] = logs
            ) -> tuple[Tensor, Tensor]:
                units, log_slope = self._column(x, given, logs)
                value, log_slope = self._gated(x, units[-1].squeeze(1), log_slope)
                return value, log_slope

            # Where tanh ends, so does the net: the last layer's offset, and at most the sum of its positive weights.
            reach = logs[-1].exp().sum()
            ends = [(y[:, dim] - share * (given[-1][:, 0] + end)) / (1 - share) for end in (reach, -reach)]
            x, term = invert_increasing(increasing, y[:, dim], *ends, self.tolerance)
            units, _ = self._column(x, given, logs)
            new = [x.unsqueeze(1), *units]
            known = [torch.cat([before, after], 1) for before, after in zip(known, new, strict=True)]
            log_det = log_det + term
        return known[0], log_det

    def _column(self, x: Tensor, given: list[Tensor], logs: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The units `(B, n)` of one dimension in every layer, those before it being `given`; and ln of its slope."""
        h, log_slope = x[:, None], x.new_zeros(len(x), 1, 1)
        units = []
        for i, (offset, block) in enumerate(zip(given, logs, strict=True)):
            h, log_slope = self._through(i, (offset + h @ block.exp().T).unsqueeze(1), log_slope, block.unsqueeze(0))
            h = h.squeeze(1)
            units.append(h)
        return units, log_slope[:, 0, 0]

    def _through(self, layer: int, h: Tensor, log_slope: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
        """Units `(B, D, n)` after the activation of a layer, and ln of their slopes in x."""
        log_slope = (logs + log_slope.unsqueeze(2)).logsumexp(3)
        if layer == len(self.layers) - 1:
            return h, log_slope
        return torch.tanh(h), log_slope + 2 * (math.log(2) - h - F.softplus(-2 * h))

    def _gated(self, x: Tensor, h: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        log_share, log_rest = F.logsigmoid(self.gate), F.logsigmoid(-self.gate)
        return torch.lerp(x, h, log_share.exp()), torch.logaddexp(log_rest, log_share + log_slope)

    def _weights(self) -> list[tuple[BlockLinear, tuple[Tensor, Tensor]]]:
        return [(layer, layer.weights()) for layer in self.layers]  # type: ignore[misc, operator]

    def _moved(self, condition: Tensor | None) -> Tensor | float:
        return 0.0 if self.context is None or condition is None else self.context(condition)
