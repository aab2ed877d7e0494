"""Stochastic normalizing flows."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.coupling import Alternate
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.shape import Shape
from fivefold.bijections.stochastic import Kernel, MarkovChain
from fivefold.flow._coupling import CouplingFlowSystem
from fivefold.nets.coders import zero
from fivefold.nets.conditioner import ConditionedLayer
from fivefold.options import option
from fivefold.space import Batch
from fivefold.system import Density


class StochasticFlow(CouplingFlowSystem):
    """Stochastic normalizing flow (survey 6.4; Wu et al., 2020).

    After bijections come steps of a Markov chain, from the law of a small energy model to noise by energies between the
    two: what a bijection cannot tear apart, their noise does. A step adds the ratio of its path's probabilities there
    and back to the log-likelihood: a lower bound, which `log_prob` tightens by importance weights.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.LOWER_BOUND}
    free_form: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    layers = 3
    kernel: Kernel = option(
        "langevin", "langevin or metropolis. Learning by Metropolis steps leaves out the gradient of their choices"
    )
    kernel_steps: int = option(8, "steps of the chain", least=0, tune=(2, 32))
    step_size: float = option(
        0.05, "of a step: its drift's, half of the variance of its noise", above=0, tune=(0.01, 0.5), log=True
    )
    energy_hidden: int = option(
        128, "units of the two hidden layers of the chain's energy", least=1, tune=(32, 512), log=True
    )
    score_samples = 16

    def body(self) -> Layer:
        flow = super().body()
        energy = SmallEnergy(self.noise_dims, self.energy_hidden, self.embedding.width)
        return Chain(flow, MarkovChain(energy, self.kernel, self.kernel_steps, self.step_size, interpolated=True))

    def step(self, layer: int, shape: Shape, alternate: Alternate) -> list[Layer]:
        return [ActNorm(shape[0]), LULinear(shape[0]), self.couple(layer, shape, alternate)]

    def networks(self) -> list[nn.Module]:
        """None: the energy is differentiated twice, and compiled code has no double backward."""
        return []

    @torch.no_grad()
    def monitor(self, batch: Batch) -> dict[str, float]:
        """Of the chain on its way from noise to data: how far it moves, a dimension, and how far its energy falls."""
        (chain,) = (part for part in self.flow.modules() if isinstance(part, MarkovChain))
        z, context = self.noise(len(batch.x)), self.embedding(batch.condition)
        y, _ = chain.inverse(z, context)
        fall = chain.energy(z, context) - chain.energy(y, context)
        return {"chain_moves": (y - z).square().mean().sqrt().item(), "chain_energy_fall": fall.mean().item()}


class SmallEnergy(nn.Module):
    """u(x) = |x|^2 / 2 and a smooth network of x, 0 at first: `(B, D)` and a condition to nats `(B,)`.

    Args:
        dims: D.
        hidden: units of each of the two hidden layers.
        condition: width of the condition, 0 for none.
    """

    def __init__(self, dims: int, hidden: int, condition: int) -> None:
        super().__init__()
        self.first = ConditionedLayer(dims, hidden, (), condition)
        self.second = nn.Linear(hidden, hidden)
        self.last = zero(nn.Linear(hidden, 1, bias=False))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        features = F.silu(self.second(F.silu(self.first(x, condition))))
        return 0.5 * x.square().sum(1) + self.last(features)[:, 0]
