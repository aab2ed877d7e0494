"""Nonlinear maps of images by masked convolutions: MaCow's and MintNet's (survey 6.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.base import Bijection, Chain, Exactness, Layer, sum_dims
from fivefold.bijections.convolution import Turned, causal_mask, causal_pad
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.transforms import Transform, inverse_exactness
from fivefold.nets.coders import zero
from fivefold.nets.masked import CausalConv2d
from fivefold.tools.roots import invert_triangular


class MaskedConv(Bijection):
    """Every row is transformed given few rows above it: y_p = h(x_p; net(x near p, in the rows above)).

    MaCow's masked convolution (Ma et al., 2019). Pixels of a row do not see one another, so the inverse takes H
    steps of a row each, whatever the width and the channels. The identity at first.

    Args:
        channels: of `(B, C, H, W)`.
        transform: h.
        kernel: rows above that it sees, and columns (odd), the pixel's in the middle.
        hidden: features.
        condition: width of the condition, 0 for none.
    """

    def __init__(
        self, channels: int, transform: Transform, kernel: tuple[int, int], hidden: int, condition: int = 0
    ) -> None:
        super().__init__()
        self.transform = transform
        self.first = CausalConv2d(channels, hidden, kernel, above=True)
        self.context = nn.Linear(condition, hidden, bias=False) if condition else None
        self.last = zero(nn.Conv2d(hidden, channels * transform.size, 1))

    @property
    def exactness(self) -> Exactness:
        return inverse_exactness(self.transform)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_slope = self.transform.forward(x, self._params(self.first(x), condition))
        return y, sum_dims(log_slope)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows, log_det = [torch.zeros_like(y[:, :, 0])] * self.first.rows, y.new_zeros(len(y))
        for row in y.unbind(2):
            h = self.first.row(torch.stack(rows[-self.first.rows :], 2))
            x, log_slope = self.transform.inverse(row.unsqueeze(2), self._params(h, condition))
            rows.append(x.squeeze(2))
            log_det = log_det + sum_dims(log_slope)
        return torch.stack(rows[self.first.rows :], 2), log_det

    def _params(self, h: Tensor, condition: Tensor | None) -> Tensor:
        """`(P, B, C, ...)` of features `(B, hidden, ...)`."""
        if self.context is not None and condition is not None:
            h = h + self.context(condition)[:, :, None, None]
        return self.last(F.elu(h)).unflatten(1, (self.transform.size, -1)).transpose(0, 1)


def macow_unit(
    channels: int, transform: Transform, kernel: tuple[int, int] = (2, 3), hidden: int = 0, condition: int = 0
) -> Layer:
    """Masked convolutions that see above, below, left and right, an actnorm before each pair (Ma et al., 2019).

    Args:
        channels: of `(B, C, H, W)`.
        transform: of each element.
        kernel: see `MaskedConv`.
        hidden: features of each; 0 for four times the channels.
        condition: width of the condition, 0 for none.
    """

    def seeing(flip: tuple[int, ...], transpose: bool) -> Layer:
        return Turned(MaskedConv(channels, transform, kernel, hidden or 4 * channels, condition), flip, transpose)

    pairs = [[ActNorm(channels), seeing((), turn), seeing((2,), turn)] for turn in (False, True)]
    return Chain(*pairs[0], *pairs[1])


class MintLayer(Bijection):
    """y = t x + W3 h(W2 h(W1 x + b1) + b2) + b3, with masked convolutions W (Song et al., 2019).

    Each number depends on itself and those before it in raster order, the channels of a pixel in turn. There are K
    features for each, and along its own path every weight of W2 has the sign of those of W1 and W3 around it: with
    ELU as h, which increases, and t > 0 the diagonal of the Jacobian is then positive, and known exactly.

    `inverse` is iterative, see `tools.roots.invert_triangular`; it keeps how many `steps` it took, and cannot be
    differentiated.

    Args:
        shape: (C, H, W) of an image.
        hidden: features in all; K is hidden / C, at least 1.
        condition: width of the condition, which moves b1; 0 for none.
        tolerance: of the inverse, relative to 1 + |x|.
    """

    SIZE, RIGHT = 2, 1  # a 3x3 kernel, without its last row, which would be masked whole

    def __init__(self, shape: tuple[int, ...], hidden: int, condition: int = 0, tolerance: float = 1e-6) -> None:
        super().__init__()
        self.channels, self.features = shape[0], max(hidden // shape[0], 1)
        self.tolerance, self.steps = tolerance, 0
        wide = self.features * self.channels
        self.first = _MaskedConv2d(self.channels, self.channels, wide, 1.0)
        self.second = _MaskedConv2d(self.channels, wide, wide, 1.0)
        self.third = _MaskedConv2d(self.channels, wide, self.channels, 0.1)
        self.context = nn.Linear(condition, wide, bias=False) if condition else None
        self.log_scale = nn.Parameter(torch.zeros(shape))

    @property
    def exactness(self) -> Exactness:
        return Exactness(inverse="iterative")

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, slope = self._map(x, condition)
        return y, sum_dims(slope.log())

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            first, second, third = self._own()
            # ELU's derivative is at most 1.
            steepest = self.log_scale.exp() + _mix(third, _mix(second, first[None, :, 0, :, None, None]))[0, 0]
        x, self.steps = invert_triangular(lambda x: self._map(x, condition), y, steepest, self.tolerance)
        return x, -self.forward(x, condition)[1]

    def _own(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights from each number to its own features, between those, and back, `(outputs, inputs, C)`."""
        first, third = self.first.own, self.third.own
        signs = third.sign().transpose(0, 1) * first.sign().transpose(0, 1)
        return first, self.second.own.abs() * signs, third

    def _map(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """y and the diagonal of its Jacobian, both `(B, C, H, W)`."""
        own = self._own()
        h = self.first(x, own[0])
        if self.context is not None and condition is not None:
            h = h + self.context(condition)[:, :, None, None]
        g = self.second(F.elu(h), own[1])
        scale = self.log_scale.exp()
        y = self.third(F.elu(g), own[2]) + scale * x
        slope = self._group(h.clamp(max=0).exp()) * own[0][:, 0, :, None, None]  # (B, K, C, H, W)
        slope = _mix(own[1], slope) * self._group(g.clamp(max=0).exp())
        return y, scale + _mix(own[2], slope)[:, 0]

    def _group(self, h: Tensor) -> Tensor:
        return h.unflatten(1, (self.features, self.channels))


class _MaskedConv2d(nn.Module):
    """A convolution of groups of channels, each group a pixel's C in order: every output sees what comes before.

    What it sees of its own number is given apart, as weights `(output groups, input groups, C)`.
    """

    mask: Tensor

    def __init__(self, channels: int, inputs: int, outputs: int, scale: float) -> None:
        super().__init__()
        order = torch.arange(max(inputs, outputs), device="cpu") % channels
        mask = causal_mask(order[:inputs], order[:outputs], MintLayer.SIZE, MintLayer.RIGHT)
        self.register_buffer("mask", mask, persistent=False)
        deviation = scale / math.sqrt(mask.sum().item() / outputs + inputs / channels)
        self.weight = nn.Parameter(deviation * torch.randn(mask.shape))
        self.own = nn.Parameter(deviation * torch.randn(outputs // channels, inputs // channels, channels))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, own: Tensor) -> Tensor:
        middle = own.diag_embed().transpose(1, 2).flatten(2).flatten(0, 1)
        kernel = self.weight * self.mask + causal_pad(middle[:, :, None, None], MintLayer.SIZE, MintLayer.RIGHT)
        return F.conv2d(causal_pad(x, MintLayer.SIZE, MintLayer.RIGHT), kernel, self.bias)


def _mix(weights: Tensor, slope: Tensor) -> Tensor:
    """Weights `(J, K, C)` from K to J features of every number, `(B, K, C, H, W)` to `(B, J, C, H, W)`."""
    return torch.einsum("jkc,bkchw->bjchw", weights, slope)


def mint_pair(shape: tuple[int, ...], hidden: int, condition: int = 0, tolerance: float = 1e-6) -> Layer:
    """Two `MintLayer` in opposite orders, so that every number depends on all near it (Song et al., 2019).

    Args:
        shape: (C, H, W) of an image.
        hidden: see `MintLayer`.
        condition: the same.
        tolerance: the same.
    """
    first, second = (MintLayer(shape, hidden, condition, tolerance) for _ in range(2))
    return Chain(first, Turned(second, flip=(1, 2, 3)))
