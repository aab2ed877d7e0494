"""NICE: additive coupling, and one scaling at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.base import Bijection, Chain
from fivefold.bijections.coupling import Coupling, in_a_row, parity_mask
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.shape import Flatten
from fivefold.bijections.transforms import Additive
from fivefold.flow._system import FlowSystem
from fivefold.nets.coders import zero
from fivefold.nets.conditioner import ConditionedLayer
from fivefold.nets.mlp import MLP
from fivefold.space import Space
from fivefold.system import Density
from fivefold.tools.distributions import logistic_log_prob, standard_normal_log_prob

CONDITION_WIDTH = 32
Prior = Literal["logistic", "gaussian"]


class NICE(FlowSystem):
    """NICE (survey 6.1, Eq. 31; Dinh et al., 2015).

    Additive couplings: every other dimension is shifted by a deep ReLU network of those between, then these by those.
    They leave all volumes as they are; a diagonal scaling at the end, whose logarithms are the whole log-determinant,
    says how much each dimension varies. It starts by the first batch, together with a shift, as an actnorm does. Noise
    is logistic or Gaussian. Images are flattened.

    Args:
        space: of the examples.
        prior: of the noise: logistic or gaussian.
        couplings: in a row; three let every dimension influence every other.
        hidden: units of a layer of the coupling networks.
        layers: hidden layers of the coupling networks.
        dropout: of hidden units.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit, as in the paper.
        score_samples: points in each cell when discrete examples are scored.
        temperature: a factor of the noise that samples are made from.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "direct"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.99, "clip": 5.0},
        "mnist": {"hidden": 1000, "layers": 5, "margin": 0.0, "lr": 1e-3, "batch_size": 128},
        "svhn": {"hidden": 2000, "layers": 4, "margin": 0.0, "lr": 1e-3, "batch_size": 128},
        "cifar10": {"hidden": 2000, "layers": 4, "margin": 0.0, "lr": 1e-3, "batch_size": 128},
    }

    def __init__(
        self,
        space: Space,
        *,
        prior: Prior = "logistic",
        couplings: int = 4,
        hidden: int = 256,
        layers: int = 2,
        dropout: float = 0.0,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature)
        self.prior = PRIORS[prior]
        self.hidden, self.layers, self.dropout = hidden, layers, dropout
        row = in_a_row(self._coupling(layer, space.dims) for layer in range(couplings))
        self.flow = self._onto_line(Chain(Flatten(space.shape), row, ActNorm(space.dims)), margin)

    def _coupling(self, layer: int, dims: int) -> Bijection:
        """Moves the odd dimensions given the even ones, or the other way round."""
        mask = parity_mask(dims, 1)
        mask = ~mask if layer % 2 and dims > 1 else mask
        changed = int(mask.sum())
        sizes = (dims - changed, changed, self.hidden, self.layers, self.embedding.width, self.dropout)
        return Coupling(mask, Additive(), _DeepNet(*sizes))

    def _point_log_prob(self, y: Tensor, condition: Tensor | None) -> Tensor:
        z, log_det = self.flow(y, self.embedding(condition))
        return self.prior.log_prob(z) + log_det

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        z = self.prior.draw(torch.rand(n, self.space.dims, device=self.device))
        return self._decode(self.temperature * z, condition)


class _DeepNet(nn.Module):
    """An MLP with ReLU of `(B, inputs)`, which may be none, and a condition; 0 at first."""

    def __init__(self, inputs: int, outputs: int, hidden: int, layers: int, condition: int, dropout: float) -> None:
        super().__init__()
        self.first = ConditionedLayer(inputs, hidden, (), condition)
        self.rest = MLP(hidden, outputs, hidden, layers - 1, nn.ReLU, dropout)
        zero(self.rest.net[-1])

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.rest(F.relu(self.first(x, condition)))


class _Prior(NamedTuple):
    """A law of noise: nats `(B,)` of `(B, D)`, and draws of uniform values."""

    log_prob: Callable[[Tensor], Tensor]
    draw: Callable[[Tensor], Tensor]


def _logistic_log_prob(z: Tensor) -> Tensor:
    return logistic_log_prob(z, torch.zeros_like(z), torch.zeros_like(z)).sum(1)


PRIORS: dict[Prior, _Prior] = {
    "logistic": _Prior(_logistic_log_prob, lambda u: torch.logit(u, eps=1e-7)),
    "gaussian": _Prior(standard_normal_log_prob, lambda u: torch.special.ndtri(u.clamp(1e-7, 1 - 1e-7))),
}
