"""Sparse transformer: attention over about the square root of what came before."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fivefold.autoregressive._transformer import TransformerSystem
from fivefold.errors import Unfit
from fivefold.nets.attention import Block, CausalBlock, Local, Pattern, Strided, Summary
from fivefold.options import option
from fivefold.space import Batch, Space


class SparseTransformer(TransformerSystem):
    """Sparse transformer with distribution augmentation (survey 5.1.4; Child et al., 2019; Jun et al., 2020).

    Half of the heads attend nearby and half to a few positions of everything before, so that two layers reach
    it all at a cost of n sqrt(n) rather than n^2: `strided` the row before a position and its column, `fixed`
    its own block and the last cells of every block.

    In training, some examples are rearranged by an augmentation t and the network is told which by a token: it
    learns p(t(x) | t). Densities and samples are the identity's.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"precision": "auto", "ema": 0.99},
        "cifar10": {
            "width": 256, "layers": 128, "heads": 2, "expansion": 2, "key_share": 0.5, "stride": 128, "dropout": 0.25,
            "lr": 3.5e-4, "clip": 1.0, "ema": 0.9999,
        },
        "imagenet64": {
            "width": 512, "layers": 48, "heads": 16, "stride": 128, "dropout": 0.01, "lr": 3.5e-4, "clip": 1.0,
        },
        "enwik8": {
            "width": 512, "layers": 30, "heads": 8, "stride": 128, "cells": 32, "dropout": 0.4,
            "lr": 3.5e-4, "clip": 1.0,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "cifar10": (59e6, "Child et al. 2019, table 1"),
        "imagenet64": (152e6, "Child et al. 2019, table 1"),
    }

    arrangements: Tensor

    pattern: Literal["auto", "strided", "fixed"] = option(
        "auto", "strided | fixed; auto takes strided for images and fixed for the others"
    )
    stride: int = option(
        0, "positions of a row or block; 0 for an image's row, or the root of the number of positions", least=0
    )
    cells: int = option(2, "of each block that all later positions see, in the fixed pattern", least=1)
    heads = 2
    expansion: int = option(4, "hidden units of the MLPs, as a multiple of the width", least=1)
    key_share: float = option(1.0, "width of queries and keys, as a share of the features'", above=0)
    dropout = 0.0
    augmentation: str = option(
        "auto", "kinds of rearrangement joined by +, of rotation, transposition, reflection, jigsaw and colour for "
        "images and reversal for text and audio; none; or auto, for what becomes of a square image by rotation and "
        "transposition, of others by reflection, and reversal",
    )  # fmt: skip
    augmented: float = option(0.1, "share of the training examples that are rearranged", least=0, most=1)

    def make_blocks(self) -> list[CausalBlock]:
        patterns = _patterns(self.pattern, self.stride or _stride(self.space), self.cells, self.space)
        key_width = round(self.width * self.key_share)
        return [
            CausalBlock(self.width, self.heads, self.dropout, self.expansion, patterns, key_width)
            for _ in range(self.layers)
        ]

    def build(self) -> None:
        super().build()
        self.register_buffer("arrangements", _arrangements(self.augmentation, self.space), persistent=False)
        # The identity's token is no token: its vector stays zero.
        self.token = nn.Embedding(len(self.arrangements), self.width, padding_idx=0)

    def loss(self, batch: Batch) -> Tensor:
        kinds = torch.randint(len(self.arrangements), (len(batch.x),), device=batch.x.device)
        kinds = torch.where(torch.rand(len(kinds), device=kinds.device) < self.augmented, kinds, 0)
        return -self.augmented_log_prob(batch.x, batch.condition, kinds).mean()

    def augmented_log_prob(self, x: Tensor, condition: Tensor | None, kinds: Tensor) -> Tensor:
        """ln p(t(x) | t) in nats `(B,)`, t being `kinds` `(B,)`, rows of `arrangements`; 0 is the identity."""
        x = x.flatten(1).gather(1, self.arrangements[kinds]).view_as(x)
        return self.head.log_prob(self.conditionals(x, condition, self.token(kinds)[:, None]), x).sum(1)


def _stride(space: Space) -> int:
    """A row of an image, its colours together; else about the root of the length."""
    return space.dims // space.shape[1] if space.kind == "image" else max(1, round(math.sqrt(space.dims)))


def _patterns(name: str, stride: int, cells: int, space: Space) -> list[Pattern]:
    if name == "strided" or (name == "auto" and space.kind == "image"):
        return [Local(stride), Strided(stride)]
    return [Block(stride), Summary(stride, min(cells, stride))]


def _arrangements(augmentation: str, space: Space) -> Tensor:
    """Where each flattened dimension comes from, `(kinds, D)`: all combinations, the identity first."""
    square = space.kind == "image" and space.shape[1] == space.shape[2]
    if augmentation == "auto":
        image = "rotation+transposition" if square else "reflection"
        augmentation = {"image": image, "table": "none"}.get(space.kind, "reversal")
    found = [torch.arange(space.dims).view(space.shape)]
    for name in [] if augmentation == "none" else augmentation.split("+"):
        kind, needs_square, rearranged = ARRANGED.get(name, ("", False, lambda x: [x]))
        if (space.kind == "image") != (kind == "image") or (needs_square and not square) or space.kind == "table":
            fitting = [
                n for n, (k, s, _) in ARRANGED.items() if (k == "image") == (space.kind == "image") and s <= square
            ]
            raise Unfit(f"augmentation {name!r} does not fit {space.describe()}; there are {', '.join(fitting)}, none")
        found = [one for x in found for one in rearranged(x)]
    return torch.stack([x.flatten() for x in found])


def _rotations(x: Tensor) -> list[Tensor]:
    return [x.rot90(k, (1, 2)) for k in range(4)]


def _transpositions(x: Tensor) -> list[Tensor]:
    return [x, x.transpose(1, 2)]


def _reflections(x: Tensor) -> list[Tensor]:
    return [x, x.flip(1), x.flip(2), x.flip(1, 2)]


def _jigsaws(x: Tensor) -> list[Tensor]:
    """The four quadrants in every cyclic order; what does not halve stays at the edge."""
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    found = []
    for shift_down in (0, rows):
        for shift_right in (0, columns):
            whole = x[:, : 2 * rows, : 2 * columns].roll((shift_down, shift_right), (1, 2))
            found.append(x.clone())
            found[-1][:, : 2 * rows, : 2 * columns] = whole
    return found


def _colours(x: Tensor) -> list[Tensor]:
    return [x.roll(k, 0) for k in range(x.shape[0])]


def _reversals(x: Tensor) -> list[Tensor]:
    return [x, x.flip(-1)]


# name -> kind of space, whether only square images, the function that gives all arrangements with the given one first
ARRANGED: dict[str, tuple[str, bool, Callable[[Tensor], list[Tensor]]]] = {
    "rotation": ("image", True, _rotations),
    "transposition": ("image", True, _transpositions),
    "reflection": ("image", False, _reflections),
    "jigsaw": ("image", False, _jigsaws),
    "colour": ("image", False, _colours),
    "reversal": ("sequence", False, _reversals),
}
