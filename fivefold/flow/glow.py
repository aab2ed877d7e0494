"""Glow: invertible 1x1 convolutions."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from fivefold.bijections.base import Bijection, Chain
from fivefold.bijections.coupling import Coupling, MakeNet, alternate_pixels
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.shape import multi_scale
from fivefold.bijections.transforms import Affine
from fivefold.flow._system import Dequantisation, FlowSystem
from fivefold.nets.coders import zero
from fivefold.nets.conditioner import ConditionedLayer, GlowNet
from fivefold.space import Space
from fivefold.system import Density

CONDITION_WIDTH = 32


class Glow(FlowSystem):
    """Glow (survey 6.2; Kingma and Dhariwal, 2018).

    Steps of flow, each an actnorm whose start depends on the data, an invertible 1x1 convolution that mixes the
    channels (a learned rotation in place of a permutation) and an affine coupling. Multi-scale on images: squeeze,
    steps, and half of the variables factored out, with a Gaussian law given the other half.

    Args:
        space: of the examples.
        layers: steps of flow at each resolution of an image (on tables: in all).
        scales: the most resolutions; fewer where a side becomes odd.
        hidden: width of the coupling networks.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit, as in the paper.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
        dequantisation: of discrete dimensions, uniform or variational (by a flow given the example).
        warmup: share of the budget over which the learning rate rises; many couplings diverge at once without.
    """

    densities = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form = False
    sampling = "direct"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.99, "clip": 5.0},
        "cifar10": {
            "layers": 32, "scales": 3, "hidden": 512, "margin": 0.0, "warmup": 0.01, "batch_size": 512, "lr": 1e-3,
        },
        "imagenet32": {
            "layers": 48, "scales": 3, "hidden": 512, "margin": 0.0, "warmup": 0.01, "batch_size": 512, "lr": 1e-3,
        },
        "imagenet64": {
            "layers": 48, "scales": 4, "hidden": 512, "margin": 0.0, "warmup": 0.01, "batch_size": 128, "lr": 1e-3,
        },
        "lsun64": {
            "layers": 48, "scales": 3, "hidden": 512, "margin": 0.0, "warmup": 0.01, "batch_size": 128, "lr": 1e-3,
        },
        "celebahq256": {
            "layers": 32, "scales": 6, "hidden": 512, "margin": 0.0, "warmup": 0.01, "batch_size": 40, "lr": 1e-3,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "cifar10": (44.0e6, "Chen et al. 2019, table 5")
    }

    def __init__(
        self,
        space: Space,
        *,
        layers: int = 6,
        scales: int = 3,
        hidden: int = 64,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
        dequantisation: Dequantisation = "uniform",
        warmup: float = 0.0,
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature, dequantisation)
        self.warmup = warmup
        self.layers, self.transform = layers, Affine()
        self.make_net = partial(GlowNet, hidden=hidden, condition=self.embedding.width)
        image = space.kind == "image"
        flow = multi_scale(space.shape, self._steps, self._law, scales) if image else self._steps(space.shape)
        self.flow = self._onto_line(flow, margin)

    def _steps(self, shape: tuple[int, ...]) -> Bijection:
        parts: list[Bijection] = []
        for layer in range(self.layers):
            parts += [ActNorm(shape[0]), LULinear(shape[0], rotation=True), self._coupling(layer, shape)]
        return Chain(*parts)

    def _coupling(self, layer: int, shape: tuple[int, ...]) -> Bijection:
        """The second half of the channels given the first; where there is only one, its pixels by a checkerboard."""
        if shape[0] == 1:
            return alternate_pixels(layer, shape, self.transform, self.make_net)
        return self._given_first(shape, shape[0] // 2, self.make_net)

    def _law(self, shape: tuple[int, ...], kept: int) -> Bijection:
        """The mean and deviation of the channels after `kept` as functions of those, taken out."""
        return self._given_first(shape, kept, partial(_law_net, condition=self.embedding.width))

    def _given_first(self, shape: tuple[int, ...], kept: int, make_net: MakeNet) -> Bijection:
        changed = shape[0] - kept
        net = make_net(kept, changed * self.transform.size, shape[1:])
        return Coupling(torch.arange(shape[0], device="cpu") >= kept, self.transform, net)


def _law_net(inputs: int, outputs: int, spatial: tuple[int, ...], condition: int) -> nn.Module:
    return zero(ConditionedLayer(inputs, outputs, spatial, condition))
