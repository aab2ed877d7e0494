"""Glow's architecture, whatever mixes the channels of its steps."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any

import torch
from torch import nn

from fivefold.bijections.base import Layer
from fivefold.bijections.coupling import Alternate, Coupling, MakeNet, alternate_pixels
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.shape import Shape, multi_scale
from fivefold.bijections.transforms import Transform
from fivefold.flow._coupling import CouplingFlowSystem
from fivefold.nets.coders import zero
from fivefold.nets.conditioner import ConditionedLayer, GlowNet
from fivefold.options import option


def couple_halves(layer: int, shape: tuple[int, ...], transform: Transform, make_net: MakeNet) -> Layer:
    """The second half of the channels given the first; where there is only one, its pixels by a checkerboard."""
    if shape[0] == 1:
        return alternate_pixels(layer, shape, transform, make_net)
    return couple_last(shape, shape[0] // 2, transform, make_net)


def couple_last(shape: tuple[int, ...], kept: int, transform: Transform, make_net: MakeNet) -> Layer:
    """The channels after the first `kept` given those."""
    changed = shape[0] - kept
    net = make_net(kept, changed * transform.size, shape[1:])
    return Coupling(torch.arange(shape[0], device="cpu") >= kept, transform, net)


def _law_net(inputs: int, outputs: int, spatial: tuple[int, ...], condition: int) -> nn.Module:
    return zero(ConditionedLayer(inputs, outputs, spatial, condition))


class GlowSystem(CouplingFlowSystem):
    """Steps of an actnorm, a map that mixes, and an affine coupling; multi-scale on images (Kingma and Dhariwal, 2018).

    Subclasses say what mixes.
    """

    layers = 6
    scales: int = option(3, "the most resolutions; fewer where a side becomes odd", least=0)
    hidden = 64

    @property
    def make_net(self) -> partial[Any]:
        """Makes the networks of the couplings."""
        return partial(GlowNet, hidden=self.hidden, condition=self.embedding.width)

    def body(self) -> Layer:
        if self.space.kind != "image":
            return self.steps(self.space.shape)
        return multi_scale(self.space.shape, self.steps, self._law, self.scales)

    @abstractmethod
    def _mixing(self, channels: int) -> Layer:
        """What mixes the channels `(B, C, ...)` of a step, and pixels if it likes."""

    def steps(self, shape: Shape, alternate: Alternate = couple_halves) -> Layer:
        return super().steps(shape, alternate)

    def step(self, layer: int, shape: Shape, alternate: Alternate) -> list[Layer]:
        mixing = self._mixing(shape[0])
        return [ActNorm(shape[0]), mixing, self.couple(layer, shape, alternate)]

    def _law(self, shape: tuple[int, ...], kept: int) -> Layer:
        """The mean and deviation of the channels after `kept` as functions of those, taken out."""
        return couple_last(shape, kept, self.transform(), partial(_law_net, condition=self.embedding.width))
