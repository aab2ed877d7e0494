"""Categorical diffusion in steps, in closed form: marginals, posteriors by Bayes' rule, terms of the bound.

Survey 2.3.1; Hoogeboom et al. 2021, section 4. Time is counted t = 0..T, and `alpha_bar[0]` is 1. A value stays with
chance alpha_t at each step and is otherwise drawn anew, all K alike, so that q(x_t | x_0) = alpha_bar_t [x_t = x_0] +
(1 - alpha_bar_t) / K. Laws are logarithms `(B, D, K)`, K the most levels of any of D dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.tools.diffusion import Schedule

NEVER = -1e9  # the logarithm of no chance, finite so that it times no chance is 0


def step_bars(schedule: Schedule, timesteps: int) -> Tensor:
    """alpha_bar_0..T, float64 `(T + 1,)`, of a schedule of -ln alpha_bar over time in [0, 1], at even times."""
    return torch.exp(-schedule(torch.linspace(0, 1, timesteps + 1, dtype=torch.float64, device="cpu")))


class CategoricalDiffusion(nn.Module):
    """The forward chain of D dimensions and what follows from it by Bayes' rule.

    Args:
        alpha_bar: 1 = alpha_bar_0 > ... > alpha_bar_T > 0, float64 `(T + 1,)`.
        levels: how many values each dimension has.
    """

    log_keep: Tensor
    log_lose: Tensor
    log_uniform: Tensor

    def __init__(self, alpha_bar: Tensor, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.timesteps, self.most = len(alpha_bar) - 1, max(levels)
        counts = torch.tensor(levels, device="cpu")[:, None]
        exists = torch.arange(self.most, device="cpu") < counts
        uniform = torch.where(exists, -counts.double().log(), NEVER)
        self.register_buffer("log_keep", alpha_bar.log(), persistent=False)
        self.register_buffer("log_lose", torch.log1p(-alpha_bar).clamp(min=NEVER), persistent=False)
        self.register_buffer("log_uniform", uniform, persistent=False)

    @property
    def exists(self) -> Tensor:
        """Which of K values each dimension has, `(D, K)`."""
        return self.log_uniform > NEVER

    def certain(self, x: Tensor) -> Tensor:
        """The law of values `(B, D)` that are known, float64."""
        own = F.one_hot(x.long(), self.most).bool()
        return torch.where(own, 0.0, NEVER).double()

    def marginal(self, log_p: Tensor, t: Tensor) -> Tensor:
        """q(x_t) where x_0 has the law `log_p`; t `(B,)`."""
        return self._mixed(log_p, self.log_keep[t], self.log_lose[t])

    def posterior(self, x_t: Tensor, log_p: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """q(x_s | x_t) where x_0 has the law `log_p`, of each dimension apart: the product of what x_t tells and x_0.

        Exactly so for a known x_0; for a predicted one it is the step back (section 4).

        Args:
            x_t: values `(B, D)`.
            log_p: of x_0, `(B, D, K)`.
            t: `(B,)`.
            s: `(B,)`, earlier; need not be t - 1.
        """
        log_keep = self.log_keep[t] - self.log_keep[s]
        log_lose = torch.log1p(-log_keep.exp()).clamp(min=NEVER)
        told = self._mixed(self.certain(x_t).to(log_p), log_keep, log_lose)  # of x_s, for the step is symmetric
        return (told + self.marginal(log_p, s)).log_softmax(-1)

    def step_kl(self, x: Tensor, x_t: Tensor, log_p: Tensor, t: Tensor) -> Tensor:
        """L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) in nats `(B,)`; at t = 1 it is -ln p(x_0 | x_1).

        Args:
            x: x_0, `(B, D)`.
            x_t: `(B, D)`.
            log_p: predicted of x_0, `(B, D, K)`.
            t: `(B,)`, from 1 on.
        """
        true = self.posterior(x_t, self.certain(x).to(log_p), t, t - 1)
        return _divergence(true, self.posterior(x_t, log_p, t, t - 1))

    def prior_kl(self, x: Tensor) -> Tensor:
        """L_T = KL(q(x_T | x_0) || uniform) in nats `(B,)`."""
        last = torch.full((len(x),), self.timesteps, device=x.device)
        return _divergence(self.marginal(self.certain(x), last), self.log_uniform)

    def _mixed(self, log_p: Tensor, log_keep: Tensor, log_lose: Tensor) -> Tensor:
        """ln (keep p + lose / K)."""
        kept, lost = log_keep[:, None, None].to(log_p) + log_p, log_lose[:, None, None].to(log_p) + self.log_uniform
        return torch.logaddexp(kept, lost.to(log_p))


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats, summed over dimensions: `(B,)`."""
    return (log_p.exp() * (log_p - log_q)).flatten(1).sum(1)


def nats_of_chance(levels: tuple[int, ...]) -> float:
    """Of an example all of whose values are alike likely."""
    return sum(math.log(count) for count in levels)
