"""Variational dequantisation: noise in the cells of discrete data, learnt (survey 6 [86]; Ho et al., 2019)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Chain, Inverse, Layer, sum_dims
from fivefold.bijections.laws import FlowLaw, Law, conditional_flow
from fivefold.bijections.shape import Squeeze
from fivefold.bijections.transforms import Affine
from fivefold.nets.conditioner import Conditioner
from fivefold.space import Space
from fivefold.tools.distributions import standard_normal_log_prob
from fivefold.tools.scaling import midpoint

HIDDEN, LAYERS = 32, 4


class VariationalDequantisation(nn.Module):
    """A continuous y in the cell of every discrete x, drawn from a flow q(y | x), with the term -ln q(y | x).

    ln p(y) + term is a lower bound of ln P(x) in expectation, for any q. Uniform noise is one of them; the best q is
    the model's own law within the cell, and then the bound is ln P(x) itself. q is a flow of couplings, given x, of
    normal noise, whose distribution function gives the place within the cell: at first q is uniform. `law` can be
    another, of places on the line given the cells' middles.

    Args:
        space: of the examples; a dimension is discrete.
        condition: width of the condition, 0 for none.
        hidden: width of the coupling networks.
        layers: couplings.
    """

    discrete: Tensor
    width: Tensor

    def __init__(self, space: Space, condition: int, hidden: int = HIDDEN, layers: int = LAYERS) -> None:
        super().__init__()
        self.space = space
        channels, spatial = space.shape[0], space.shape[1:]
        levels = space.dim_levels if space.columns else [space.levels] * channels
        discrete = [channel for channel, count in enumerate(levels) if count is not None]
        width = torch.tensor([2 / count for count in levels if count is not None], device="cpu")
        self.register_buffer("discrete", torch.tensor(discrete, device="cpu"), persistent=False)
        self.register_buffer("width", width.view(-1, *[1] * len(spatial)), persistent=False)
        drawn = len(discrete)
        make_net = partial(Conditioner, hidden=hidden, blocks=1, condition=condition)
        squeeze = bool(spatial) and not any(side % 2 for side in spatial)
        if squeeze:  # so that pixels see one another
            smaller = tuple(side // 2 for side in spatial)
            flow: Layer = conditional_flow(4 * channels, 4 * drawn, smaller, layers, Affine(), make_net)
            flow = Chain(Squeeze(), flow, Inverse(Squeeze()))
        else:
            flow = conditional_flow(channels, drawn, spatial, layers, Affine(), make_net)
        self.law: Law = FlowLaw(drawn, flow)  # of the place in the cell, on the line

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encoded examples `(B, *shape)` to continuous ones, scaled as by `dequantise`, and -ln q(y | x) `(B,)`."""
        middle = midpoint(x, self.space)
        noise, log_q = self.law.sample(middle, condition)
        y = middle.index_add(1, self.discrete, (torch.special.ndtr(noise) - 0.5) * self.width)
        log_slope = standard_normal_log_prob(noise) + sum_dims(self.width.log().expand_as(noise))
        return y, log_slope - log_q
