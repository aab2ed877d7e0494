"""Chains that draw what is missing of examples given the rest: random walks, jumps, codes, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.tools.diffusion import rows
from fivefold.tools.mcmc import FIRST, Move, StepSizes, hamiltonian

WALKED = 0.3  # share of proposals that sizes of steps of random walks are adapted to, their density being estimated


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
    sizes = StepSizes(x.new_full((len(x),), start), warm_up, WALKED)
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
        z = hamiltonian(partial(total, width=width), z, 0, Move(FIRST, warm_up=max(1, steps // 2))).state
    return hamiltonian(partial(total, width=1.0), z, steps, Move(FIRST, warm_up=steps)).state


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
