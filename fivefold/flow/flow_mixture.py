"""A mixture of normalizing flows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.coupling import Alternate
from fivefold.bijections.linear import LULinear
from fivefold.bijections.shape import Shape
from fivefold.bijections.stochastic import Mixture
from fivefold.flow._coupling import CouplingFlowSystem
from fivefold.nets.coders import zero
from fivefold.nets.conditioner import ConditionedLayer
from fivefold.options import option
from fivefold.space import Batch
from fivefold.system import Update
from fivefold.tools.distributions import standard_normal_log_prob
from fivefold.tools.scaling import midpoint, quantise


class FlowMixture(CouplingFlowSystem):
    """Mixture of normalizing flows (survey 6.4; Pires and Figueiredo, 2020).

    Several flows, each with a weight that may depend on the condition; the density is the weighted sum of theirs,
    exact. A flow for each mode needs no bridges between them, which a bijection of connected noise cannot avoid.

    The sum over flows is taken whole in training, where the paper bounds it by an inference network. In many dimensions
    the flow that is ahead after some steps would be given every example and the others none, for good: so the chances
    with which an example belongs to each flow are softened at first, as by deterministic annealing (Ueda and Nakano,
    1998), by a temperature that falls from the number of dimensions to 1.

    A code is the noise of the flow to which the example most likely belongs, after one more number that says which.
    """

    chooses = True

    layers = 3  # of each of several flows
    hidden = 32
    flows: int = option(4, "how many", least=1, tune=(1, 6))
    softening: float = option(
        0.5, "share of the budget over which the chances that an example is of a flow are softened", least=0, most=1,
        tune=(0.0, 0.8),
    )  # fmt: skip

    def body(self) -> Layer:
        """The way onto the line, which all flows share; they are in `mixture`."""
        weights = zero(ConditionedLayer(0, self.flows, condition=self.embedding.width))
        self.mixture = Mixture([super(FlowMixture, self).body() for _ in range(self.flows)], weights)
        self.noise_dims = self.space.dims + 1  # which flow, and its noise
        return Chain()

    def step(self, layer: int, shape: Shape, alternate: Alternate) -> list[Layer]:
        """Rotations (of columns, shifts too) are at random at first, so that no two flows learn the same."""
        linear = LULinear(shape[0], rotation=True)
        if len(shape) == 1:  # in many dimensions shifts at random would let one flow take all examples at once
            nn.init.normal_(linear.bias, std=0.5)
        return [linear, self.couple(layer, shape, alternate)]

    # --- training -------------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        y, term = self._drawn(batch.x, batch.condition)
        _, joint = self._joint(y, batch.condition)
        yield Update(self, -(softened_sum(joint, self.heat(progress)) + term).mean())

    def heat(self, progress: float) -> float:
        """The temperature of an example's chances: D at first, 1 once `softening` is over."""
        left = max(1 - progress / self.softening, 0.0) if self.softening else 0.0
        return math.exp(left * math.log(self.space.dims))

    def shards(self) -> list[nn.Module]:
        """Not the mixture, whose branches are called one by one."""
        return [self.embedding, self.flow]

    # --- density --------------------------------------------------------------------------------

    def _point_log_prob(self, y: Tensor, condition: Tensor | None) -> Tensor:
        """ln of the sum over flows: nats `(B,)` of continuous points."""
        _, joint = self._joint(y, condition)
        return joint.logsumexp(0)

    def _joint(self, y: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """The noise of every flow `(K, B, D)`, and ln of its weight times its density `(K, B)`."""
        embedded = self.embedding(condition)
        y, log_det = self.flow(y, embedded)
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
        y, _ = self.flow.inverse(y, embedded)
        return quantise(y, self.space)

    def _chances(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """p(k), `(B, K)`."""
        return self.mixture.log_weights(x.float(), self.embedding(condition)).exp()


def softened_sum(joint: Tensor, heat: float) -> Tensor:
    """ln sum_k exp(joint_k) at heat 1, and above that less: `(K, B)` to `(B,)`.

    heat ln mean_k exp(joint_k / heat) + ln K, a power mean of order 1 / heat, whose slope in joint_k is the softened
    share softmax_k(joint / heat).
    """
    return heat * (joint / heat).logsumexp(0) - (heat - 1) * math.log(len(joint))
