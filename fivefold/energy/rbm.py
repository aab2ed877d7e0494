"""Restricted Boltzmann machines: one visible and one hidden layer, no weights within a layer."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.energy._boltzmann import BoltzmannSystem
from fivefold.nets.visible import bernoulli
from fivefold.tools.ais import anneal, block_gibbs, every_state

AT_ONCE = 4096  # hidden states that are summed over at once


class RBM(BoltzmannSystem):
    """Restricted Boltzmann machine (survey 2.1.2; Hinton, 2002; Tieleman, 2008).

    Binary hidden units explain the visible ones by a product of experts. Gradients compare data with a Markov
    chain, which is simple and fast to train; samples take a long chain, and the density is known up to a
    constant that is estimated.

    E(v, h) = -ln base(v) - a.s(v) - b.h - s(v)'W h with the statistics s of binary, binomial (more levels),
    Gaussian (reals) or softmax (categories) visible units. ln Z is estimated by annealed importance sampling,
    once for each state of the parameters: its error is common to all examples, so it does not average out over
    them, and differences between examples are exact. Of up to 16 hidden units it is a sum over all their states.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.999},
        "mnist": {"hidden": 500, "batch_size": 128, "ais_steps": 5000},
    }

    # --- the model: a state is v, flat and float (B, D); h (B, hidden) -----------------------------

    def hidden_input(self, v: Tensor, condition: Tensor | None) -> Tensor:
        """The logits of the hidden units given v, `(B, hidden)`."""
        return self.units.statistic(v) @ self.weight + self.biases(condition)[1]

    def visible_input(self, h: Tensor, condition: Tensor | None) -> Tensor:
        """The natural parameters of the visible units given h, `(B, width)`."""
        return self.biases(condition)[0] + h @ self.weight.T

    def free_energy(self, v: Tensor, condition: Tensor | None = None) -> Tensor:
        """F(v) = -ln sum over h of exp(-E(v, h)), nats `(B,)`: ln p(v) = -F(v) - ln Z."""
        a, b = self.biases(condition)
        s = self.units.statistic(v)
        return -self.units.log_base(v) - (a * s).sum(1) - F.softplus(s @ self.weight + b).sum(1)

    def energy(self, state: Tensor, condition: Tensor | None) -> Tensor:
        """F: hidden units are summed over, so that they add no noise to the gradient."""
        return self.free_energy(state, condition)

    def unnormalised(self, v: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | float]:
        return -self.free_energy(v, condition), 0.0

    def explained(self, v: Tensor, condition: Tensor | None) -> Tensor:
        return v

    def activity(self, state: Tensor, condition: Tensor | None) -> Tensor:
        return self.hidden_input(state, condition).sigmoid()

    def start(self, natural: Tensor) -> Tensor:
        return self.units.sample(natural)

    def gibbs(self, state: Tensor, condition: Tensor | None, steps: int, known: Tensor | None = None) -> Tensor:
        """Block Gibbs sampling: all hidden units given v, then all visible ones given h."""
        a, b = self.biases(condition)

        def hidden(v: Tensor) -> Tensor:
            return bernoulli(self.units.statistic(v) @ self.weight + b)

        def visible(h: Tensor) -> Tensor:
            v = self.units.sample(a + h @ self.weight.T)
            return v if known is None else torch.where(known, state, v)

        return block_gibbs(state, hidden, visible, steps)

    # --- the partition function ---------------------------------------------------------------------

    @property
    def summed(self) -> float:
        return float(self.hidden)

    def exact_log_z(self, condition: Tensor | None) -> Tensor:
        """Over all hidden states: each leaves independent visible units, whose sum is closed."""
        a, b = self.biases(condition)

        def log_weight(h: Tensor) -> Tensor:
            return (h * b).sum(1).double() + self.units.log_normaliser((a + h @ self.weight.T).double())

        h = every_state([2] * self.hidden).to(self.weight)
        return torch.cat([log_weight(part) for part in h.split(AT_ONCE)]).logsumexp(0)

    def anneal(self, n: int, condition: Tensor | None, temperatures: int) -> tuple[Tensor, Tensor]:
        """The path is that of Salakhutdinov and Murray (2008): f_beta(v) sums exp(-E) over h with weights and
        hidden biases times beta, visible biases between the data's and the model's.
        """
        a, b = self.biases(condition)
        base = self.units.natural(self.mean)

        def step(v: Tensor, beta: float, next_beta: float) -> tuple[Tensor, Tensor]:
            s = self.units.statistic(v)
            x = s @ self.weight + b
            log_ratio = (next_beta - beta) * (s * (a - base)).sum(1)
            log_ratio = log_ratio + (F.softplus(next_beta * x) - F.softplus(beta * x)).sum(1)
            h = bernoulli(next_beta * x)
            return log_ratio, self.units.sample(torch.lerp(base, a, next_beta) + next_beta * (h @ self.weight.T))

        return anneal(self.units.sample(base.expand(n, -1)), step, temperatures)
