"""Bijections of whole numbers: p(x) = p(f(x)), without a Jacobian since there is no volume (survey 6.5, Eq. 40).

Their gradients are straight-through: those of the identity in place of rounding, of a regression in place of an argmax.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.base import Bijection
from fivefold.nets.coders import zero
from fivefold.nets.masked import MaskedLevels

ALL = slice(None)

# --- integers -----------------------------------------------------------------------------------------


def round_through(x: Tensor) -> Tensor:
    """The nearest whole numbers, exactly, with the gradient of the identity (Hoogeboom et al., 2019, 3.1)."""
    return x.round().detach() + (x - x.detach())


@dataclass(frozen=True)
class IntegerShift:
    """y = x + round(t), of integers to integers (Hoogeboom et al., 2019, Eq. 6); a `Transform` of couplings."""

    iterative: ClassVar[bool] = False

    @property
    def size(self) -> int:
        return 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return x + round_through(parameters[0]), torch.zeros_like(x)

    def inverse(self, y: Tensor, parameters: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y - round_through(parameters[0]), torch.zeros_like(y)


class Wrap(Bijection):
    """Integers modulo a number of levels: those within stay as they are, the others come round from the other end.

    The identity on {lowest..lowest + levels - 1}: beside every shift it makes that finite set map onto itself, where
    shifts alone leave it.

    Args:
        lowest: the least value, broadcast over examples.
        levels: how many values.
    """

    lowest: Tensor
    levels: Tensor

    def __init__(self, lowest: Tensor, levels: Tensor) -> None:
        super().__init__()
        self.register_buffer("lowest", lowest, persistent=False)
        self.register_buffer("levels", levels, persistent=False)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x - self.levels * torch.floor((x - self.lowest) / self.levels), x.new_zeros(len(x))

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.forward(y)


class Translation(nn.Module):
    """A network between whole numbers: it sees them in units, and gives its output in units.

    Whole numbers come in any precision (in float64 sums of them are exact up to 2^53); the network has its own.

    Args:
        net: `(B, C, ...)` and a condition to `(B, C', ...)`.
        units: one of each input channel `(C,)`.
        out: one of each output channel `(C',)`.
        rezero: whether a learned factor, 0 at first, multiplies the output (van den Berg et al., 2020, 5).
    """

    units: Tensor
    out: Tensor

    def __init__(self, net: nn.Module, units: Tensor, out: Tensor, rezero: bool = False) -> None:
        super().__init__()
        self.net = net
        self.factor = nn.Parameter(torch.zeros(())) if rezero else None
        self.register_buffer("units", units, persistent=False)
        self.register_buffer("out", out, persistent=False)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        over = [1] * (x.dim() - 2)
        inner = self.net((x / self.units.view(-1, *over)).to(next(self.net.parameters()).dtype), condition)
        inner = inner if self.factor is None else self.factor * inner
        return inner.to(x.dtype) * self.out.view(-1, *over)


# --- remainders ---------------------------------------------------------------------------------------


def one_hot_through(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of `(B, ..., K)` as a one-hot vector, and 0 `(B,)`, to be added to what is made as large as possible.

    Both are exact; their gradients, together, are those of regression: that of the identity in place of the argmax
    brings a vector of gains, one of each choice, and the 0 has that of -|logits|^2 / 2, so that logits learn the
    mean of the gains given what they are made from, and the argmax what is best there. A softmax's gradient (Tran et
    al., 2019, Eq. 6) vanishes at whatever choice is best on average, before any that depends on the context is found.

    Args:
        logits: minus infinity at what cannot be chosen.
    """
    possible = logits.isfinite()
    mean = logits.masked_fill(~possible, 0.0).sum(-1, keepdim=True) / possible.sum(-1, keepdim=True)
    gains = (logits - mean).masked_fill(~possible, 0.0)
    chosen = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    shrink = -0.5 * gains.square().flatten(1).sum(1)
    return chosen + (gains - gains.detach()), shrink - shrink.detach()


class Remainders(nn.Module):
    """Arithmetic modulo K of one-hot vectors `(B, D, K)`, dimension d modulo its own number of levels.

    Sums and products of one-hot vectors are bilinear in the two: each has the exact gradient of that, at the vertices.

    Args:
        levels: of each dimension; vectors are as long as the largest, and 0 beyond a dimension's own.
    """

    levels: Tensor
    inverses: Tensor
    is_unit: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels).unsqueeze(-1), persistent=False)
        inverses = torch.zeros(len(levels), max(levels), dtype=torch.long)
        for size in set(levels):
            units = [a for a in range(size) if math.gcd(a, size) == 1]
            row = torch.zeros(max(levels), dtype=torch.long)
            row[units] = torch.tensor([pow(a, -1, size) for a in units])
            inverses[self.levels[:, 0] == size] = row
        # Those that have an inverse are coprime with the number of levels; of a single level 0 is one.
        is_unit = (torch.arange(max(levels)).gcd(self.levels) == 1) & (torch.arange(max(levels)) < self.levels)
        self.register_buffer("inverses", inverses, persistent=False)
        self.register_buffer("is_unit", is_unit, persistent=False)

    @property
    def values(self) -> Tensor:
        """0..K-1."""
        return torch.arange(self.is_unit.shape[-1], device=self.levels.device)

    @property
    def exists(self) -> Tensor:
        """`(D, K)`, which values each dimension has."""
        return self.values < self.levels

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """One-hot vectors `(B, D, K)` of codes `(B, D)`."""
        return F.one_hot(x.long(), len(self.values)).to(dtype)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y."""
        by_x, by_y = (self._at(a, self.values - self._code(b)) for a, b in ((x, y), (y, x)))
        return by_x + (by_y - by_y.detach())

    def multiply(self, x: Tensor, unit: Tensor) -> Tensor:
        """x times what has an inverse."""
        by_x = self._at(x, self.values * self.inverses.expand_as(x).gather(-1, self._code(unit)))
        by_unit = torch.zeros_like(x).scatter_add(-1, (self.values * self._code(x)) % self.levels, unit)
        return by_x + (by_unit - by_unit.detach())

    @staticmethod
    def _code(x: Tensor) -> Tensor:
        return x.argmax(-1, keepdim=True)

    def _at(self, x: Tensor, index: Tensor) -> Tensor:
        return x.gather(-1, index % self.levels) * self.exists


class _Modulo(Bijection):
    """y = (mu + sigma x) mod K of one-hot vectors `(B, D, K)` (Tran et al., 2019, 4; survey 6.5).

    Coefficients get their gradients through `forward`; through `inverse` gradients reach y alone.

    Args:
        levels: K of each dimension.
        scales: whether sigma is learned; it takes the values that have an inverse modulo K. 1 if not.
    """

    def __init__(self, levels: tuple[int, ...], scales: bool) -> None:
        super().__init__()
        self.remainders = Remainders(levels)
        self.dims, self.width = len(levels), max(levels)
        self.choices = 2 if scales and int(self.remainders.is_unit.sum(-1).max()) > 1 else 1

    @abstractmethod
    def logits_of(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Of mu and sigma, `(B, D, choices, K)`."""

    def _masked(self, logits: Tensor, dims: slice) -> Tensor:
        """Logits `(B, d, choices, K)` of some dimensions, minus infinity where a coefficient cannot be."""
        possible = torch.stack([self.remainders.exists, self.remainders.is_unit], 1)[dims, : self.choices]
        return logits.masked_fill(~possible, -torch.inf)

    def _map(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of all dimensions, and 0 `(B,)` with a gradient."""
        coefficients, zero_term = one_hot_through(self._masked(self.logits_of(x, condition), ALL))
        scaled = x if self.choices == 1 else self.remainders.multiply(x, coefficients[:, :, 1])
        return self.remainders.add(scaled, coefficients[:, :, 0]), zero_term

    def _map_back(self, y: Tensor, logits: Tensor, dims: slice = ALL) -> Tensor:
        """Of some dimensions, `y` `(B, d, K)`: what is now at mu + sigma k was at k."""
        codes = self._masked(logits, dims).argmax(-1, keepdim=True)
        shift, scale = codes[:, :, 0], codes[:, :, 1] if self.choices > 1 else 1
        index = (shift + scale * self.remainders.values) % self.remainders.levels[dims]
        return y.gather(-1, index) * self.remainders.exists[dims]


class ModuloAutoregressive(_Modulo):
    """y_d = (mu + sigma x_d) mod K, both functions of x_<d (Tran et al., 2019, 4.2; survey 6.5). The identity at first.

    From data to noise all dimensions at once, by a masked network; back one after another.

    Args:
        levels: K of each dimension.
        hidden: units of each of the network's two hidden layers.
        condition: width of the condition, 0 for none.
        scales: whether sigma is learned; it takes the values that have an inverse modulo K. 1 if not.
        reverse: whether the last dimension comes first.
    """

    def __init__(
        self, levels: tuple[int, ...], hidden: int, condition: int = 0, scales: bool = True, reverse: bool = False
    ) -> None:
        super().__init__(levels, scales)
        self.net = MaskedLevels(self.dims, self.width, self.choices * self.width, hidden, condition, reverse)

    def logits_of(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.net(x, condition).unflatten(2, (self.choices, self.width))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(x, condition)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # Each time the whole network on a whole batch: sums in another order could tip an argmax the other way.
        x = torch.zeros_like(y)
        for dim in self.net.position.argsort().tolist():
            dims = slice(dim, dim + 1)
            known = self._map_back(y[:, dims], self.logits_of(x, condition)[:, dims], dims)
            x = torch.cat([x[:, :dim], known, x[:, dim + 1 :]], 1)
        return x, y.new_zeros(len(y))


class ModuloCoupling(_Modulo):
    """As `ModuloAutoregressive`, of some dimensions given the others (bipartite): one pass both ways.

    Args:
        mask: which dimensions are mapped `(D,)`.
        levels: K of each dimension.
        hidden: units of each of the network's two hidden layers.
        condition: width of the condition, 0 for none.
        scales: whether sigma is learned; it takes the values that have an inverse modulo K. 1 if not.
    """

    mask: Tensor

    def __init__(
        self, mask: Tensor, levels: tuple[int, ...], hidden: int, condition: int = 0, scales: bool = True
    ) -> None:
        super().__init__(levels, scales)
        self.register_buffer("mask", mask.unsqueeze(-1), persistent=False)
        self.first, self.second = nn.Linear(self.dims * self.width, hidden), nn.Linear(hidden, hidden)
        with torch.no_grad():
            self.first.weight.mul_(self.width**0.5)  # as in `MaskedLevels`
        self.context = nn.Linear(condition, hidden) if condition else None
        self.last = zero(nn.Linear(hidden, self.dims * self.choices * self.width))

    def logits_of(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h = self.first((x * ~self.mask).flatten(1))
        if self.context is not None and condition is not None:
            h = h + self.context(condition)
        h = h + self.second(F.silu(h))
        return self.last(F.silu(h)).unflatten(1, (self.dims, self.choices, self.width))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mapped, zero_term = self._map(x, condition)
        return torch.where(self.mask, mapped, x), zero_term

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.where(self.mask, self._map_back(y, self.logits_of(y, condition)), y), y.new_zeros(len(y))
