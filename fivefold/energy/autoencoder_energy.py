"""An autoencoder that is an energy, fitted by score matching."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.energy._system import PointSystem
from fivefold.nets.condition import ConditionEmbedding
from fivefold.options import slot, width_option
from fivefold.space import Space


class AutoencoderEnergy(PointSystem):
    """Autoencoder energy (survey 2.3; Swersky et al., 2011; Vincent, 2011).

    An autoencoder with tied weights, x -> b + W' sigmoid(W x + c), is the gradient of something: its reconstruction
    less x, over a variance, is the score of the energy

        E(x) = (|x - b|^2 / 2 - sum_j softplus(w_j x + c_j)) / variance.

    Score matching of it asks for small reconstruction errors and, by the trace, which is known in closed form, for
    units that are not sure: contractive autoencoders come from likelihoods.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"clip": 10.0}}

    objective: Any = slot("score-matching")
    sampler = "hamiltonian"
    sample_steps = 50
    hidden: int = width_option(512, "units of the code", tune=(64, 2048))
    beta1 = 0.9

    def make_energy(self) -> nn.Module:
        return Autoencoder(self.space, self.hidden)

    def score_matching(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """|s|^2 / 2 + tr ds/dx `(B,)`, by the network's own trace."""
        if self.temperature != 1 or self.reference or not isinstance(self.energy, Autoencoder):
            return super().score_matching(x, condition)
        score, trace = self.energy.score(x, condition)
        return 0.5 * score.square().sum(1) + trace


class Autoencoder(nn.Module):
    """The energy of one hidden layer: see `AutoencoderEnergy`. A condition shifts both biases."""

    def __init__(self, space: Space, hidden: int) -> None:
        super().__init__()
        dims = space.dims
        self.weight = nn.Parameter(torch.randn(hidden, dims) / dims**0.5)
        self.code_bias, self.bias = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(dims))
        self.log_variance = nn.Parameter(torch.tensor(-1.0))
        self.embed = ConditionEmbedding(space.condition, 32)
        self.shift = nn.Linear(self.embed.width, hidden + dims) if space.condition else None

    def parts(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """What enters the units `(B, hidden)`, and x less the bias `(B, D)`."""
        code_bias: Tensor = self.code_bias
        bias: Tensor = self.bias
        if self.shift is not None:
            more = self.shift(self.embed(condition)).split([len(code_bias), len(bias)], 1)
            code_bias, bias = code_bias + more[0], bias + more[1]
        return x @ self.weight.T + code_bias, x - bias

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """E `(B,)` of examples `(B, *shape)`."""
        units, gap = self.parts(x.flatten(1), condition)
        return (0.5 * gap.square().sum(1) - F.softplus(units).sum(1)) / self.log_variance.exp()

    def score(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """-dE/dx `(B, D)` and its divergence `(B,)`."""
        units, gap = self.parts(x.flatten(1), condition)
        code = units.sigmoid()
        lengths, variance = self.weight.square().sum(1), self.log_variance.exp()
        return (code @ self.weight - gap) / variance, ((code * (1 - code)) @ lengths - gap.shape[1]) / variance
