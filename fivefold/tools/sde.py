"""Diffusion as a stochastic differential equation: its marginals, reverse-time samplers and density (survey 2.3.2).

All of Song et al. 2021 [206] are linear, dx = -rate(t) x dt + g(t) dw for t in [0, 1], so that
x_t = signal(t) x_0 + noise(t) N(0, I). The score is the gradient in x of ln p_t(x).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fivefold.tools.brownian import adaptive_heun
from fivefold.tools.diffusion import rows
from fivefold.tools.divergence import rademacher, with_divergence
from fivefold.tools.ode import Solution, integrate

Function = Callable[[Tensor], Tensor]  # of time


class Moment(NamedTuple):
    """A time `(B,)`, or one for all `(1,)`, with what the equation has made of a point by then."""

    t: Tensor
    signal: Tensor
    noise: Tensor  # standard deviation
    deviation: Tensor  # of x_t where that of x_0 is 1

    def diffuse(self, x: Tensor, noise: Tensor) -> Tensor:
        """x_t of x_0 `(B, ...)`: signal x_0 + noise."""
        return rows(self.signal, x) * x + rows(self.noise, x) * noise


Score = Callable[[Tensor, Moment], Tensor]  # of x `(B, ...)`


class SDE(NamedTuple):
    """dx = -rate(t) x dt + sqrt(variance(t)) dw, and what it makes of a point by the time t."""

    rate: Function
    variance: Function  # g(t)^2
    signal: Function
    noise: Function  # standard deviation
    time: Function  # at which noise / signal is a given number

    def at(self, t: Tensor) -> Moment:
        signal, noise = self.signal(t), self.noise(t)
        return Moment(t, signal, noise, (signal**2 + noise**2).sqrt())

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


def _preserving(beta: Function, total: Function, inverse: Function) -> SDE:
    """dx = -beta x / 2 dt + sqrt(beta) dw, `total` the integral of beta from 0 on and `inverse` the time of a total."""
    return SDE(
        rate=lambda t: 0.5 * beta(t),
        variance=beta,
        signal=lambda t: torch.exp(-0.5 * total(t)),
        noise=lambda t: (-torch.expm1(-total(t))).sqrt(),
        time=lambda ratio: inverse(torch.log1p(ratio**2)),
    )


def _total(low: float, high: float) -> Function:
    return lambda t: low * t + 0.5 * (high - low) * t**2


def _time_of_total(low: float, high: float) -> Function:
    return lambda total: 2 * total / (low + (low**2 + 2 * (high - low) * total).sqrt())


def variance_preserving(low: float, high: float) -> SDE:
    """DDPM in continuous time (Song et al. 2021, Eq. 32): beta grows linearly from `low` to `high`."""
    return _preserving(lambda t: low + (high - low) * t, _total(low, high), _time_of_total(low, high))


def in_steps(alpha_bar: Tensor) -> SDE:
    """DDPM's chain made continuous: -ln alpha_bar `(T + 1,)`, from 0 on, at times 0, 1/T, ..., 1 and linear between."""
    last = len(alpha_bar) - 1

    @cache
    def table(device: torch.device, dtype: torch.dtype) -> Tensor:
        return -alpha_bar.log().to(device, dtype)

    def below(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each time the step it is in, the table there and how much it grows over the step."""
        at, step = table(t.device, t.dtype), (t * last).long().clamp(0, last - 1)
        return step, at[step], at[step + 1] - at[step]

    def total(t: Tensor) -> Tensor:
        step, start, growth = below(t)
        return start + growth * (t * last - step)

    def inverse(total: Tensor) -> Tensor:
        at = table(total.device, total.dtype)
        step = (torch.searchsorted(at, total) - 1).clamp(0, last - 1)
        return (step + (total - at[step]) / (at[step + 1] - at[step])) / last

    return _preserving(lambda t: last * below(t)[2], total, inverse)


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


# --- what a network predicts, and how its errors weigh ---------------------------------------------

# The noise in `x` `(B, ...)` at a moment from a network's output. `velocity`: x is taken as of unit variance and what
# a standard normal x_0 would make optimal is corrected as far as there is a signal, for at the last times the least
# error of the noise would be a large one of x_0 (in a variance preserving equation it is signal e - noise x_0,
# Salimans and Ho, 2022). `residual`: the same, corrected alike at all times.
PREDICTIONS: dict[str, Callable[[Moment, Tensor, Tensor], Tensor]] = {
    "noise": lambda at, x, found: found,
    "clean": lambda at, x, found: (x - rows(at.signal, x) * found) / rows(at.noise, x),
    "residual": lambda at, x, found: rows(at.noise / at.deviation**2, x) * x + found,
    "velocity": lambda at, x, found: (
        rows(at.noise / at.deviation**2, x) * x + rows(at.signal / at.deviation, x) * found
    ),
}

# Of the squared error of the unit noise: each time alike (Ho et al. 2020, Eq. 14), or as it weighs in a bound on the
# likelihood (g^2 of the score's error, Song et al. 2021, Eq. 7: g^2 / noise^2 of the noise's).
WEIGHTINGS: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "simple": lambda sde, t: torch.ones_like(t),
    "likelihood": lambda sde, t: sde.variance(t) / sde.noise(t) ** 2,
}


# --- samplers: from time 1 to `first`, and to the examples there ------------------------------------


class Denoiser(NamedTuple):
    """A trained network under one condition, in the forms that samplers ask for.

    `noise` predicts the unit noise in x `(B, ...)` at a moment; `clip` confines predicted examples to where data
    can be. `both` gives, of a network that has learnt it, beside the noise the share in [0, 1] of the way from the
    least to the largest variance of a step back, in logarithms.
    """

    sde: SDE
    noise: Score
    clip: Callable[[Tensor], Tensor] = lambda x: x
    both: Callable[[Tensor, Moment], tuple[Tensor, Tensor]] | None = None

    def score(self, x: Tensor, at: Moment) -> Tensor:
        """The gradient of ln p_t at x: less the noise, in units of its deviation."""
        return -self.noise(x, at) / rows(at.noise, x)

    def clean(self, x: Tensor, at: Moment) -> Tensor:
        """E[x_0 | x_t] by Tweedie's formula, clipped."""
        return self.clean_of(x, self.noise(x, at), at)

    def clean_of(self, x: Tensor, noise: Tensor, at: Moment) -> Tensor:
        """The same of a predicted noise."""
        return self.clip((x - rows(at.noise, x) * noise) / rows(at.signal, x))

    def posterior(self, x: Tensor, at: Moment) -> tuple[Tensor, Tensor | None]:
        """`clean`, and the share of the variance where that is learnt, in one evaluation."""
        if self.both is None:
            return self.clean(x, at), None
        noise, share = self.both(x, at)
        return self.clean_of(x, noise, at), share


class Plan(NamedTuple):
    """How samples are drawn.

    Args:
        first: the time at which data begin.
        steps: even steps from time 1 to there, the last of which is to the predicted example.
        eta: noise of `ddim`'s steps: 0 deterministic, 1 ancestral.
        corrections: Langevin steps after each of `predictor-corrector`'s.
        signal_to_noise: of those: their size.
        tolerance: of the steps of `probability-flow` and `adaptive-sde`, absolute and relative.
        path: times from 1 to `first` in place of even steps; none for those.
        stride: of `annealed-langevin`'s steps, in units of the noise's variance.
    """

    first: float
    steps: int
    eta: float = 0.0
    corrections: int = 1
    signal_to_noise: float = 0.16
    tolerance: float = 1e-2
    path: tuple[float, ...] = ()
    stride: float = 1.0

    def moments(self, sde: SDE, x: Tensor) -> list[Moment]:
        """`steps` moments, each one for all rows of x, from time 1 down to `first`."""
        return [Moment(*parts) for parts in zip(*(part.split(1) for part in sde.at(self.times(x))), strict=True)]

    def times(self, x: Tensor) -> Tensor:
        """`(steps,)`, as precise as x."""
        if self.path:
            return torch.tensor(self.path, dtype=x.dtype, device=x.device)
        return torch.linspace(1, self.first, self.steps, dtype=x.dtype, device=x.device)


# One step of a sampler: from points `(B, ...)` at one moment to those at an earlier one. `ancestral` has the noise of
# q(x_s | x_t, x_0) (Ho et al. 2020, Algorithm 2), `ddim` as much of it as `eta` says (DDIM, Eq. 12).
Step = Callable[[Denoiser, Tensor, Moment, Moment, Plan], Tensor]


def ancestral(denoiser: Denoiser, x: Tensor, at: Moment, to: Moment, plan: Plan) -> Tensor:
    """A draw of p(x_s | x_t), of the variance that was learnt where one was (Nichol and Dhariwal 2021, section 4)."""
    clean, share = denoiser.posterior(x, at)
    return step(x, clean, at, to, 1.0, share)


def corrected(denoiser: Denoiser, x: Tensor, at: Moment, to: Moment, plan: Plan) -> Tensor:
    """To the marginal of the next time, and Langevin steps there (Song et al. 2021, Algorithm 1)."""
    x = ancestral(denoiser, x, at, to, plan)
    for _ in range(plan.corrections):
        x = langevin(denoiser.score, x, to, plan.signal_to_noise)
    return x


def euler_maruyama(denoiser: Denoiser, x: Tensor, at: Moment, to: Moment, plan: Plan) -> Tensor:
    """The reverse equation dx = (f - g^2 score) dt + g dw discretised (Song et al. 2021, Eq. 6)."""
    sde, gone = denoiser.sde, at.t - to.t
    variance = rows(sde.variance(at.t) * gone, x)
    drift = variance * denoiser.score(x, at) - sde.drift(x, at.t) * rows(gone, x)
    return x + drift + variance.sqrt() * torch.randn_like(x)


def annealed(denoiser: Denoiser, x: Tensor, at: Moment, to: Moment, plan: Plan) -> Tensor:
    """Langevin steps at the next noise, of a size that falls with its variance (Song and Ermon 2019, Algorithm 1).

    The paper's data keep their scale while noise falls; where the equation's do not, x goes along with them, for steps
    as small as the last ones would not take it there.
    """
    x = rows(to.signal / at.signal, x) * x
    for _ in range(plan.corrections):
        x = x + plan.stride / 2 * rows(to.noise**2, x) * denoiser.score(x, to)
        x = x + math.sqrt(plan.stride) * rows(to.noise, x) * torch.randn_like(x)
    return x


STEPS: dict[str, Step] = {
    "predictor-corrector": corrected,
    "ancestral": ancestral,
    "ddim": lambda denoiser, x, at, to, plan: step(x, denoiser.clean(x, at), at, to, plan.eta),
    "euler-maruyama": euler_maruyama,
    "annealed-langevin": annealed,
}


def adaptive(denoiser: Denoiser, x: Tensor, plan: Plan) -> Solution[Tensor]:
    """The reverse equation in steps whose size follows each example's error (Jolicoeur-Martineau et al. 2021).

    By the clock ln(noise / signal), see `flow`, by which its noise grows at the rate 2 noise^2. At the end the examples
    that are predicted, as theirs.
    """
    sde, start = denoiser.sde, _clock(denoiser.sde, 1.0)

    def drift(y: Tensor, gone: Tensor) -> Tensor:
        return -_along(sde, denoiser.score, y, start - gone, 2.0)

    def scale(gone: Tensor) -> Tensor:
        return math.sqrt(2) * _moment(sde, start - gone).noise

    end = _clock(sde, plan.first)
    y, evaluations = adaptive_heun(drift, scale, x, start - end, plan.tolerance)
    last = _moment(sde, torch.full((1,), end, dtype=torch.float64, device=x.device))
    return Solution(denoiser.clean(y, Moment(*(part.to(x) for part in last))), evaluations + 1)


def stepwise(advance: Step, denoiser: Denoiser, x: Tensor, plan: Plan, each: int = 1) -> Solution[Tensor]:
    """Steps of `each` evaluations from time 1 to `first`, and to the examples predicted there."""
    moments = plan.moments(denoiser.sde, x)
    for at, to in pairwise(moments):
        x = advance(denoiser, x, at, to, plan)
    return Solution(denoiser.clean(x, moments[-1]), (plan.steps - 1) * each + 1)


# Any of them on any trained network; each gives examples and how many evaluations they took.
SAMPLERS: dict[str, Callable[[Denoiser, Tensor, Plan], Solution[Tensor]]] = {
    **{name: partial(stepwise, advance) for name, advance in STEPS.items()},
    "predictor-corrector": lambda denoiser, x, plan: stepwise(corrected, denoiser, x, plan, 1 + plan.corrections),
    "annealed-langevin": lambda denoiser, x, plan: stepwise(annealed, denoiser, x, plan, plan.corrections),
    "probability-flow": lambda denoiser, x, plan: probability_flow(
        denoiser.sde, denoiser.score, x, 1.0, plan.first, plan.tolerance
    ),
    "adaptive-sde": adaptive,
}


STRIDE, KEPT = 0.7, 0.9  # of `filled_in`: a step in units of the noise, and the share of a momentum that stays
LEAST_NOISE = 0.1  # of the signal, below which a network's score is too wrong to move by: its error is one of the noise


def filled_in(denoiser: Denoiser, start: Tensor, known: Tensor, plan: Plan, corrections: int) -> Tensor:
    """What is missing of examples, given the rest: the reverse equation, and Langevin dynamics at each of its times.

    After each step back what is known is replaced by itself with the noise of that time (Song et al. 2021, appendix I).
    Alone that leaves what is missing too far from it. RePaint (Lugmayr et al., 2022) takes every step several times
    over; here what is missing moves by the score with what is known held, underdamped: momenta last over many steps,
    which reaches as far in tenfold fewer of them. No direction is narrower than the noise, so that steps of its size
    are stable. As they get fine and many the law tends to that of the score at the time `plan.first`.

    Args:
        denoiser: a trained network under a condition.
        start: points `(B, ...)` whose known part is given.
        known: which of their numbers are known.
        plan: the times.
        corrections: steps of Langevin dynamics at each time.
    """
    x = denoiser.sde.prior(start.shape, start.device)
    momentum, moments = torch.randn_like(x), plan.moments(denoiser.sde, x)
    for at, to in pairwise(moments):
        x = step(x, denoiser.clean(x, at), at, to, 1.0)
        x = torch.where(known, to.diffuse(start, torch.randn_like(x)), x)
        if to.noise < LEAST_NOISE * to.signal:
            continue
        stride, force = STRIDE * rows(to.noise, x), denoiser.score(x, to)
        for _ in range(corrections):
            momentum = KEPT * momentum + math.sqrt(1 - KEPT**2) * torch.randn_like(x) + stride / 2 * force
            x = torch.where(known, x, x + stride * momentum)
            force = denoiser.score(x, to)
            momentum = momentum + stride / 2 * force
    return torch.where(known, start, denoiser.clean(x, moments[-1]))


def step(x: Tensor, clean: Tensor, at: Moment, to: Moment, eta: float, share: Tensor | None = None) -> Tensor:
    """A draw of x_s of x_t and x_0, s < t, that keeps q(x_s | x_0) (Song et al. 2021, DDIM, Eq. 7).

    Its variance is `eta`^2 times that of q(x_s | x_t, x_0): 1 gives the Markov process, 0 a deterministic one. A share
    `(B, ...)` moves the variance of the noise, not the mean, from there to that of x_t given x_s, which is right where
    x_0 is standard normal and its variance preserved (Nichol and Dhariwal 2021, Eq. 15).
    """
    kept, noise = to.noise, torch.zeros((), device=x.device)
    if eta:
        ratio = at.signal / to.signal
        added = (at.noise**2 - (ratio * to.noise) ** 2).clamp(min=0)  # x_t = ratio x_s + noise of this variance
        deviation = eta * added.sqrt() * to.noise / at.noise
        kept = (to.noise**2 - deviation**2).clamp(min=0).sqrt()
        noise = rows(deviation, x) * torch.randn_like(x)
        if share is not None:
            noise = rows(at.noise / to.noise, x) ** share * noise
    return rows(to.signal, x) * clean + rows(kept / at.noise, x) * (x - rows(at.signal, x) * clean) + noise


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
    return _along(sde, score, x, torch.tensor([clock], dtype=torch.float64, device=x.device), 1.0)


def _along(sde: SDE, score: Score, x: Tensor, clock: Tensor, weight: float) -> Tensor:
    """(f - weight g^2 score / 2) dt/dclock at clocks `(B,)` or `(1,)`, weight 1 of the flow and 2 of the equation."""
    at = Moment(*(part.to(x) for part in _moment(sde, clock)))
    variance = rows(at.noise**2, x)
    return 2 * variance / rows(sde.variance(at.t), x) * sde.drift(x, at.t) - weight * variance * score(x, at)


def _moment(sde: SDE, clock: Tensor) -> Moment:
    return sde.at(sde.time(clock.exp()).clamp(max=1))


def _clock(sde: SDE, t: float) -> float:
    time = torch.tensor(t, dtype=torch.float64)
    return math.log(sde.noise(time) / sde.signal(time))


def langevin(score: Score, x: Tensor, at: Moment, signal_to_noise: float) -> Tensor:
    """A step of Langevin dynamics at one time, sized by the ratio of norms (Song et al. 2021, Algorithms 4 and 5)."""
    gradient, noise = score(x, at), torch.randn_like(x)
    norm, noise_norm = (v.flatten(1).norm(dim=1).mean() for v in (gradient, noise))
    step = 2 * (signal_to_noise * noise_norm / norm.clamp(min=1e-12)) ** 2
    return x + step * gradient + (2 * step).sqrt() * noise
