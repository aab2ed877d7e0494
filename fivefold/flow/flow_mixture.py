"""A mixture of normalizing flows."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Bijection, Chain
from fivefold.bijections.coupling import Alternate, alternate_channels, alternate_pixels
from fivefold.bijections.linear import LULinear
from fivefold.bijections.shape import multi_scale
from fivefold.bijections.stochastic import Mixture
from fivefold.bijections.transforms import Affine
from fivefold.flow._system import Dequantisation, FlowSystem
from fivefold.nets.coders import zero
from fivefold.nets.conditioner import ConditionedLayer, Conditioner
from fivefold.space import Batch, Space
from fivefold.system import Density
from fivefold.tools.distributions import standard_normal_log_prob
from fivefold.tools.scaling import midpoint, quantise

CONDITION_WIDTH = 32


class FlowMixture(FlowSystem):
    """Mixture of normalizing flows (survey 6.4; Pires and Figueiredo, 2020).

    Several flows, each with a weight that may depend on the condition; the density is the weighted sum of theirs,
    exact. A flow for each mode needs no bridges between them, which a bijection of connected noise cannot avoid.

    The sum over flows is taken whole in training, where the paper bounds it by an inference network. A code is the
    noise of the flow to which the example most likely belongs, after one more number that says which it is.

    Args:
        space: of the examples.
        flows: how many.
        layers: coupling layers of each flow (at each resolution of an image).
        hidden: width of the coupling networks.
        blocks: residual blocks of a coupling network.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
        dequantisation: of discrete dimensions, uniform or variational (by a flow given the example).
    """

    densities = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form = False
    sampling = "direct"
    presets = {"default": {"ema": 0.99, "clip": 5.0}}

    def __init__(
        self,
        space: Space,
        *,
        flows: int = 4,
        layers: int = 4,
        hidden: int = 48,
        blocks: int = 1,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
        dequantisation: Dequantisation = "uniform",
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature, dequantisation)
        self.layers, self.transform = layers, Affine()
        self.make_net = partial(Conditioner, hidden=hidden, blocks=blocks, condition=self.embedding.width)
        weights = zero(ConditionedLayer(0, flows, condition=self.embedding.width))
        self.mixture = Mixture([self._one_flow(space) for _ in range(flows)], weights)
        self.onto_line = self._onto_line(Chain(), margin)
        self.noise_dims = space.dims + 1  # which flow, and its noise

    def _one_flow(self, space: Space) -> Bijection:
        """Its rotations (of columns, shifts too) are at random at first, so that no two flows learn the same."""
        by_pixels = partial(self._couplings, alternate=alternate_pixels)
        image = space.kind == "image"
        return multi_scale(space.shape, self._couplings, odd=by_pixels) if image else self._couplings(space.shape)

    def _couplings(self, shape: tuple[int, ...], alternate: Alternate = alternate_channels) -> Bijection:
        parts: list[Bijection] = []
        for layer in range(self.layers):
            linear = LULinear(shape[0], rotation=True)
            if len(shape) == 1:  # in many dimensions shifts at random would let one flow take all examples at once
                nn.init.normal_(linear.bias, std=0.5)
            parts += [linear, alternate(layer, shape, self.transform, self.make_net)]
        return Chain(*parts)

    # --- density --------------------------------------------------------------------------------

    def _point_log_prob(self, y: Tensor, condition: Tensor | None) -> Tensor:
        """ln of the sum over flows: nats `(B,)` of continuous points."""
        _, joint = self._joint(y, condition)
        return joint.logsumexp(0)

    def _joint(self, y: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """The noise of every flow `(K, B, D)`, and ln of its weight times its density `(K, B)`."""
        embedded = self.embedding(condition)
        y, log_det = self.onto_line(y, embedded)
        z, terms = self.mixture.branches(y, embedded)
        z = z.flatten(2)
        return z, standard_normal_log_prob(z.flatten(0, 1)).view(len(z), -1) + terms + log_det

    def monitor(self, batch: Batch) -> dict[str, float]:
        """How many flows are in use: the exponential of the entropy of their shares of the batch."""
        _, joint = self._joint(midpoint(batch.x, self.space), batch.condition)
        shares = joint.softmax(0).mean(1)
        return {"flows_in_use": torch.special.entr(shares).sum().exp().item()}

    # --- samples and codes ----------------------------------------------------------------------

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        z, joint = self._joint(midpoint(x, self.space), condition)
        which = joint.argmax(0)
        chances = self._chances(x, condition)
        middle = chances.cumsum(1) - chances / 2
        rows = torch.arange(len(x), device=x.device)
        return torch.cat([torch.special.ndtri(middle[rows, which])[:, None], z[which, rows]], 1)

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        embedded = self.embedding(condition)
        below = self._chances(z, condition).cumsum(1)[:, :-1]
        which = (torch.special.ndtr(z[:, :1]) > below).sum(1)
        y, _ = self.mixture.inverse_of(z[:, 1:], which, embedded)
        y, _ = self.onto_line.inverse(y, embedded)
        return quantise(y, self.space)

    def _chances(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """p(k), `(B, K)`."""
        return self.mixture.log_weights(x.float(), self.embedding(condition)).exp()
