"""Autoregressive flows: each dimension is transformed as those before it say."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.bijections.base import Bijection, Chain, Exactness, Layer, sum_dims
from fivefold.bijections.shape import Permutation
from fivefold.bijections.transforms import Transform, inverse_exactness
from fivefold.nets.coders import zero
from fivefold.nets.masked import MaskedNet
from fivefold.nets.pixelcnn import GatedPixelCNN, raster
from fivefold.nets.states import fill
from fivefold.space import Space
from fivefold.tools.roots import triangular_gradients

BLOCK = 32  # dimensions that are inverted at once


class MaskedAutoregressive(Bijection):
    """y_i = h(x_i; parameters(x_<i)) on vectors `(B, D)` (Papamakarios et al., 2017; survey Eq. 34).

    From data to noise all dimensions at once, by a masked network; back in blocks of dimensions one after another,
    which is about as much work as a few passes and as exact as one dimension after another. The identity at first.

    Args:
        dims: D.
        transform: h.
        hidden: units of each of the network's two hidden layers.
        condition: width of the condition, 0 for none.
        backwards: whether the last dimension comes first.
    """

    def __init__(
        self, dims: int, transform: Transform, hidden: int, condition: int = 0, backwards: bool = False
    ) -> None:
        super().__init__()
        self.transform, self.backwards = transform, backwards
        self.net = MaskedNet(dims, transform.size, hidden, condition, backwards=backwards)

    @property
    def exactness(self) -> Exactness:
        return inverse_exactness(self.transform)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_slope = self._elementwise(x.T.contiguous(), condition)
        return y.T, log_slope.sum(0)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = self._by_blocks(y, condition)
        if not torch.is_grad_enabled():
            return x, log_det

        def turned(x: Tensor) -> tuple[Tensor, Tensor]:
            value, log_slope = self._elementwise(x.T, condition)
            return value.T, log_slope.T

        x = triangular_gradients(turned, x, y)
        return x, -self.forward(x, condition)[1]

    def _elementwise(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """The image and its log-slopes, all `(D, B)`."""
        return self.transform.forward(x, self.net(x, condition))

    @torch.no_grad()
    def _by_blocks(self, y: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """The inverse, a block of dimensions after another, in their order. Arrays are `(units, B)`.

        What a block sees of the earlier ones is computed once. Within it x = h^-1(y; parameters(x)) is iterated: the
        i-th dimension is right after i rounds whatever the map is, and most often all are after a few.
        """
        dims, degrees, context = self.net.dims, self.net.degrees, self.net.context
        (w1, h1), (w2, b2), last = self.net.layers()
        w3, b3 = (part.unflatten(0, (-1, dims)) for part in last)
        y = y.T.contiguous()
        if self.backwards:
            w1, w3, b3, y = w1.flip(1), w3.flip(1), b3.flip(1), y.flip(0)
        if context is not None and condition is not None:
            h1 = h1 + context(condition.T)
        seen1, seen2 = (y.new_empty(len(degrees), y.shape[1]) for _ in range(2))  # units after the activation
        x, log_slope = torch.zeros_like(y), torch.empty_like(y)
        units = torch.bincount(degrees // BLOCK, minlength=-(-dims // BLOCK)).cumsum(0).tolist()
        for i, (u, v) in enumerate(itertools.pairwise([0, *units])):
            d, e = i * BLOCK, min((i + 1) * BLOCK, dims)
            h1_before = h1[u:v] + w1[u:v, :d] @ x[:d]
            h2_before = b2[u:v] + w2[u:v, :u] @ seen1[:u]
            before = b3[:, d:e] + w3[:, d:e, :u] @ seen2[:u]
            w1_own, w2_own, w3_own = w1[u:v, d:e], w2[u:v, u:v], w3[:, d:e, u:v]
            for _ in range(e - d):
                seen1[u:v] = F.relu_(h1_before + w1_own @ x[d:e])
                seen2[u:v] = F.relu_(h2_before + w2_own @ seen1[u:v])
                new, log_slope[d:e] = self.transform.inverse(y[d:e], before + w3_own @ seen2[u:v], x[d:e])
                change, x[d:e] = (new - x[d:e]).abs(), new
                if bool((change <= 4 * torch.finfo(x.dtype).eps * (1 + new.abs())).all()):
                    break
        return (x.flip(0) if self.backwards else x).T, log_slope.sum(0)


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
        y, log_slope = self._elementwise(x, condition)
        return y, sum_dims(log_slope)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            states, order = self.net.states(len(y), condition), raster(self.net.space)
            x = fill(states, order, torch.zeros_like(y), lambda d, p: self.transform.inverse(y[:, d], p.T)[0])
        x = triangular_gradients(lambda x: self._elementwise(x, condition), x, y) if torch.is_grad_enabled() else x
        return x, -self.forward(x, condition)[1]

    def _elementwise(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.forward(x, self.net(x.view(-1, *self.shape), condition).movedim(-1, 0))


def masked_autoregressive_flow(dims: int, steps: int, transform: Transform, hidden: int, condition: int = 0) -> Layer:
    """`steps` of `MaskedAutoregressive`, forwards and backwards by turns."""
    layers = [MaskedAutoregressive(dims, transform, hidden, condition, backwards=i % 2 == 1) for i in range(steps)]
    return Chain(*layers)


def in_alternating_order(dims: int, flows: Iterable[Layer]) -> Layer:
    """Flows of vectors `(B, dims)` one after another, the order of the dimensions reversed in between."""
    parts: list[Layer] = []
    for flow in flows:
        parts += [Permutation(torch.arange(dims).flip(0)), flow] if parts else [flow]
    return Chain(*parts)
