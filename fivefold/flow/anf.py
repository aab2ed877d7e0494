"""Augmented normalizing flows."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.coupling import Alternate, Coupling
from fivefold.bijections.laws import FlowLaw, conditional_flow
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.shape import Flatten, Shape, Squeeze, multi_scale
from fivefold.bijections.surjections import augment
from fivefold.flow._coupling import CouplingFlowSystem
from fivefold.options import option
from fivefold.system import Density


class ANF(CouplingFlowSystem):
    """Augmented normalizing flow (survey 6.4; Huang et al., 2020).

    Examples get more dimensions, drawn at random, and a flow of both together becomes noise: wider than its data, as
    plain flows cannot be. Samples leave the additional dimensions out. The likelihood sums over them: a lower bound,
    which `log_prob` tightens by importance weights.

    As `anf`, the additions are normal noise e, and couplings change by turns e given x (an encoder) and x given e (a
    decoder); with one of each it is a VAE. As `vflow` (Chen et al., 2020), e is drawn from a flow q(e | x) that is
    learnt, and a multi-scale flow couples all channels with one another.
    """

    free_form: ClassVar[bool] = True
    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.LOWER_BOUND}
    draws: ClassVar[bool] = True

    variant: Literal["anf", "vflow"] = option("anf", "anf or vflow")
    extra: int = option(0, "additional columns, or channels at full size; 0 for as many as the data have", least=0)
    squeezes: int = option(
        1, "halvings of the sides of images before the first coupling, as far as they are even (anf)", least=0
    )
    law_layers: int = option(2, "couplings of q (vflow)", least=1, tune=(1, 4))
    hidden = 64
    score_samples = 64

    def body(self) -> Layer:
        channels, spatial = self.space.shape[0], self.space.shape[1:]
        extra = self.extra or channels
        self.noise_dims = (channels + extra) * math.prod(spatial)
        return VARIANTS[self.variant](self, channels, extra, spatial)

    def _anf(self, channels: int, extra: int, spatial: tuple[int, ...]) -> Layer:
        """Encoders and decoders by turns, at one resolution."""
        start = augment(channels, FlowLaw(extra))
        squeezes: list[Layer] = []
        while len(squeezes) < self.squeezes and spatial and not any(side % 2 for side in spatial):
            squeezes.append(Squeeze())
            channels, extra, spatial = 4 * channels, 4 * extra, tuple(side // 2 for side in spatial)
        shape = (channels + extra, *spatial)
        added = torch.arange(shape[0], device="cpu") >= channels
        parts: list[Layer] = []
        for _ in range(self.layers):
            parts += [
                ActNorm(shape[0]),
                self._coupling(added, spatial, encodes=True),
                self._coupling(~added, spatial, encodes=False),
            ]
        return Chain(start, *squeezes, *parts, Flatten(shape))

    def _coupling(self, mask: torch.Tensor, spatial: tuple[int, ...], encodes: bool) -> Layer:
        changed = int(mask.sum())
        net = self.make_net(len(mask) - changed, changed * self.transform().size, spatial)
        if encodes:  # decoders start as the identity; if encoders did too, neither would have a reason to learn
            net.last.reset_parameters()
        return Coupling(mask, self.transform(), net)

    def _vflow(self, channels: int, extra: int, spatial: tuple[int, ...]) -> Layer:
        """A law of the additions that is learnt, and a flow of everything."""
        law = conditional_flow(channels, extra, spatial, self.law_layers, self.transform(), self.make_net)
        shape = (channels + extra, *spatial)
        body = multi_scale(shape, self.steps) if spatial else self.steps(shape)
        return Chain(augment(channels, FlowLaw(extra, law)), body)

    def step(self, layer: int, shape: Shape, alternate: Alternate) -> list[Layer]:
        coupling = self.couple(layer, shape, alternate)
        return [ActNorm(shape[0]), LULinear(shape[0], rotation=True), coupling]


VARIANTS = {"anf": ANF._anf, "vflow": ANF._vflow}
