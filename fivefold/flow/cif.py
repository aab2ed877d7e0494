"""Continuously indexed flows."""

from __future__ import annotations

from functools import partial

import torch

from fivefold.bijections.base import Bijection, Chain, Layer
from fivefold.bijections.coupling import Alternate, Coupling, alternate_channels, alternate_pixels
from fivefold.bijections.laws import FlowLaw, conditional_flow
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.shape import multi_scale
from fivefold.bijections.stochastic import continuously_indexed
from fivefold.bijections.transforms import Affine
from fivefold.flow._system import Dequantisation, FlowSystem
from fivefold.nets.conditioner import Conditioner
from fivefold.space import Space
from fivefold.system import Density

CONDITION_WIDTH = 32


class CIF(FlowSystem):
    """Continuously indexed flow (survey 6.4; Cornish et al., 2020).

    Every layer's bijection has an index u, a continuous variable: x is scaled and shifted as u says, then goes through
    a coupling. The model mixes infinitely many bijections, u ~ p(u | z), and infers u ~ q(u | x): a lower bound, which
    `log_prob` tightens by importance weights.

    Args:
        space: of the examples.
        layers: indexed bijections in a row (at each resolution of an image).
        index: dimensions of u (channels, on images).
        law_layers: couplings of q(u | x) and p(u | z); 1 makes Gaussians.
        hidden: width of all networks.
        blocks: their residual blocks.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: draws of all u (and of points in each cell of discrete examples) for each example scored.
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
        layers: int = 4,
        index: int = 2,
        law_layers: int = 1,
        hidden: int = 48,
        blocks: int = 1,
        margin: float = 0.05,
        score_samples: int = 64,
        temperature: float = 1.0,
        dequantisation: Dequantisation = "uniform",
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature, dequantisation)
        self.density, self.density_note = Density.LOWER_BOUND, f"{score_samples} samples"
        self.layers, self.index, self.law_layers, self.transform = layers, index, law_layers, Affine()
        self.make_net = partial(Conditioner, hidden=hidden, blocks=blocks, condition=self.embedding.width)
        by_pixels = partial(self._steps, alternate=alternate_pixels)
        image = space.kind == "image"
        flow = multi_scale(space.shape, self._steps, odd=by_pixels) if image else self._steps(space.shape)
        self.flow = self._onto_line(flow, margin)

    def _steps(self, shape: tuple[int, ...], alternate: Alternate = alternate_channels) -> Bijection:
        parts: list[Layer] = []
        for layer in range(self.layers):
            parts += [ActNorm(shape[0]), self._indexed(shape), LULinear(shape[0])]
            parts += [alternate(layer, shape, self.transform, self.make_net)]
        return Chain(*parts)

    def _indexed(self, shape: tuple[int, ...]) -> Layer:
        """z = exp(s(u)) x + t(u). The bijections that follow do not know u, so that p(u | z) may come before them."""
        channels, spatial = shape[0], shape[1:]
        posterior, prior = (
            FlowLaw(
                self.index,
                conditional_flow(channels, self.index, spatial, self.law_layers, self.transform, self.make_net),
            )
            for _ in range(2)
        )
        by_index = torch.arange(channels + self.index, device="cpu") < channels
        coupling = Coupling(by_index, self.transform, self.make_net(self.index, 2 * channels, spatial))
        return continuously_indexed(channels, posterior, coupling, prior)
