"""Energies of discrete examples by their one-hot form, `(B, D, K)` to `(B,)`: there they have a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fivefold.errors import Unfit
from fivefold.nets.condition import ConditionEmbedding
from fivefold.nets.embedding import group_of_dims
from fivefold.nets.residual import ConvEnergy, MLPEnergy
from fivefold.space import Space

FEATURES = 4  # of each number, the first of them its value
MOST_PAIRS = 2**26  # of statistics whose couplings are learnt


class Independent(nn.Module):
    """-ln of independent laws: the running frequencies of the data's values, `prior` of an example added to them.

    Args:
        space: of the examples, all dimensions discrete.
        prior: so that no value is impossible.
    """

    frequency: Tensor
    possible: Tensor
    updated: Tensor

    def __init__(self, space: Space, prior: float = 0.01) -> None:
        super().__init__()
        levels = torch.tensor([count or 1 for count in space.dim_levels])
        possible = torch.arange(int(levels.max())) < levels[:, None]
        self.prior = prior
        self.register_buffer("possible", possible, persistent=False)
        self.register_buffer("frequency", possible / levels[:, None])
        self.register_buffer("updated", torch.tensor(0))

    @property
    def log_p(self) -> Tensor:
        """Nats `(D, K)` of every value; of those that are none 0, so that they count nothing."""
        weight = torch.where(self.possible, self.frequency + self.prior / self.possible.sum(1, keepdim=True), 0.0)
        return (weight / weight.sum(1, keepdim=True)).masked_fill(~self.possible, 1.0).log()

    def forward(self, one_hot: Tensor) -> Tensor:
        return -(one_hot * self.log_p).sum((1, 2))

    def sample(self, n: int) -> Tensor:
        """Whole numbers `(n, D)`."""
        weight = self.log_p.exp() * self.possible
        return torch.multinomial(weight, n, replacement=True).T.contiguous()

    @torch.no_grad()
    def learn(self, frequency: Tensor) -> None:
        """Of a batch, `(D, K)`."""
        self.updated += 1
        self.frequency.lerp_(frequency, 1 / self.updated.clamp(max=1000))


class NetworkEnergy(nn.Module):
    """A residual network of features of every number, a linear map of its one-hot form: its value and three learnt.

    Args:
        space: of the examples, all dimensions discrete.
        width: channels at full resolution of an image, units of a layer on tables.
        blocks: how many widths.
        depth: residual blocks of each width.
    """

    group: Tensor

    def __init__(self, space: Space, width: int, blocks: int, depth: int) -> None:
        super().__init__()
        levels = torch.tensor([count or 1 for count in space.dim_levels])
        group = torch.tensor(group_of_dims(space))
        table = 0.3 * torch.randn(int(group.max()) + 1, int(levels.max()), FEATURES)
        value = torch.arange(int(levels.max())) / (levels[:, None] - 1).clamp(min=1) * 2 - 1
        table[group, :, 0] = value  # alike within a group
        self.table = nn.Parameter(table)
        self.register_buffer("group", group, persistent=False)
        self.image = space.shape if space.kind == "image" else None
        channels = FEATURES * (space.shape[0] if self.image else space.dims)
        inner = Space(space.kind, (channels, *space.shape[1:]), condition=space.condition)
        make = ConvEnergy if self.image else MLPEnergy
        self.net = make(inner, width, lambda layer: layer, blocks, depth)

    def forward(self, one_hot: Tensor, condition: Tensor | None = None) -> Tensor:
        # One table for all is one matrix product; else each number has its own.
        table = self.table[0] if len(self.table) == 1 else self.table[self.group]
        h = (one_hot @ table if table.dim() == 2 else torch.einsum("bdk,dkf->bdf", one_hot, table)).transpose(1, 2)
        if self.image:
            h = h.unflatten(2, self.image).flatten(1, 2)
        return self.net(h.flatten(1) if self.image is None else h, condition)


class Symmetric(nn.Module):
    """A symmetric matrix by its upper triangle.

    Args:
        apart: 1 where a number is learnt, above the diagonal, and 0 elsewhere.
    """

    apart: Tensor

    def __init__(self, apart: Tensor) -> None:
        super().__init__()
        self.register_buffer("apart", apart, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        upper = weight * self.apart
        return upper + upper.T

    def right_inverse(self, matrix: Tensor) -> Tensor:
        return matrix * self.apart


class QuadraticEnergy(nn.Module):
    """-b.s - s'J s / 2 of spins s of 1 or -1 (Ising) where all numbers have two values, else of one-hot ones (Potts).

    J is symmetric and 0 within a number.

    Args:
        space: of the examples, all dimensions discrete.
        width, blocks, depth: of other energies; there are none here.
    """

    couplings: Tensor  # J `(n, n)`; set by what it is to be

    def __init__(self, space: Space, width: int = 0, blocks: int = 0, depth: int = 0) -> None:
        super().__init__()
        most = max(count or 1 for count in space.dim_levels)
        self.spins, self.dims = most == 2, space.dims
        count = space.dims if self.spins else space.dims * most
        if count**2 > MOST_PAIRS:
            raise Unfit(
                f"a quadratic energy has a coupling for every pair of values, {count:,} squared of them here, and is "
                f"limited to {math.isqrt(MOST_PAIRS):,} squared"
            )
        of = torch.arange(count) // (count // space.dims)
        self.couplings = nn.Parameter(torch.zeros(count, count))
        parametrize.register_parametrization(self, "couplings", Symmetric((of < of[:, None]).T.float()))
        self.bias = nn.Parameter(torch.zeros(count))
        self.embed = ConditionEmbedding(space.condition, 32)
        self.shift = nn.Linear(self.embed.width, count) if space.condition else None

    def forward(self, one_hot: Tensor, condition: Tensor | None = None) -> Tensor:
        s = one_hot[..., 1] - one_hot[..., 0] if self.spins else one_hot.flatten(1)
        bias = self.bias if self.shift is None else self.bias + self.shift(self.embed(condition))
        return -(s * bias).sum(1) - 0.5 * ((s @ self.couplings) * s).sum(1)


# By name: of a space, and of a width, blocks and depth.
ENERGIES: dict[str, Callable[[Space, int, int, int], nn.Module]] = {
    "network": NetworkEnergy,
    "quadratic": QuadraticEnergy,
}
