"""Augmented normalizing flows."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch

from fivefold.bijections.base import Bijection, Chain
from fivefold.bijections.coupling import Coupling, alternate_channels
from fivefold.bijections.laws import FlowLaw, conditional_flow
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.shape import Flatten, Squeeze, multi_scale
from fivefold.bijections.surjections import augment
from fivefold.bijections.transforms import Affine
from fivefold.errors import Unfit
from fivefold.flow._system import Dequantisation, FlowSystem
from fivefold.nets.conditioner import Conditioner
from fivefold.space import Space
from fivefold.system import Density

CONDITION_WIDTH = 32


class ANF(FlowSystem):
    """Augmented normalizing flow (survey 6.4; Huang et al., 2020).

    Examples get more dimensions, drawn at random, and a flow of both together becomes noise: wider than its data, as
    plain flows cannot be. Samples leave the additional dimensions out. The likelihood sums over them: a lower bound,
    which `log_prob` tightens by importance weights.

    As `anf`, the additions are normal noise e, and couplings change by turns e given x (an encoder) and x given e (a
    decoder); with one of each it is a VAE. As `vflow` (Chen et al., 2020), e is drawn from a flow q(e | x) that is
    learnt, and a multi-scale flow couples all channels with one another.

    Args:
        space: of the examples.
        variant: anf or vflow.
        extra: additional columns, or channels at full size; 0 for as many as the data have.
        layers: pairs of an encoder and a decoder (anf), or couplings at each resolution (vflow).
        squeezes: halvings of the sides of images before the first coupling, as far as they are even (anf).
        law_layers: couplings of q (vflow).
        hidden: width of all networks.
        blocks: their residual blocks.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: draws of e (and of points in each cell of discrete examples) for each example scored.
        temperature: the standard deviation of the noise that samples are made from.
        dequantisation: of discrete dimensions, uniform or variational (by a flow given the example).
    """

    densities = {"image": Density.LOWER_BOUND, "table": Density.LOWER_BOUND}
    sampling = "direct"
    presets = {"default": {"ema": 0.99, "clip": 5.0}}

    def __init__(
        self,
        space: Space,
        *,
        variant: Literal["anf", "vflow"] = "anf",
        extra: int = 0,
        layers: int = 4,
        squeezes: int = 1,
        law_layers: int = 2,
        hidden: int = 64,
        blocks: int = 1,
        margin: float = 0.05,
        score_samples: int = 64,
        temperature: float = 1.0,
        dequantisation: Dequantisation = "uniform",
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature, dequantisation)
        if variant not in VARIANTS:
            raise Unfit(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
        self.density, self.density_note = Density.LOWER_BOUND, f"{score_samples} samples"
        self.layers, self.squeezes, self.law_layers, self.transform = layers, squeezes, law_layers, Affine()
        self.make_net = partial(Conditioner, hidden=hidden, blocks=blocks, condition=self.embedding.width)
        channels, spatial = space.shape[0], space.shape[1:]
        extra = extra or channels
        self.noise_dims = (channels + extra) * math.prod(spatial)
        self.flow = self._onto_line(VARIANTS[variant](self, channels, extra, spatial), margin)

    def _anf(self, channels: int, extra: int, spatial: tuple[int, ...]) -> Bijection:
        """Encoders and decoders by turns, at one resolution."""
        start = augment(channels, FlowLaw(extra))
        squeezes: list[Bijection] = []
        while len(squeezes) < self.squeezes and spatial and not any(side % 2 for side in spatial):
            squeezes.append(Squeeze())
            channels, extra, spatial = 4 * channels, 4 * extra, tuple(side // 2 for side in spatial)
        shape = (channels + extra, *spatial)
        added = torch.arange(shape[0], device="cpu") >= channels
        parts: list[Bijection] = []
        for _ in range(self.layers):
            parts += [
                ActNorm(shape[0]),
                self._coupling(added, spatial, encodes=True),
                self._coupling(~added, spatial, encodes=False),
            ]
        return Chain(start, *squeezes, *parts, Flatten(shape))

    def _coupling(self, mask: torch.Tensor, spatial: tuple[int, ...], encodes: bool) -> Bijection:
        changed = int(mask.sum())
        net = self.make_net(len(mask) - changed, changed * self.transform.size, spatial)
        if encodes:  # decoders start as the identity; if encoders did too, neither would have a reason to learn
            net.last.reset_parameters()  # type: ignore[operator]
        return Coupling(mask, self.transform, net)

    def _vflow(self, channels: int, extra: int, spatial: tuple[int, ...]) -> Bijection:
        """A law of the additions that is learnt, and a flow of everything."""
        law = conditional_flow(channels, extra, spatial, self.law_layers, self.transform, self.make_net)
        shape = (channels + extra, *spatial)
        body = multi_scale(shape, self._steps) if spatial else self._steps(shape)
        return Chain(augment(channels, FlowLaw(extra, law)), body)

    def _steps(self, shape: tuple[int, ...]) -> Bijection:
        parts: list[Bijection] = []
        for layer in range(self.layers):
            coupling = alternate_channels(layer, shape, self.transform, self.make_net)
            parts += [ActNorm(shape[0]), LULinear(shape[0], rotation=True), coupling]
        return Chain(*parts)


VARIANTS = {"anf": ANF._anf, "vflow": ANF._vflow}
