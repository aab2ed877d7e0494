"""Flow++: mixture CDF couplings whose networks attend to themselves."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Chain, Inverse, Layer
from fivefold.bijections.coupling import Alternate, Coupling, MakeNet, alternate_channels, alternate_pixels
from fivefold.bijections.laws import ContextLaw
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.monotone import MixtureCDF
from fivefold.bijections.shape import Checkerboard, Flatten, Squeeze
from fivefold.bijections.transforms import Transform
from fivefold.flow._coupling import CouplingFlowSystem
from fivefold.nets.attentive import AttentiveNet, GatedContext
from fivefold.options import depth_option, option

CONTEXT = 32  # maps of an example that the networks of its noise see


class FlowPP(CouplingFlowSystem):
    """Flow++ (survey 6.1.2; Ho et al., 2019).

    Couplings whose map is the distribution function of a mixture of logistics, then a logit and an affine map, each
    after an actnorm and a 1x1 convolution; their networks are gated convolutions and self-attention over all places.
    On images couplings by a checkerboard, a squeeze, couplings by channels and by a checkerboard again. Discrete
    data get noise from a flow of its own, given the example (variational dequantisation): of images one of the same
    couplings, by a checkerboard, whose networks also see maps of the example.
    """

    sampling: ClassVar[str] = "iterative"
    presets = {
        "cifar10": {
            "hidden": 96, "blocks": 10, "components": 32, "dropout": 0.2, "noise_layers": 4, "noise_blocks": 2,
            "batch_size": 64, "lr": 3e-4, "weight_decay": 0.0, "warmup": 0.01, "ema": 0.999, "clip": 1.0,
        },
        # Its ablation with uniform noise.
        "cifar10-uniform": {
            "dequantisation": "uniform", "hidden": 104, "blocks": 10, "components": 32, "dropout": 0.2,
            "batch_size": 64, "lr": 3e-4, "weight_decay": 0.0, "warmup": 0.01, "ema": 0.999, "clip": 1.0,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "cifar10": (31_443_440, "the authors' program"),
        "cifar10-uniform": (32_324_408, "the authors' program, its ablation with uniform dequantisation"),
    }

    layers: int = depth_option(
        4, "couplings before an image's squeeze, then half by channels, one fewer by pixels (tables: all)", tune=(1, 16)
    )
    hidden = 32
    blocks: int = depth_option(1, "of a coupling network, each a gated convolution and an attention", tune=(1, 8))
    heads: int = option(4, "of the attention; must divide `hidden`", least=1, tune=(1, 8))
    components: int = option(8, "of a mixture", least=1, tune=(2, 32))
    dropout: float = option(0.0, "in the coupling networks", least=0, below=1, tune=(0.0, 0.5))
    dequantisation = "variational"
    noise_layers: int = option(2, "couplings of the noise of images, where their width is even", least=1)
    noise_blocks: int = option(1, "of each one's network", least=1)

    def build(self) -> None:
        super().build()
        if self.cells is not None and self.space.kind == "image" and self.space.shape[2] % 2 == 0:
            make_net = partial(self._net, blocks=self.noise_blocks, condition=CONTEXT)
            flow = Inverse(Chain(*self._row(by_checkerboard, self.space.shape, self.noise_layers, make_net)))
            context = _Context(self.space.shape, self.embedding.width, self.dropout)
            self.cells.law = ContextLaw(self.space.shape[0], flow, context)

    def transform(self) -> Transform:
        return MixtureCDF(self.components)

    @property
    def _net(self) -> partial[Any]:
        return partial(AttentiveNet, hidden=self.hidden, heads=self.heads, dropout=self.dropout)

    @property
    def make_net(self) -> partial[Any]:
        return partial(self._net, blocks=self.blocks, condition=self.embedding.width)

    def body(self) -> Layer:
        if self.space.kind == "image":
            return self._image_flow(self.space.shape, self.layers)
        return Chain(*self._row(alternate_channels, self.space.shape, self.layers, self.make_net))

    def _image_flow(self, shape: tuple[int, ...], layers: int) -> Layer:
        """The paper's order; without the squeeze and what follows it where a side is odd."""
        channels, height, width = shape
        parts = self._row(by_checkerboard, shape, layers, self.make_net)
        if height % 2 or width % 2:
            return Chain(*parts, Flatten(shape))
        squeezed = (4 * channels, height // 2, width // 2)
        parts += [Squeeze(), *self._row(by_halves, squeezed, max(layers // 2, 1), self.make_net)]
        last = self._row(by_checkerboard, squeezed, layers - 1, self.make_net)
        return Chain(*parts, *last, Flatten(squeezed))

    def _row(self, coupling: Alternate, shape: tuple[int, ...], count: int, make_net: MakeNet) -> list[Layer]:
        steps = [
            (ActNorm(shape[0]), LULinear(shape[0]), coupling(i, shape, self.transform(), make_net))
            for i in range(count)
        ]
        return [part for step in steps for part in step]


class _Context(nn.Module):
    """What the networks of the noise see of an example: maps at half its width, from both colours side by side."""

    def __init__(self, shape: tuple[int, ...], condition: int, dropout: float) -> None:
        super().__init__()
        channels, height, width = shape
        self.board = Checkerboard()
        self.net = GatedContext(2 * channels, CONTEXT, (height, width // 2), 3, condition, dropout)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.net(self.board(x)[0], condition)


def by_halves(layer: int, shape: tuple[int, ...], transform: Transform, make_net: MakeNet) -> Layer:
    """The second half of the channels given the first, and the other way round in every other layer."""
    kept = shape[0] // 2
    mask = (torch.arange(shape[0], device="cpu") >= kept) ^ (layer % 2 == 1)
    changed = int(mask.sum())
    return Coupling(mask, transform, make_net(shape[0] - changed, changed * transform.size, shape[1:]))


def by_checkerboard(layer: int, shape: tuple[int, ...], transform: Transform, make_net: MakeNet) -> Layer:
    """One colour of a checkerboard given the other, whose pixels are all that the network sees, side by side."""
    channels, height, width = shape
    if width % 2:
        return alternate_pixels(layer, shape, transform, make_net)
    board = Checkerboard()
    return Chain(board, by_halves(layer, (2 * channels, height, width // 2), transform, make_net), Inverse(board))
