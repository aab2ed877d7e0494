"""Categories as reals whose argmax, or whose signs, they are (survey 2.3.1; Hoogeboom et al., 2021).

x = argmax_k v_k loses v, which comes back from a law q(v | x) that lies where the argmax is x: then
ln P(x) >= E_q[ln p(v) - ln q(v | x)] for any density p.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.base import sum_dims
from fivefold.bijections.laws import FlowLaw, conditional_flow
from fivefold.bijections.transforms import Affine
from fivefold.nets.conditioner import Conditioner
from fivefold.space import Space


class ArgmaxCode(nn.Module):
    """Encoded discrete examples `(B, *shape)` as reals `(B, *code_shape)`, and back.

    Of images and text each channel becomes several, at the same place; of tables each column several columns. An
    unbounded u is drawn from couplings given x, and taken to where it tells x: of all numbers of a category its own
    stays, the others go below it by a softplus (Hoogeboom et al. 2021, section 3); in binary code u becomes positive
    by a softplus and takes the sign of its digit.

    Args:
        space: of the examples, all discrete.
        binary: by the signs of about log2 K numbers, not the argmax of K.
        condition: width of the condition, 0 for none.
        hidden: width of the couplings' networks.
        layers: couplings of u given x; the first makes it Gaussian, independent given x.
    """

    exists: Tensor
    kept: Tensor

    def __init__(self, space: Space, binary: bool, condition: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.space, self.binary = space, binary
        levels = tuple(count or 1 for count in space.dim_levels)
        widths = torch.tensor([code_width(count, binary) for count in levels], device="cpu")
        self.width, self.most = int(widths.max()), max(levels)
        exists = torch.arange(self.width, device="cpu") < widths[:, None]
        self.register_buffer("exists", exists, persistent=False)  # which numbers each dimension has, `(D, W)`
        self.register_buffer("kept", exists.flatten().nonzero()[:, 0], persistent=False)
        self.register_buffer("last", torch.tensor(levels, device="cpu") - 1, persistent=False)
        self.last: Tensor
        if space.kind == "table":
            self.code_shape: tuple[int, ...] = (len(self.kept),)
        else:
            channels, *sides = space.shape if space.kind == "image" else (1, 1, *space.shape)
            self.code_shape = (channels * self.width, *sides)
        channels, spatial = self.code_shape[0], self.code_shape[1:]
        make_net = partial(Conditioner, hidden=hidden, blocks=1, condition=condition)
        flow = conditional_flow(channels, channels, spatial, layers, Affine(), make_net)
        self.law = FlowLaw(channels, flow)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reals drawn from q(v | x), and -ln q `(B,)`."""
        own = self._digits(x.flatten(1).long()) if self.binary else F.one_hot(x.flatten(1).long(), self.width).bool()
        signs = 2 * own.to(next(self.parameters()).dtype) - 1
        drawn, log_q = self.law.sample(self._from_dims(signs), condition)
        u = self._to_dims(drawn)
        if self.binary:
            v, log_slope = signs * F.softplus(u).clamp(min=torch.finfo(u.dtype).tiny), F.logsigmoid(u)
        else:
            highest = (u * own).sum(2, keepdim=True)
            most = torch.nextafter(highest.detach(), highest.new_tensor(-torch.inf))  # where rounding makes them equal
            below = torch.minimum(highest - F.softplus(highest - u), most)
            v, log_slope = torch.where(own, u, below), F.logsigmoid(highest - u).masked_fill(own, 0.0)
        return self._from_dims(v), sum_dims(log_slope * self.exists) - log_q

    def decode(self, v: Tensor) -> Tensor:
        """The examples that reals `(B, *code_shape)` tell. Binary codes of no value are taken for the last."""
        v = self._to_dims(v)
        if self.binary:
            found = ((v > 0) * self.exists * 2 ** torch.arange(self.width, device=v.device)).sum(2)
        else:
            found = v.masked_fill(~self.exists, -torch.inf).argmax(2)
        found = torch.minimum(found, self.last)
        return (found.float() if self.space.columns else found).view(-1, *self.space.shape)

    def _digits(self, x: Tensor) -> Tensor:
        """Binary, the lowest first: `(B, D)` to `(B, D, W)`."""
        return (x.unsqueeze(2) >> torch.arange(self.width, device=x.device)) % 2 == 1

    def _from_dims(self, v: Tensor) -> Tensor:
        """`(B, D, W)` to `(B, *code_shape)`."""
        if self.space.kind == "table":
            return v.flatten(1)[:, self.kept]
        places = v.unflatten(1, (-1, *self.code_shape[1:]))  # (B, C, H, W, W of the code)
        return places.movedim(-1, 2).flatten(1, 2)

    def _to_dims(self, v: Tensor) -> Tensor:
        """Back; zeros where a dimension has fewer numbers than others."""
        if self.space.kind == "table":
            whole = v.new_zeros(len(v), self.exists.numel()).index_copy(1, self.kept, v)
            return whole.view(len(v), *self.exists.shape)
        return v.unflatten(1, (-1, self.width)).movedim(2, -1).flatten(1, -2)


def code_width(levels: int, binary: bool) -> int:
    """How many reals tell one of so many values."""
    return max(math.ceil(math.log2(levels)), 1) if binary else levels
