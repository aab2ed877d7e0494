"""Diffusion as a stochastic differential equation: its marginals, reverse-time samplers and density (survey 2.3.2).

All of Song et al. 2021 [206] are linear, dx = -rate(t) x dt + g(t) dw for t in [0, 1], so that
x_t = signal(t) x_0 + noise(t) N(0, I). The score is the gradient in x of ln p_t(x).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fivefold.tools.diffusion import rows
from fivefold.tools.divergence import rademacher, with_divergence
from fivefold.tools.ode import Solution, integrate

Function = Callable[[Tensor], Tensor]  # of time
Score = Callable[[Tensor, Tensor], Tensor]  # of x `(B, ...)` and times `(B,)`


class SDE(NamedTuple):
    """dx = -rate(t) x dt + sqrt(variance(t)) dw, and what it makes of a point by the time t."""

    rate: Function
    variance: Function  # g(t)^2
    signal: Function
    noise: Function  # standard deviation
    time: Function  # at which noise / signal is a given number

    def diffuse(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t of x_0 `(B, ...)` at `t` `(B,)`: signal x_0 + noise."""
        return rows(self.signal(t), x) * x + rows(self.noise(t), x) * noise

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return -rows(self.rate(t), x) * x

    def prior(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """A draw at time 1, where the data are forgotten."""
        return self.noise(torch.ones((), device=device)) * torch.randn(shape, device=device)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Nats `(B,)` of the normal law that `prior` draws from."""
        deviation = self.noise(x.new_ones(()))
        each = -0.5 * (x / deviation).square() - deviation.log() - 0.5 * math.log(2 * math.pi)
        return each.flatten(1).sum(1)


def variance_exploding(low: float, high: float) -> SDE:
    """Noise is added and the data kept (Song et al. 2021, Eq. 30): standard deviation `low` to `high`."""
    growth = math.log(high / low)
    return SDE(
        rate=torch.zeros_like,
        variance=lambda t: 2 * growth * low**2 * torch.exp(2 * growth * t),
        signal=torch.ones_like,
        noise=lambda t: low * torch.expm1(2 * growth * t).sqrt(),
        time=lambda ratio: torch.log1p((ratio / low) ** 2) / (2 * growth),
    )


def _total(low: float, high: float) -> Function:
    return lambda t: low * t + 0.5 * (high - low) * t**2


def _time_of_total(low: float, high: float) -> Function:
    return lambda total: 2 * total / (low + (low**2 + 2 * (high - low) * total).sqrt())


def variance_preserving(low: float, high: float) -> SDE:
    """DDPM in continuous time (Song et al. 2021, Eq. 32): beta grows linearly from `low` to `high`."""
    total, inverse = _total(low, high), _time_of_total(low, high)
    return SDE(
        rate=lambda t: 0.5 * (low + (high - low) * t),
        variance=lambda t: low + (high - low) * t,
        signal=lambda t: torch.exp(-0.5 * total(t)),
        noise=lambda t: (-torch.expm1(-total(t))).sqrt(),
        time=lambda ratio: inverse(torch.log1p(ratio**2)),
    )


def sub_variance_preserving(low: float, high: float) -> SDE:
    """As variance preserving with less noise on the way (Song et al. 2021, Eq. 34); better likelihoods."""
    total, inverse, preserving = _total(low, high), _time_of_total(low, high), variance_preserving(low, high)
    return preserving._replace(
        variance=lambda t: preserving.variance(t) * -torch.expm1(-2 * total(t)),
        noise=lambda t: -torch.expm1(-total(t)),
        time=lambda ratio: inverse(2 * torch.asinh(ratio / 2)),
    )


SDES = {"ve": variance_exploding, "vp": variance_preserving, "sub-vp": sub_variance_preserving}
RANGES = {"ve": (0.01, 50.0), "vp": (0.1, 20.0), "sub-vp": (0.1, 20.0)}  # the paper's


# --- samplers: from time 1 to `first`, along `steps` even steps -----------------------------------


def predictor_corrector(
    sde: SDE, score: Score, x: Tensor, first: float, steps: int, corrections: int, signal_to_noise: float
) -> Tensor:
    """Alternates ancestral steps and Langevin steps at the new time (Song et al. 2021, Algorithm 1)."""
    for t, s in _steps(first, steps, x):
        x = ancestral(sde, score, x, t, s)
        for _ in range(corrections):
            x = langevin(score, x, s, signal_to_noise)
    return denoised(sde, score, x, s)


def euler_maruyama(sde: SDE, score: Score, x: Tensor, first: float, steps: int) -> Tensor:
    """The reverse equation dx = (f - g^2 score) dt + g dw discretised (Song et al. 2021, Eq. 6)."""
    for t, s in _steps(first, steps, x):
        variance = rows(sde.variance(t) * (t - s), x)
        x = x - sde.drift(x, t) * rows(t - s, x) + variance * score(x, t) + variance.sqrt() * torch.randn_like(x)
    return denoised(sde, score, x, s)


def probability_flow(sde: SDE, score: Score, x: Tensor, t0: float, t1: float, tolerance: float) -> Solution[Tensor]:
    """The ordinary equation dx/dt = f - g^2 score / 2, with the same marginals (Song et al. 2021, Eq. 13)."""
    return integrate(
        lambda clock, y: flow(sde, score, y, clock), x, _clock(sde, t0), _clock(sde, t1), tolerance, tolerance
    )


def flow_log_prob(sde: SDE, score: Score, x: Tensor, first: float, tolerance: float, exact: bool) -> tuple[Tensor, int]:
    """ln p of the probability flow's `x` at time `first`, nats `(B,)`, and the evaluations taken.

    ln p(x) = ln prior(x_1) + the integral of the divergence along the way, exact or by one probe for each example
    (Song et al. 2021, Eq. 39 and 40); then unbiased but for the solver's tolerance.
    """
    probe = None if exact else rademacher(x)

    def f(clock: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return with_divergence(lambda y: flow(sde, score, y, clock), state[0], probe)

    start, end = _clock(sde, first), _clock(sde, 1.0)
    ((x_1, log_det), evaluations) = integrate(f, (x, x.new_zeros(len(x))), start, end, tolerance, tolerance)
    return sde.prior_log_prob(x_1) + log_det, evaluations


def flow(sde: SDE, score: Score, x: Tensor, clock: float) -> Tensor:
    """The velocity of the probability flow by the clock ln(noise / signal).

    By that clock it changes evenly; by t nearly everything happens at the start, and a solver takes twice the steps.
    dt/dclock = 2 noise^2 / g^2, for d ln noise/dt = g^2 / (2 noise^2) - rate and d ln signal/dt = -rate.
    """
    t = sde.time(torch.tensor(math.exp(clock), dtype=torch.float64)).clamp(max=1).to(x)
    pace, times = 2 * sde.noise(t) ** 2 / sde.variance(t), t.expand(len(x))
    return pace * sde.drift(x, times) - sde.noise(t) ** 2 * score(x, times)


def _clock(sde: SDE, t: float) -> float:
    time = torch.tensor(t, dtype=torch.float64)
    return math.log(sde.noise(time) / sde.signal(time))


def ancestral(sde: SDE, score: Score, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s of x_t, s < t: the mean of x_s by Tweedie's formula and the noise of q(x_s | x_t, x_0) (appendix F)."""
    ratio = sde.signal(t) / sde.signal(s)
    added = sde.noise(t) ** 2 - (ratio * sde.noise(s)) ** 2  # x_t = ratio x_s + noise of this variance
    mean = (x + rows(added, x) * score(x, t)) / rows(ratio, x)
    return mean + rows((added.clamp(min=0)).sqrt() * sde.noise(s) / sde.noise(t), x) * torch.randn_like(x)


def langevin(score: Score, x: Tensor, t: Tensor, signal_to_noise: float) -> Tensor:
    """A step of Langevin dynamics at time t, its size by the ratio of norms (Song et al. 2021, Algorithms 4 and 5)."""
    gradient, noise = score(x, t), torch.randn_like(x)
    norm, noise_norm = (v.flatten(1).norm(dim=1).mean() for v in (gradient, noise))
    step = 2 * (signal_to_noise * noise_norm / norm.clamp(min=1e-12)) ** 2
    return x + step * gradient + (2 * step).sqrt() * noise


def denoised(sde: SDE, score: Score, x: Tensor, t: Tensor) -> Tensor:
    """E[x_0 | x_t] by Tweedie's formula: takes out the noise that is left at the end."""
    return (x + rows(sde.noise(t) ** 2, x) * score(x, t)) / rows(sde.signal(t), x)


def _steps(first: float, steps: int, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    grid = torch.linspace(1, first, steps + 1).tolist()
    return [(x.new_full((len(x),), t), x.new_full((len(x),), s)) for t, s in pairwise(grid)]
