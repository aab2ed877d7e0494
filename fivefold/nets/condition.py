"""A condition as a vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.mlp import MLP
from fivefold.space import Space
from fivefold.tools.scaling import centre


class ConditionEmbedding(nn.Module):
    """An encoded condition `(B, ...)` as `(B, width)`: categorical dimensions one-hot, others centred, then an MLP.

    Args:
        space: the condition's Space, or None, where `forward` gives None.
        width: of the embedding.
        layers: hidden ones of the MLP; 0 for a linear embedding.
    """

    def __init__(self, space: Space | None, width: int, layers: int = 1) -> None:
        super().__init__()
        self.space = space
        self.width = 0 if space is None else width
        if space is not None:
            categorical = [column.kind == "categorical" for column in space.columns] or [
                space.kind == "text"
            ] * space.dims
            levels = [n for n, is_one in zip(space.dim_levels, categorical, strict=True) if is_one]
            self.categorical = [i for i, is_one in enumerate(categorical) if is_one]
            self.real = [i for i, is_one in enumerate(categorical) if not is_one]
            self.levels = [n for n in levels if n is not None]
            self.net = MLP(sum(self.levels) + categorical.count(False), width, width, layers)

    def forward(self, condition: Tensor | None) -> Tensor | None:
        if self.space is None or condition is None:
            return None
        flat, real = condition.flatten(1), centre(condition, self.space).flatten(1)
        one_hot = [F.one_hot(flat[:, i].long(), n).float() for i, n in zip(self.categorical, self.levels, strict=True)]
        return self.net(torch.cat([*one_hot, real[:, self.real]], 1))


class Embedded(nn.Module):
    """A condition that is a vector `(B, width)` already.

    Args:
        width: of it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, condition: Tensor | None) -> Tensor | None:
        return condition


class MapEmbedding(nn.Module):
    """An encoded image as a condition, `(B, C, h, w)`, as maps `(B, width, H, W)` that are aligned with an image.

    Args:
        space: the condition's Space, of images.
        width: of the embedding.
        size: H and W, to which the maps are enlarged by repetition.
    """

    def __init__(self, space: Space, width: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.space, self.width, self.size = space, width, size
        self.first = nn.Conv2d(space.shape[0], width, 3, padding=1)
        self.last = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, condition: Tensor | None) -> Tensor | None:
        if condition is None:
            return None
        maps = self.last(F.silu(self.first(centre(condition, self.space))))
        return F.interpolate(maps, self.size, mode="nearest")


def with_maps(x: Tensor, embedding: Tensor | None) -> Tensor:
    """`x` `(B, C, ...)` with an embedding `(B, E)` as E more channels, constant over positions; `x` if None."""
    if embedding is None:
        return x
    maps = embedding.view(*embedding.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
    return torch.cat([x, maps.to(x.dtype)], 1)
