"""The dimensions of an example as features of a network, each dimension apart."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.heads import ordered_dims
from fivefold.nets.norm import Standardised
from fivefold.space import Space
from fivefold.tools.scaling import centre

MOST_ONE_HOT = 64  # ordered levels that get a feature each; more enter as one number
MOST_EMBEDDED = 1024  # ordered levels that get a vector each


class DimFeatures(nn.Module):
    """Every dimension as its own few fixed features: `(B, *shape)` to `(B, F)`, without parameters.

    Unordered values and few levels are one-hot; two levels, many levels and real values are one
    centred number. `dim_of_feature` `(F,)` says whose each feature is (ascending).

    Args:
        space: of the examples.
        standardised: whether the numbers' middles and common scale are those of the first batch in training. A
            network learns several times faster where many hardly vary, such as the pixels of a black margin. (Few
            levels stay as they are: so scaled, the rare ones are soon learnt by heart.)
    """

    dim_of_feature: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, space: Space, standardised: bool = False) -> None:
        super().__init__()
        self.widths = [_one_hot_width(n, o) for n, o in zip(space.dim_levels, ordered_dims(space), strict=True)]
        counts = torch.tensor([max(width, 1) for width in self.widths])
        self.register_buffer("dim_of_feature", torch.arange(space.dims).repeat_interleave(counts), persistent=False)
        scale, shift = _centring(space)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        numbers = torch.tensor(self.widths) == 0
        self.norm = Standardised(numbers) if standardised and numbers.any() else None

    def forward(self, x: Tensor) -> Tensor:
        codes = x.flatten(1)
        centred = codes * self.scale + self.shift
        if self.norm is not None:
            centred = self.norm(centred)
        if len(set(self.widths)) == 1:
            return self._features(self.widths[0], codes, centred).flatten(1)
        return torch.cat([self._features(w, codes[:, i], centred[:, i]) for i, w in enumerate(self.widths)], 1)

    def of(self, dim: int, x: Tensor) -> Tensor:
        """Of one flattened dimension alone: `x` `(B,)` to `(B, f)`."""
        centred = x * self.scale[dim] + self.shift[dim]
        return self._features(self.widths[dim], x, centred if self.norm is None else self.norm.of(dim, centred))

    @staticmethod
    def _features(width: int, x: Tensor, centred: Tensor) -> Tensor:
        return F.one_hot(x.long(), width).float() if width else centred.unsqueeze(-1)


class DimEmbedding(nn.Module):
    """Every dimension as a vector: `(B, *shape)` to `(B, D, width)`.

    A vector of each level is looked up and the centred value, where there is an order, scales another;
    both are shared by the dimensions of one channel of an image, of a text, and apart for the columns of a table.

    Args:
        space: of the examples.
        width: of the vectors.
        scale: standard deviation of the initial vectors.
    """

    start: Tensor
    group: Tensor
    looked_up: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, space: Space, width: int, scale: float = 1.0) -> None:
        super().__init__()
        ordered = ordered_dims(space)
        sizes = [_table_size(n, o) for n, o in zip(space.dim_levels, ordered, strict=True)]
        group = group_of_dims(space)
        size_of_group = dict(zip(group, sizes, strict=True))
        starts = list(accumulate(size_of_group.values(), initial=0))
        (slope, shift), has_order = _centring(space), torch.tensor(ordered)
        for name, buffer in {
            "group": torch.tensor(group),
            "start": torch.tensor([starts[g] for g in group]),
            "looked_up": torch.tensor(sizes) > 1,
            "scale": slope * has_order,
            "shift": shift * has_order,
        }.items():
            self.register_buffer(name, buffer, persistent=False)
        self.table = nn.Embedding(starts[-1], width)
        self.slope = nn.Embedding(len(size_of_group), width)
        for embedding in (self.table, self.slope):
            nn.init.normal_(embedding.weight, std=scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.of(slice(None), x.flatten(1))

    def of(self, dims: slice, x: Tensor) -> Tensor:
        """Of some of the flattened dimensions alone: `x` `(B, d)` to `(B, d, width)`."""
        codes = torch.where(self.looked_up[dims], x, 0).long() + self.start[dims]
        centred = x * self.scale[dims] + self.shift[dims]
        return self.table(codes) + centred.unsqueeze(-1) * self.slope(self.group[dims])


class Position(nn.Module):
    """Learned vectors `(D, width)` of the flattened dimensions; for images a sum over colour, row and column."""

    def __init__(self, space: Space, width: int) -> None:
        super().__init__()
        self.axes = nn.ParameterList(nn.Parameter(0.3 * torch.randn(n, width)) for n in space.shape)

    def forward(self) -> Tensor:
        total = self.axes[0]
        for axis in self.axes[1:]:
            total = total.unsqueeze(-2) + axis
        return total.flatten(0, -2)


def _centring(space: Space) -> tuple[Tensor, Tensor]:
    """Scale and shift `(D,)` with which `centre` takes each flattened dimension to [-1, 1]."""
    shift = centre(torch.zeros(1, *space.shape), space).flatten()
    return centre(torch.ones(1, *space.shape), space).flatten() - shift, shift


def group_of_dims(space: Space) -> list[int]:
    """Which dimensions share their vectors: those of a channel, all of a text, each column alone."""
    if space.columns:
        return list(range(space.dims))
    size = space.dims // space.shape[0] if space.kind == "image" else space.dims
    return [dim // size for dim in range(space.dims)]


def _one_hot_width(levels: int | None, ordered: bool) -> int:
    """How many one-hot features; 0 where one number does."""
    if levels is None or levels <= 2 or (ordered and levels > MOST_ONE_HOT):
        return 0
    return levels


def _table_size(levels: int | None, ordered: bool) -> int:
    """How many vectors to look up; 1 (a bias) where the value itself is enough."""
    if levels is None or (ordered and levels > MOST_EMBEDDED):
        return 1
    return levels
