"""Continuously indexed flows."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch

from fivefold.bijections.base import Layer
from fivefold.bijections.coupling import Alternate, Coupling
from fivefold.bijections.laws import FlowLaw, conditional_flow
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.shape import Shape
from fivefold.bijections.stochastic import continuously_indexed
from fivefold.flow._coupling import CouplingFlowSystem
from fivefold.options import option
from fivefold.system import Density


class CIF(CouplingFlowSystem):
    """Continuously indexed flow (survey 6.4; Cornish et al., 2020).

    Every layer's bijection has an index u, a continuous variable: x is scaled and shifted as u says, then goes through
    a coupling. The model mixes infinitely many bijections, u ~ p(u | z), and infers u ~ q(u | x): a lower bound, which
    `log_prob` tightens by importance weights.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.LOWER_BOUND}
    free_form: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    index: int = option(2, "dimensions of u (channels, on images)", least=1, tune=(1, 16))
    law_layers: int = option(1, "couplings of q(u | x) and p(u | z); 1 makes Gaussians", least=1, tune=(1, 4))
    layers = 2
    score_samples = 16

    def step(self, layer: int, shape: Shape, alternate: Alternate) -> list[Layer]:
        return [ActNorm(shape[0]), self._indexed(shape), LULinear(shape[0]), self.couple(layer, shape, alternate)]

    def _indexed(self, shape: tuple[int, ...]) -> Layer:
        """z = exp(s(u)) x + t(u). The bijections that follow do not know u, so that p(u | z) may come before them."""
        channels, spatial = shape[0], shape[1:]
        make_net: partial[Any] = partial(self.make_net, blocks=0)  # three for each coupling: they must cost little
        posterior, prior = (
            FlowLaw(
                self.index, conditional_flow(channels, self.index, spatial, self.law_layers, self.transform(), make_net)
            )
            for _ in range(2)
        )
        by_index = torch.arange(channels + self.index, device="cpu") < channels
        net = make_net(self.index, 2 * channels, spatial)
        # Were z at first the same for every u, neither law would have a reason to say anything of u, nor u of z.
        net.last.reset_parameters()
        return continuously_indexed(channels, posterior, Coupling(by_index, self.transform(), net), prior)
