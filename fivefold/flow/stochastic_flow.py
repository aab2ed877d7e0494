"""Stochastic normalizing flows."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.base import Layer
from fivefold.bijections.coupling import Alternate
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.shape import Shape
from fivefold.bijections.stochastic import Kernel, MarkovChain
from fivefold.flow._coupling import CouplingFlowSystem
from fivefold.nets.coders import zero
from fivefold.nets.conditioner import ConditionedLayer
from fivefold.options import option
from fivefold.system import Density


class StochasticFlow(CouplingFlowSystem):
    """Stochastic normalizing flow (survey 6.4; Wu et al., 2020).

    Between bijections come steps of Markov chains, each towards the law of a small energy model of its own: what a
    bijection cannot tear apart, their noise does. A step adds the ratio of its path's probabilities there and back to
    the log-likelihood: a lower bound, which `log_prob` tightens by importance weights.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.LOWER_BOUND}
    free_form: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    layers = 3
    kernel: Kernel = option(
        "langevin", "langevin or metropolis. Learning by Metropolis steps leaves out the gradient of their choices"
    )
    kernel_steps: int = option(1, "steps of each chain", least=0)
    step_size: float = option(0.02, "of a step at first; it is learnt", least=0)
    score_samples = 64

    def step(self, layer: int, shape: Shape, alternate: Alternate) -> list[Layer]:
        coupling = self.couple(layer, shape, alternate)
        energy = SmallEnergy(shape, self.hidden, self.embedding.width)
        chain = MarkovChain(energy, self.kernel, self.kernel_steps, self.step_size)
        return [ActNorm(shape[0]), LULinear(shape[0]), coupling, chain]

    def networks(self) -> list[nn.Module]:
        """None: the energies are differentiated twice, and compiled code has no double backward."""
        return []

    def monitor(self, batch: object) -> dict[str, float]:
        """The step sizes that were learnt, the least and the largest."""
        sizes = [part.log_step.exp().item() for part in self.flow.modules() if isinstance(part, MarkovChain)]
        return {"step_size_least": min(sizes), "step_size_largest": max(sizes)}


class SmallEnergy(nn.Module):
    """u(x) = |x|^2 / 2 and a smooth network of x, 0 at first: `(B, *shape)` and a condition to nats `(B,)`.

    Args:
        shape: of x.
        hidden: units (channels, on images) of the one hidden layer.
        condition: width of the condition, 0 for none.
    """

    def __init__(self, shape: tuple[int, ...], hidden: int, condition: int) -> None:
        super().__init__()
        self.first = ConditionedLayer(shape[0], hidden, shape[1:], condition)
        self.last = zero(nn.Linear(hidden, 1, bias=False))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        features = F.silu(self.first(x, condition)).unsqueeze(2).flatten(2).sum(2)
        return 0.5 * x.flatten(1).square().sum(1) + self.last(features)[:, 0]
