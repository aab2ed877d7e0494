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
from fivefold.tools.roots import triangular_gradients


class MaskedAutoregressive(Bijection):
    """y_i = h(x_i; parameters(x_<i)) on vectors `(B, D)` (Papamakarios et al., 2017; survey Eq. 34).

    From data to noise all dimensions at once, by a masked network; back one after another, every unit of the network
    computed once, when all that it sees is known. The identity at first.

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

    @property
    def exactness(self) -> Exactness:
        return inverse_exactness(self.transform)

    def _masks(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the three layers: a unit of degree d sees x_<d, and speaks for the dimensions from d on."""
        return (
            degree_mask(self.position, self.degrees, strict=True),
            degree_mask(self.degrees, self.degrees),
            degree_mask(self.degrees, self.position),
        )

    def parameters_of(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """`(P, B, D)`, those of a dimension from the dimensions before it alone."""
        first, second, last = self._masks()
        h = self.first(x, first)
        if self.context is not None and condition is not None:
            h = h + self.context(condition)
        h = h + self.second(F.silu(h), second)
        params = self.last(F.silu(h), last)
        return params.unflatten(1, (self.dims, -1)).movedim(-1, 0)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_slope = self._elementwise(x, condition)
        return y, sum_dims(log_slope)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = self._one_by_one(y, condition)
        if not torch.is_grad_enabled():
            return x, log_det
        x = triangular_gradients(lambda x: self._elementwise(x, condition), x, y)
        return x, -self.forward(x, condition)[1]

    def _elementwise(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.forward(x, self.parameters_of(x, condition))

    @torch.no_grad()
    def _one_by_one(self, y: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """The inverse in the operations of about one pass. Arrays are `(units, B)`, units in the order of degrees."""
        layers = zip((self.first, self.second, self.last), self._masks(), strict=True)
        w1, w2, w3 = (layer.masked_weight(mask) for layer, mask in layers)
        w3, b3 = w3.view(self.dims, self.transform.size, -1), self.last.bias.view(self.dims, -1, 1)
        h1 = self.first.bias.unsqueeze(1).repeat(1, len(y))
        if self.context is not None and condition is not None:
            h1 += self.context(condition).T
        b2 = self.second.bias.unsqueeze(1)
        seen1, seen2 = torch.empty_like(h1), torch.empty_like(h1)  # after the activation
        y = y.T.contiguous()
        x, log_slope = torch.empty_like(y), torch.empty_like(y)
        ends = torch.bincount(self.degrees, minlength=self.dims).cumsum(0).tolist()
        for d, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if end > start:  # these units see x_<d, and nothing that sees more has been computed
                new = slice(start, end)
                h = torch.addmm(h1[new], w1[new, :d], x[:d])
                seen1[new] = F.silu(h)
                seen2[new] = F.silu(h + torch.addmm(b2[new], w2[new, :end], seen1[:end]))
            parameters = torch.addmm(b3[d], w3[d, :, :end], seen2[:end])
            x[d], log_slope[d] = self.transform.inverse(y[d], parameters)
        return x.T.contiguous(), log_slope.sum(0)


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
            x = self.net.fill(torch.zeros_like(y), condition, lambda d, p: self.transform.inverse(y[:, d], p.T)[0])
        x = triangular_gradients(lambda x: self._elementwise(x, condition), x, y) if torch.is_grad_enabled() else x
        return x, -self.forward(x, condition)[1]

    def _elementwise(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.forward(x, self.net(x.view(-1, *self.shape), condition).movedim(-1, 0))


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
