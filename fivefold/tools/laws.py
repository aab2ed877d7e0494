"""Laws of whole numbers, elementwise: what discrete flows end in, and what an entropy coder asks of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.tools.distributions import categorical_sample, log_between

LEAST_LOG_SCALE = -4.0  # of a logistic on the integers: all but 1e-11 of it then lies in one cell
MOST_LOG_SCALE = 20.0


class Law(Protocol):
    """Independent whole numbers, each with its distribution, in a tensor of any shape."""

    @property
    def centre(self) -> Tensor:
        """A likely value of each."""

    def log_prob(self, z: Tensor) -> Tensor:
        """ln P(Z = z), of z's shape."""

    def sample(self) -> Tensor:
        """A value of each, from torch's global generator."""

    def mass(self, low: Tensor, high: Tensor) -> Tensor:
        """P(low <= Z < high) in float64; ends may be infinite."""


Draw = Callable[[Law], Tensor]  # whole numbers by a law: samples, or what was coded


@dataclass(frozen=True)
class IntegerLogistics:
    """Mixtures of logistics, each integer having the mass of its cell [z - 1/2, z + 1/2] (Hoogeboom et al., 2019, 3.2).

    Args:
        weights: logits of the K components `(..., K)`.
        means: theirs, in whole numbers.
        log_scales: theirs.
        bounds: least and greatest value, whose cells then take the tails; None for all integers.
    """

    weights: Tensor
    means: Tensor
    log_scales: Tensor
    bounds: tuple[Tensor, Tensor] | None = None

    @property
    def centre(self) -> Tensor:
        return self._within(self.means.gather(-1, self.weights.argmax(-1, keepdim=True)).squeeze(-1).double().round())

    def log_prob(self, z: Tensor) -> Tensor:
        inverse = self._log_scales.neg().exp()
        centred = z.to(self.means.dtype).unsqueeze(-1) - self.means
        lower, upper = (centred - 0.5) * inverse, (centred + 0.5) * inverse
        log_mass = log_between(lower, upper, inverse)
        if self.bounds is not None:
            least, most = (z <= self.bounds[0]).unsqueeze(-1), (z >= self.bounds[1]).unsqueeze(-1)
            log_mass = torch.where(most, F.logsigmoid(-lower), log_mass)
            log_mass = torch.where(least, torch.where(most, 0.0, F.logsigmoid(upper)), log_mass)
        return (self.weights.log_softmax(-1) + log_mass).logsumexp(-1)

    def sample(self) -> Tensor:
        uniform = torch.rand(2, *self.means.shape[:-1], dtype=torch.float64, device=self.means.device)
        chosen = categorical_sample(self.weights, uniform[0]).unsqueeze(-1)
        mean, log_scale = (p.gather(-1, chosen).squeeze(-1).double() for p in (self.means, self._log_scales))
        return self._within((mean + log_scale.exp() * torch.logit(uniform[1], eps=1e-12)).round())

    def mass(self, low: Tensor, high: Tensor) -> Tensor:
        empty = torch.zeros_like(low, dtype=torch.bool)
        if self.bounds is not None:
            least, most = self.bounds
            empty = (low > most) | (high <= least)
            low, high = torch.where(low <= least, -torch.inf, low), torch.where(high > most, torch.inf, high)
        means, inverse = self.means.double(), self._log_scales.double().neg().exp()
        lower, upper = (((end - 0.5).unsqueeze(-1) - means) * inverse for end in (low, high))
        log_mass = log_between(lower, upper, (high - low).unsqueeze(-1) * inverse)
        mass = (self.weights.double().log_softmax(-1) + log_mass).logsumexp(-1).exp()
        return torch.where(empty, 0.0, mass)

    @property
    def _log_scales(self) -> Tensor:
        return self.log_scales.clamp(LEAST_LOG_SCALE, MOST_LOG_SCALE)

    def _within(self, z: Tensor) -> Tensor:
        return z if self.bounds is None else torch.minimum(torch.maximum(z, self.bounds[0]), self.bounds[1])


@dataclass(frozen=True)
class Levels:
    """Any law on {0..K-1}.

    Args:
        logits: `(..., K)`; minus infinity where a value cannot be.
    """

    logits: Tensor

    @property
    def centre(self) -> Tensor:
        return self.logits.argmax(-1).double()

    def log_prob(self, z: Tensor) -> Tensor:
        return self.logits.log_softmax(-1).gather(-1, z.long().unsqueeze(-1)).squeeze(-1)

    def sample(self) -> Tensor:
        uniform = torch.rand(self.logits.shape[:-1], dtype=torch.float64, device=self.logits.device)
        return categorical_sample(self.logits, uniform)

    def mass(self, low: Tensor, high: Tensor) -> Tensor:
        below = F.pad(self.logits.double().softmax(-1).cumsum(-1), (1, 0))
        ends = (end.clamp(0, self.logits.shape[-1]).long().unsqueeze(-1) for end in (low, high))
        first, last = (below.gather(-1, end).squeeze(-1) for end in ends)
        return last - first
