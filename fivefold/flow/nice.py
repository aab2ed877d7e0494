"""NICE: additive coupling, and one scaling at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.coupling import Coupling, in_a_row, parity_mask
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.shape import Flatten
from fivefold.bijections.transforms import Additive
from fivefold.flow._system import FlowSystem
from fivefold.nets.coders import zero
from fivefold.nets.conditioner import ConditionedLayer
from fivefold.nets.mlp import MLP
from fivefold.options import depth_option, option, width_option
from fivefold.tools.distributions import logistic_log_prob, standard_normal_log_prob

Prior = Literal["logistic", "gaussian"]


class NICE(FlowSystem):
    """NICE (survey 6.1, Eq. 31; Dinh et al., 2015).

    Additive couplings: every other dimension is shifted by a deep ReLU network of those between, then these by those.
    They leave all volumes as they are; a diagonal scaling at the end, whose logarithms are the whole log-determinant,
    says how much each dimension varies. It starts by the first batch, together with a shift, as an actnorm does. Noise
    is logistic or Gaussian. Images are flattened.
    """

    presets = {
        "mnist": {"hidden": 1000, "layers": 5, "margin": 0.0, "lr": 1e-3, "batch_size": 128},
        "svhn": {"hidden": 2000, "layers": 4, "margin": 0.0, "lr": 1e-3, "batch_size": 128},
        "cifar10": {"hidden": 2000, "layers": 4, "margin": 0.0, "lr": 1e-3, "batch_size": 128},
    }

    prior: Prior = option("logistic", "of the noise: logistic or gaussian")
    couplings: int = depth_option(4, "in a row; three let every dimension influence every other", tune=(2, 12))
    hidden: int = width_option(256, "units of a layer of the coupling networks", tune=(16, 512))
    layers: int = depth_option(2, "hidden layers of the coupling networks", tune=(1, 16))
    dropout: float = option(0.0, "of hidden units", least=0, below=1, tune=(0.0, 0.5))

    def body(self) -> Layer:
        row = in_a_row(self._coupling(layer, self.space.dims) for layer in range(self.couplings))
        return Chain(Flatten(self.space.shape), row, ActNorm(self.space.dims))

    def _coupling(self, layer: int, dims: int) -> Layer:
        """Moves the odd dimensions given the even ones, or the other way round."""
        mask = parity_mask(dims, 1)
        mask = ~mask if layer % 2 and dims > 1 else mask
        changed = int(mask.sum())
        sizes = (dims - changed, changed, self.hidden, self.layers, self.embedding.width, self.dropout)
        return Coupling(mask, Additive(), _DeepNet(*sizes))

    def noise(self, n: int) -> Tensor:
        return PRIORS[self.prior].draw(torch.rand(n, self.noise_dims, device=self.device))

    def noise_log_prob(self, z: Tensor) -> Tensor:
        return PRIORS[self.prior].log_prob(z)


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
