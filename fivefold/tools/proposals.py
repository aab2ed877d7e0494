"""Proposals that Metropolis and Hastings accept or not, whatever makes them; and what learning one gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fivefold.tools.diffusion import rows
from fivefold.tools.mcmc import Chains, Energy, Move, Sampler, iterate

Seen = tuple[Tensor, ...]  # what has been computed at states, each `(B, ...)`
Look = Callable[[Tensor], Seen]
Propose = Callable[[Tensor, Seen], tuple[Tensor, Seen, Tensor]]  # states and what was seen there -> other states, what
# was seen there, and the logarithm of Metropolis and Hastings' ratio, `(B,)`


class Learned(NamedTuple):
    """A sampler that was learned on one energy, and what learning took.

    Args:
        sample: as those of `mcmc.KERNELS`. Its law tends to exp(-E / T) for any energy; of what it is given with a
            `Move` it says itself what it reads.
        evaluations: of the energy or its gradient in learning, of all examples together.
        losses: what was minimised, `(steps,)`.
    """

    sample: Sampler
    evaluations: int
    losses: Tensor


@torch.no_grad()
def metropolis(look: Look, propose: Propose, x: Tensor, steps: int, move: Move, each: int) -> Chains:
    """Chains by proposals that are taken with the probability min(1, ratio); those out of bounds are refused.

    Args:
        look: what a proposal needs at states, by one evaluation of the energy.
        propose: other states.
        x: where the chains start, `(B, ...)`.
        steps: after the warm-up.
        move: bounds, warm-up, how many chains to keep.
        each: evaluations of the energy or its gradient that one proposal takes.
    """
    seen = look(x)

    def advance(x: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal seen
        y, at_y, gain = propose(x, seen)
        chance = gain.nan_to_num(-math.inf).clamp(max=0).exp() * within(y, move)
        taken = torch.rand_like(chance) < chance
        seen = tuple(torch.where(rows(taken, new), new, old) for new, old in zip(at_y, seen, strict=True))
        return torch.where(rows(taken, x), y, x), chance

    chains = iterate(advance, x, steps, move, each)
    return chains._replace(evaluations=chains.evaluations + 1)


def within(x: Tensor, move: Move) -> Tensor:
    """Which states `(B, ...)` are inside the bounds, `(B,)`."""
    return ((x >= move.bounds[0]) & (x <= move.bounds[1])).flatten(1).all(1)


def value_and_slope(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """E `(B,)` and dE/dx `(B, ...)`, by one evaluation; without graph."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = energy(x)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]
