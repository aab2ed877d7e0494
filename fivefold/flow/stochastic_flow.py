"""Stochastic normalizing flows."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.base import Bijection, Chain, Layer
from fivefold.bijections.coupling import Alternate, alternate_channels, alternate_pixels
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.shape import multi_scale
from fivefold.bijections.stochastic import Kernel, MarkovChain
from fivefold.bijections.transforms import Affine
from fivefold.flow._system import Dequantisation, FlowSystem
from fivefold.nets.coders import zero
from fivefold.nets.conditioner import ConditionedLayer, Conditioner
from fivefold.space import Space
from fivefold.system import Density

CONDITION_WIDTH = 32


class StochasticFlow(FlowSystem):
    """Stochastic normalizing flow (survey 6.4; Wu et al., 2020).

    Between bijections come steps of Markov chains, each towards the law of a small energy model of its own: what a
    bijection cannot tear apart, their noise does. A step adds the ratio of its path's probabilities there and back to
    the log-likelihood: a lower bound, which `log_prob` tightens by importance weights.

    Args:
        space: of the examples.
        layers: couplings, each with a chain after it (at each resolution of an image).
        kernel: langevin or metropolis. Learning by Metropolis steps leaves out the gradient of their choices.
        kernel_steps: steps of each chain.
        step_size: of a step at first; it is learnt.
        hidden: width of all networks.
        blocks: residual blocks of a coupling network.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: paths (and points in each cell of discrete examples) for each example scored.
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
        layers: int = 3,
        kernel: Kernel = "langevin",
        kernel_steps: int = 1,
        step_size: float = 0.02,
        hidden: int = 48,
        blocks: int = 1,
        margin: float = 0.05,
        score_samples: int = 64,
        temperature: float = 1.0,
        dequantisation: Dequantisation = "uniform",
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature, dequantisation)
        self.density, self.density_note = Density.LOWER_BOUND, f"{score_samples} samples"
        self.layers, self.hidden, self.transform = layers, hidden, Affine()
        self.make_chain = partial(MarkovChain, kernel=kernel, steps=kernel_steps, step_size=step_size)
        self.make_net = partial(Conditioner, hidden=hidden, blocks=blocks, condition=self.embedding.width)
        by_pixels = partial(self._steps, alternate=alternate_pixels)
        image = space.kind == "image"
        flow = multi_scale(space.shape, self._steps, odd=by_pixels) if image else self._steps(space.shape)
        self.flow = self._onto_line(flow, margin)

    def _steps(self, shape: tuple[int, ...], alternate: Alternate = alternate_channels) -> Bijection:
        parts: list[Layer] = []
        for layer in range(self.layers):
            coupling = alternate(layer, shape, self.transform, self.make_net)
            chain = self.make_chain(SmallEnergy(shape, self.hidden, self.embedding.width))
            parts += [ActNorm(shape[0]), LULinear(shape[0]), coupling, chain]
        return Chain(*parts)

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
