"""Markov chain Monte Carlo: transition kernels that leave a law invariant, or nearly."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.tools.diffusion import rows

Gradient = Callable[[Tensor], Tensor]


def energy_gradient(energy: Callable[[Tensor], Tensor]) -> Gradient:
    """dE/dx `(B, ...)` of an energy `(B, ...) -> (B,)`, by the input alone: parameters get no gradient."""

    def gradient(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(energy(x).sum(), x)[0]

    return gradient


@torch.no_grad()
def sgld(
    gradient: Gradient,
    x: Tensor,
    steps: int,
    step_size: float,
    noise: float | None = None,
    clamp: float = math.inf,
    bounds: tuple[Any, Any] = (-math.inf, math.inf),
) -> Tensor:
    """Langevin dynamics, x <- x - step_size / 2 dE/dx + e with e ~ N(0, step_size I) (survey Eq. 4).

    Its stationary law tends to exp(-E) as `step_size` goes to 0: for N(0, s^2) the chain's variance is
    s^2 / (1 - step_size / (4 s^2)).

    Args:
        gradient: dE/dx of a batch of chains.
        x: where the chains start, `(B, ...)`; left as it is.
        steps: how many.
        step_size: alpha of Eq. 4.
        noise: standard deviation of e where it is tweaked independently; None: sqrt(step_size). The
            chains then follow exp(-E / T) at the temperature T = noise^2 / step_size.
        clamp: largest magnitude of a component of the gradient.
        bounds: of x, numbers or tensors; it is clipped to them after each step.

    Returns:
        The chains' ends, `(B, ...)`, without graph.
    """
    noise = math.sqrt(step_size) if noise is None else noise
    for _ in range(steps):
        drift = gradient(x).clamp(-clamp, clamp)
        x = (x - 0.5 * step_size * drift).add_(torch.randn_like(x), alpha=noise).clamp_(*bounds)
    return x


class Move(NamedTuple):
    """Of Langevin steps: see `sgld`."""

    step_size: float
    noise: float | None = None
    clamp: float = math.inf
    bounds: tuple[Any, Any] = (-math.inf, math.inf)


@torch.no_grad()
def metropolis_langevin(energy: Callable[[Tensor], Tensor], x: Tensor, steps: int, move: Move) -> Tensor:
    """Langevin steps as proposals that Metropolis and Hastings accept or not (Roberts and Tweedie, 1996).

    Its law tends to exp(-E / T), T = noise^2 / step_size, whatever the size of a step and the clamp of the gradient;
    proposals out of bounds are refused. `energy` gives E `(B,)` of states `(B, ...)`; the rest as in `sgld`.
    """
    noise = math.sqrt(move.step_size) if move.noise is None else move.noise
    gradient = energy_gradient(energy)

    def value_and_mean(y: Tensor) -> tuple[Tensor, Tensor]:
        return energy(y), y - 0.5 * move.step_size * gradient(y).clamp(-move.clamp, move.clamp)

    def log_proposal(y: Tensor, mean: Tensor) -> Tensor:
        return -(y - mean).square().flatten(1).sum(1) / (2 * noise**2)

    value, mean = value_and_mean(x)
    for _ in range(steps):
        y = mean + noise * torch.randn_like(x)
        new_value, new_mean = value_and_mean(y)
        gain = (value - new_value) * (move.step_size / noise**2)
        gain = gain + log_proposal(x, new_mean) - log_proposal(y, mean)
        within = ((y >= move.bounds[0]) & (y <= move.bounds[1])).flatten(1).all(1)
        accepted = within & (torch.rand_like(gain).log() < gain)
        value = torch.where(accepted, new_value, value)
        shaped = accepted.view(-1, *[1] * (x.dim() - 1))
        x, mean = torch.where(shaped, y, x), torch.where(shaped, new_mean, mean)
    return x


# How chains move by an energy `(B, ...) -> (B,)`: from states, for so many steps, by a `Move`.
KERNELS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor, int, Move], Tensor]] = {
    "langevin": lambda energy, x, steps, move: sgld(energy_gradient(energy), x, steps, *move),
    "metropolis-langevin": metropolis_langevin,
}


@torch.no_grad()
def independence_metropolis(
    propose: Callable[[], Tensor], log_weight: Callable[[Tensor], Tensor], steps: int
) -> Tensor:
    """Metropolis-Hastings whose proposals q do not depend on where a chain is; its law tends to p.

    A proposal y takes the place of x with probability min(1, w(y) / w(x)), w = p / q up to a constant.

    Args:
        propose: makes a batch of draws from q, `(B, ...)`.
        log_weight: ln w of a batch, `(B,)`.
        steps: how many proposals each chain gets, beside where it starts.
    """
    x = propose()
    weight = log_weight(x)
    for _ in range(steps):
        y = propose()
        found = log_weight(y)
        accepted = torch.rand_like(found).log() < found - weight
        x = torch.where(accepted.view(-1, *[1] * (x.dim() - 1)), y, x)
        weight = torch.where(accepted, found, weight)
    return x


ACCEPTED = 0.8  # share of proposals that step sizes are adapted to, about the best for Hamiltonian dynamics
WALKED = 0.3  # the same of random walks whose density is estimated


class StepSizes:
    """A step size for each chain, adapted in a warm-up by stochastic approximation (Robbins and Monro, 1951).

    Kept after it is the geometric mean of its second half: adapting without end would change the stationary law.

    Args:
        chains: how many.
        start: the first size.
        warm_up: steps in which it adapts.
        target: share of proposals that shall be accepted.
    """

    def __init__(self, chains: Tensor, start: float, warm_up: int, target: float) -> None:
        self.log = torch.full_like(chains, math.log(start))
        self.sum, self.count = torch.zeros_like(chains), 0
        self.warm_up, self.target, self.step = warm_up, target, 0

    @property
    def size(self) -> Tensor:
        """`(B,)`."""
        done = self.step >= self.warm_up and self.count
        return (self.sum / self.count if done else self.log).exp()

    def learn(self, accepted: Tensor) -> None:
        """After a step whose proposals had these chances `(B,)` of being accepted."""
        self.step += 1
        if self.step > self.warm_up:
            return
        self.log = self.log + (accepted - self.target) * 2 / math.sqrt(self.step)
        if 2 * self.step >= self.warm_up:
            self.sum, self.count = self.sum + self.log, self.count + 1


@torch.no_grad()
def hamiltonian(
    energy: Callable[[Tensor], Tensor],
    x: Tensor,
    steps: int,
    warm_up: int,
    *,
    free: Tensor | None = None,
    leapfrog: int = 10,
    start: float = 0.1,
    between: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Hamiltonian Monte Carlo (Duane et al., 1987; Neal, 2011): its law tends to exp(-E) given what is not free.

    A proposal follows the dynamics of E for a random number of leapfrog steps. Each chain has its own step size,
    adapted in the warm-up, whose states are thrown away. Where E is no number a proposal is refused.

    Args:
        energy: E in nats `(B,)` of states `(B, ...)`, differentiable.
        x: where the chains start, `(B, ...)`; E must be finite there.
        steps: after the warm-up.
        warm_up: steps in which step sizes adapt.
        free: which numbers move, of x's shape; all unless given.
        leapfrog: the most leapfrog steps of a proposal.
        start: the first step size.
        between: another move that keeps the law, made after each step.

    Returns:
        The chains' ends, `(B, ...)`, without graph.
    """
    moves = torch.ones_like(x) if free is None else free.to(x)
    sizes = StepSizes(x.new_zeros(len(x)), start, warm_up, ACCEPTED)

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = energy(x)
            gradient = torch.autograd.grad(value.sum(), x)[0]
        return value.detach(), gradient.nan_to_num(0.0, 0.0, 0.0) * moves

    def kinetic(momentum: Tensor) -> Tensor:
        return 0.5 * momentum.square().flatten(1).sum(1)

    value, slope = evaluate(x)
    for _ in range(warm_up + steps):
        size = rows(sizes.size, x)
        y, new_slope, new_value = x, slope, value
        momentum = torch.randn_like(x) * moves
        before = value + kinetic(momentum)
        for _ in range(int(torch.randint(1, leapfrog + 1, ()))):
            momentum = momentum - 0.5 * size * new_slope
            y = y + size * momentum
            new_value, new_slope = evaluate(y)
            momentum = momentum - 0.5 * size * new_slope
        chance = (before - new_value - kinetic(momentum)).nan_to_num(-math.inf).clamp(max=0).exp()
        taken = torch.rand_like(chance) < chance
        x = torch.where(rows(taken, x), y, x)
        value, slope = torch.where(taken, new_value, value), torch.where(rows(taken, x), new_slope, slope)
        sizes.learn(chance)
        moved = between(x)
        if moved is not x:
            x = moved
            value, slope = evaluate(x)
    return x


@torch.no_grad()
def random_walk(
    log_estimate: Callable[[Tensor], Tensor], x: Tensor, steps: int, warm_up: int, free: Tensor, start: float = 0.3
) -> Tensor:
    """A random walk by estimates of a density: pseudo-marginal Metropolis (Andrieu and Roberts, 2009).

    Its law tends to p where the estimates of p are unbiased and above 0, whatever their spread; the estimate at a state
    stays with it. Sizes of steps adapt in the warm-up, one for each chain.

    Args:
        log_estimate: ln of a new estimate `(B,)` at states `(B, ...)`, up to a constant.
        x: where the chains start.
        steps: after the warm-up.
        warm_up: steps in which sizes adapt.
        free: which numbers move, of x's shape.
        start: the first size.
    """
    sizes = StepSizes(x.new_zeros(len(x)), start, warm_up, WALKED)
    value = log_estimate(x)
    for _ in range(warm_up + steps):
        y = x + rows(sizes.size, x) * torch.randn_like(x) * free.to(x)
        found = log_estimate(y)
        chance = (found - value).nan_to_num(-math.inf).clamp(max=0).exp()
        taken = torch.rand_like(chance) < chance
        x, value = torch.where(rows(taken, x), y, x), torch.where(taken, found, value)
        sizes.learn(chance)
    return x


@torch.no_grad()
def logistic_jump(energy: Callable[[Tensor], Tensor], x: Tensor, free: Tensor) -> Tensor:
    """One free number of each state is drawn anew from a logistic law, or stays, as Metropolis and Hastings say.

    It reaches modes that a gradient does not lead to. Of numbers that a sigmoid takes to an interval the proposal is
    uniform there.

    Args:
        energy: E in nats `(B,)` of states `(B, D)`.
        x: states `(B, D)`.
        free: those that may be chosen, `(B, D)`; rows without one stay.
    """
    which = torch.multinomial(free.float() + 1e-30, 1)
    old, new = x.gather(1, which), torch.logit(torch.rand(len(x), 1, device=x.device), eps=1e-6).to(x)
    y = x.scatter(1, which, new)
    log_ratio = energy(x) - energy(y) + (_log_logistic(old) - _log_logistic(new)).squeeze(1)
    taken = (torch.rand_like(log_ratio).log() < log_ratio) & free.any(1)
    return torch.where(taken[:, None], y, x)


@torch.no_grad()
def corner_jump(energy: Callable[[Tensor], Tensor], x: Tensor, groups: list[slice], free: Tensor) -> Tensor:
    """The largest number of a group changes places with another of it, or stays, as Metropolis says.

    Between the categories that such groups stand for no gradient leads.

    Args:
        energy: E in nats `(B,)` of states `(B, D)`.
        x: states `(B, D)`.
        groups: numbers that stand next to one another.
        free: which numbers may move, `(B, D)`, whole groups of them.
    """
    group = groups[int(torch.randint(len(groups), ()))]
    part, rows = x[:, group], torch.arange(len(x), device=x.device)
    first = part.argmax(1)
    second = (first + torch.randint(1, part.shape[1], (len(x),), device=x.device)) % part.shape[1]
    new = part.clone()
    new[rows, first], new[rows, second] = part[rows, second], part[rows, first]
    y = x.clone()
    y[:, group] = new
    log_ratio = energy(x) - energy(y)
    taken = (torch.rand_like(log_ratio).log() < log_ratio) & free[:, group].all(1)
    return torch.where(taken[:, None], y, x)


def _log_logistic(x: Tensor) -> Tensor:
    return F.logsigmoid(x) + F.logsigmoid(-x)


KERNEL = 0.1  # deviation of a Gaussian on what is known, in units of data on [-1, 1] or standardised
WIDER = (8.0, 4.0, 2.0)  # times it, in the warm-up


def latent_given(
    decode: Callable[[Tensor], Tensor],
    energy: Callable[[Tensor], Tensor],
    z: Tensor,
    x: Tensor,
    known: Tensor,
    steps: int,
) -> Tensor:
    """Codes whose examples are near what is known: Hamiltonian Monte Carlo of E(z) + |x - x(z)|^2 / (2 KERNEL^2).

    The square is over what is known. As the kernel narrows, examples of the codes tend to the law of a deterministic
    decoder given what is known; chains begin with wider kernels.

    Args:
        decode: x(z), centred examples `(B, ...)`, differentiable.
        energy: E `(B,)`, minus ln of the codes' law.
        z: where the chains start.
        x: centred examples.
        known: which of their numbers are known.
        steps: with the last kernel, after as many of warm-up; with each wider one half as many.
    """

    def total(z: Tensor, width: float) -> Tensor:
        gap = torch.where(known, decode(z) - x, 0.0).flatten(1)
        return energy(z) + gap.square().sum(1) / (2 * (width * KERNEL) ** 2)

    for width in WIDER:
        z = hamiltonian(partial(total, width=width), z, 0, max(1, steps // 2))
    return hamiltonian(partial(total, width=1.0), z, steps, steps)


MOST_VALUES = 32  # of a number that are weighed against each other at once
MOST_ROWS = 4096  # states whose density is asked for at once


@torch.no_grad()
def gibbs_sweeps(
    log_prob: Callable[[Tensor, Tensor], Tensor], x: Tensor, free: Tensor, levels: Tensor, sweeps: int
) -> Tensor:
    """Gibbs sampling of whole numbers, one after another in a random order (Geman and Geman, 1984).

    Of a number with more than `MOST_VALUES` values it chooses among the present one and others drawn at random, which
    leaves the law as it is too.

    Args:
        log_prob: ln p up to a constant, `(n,)`, of states `(n, D)` and the rows `(n,)` of x that they are of.
        x: whole numbers `(B, D)`.
        free: which of them are drawn, `(B, D)`.
        levels: how many values each has, `(D,)`.
        sweeps: how often each is drawn.
    """
    x = x.clone()
    for _ in range(sweeps):
        order = free.any(0).nonzero().squeeze(1)
        for dim in order[torch.randperm(len(order), device=x.device)].tolist():
            row = free[:, dim].nonzero().squeeze(1)
            values = _candidates(x[row, dim], int(levels[dim]))
            count = values.shape[1]
            states = x[row].repeat_interleave(count, 0)
            states[:, dim] = values.flatten()
            parts = zip(states.split(MOST_ROWS), row.repeat_interleave(count).split(MOST_ROWS), strict=True)
            logits = torch.cat([log_prob(*part) for part in parts]).view(-1, count)
            chosen = torch.multinomial((logits - logits.amax(1, keepdim=True)).double().exp(), 1)
            x[row, dim] = values.gather(1, chosen).squeeze(1)
    return x


def _candidates(present: Tensor, levels: int) -> Tensor:
    """Values `(n, K)` of a number: all, or the present one and others."""
    if levels <= MOST_VALUES:
        return torch.arange(levels, device=present.device).to(present).expand(len(present), -1)
    keys = torch.rand(len(present), levels, device=present.device)
    keys[torch.arange(len(present), device=present.device), present.long()] = 2.0
    return keys.topk(MOST_VALUES, 1).indices.to(present)


class Proposal(Protocol):
    """A law of codes given examples, that proposes them."""

    def draw(self) -> Tensor:
        """Codes `(B, ...)`."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Nats `(B,)` of codes."""


@torch.no_grad()
def metropolis_within_gibbs(
    complete: Callable[[Tensor, Tensor], Tensor],
    proposal: Callable[[Tensor], Proposal],
    log_joint: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    steps: int,
    settle: Callable[[Tensor], Tensor] = lambda z: z,
) -> Tensor:
    """What is missing of examples of a model with codes z, given the rest (Mattei and Frellsen, 2018, Algorithm 1).

    By turns the missing part is drawn given z, and z by an encoder given all, a proposal that Metropolis and Hastings
    accept or not: the law tends to the model's, be the encoder right or not.

    Args:
        complete: examples with the missing part drawn, from examples and codes.
        proposal: the encoder's law of codes given examples.
        log_joint: ln p(x, z), nats `(B,)`.
        x: examples `(B, ...)` whose missing part is any start.
        steps: of both by turns.
        settle: at the end another move of the codes, which keeps their law given what is known.
    """
    z = proposal(x).draw()
    for _ in range(steps):
        x = complete(x, z)
        q = proposal(x)
        new = q.draw()
        gain = log_joint(x, new) - log_joint(x, z) + q.log_prob(z) - q.log_prob(new)
        z = torch.where(rows(torch.rand_like(gain).log() < gain, z), new, z)
    return complete(x, settle(z))
