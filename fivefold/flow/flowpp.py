"""Flow++: mixture CDF couplings whose networks attend to themselves."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Bijection, Chain, Inverse
from fivefold.bijections.coupling import Alternate, Coupling, MakeNet, alternate_channels, alternate_pixels
from fivefold.bijections.laws import ContextLaw
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.monotone import MixtureCDF
from fivefold.bijections.shape import Checkerboard, Flatten, Squeeze
from fivefold.bijections.transforms import Transform
from fivefold.flow._system import Dequantisation, FlowSystem
from fivefold.nets.attentive import AttentiveNet, GatedContext
from fivefold.space import Space
from fivefold.system import Density

CONDITION_WIDTH = 32
CONTEXT = 32  # maps of an example that the networks of its noise see


class FlowPP(FlowSystem):
    """Flow++ (survey 6.1.2; Ho et al., 2019).

    Couplings whose map is the distribution function of a mixture of logistics, then a logit and an affine map, each
    after an actnorm and a 1x1 convolution; their networks are gated convolutions and self-attention over all places.
    On images couplings by a checkerboard, a squeeze, couplings by channels and by a checkerboard again. Discrete
    data get noise from a flow of its own, given the example (variational dequantisation): of images one of the same
    couplings, by a checkerboard, whose networks also see maps of the example.

    Args:
        space: of the examples.
        layers: couplings before the squeeze of an image; half as many by channels and one fewer by pixels after it. On
            tables: in all.
        hidden: channels of the coupling networks.
        blocks: of a coupling network, each a gated convolution and an attention.
        heads: of the attention; must divide `hidden`.
        components: of a mixture.
        dropout: in the coupling networks.
        margin: how far the logit of discrete images keeps from 0 and 1.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
        dequantisation: of discrete dimensions, variational or uniform.
        noise_layers: couplings of the noise of images, where their width is even.
        noise_blocks: of each one's network.
        warmup: share of the budget over which the learning rate rises.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "iterative"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.99, "clip": 5.0},
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

    def __init__(
        self,
        space: Space,
        *,
        layers: int = 4,
        hidden: int = 32,
        blocks: int = 1,
        heads: int = 4,
        components: int = 8,
        dropout: float = 0.0,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
        dequantisation: Dequantisation = "variational",
        noise_layers: int = 2,
        noise_blocks: int = 1,
        warmup: float = 0.0,
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature, dequantisation)
        self.warmup, self.transform = warmup, MixtureCDF(components)
        width = self.embedding.width
        make_net = partial(AttentiveNet, hidden=hidden, heads=heads, dropout=dropout)
        self.make_net = partial(make_net, blocks=blocks, condition=width)
        flow = (
            self._image_flow(space.shape, layers)
            if space.kind == "image"
            else Chain(*self._row(alternate_channels, space.shape, layers, self.make_net))
        )
        self.flow = self._onto_line(flow, margin)
        if self.dequantisation is not None and space.kind == "image" and space.shape[2] % 2 == 0:
            make_net = partial(make_net, blocks=noise_blocks, condition=CONTEXT)
            flow = Inverse(Chain(*self._row(by_checkerboard, space.shape, noise_layers, make_net)))
            self.dequantisation.law = ContextLaw(space.shape[0], flow, _Context(space.shape, width, dropout))

    def _image_flow(self, shape: tuple[int, ...], layers: int) -> Bijection:
        """The paper's order; without the squeeze and what follows it where a side is odd."""
        channels, height, width = shape
        parts = self._row(by_checkerboard, shape, layers, self.make_net)
        if height % 2 or width % 2:
            return Chain(*parts, Flatten(shape))
        squeezed = (4 * channels, height // 2, width // 2)
        parts += [Squeeze(), *self._row(by_halves, squeezed, max(layers // 2, 1), self.make_net)]
        last = self._row(by_checkerboard, squeezed, layers - 1, self.make_net)
        return Chain(*parts, *last, Flatten(squeezed))

    def _row(self, coupling: Alternate, shape: tuple[int, ...], count: int, make_net: MakeNet) -> list[Bijection]:
        steps = [
            (ActNorm(shape[0]), LULinear(shape[0]), coupling(i, shape, self.transform, make_net)) for i in range(count)
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


def by_halves(layer: int, shape: tuple[int, ...], transform: Transform, make_net: MakeNet) -> Bijection:
    """The second half of the channels given the first, and the other way round in every other layer."""
    kept = shape[0] // 2
    mask = (torch.arange(shape[0], device="cpu") >= kept) ^ (layer % 2 == 1)
    changed = int(mask.sum())
    return Coupling(mask, transform, make_net(shape[0] - changed, changed * transform.size, shape[1:]))


def by_checkerboard(layer: int, shape: tuple[int, ...], transform: Transform, make_net: MakeNet) -> Bijection:
    """One colour of a checkerboard given the other, whose pixels are all that the network sees, side by side."""
    channels, height, width = shape
    if width % 2:
        return alternate_pixels(layer, shape, transform, make_net)
    board = Checkerboard()
    return Chain(board, by_halves(layer, (2 * channels, height, width // 2), transform, make_net), Inverse(board))
