"""Glow's architecture, whatever mixes the channels of its steps."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

import torch
from torch import nn

from fivefold.bijections.base import Bijection, Chain
from fivefold.bijections.coupling import Coupling, MakeNet, alternate_pixels
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.shape import multi_scale
from fivefold.bijections.transforms import Affine, Transform
from fivefold.flow._system import Dequantisation, FlowSystem
from fivefold.nets.coders import zero
from fivefold.nets.conditioner import ConditionedLayer, GlowNet
from fivefold.space import Space

CONDITION_WIDTH = 32


class GlowSystem(FlowSystem):
    """Steps of an actnorm, a map that mixes, and an affine coupling; multi-scale on images (Kingma and Dhariwal, 2018).

    Subclasses say what mixes.
    """

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
        """Options of all of them.

        Args:
            space: of the examples.
            layers: steps of flow at each resolution of an image (on tables: in all).
            scales: the most resolutions; fewer where a side becomes odd.
            hidden: width of the coupling networks.
            margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit, as in the papers.
            score_samples: points in each cell when discrete examples are scored.
            temperature: the standard deviation of the noise that samples are made from.
            dequantisation: of discrete dimensions, uniform or variational (by a flow given the example).
            warmup: share of the budget over which the learning rate rises; many couplings diverge at once without.
        """
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature, dequantisation)
        self.warmup = warmup
        self.layers, self.transform = layers, Affine()
        self.make_net = partial(GlowNet, hidden=hidden, condition=self.embedding.width)
        image = space.kind == "image"
        flow = multi_scale(space.shape, self._steps, self._law, scales) if image else self._steps(space.shape)
        self.flow = self._onto_line(flow, margin)

    @abstractmethod
    def _mixing(self, channels: int) -> Bijection:
        """What mixes the channels `(B, C, ...)` of a step, and pixels if it likes."""

    def _steps(self, shape: tuple[int, ...]) -> Bijection:
        parts: list[Bijection] = []
        for layer in range(self.layers):
            mixing = self._mixing(shape[0])
            parts += [ActNorm(shape[0]), mixing, couple_halves(layer, shape, self.transform, self.make_net)]
        return Chain(*parts)

    def _law(self, shape: tuple[int, ...], kept: int) -> Bijection:
        """The mean and deviation of the channels after `kept` as functions of those, taken out."""
        return couple_last(shape, kept, self.transform, partial(_law_net, condition=self.embedding.width))


def couple_halves(layer: int, shape: tuple[int, ...], transform: Transform, make_net: MakeNet) -> Bijection:
    """The second half of the channels given the first; where there is only one, its pixels by a checkerboard."""
    if shape[0] == 1:
        return alternate_pixels(layer, shape, transform, make_net)
    return couple_last(shape, shape[0] // 2, transform, make_net)


def couple_last(shape: tuple[int, ...], kept: int, transform: Transform, make_net: MakeNet) -> Bijection:
    """The channels after the first `kept` given those."""
    changed = shape[0] - kept
    net = make_net(kept, changed * transform.size, shape[1:])
    return Coupling(torch.arange(shape[0], device="cpu") >= kept, transform, net)


def _law_net(inputs: int, outputs: int, spatial: tuple[int, ...], condition: int) -> nn.Module:
    return zero(ConditionedLayer(inputs, outputs, spatial, condition))
