"""Gaussian diffusion in steps, in closed form: noise schedules, KL terms of the bound, decoder (survey 2.3.1).

Time is counted t = 1..T as in the paper; `alpha_bar[0]` is 1. With signal a_t = sqrt(alpha_bar_t) and
noise s_t = sqrt(1 - alpha_bar_t), q(x_t | x_0) = N(a_t x_0, s_t^2 I).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Schedule = Callable[[Tensor], Tensor]


def linear(u: Tensor) -> Tensor:
    """-ln alpha_bar at time u in [0, 1]: beta grows linearly, 0.1 to 20 in total (Ho et al. 2020 as T grows)."""
    return 0.1 * u + 0.5 * (20 - 0.1) * u**2


def cosine(u: Tensor) -> Tensor:
    """-ln alpha_bar at time u in [0, 1] of the squared cosine (Nichol and Dhariwal 2021, Eq. 17)."""
    offset = 0.008
    angle = (u + offset) / (1 + offset) * math.pi / 2
    return 2 * (math.log(math.cos(offset / (1 + offset) * math.pi / 2)) - angle.cos().clamp(min=1e-3).log())


SCHEDULES: dict[str, Schedule] = {"linear": linear, "cosine": cosine}
# Variance of the reverse steps as a function of beta_t and the posterior's (Ho et al. 2020, section 3.2): right
# where x_0 spreads as a standard normal, and where x_t all but determines x_0.
VARIANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward": lambda forward, posterior: forward,
    "posterior": lambda forward, posterior: posterior,
}


def alpha_bars(schedule: Schedule, timesteps: int, first_noise: float) -> Tensor:
    """alpha_bar_0..T, float64 `(T + 1,)`, of a schedule whose first step already has noise `first_noise`.

    The part of the schedule with less noise than the data's resolution tells the model nothing, so it
    is one step; the other T - 1 spread evenly over the rest.

    Args:
        schedule: -ln alpha_bar as a function of time in [0, 1].
        timesteps: T, at least 2.
        first_noise: standard deviation s_1 of q(x_1 | x_0), in (0, 1).
    """
    exact: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}  # whatever the default device
    grid = torch.linspace(0, 1, 100_001, **exact)
    start = grid[torch.searchsorted(schedule(grid), -math.log1p(-(first_noise**2)))]
    later = schedule(torch.linspace(float(start), 1, timesteps, **exact))
    return torch.cat([torch.ones(1, **exact), torch.exp(-later)])


class GaussianDiffusion(nn.Module):
    """The terms of the bound of T steps, coefficients computed once in float64 (`tools.sde.in_steps` has the process).

    Args:
        alpha_bar: 1 = alpha_bar_0 > ... > alpha_bar_T > 0, float64 `(T + 1,)`.
        variance: of the reverse steps, by name.
    """

    kl_weight: Tensor
    kl_constant: Tensor
    noise_weight: Tensor
    gap: Tensor

    def __init__(self, alpha_bar: Tensor, variance: str = "posterior") -> None:
        super().__init__()
        self.timesteps = len(alpha_bar) - 1
        self.alpha_bar: list[float] = alpha_bar.tolist()
        snr = alpha_bar / (1 - alpha_bar)
        beta = 1 - alpha_bar[2:] / alpha_bar[1:-1]
        posterior = beta * (1 - alpha_bar[1:-1]) / (1 - alpha_bar[2:])
        ratio = posterior / VARIANCES[variance](beta, posterior)
        kl_weight, kl_constant = torch.zeros_like(alpha_bar), torch.zeros_like(alpha_bar)
        kl_weight[2:] = ratio * 0.5 * (snr[1:-1] - snr[2:])  # of the squared error of x_0, at index t
        kl_constant[2:] = 0.5 * (ratio - 1 - ratio.log())  # of each dimension
        noise_weight = torch.cat([(kl_weight / snr)[2:3], (kl_weight / snr)[2:]])  # of the noise's, at t - 1; 1 as 2
        self.register_buffer("kl_weight", kl_weight, persistent=False)
        self.register_buffer("kl_constant", kl_constant, persistent=False)
        self.register_buffer("noise_weight", noise_weight, persistent=False)
        gap = torch.zeros_like(
            alpha_bar
        )  # ln of the largest variance of a step back less that of the least, at index t
        gap[2:] = (beta / posterior).log()
        gap[1] = ((1 - alpha_bar[1]) / posterior[0]).log()  # the first step's least is 0: the second's takes its place
        self.register_buffer("gap", gap, persistent=False)

    def prior_kl(self, x: Tensor) -> Tensor:
        """L_T = KL(q(x_T | x_0) || N(0, I)) in nats `(B,)`."""
        a = self.alpha_bar[-1]
        each = 0.5 * (a * x.double() ** 2 - a - math.log1p(-a))
        return each.flatten(1).sum(1)

    def step_kl(self, x: Tensor, predicted: Tensor, t: Tensor, share: Tensor | None = None) -> Tensor:
        """L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) in nats `(B,)`, for t >= 2.

        p has the mean of the posterior at the predicted x_0. With the posterior's variance too, the term is
        (SNR_{t-1} - SNR_t) / 2 times the squared error of x_0. With a learnt variance, whose `share` `(B, ...)` is that
        of the way from the posterior's to the forward step's, it is that over their ratio, and what the ratio costs.
        """
        error = (x - predicted).double().square().flatten(1)
        if share is None:
            return self.kl_weight[t] * error.sum(1) + self.kl_constant[t] * error.shape[1]
        log_ratio = -share.double().flatten(1) * self.gap[t][:, None]
        ratio = log_ratio.exp()
        return (self.kl_weight[t][:, None] * ratio * error + 0.5 * (ratio - 1 - log_ratio)).sum(1)

    def decoder_deviation(self, share: Tensor | None) -> Tensor:
        """Of p(x_0 | x_1): that of the first step's noise, or a learnt one, which may be less; float64."""
        most = torch.tensor(1 - self.alpha_bar[1], dtype=torch.float64).sqrt()
        return most if share is None else most * torch.exp(-0.5 * (1 - share.double()) * self.gap[1])


def quantile(cumulative: Tensor, u: Tensor) -> Tensor:
    """Indices of the law with `cumulative` weights, at `u` in [0, 1)."""
    return torch.searchsorted(cumulative, u * cumulative[-1], right=True).clamp(max=len(cumulative) - 1)


def spread(n: int, device: torch.device) -> Tensor:
    """`n` numbers, each uniform on [0, 1), one in every n-th part: a loss over them varies less."""
    return (torch.arange(n, device=device) + torch.rand(n, device=device)) / n


def discretised_gaussian_log_prob(x: Tensor, mean: Tensor, scale: Tensor | float, half: Tensor | float) -> Tensor:
    """ln of the mass that N(mean, scale^2) has in the cell of `x`, elementwise, float64 (Ho et al. 2020, Eq. 13).

    `x` is a level on [-1, 1], `half` half the distance between levels (broadcast against `x`); the cells
    of -1 and 1 reach to infinity, so the levels sum to 1.
    """
    x, mean = x.double(), mean.double()
    upper = torch.where(x > 1 - half, math.inf, (x + half - mean) / scale)
    lower = torch.where(x < -1 + half, -math.inf, (x - half - mean) / scale)
    # the normal's symmetry puts the cell below the mean, where differences of tails keep their precision
    flip = lower > 0
    upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_upper = torch.special.log_ndtr(upper)
    return log_upper + torch.log1p(-torch.exp(torch.special.log_ndtr(lower) - log_upper))


def rows(coefficient: Tensor, x: Tensor) -> Tensor:
    """`(B,)` shaped to multiply the rows of `x`."""
    return coefficient.view(-1, *[1] * (x.dim() - 1))
