"""ln Z of any continuous energy, between two bounds: annealed importance sampling forwards and backwards.

Forwards (Neal, 2001) chains start at draws of a law whose density is known and move along laws between it and
exp(-E) / Z; the mean of their weights is Z without bias, so its logarithm is low in expectation. Backwards they start
at draws of exp(-E) / Z and go the other way; the mean of their weights is 1 / Z, so minus its logarithm is high (Grosse
et al., 2015). With many temperatures the two meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fivefold.system import log_mean_exp
from fivefold.tools.ais import LogPartition
from fivefold.tools.boxes import Box
from fivefold.tools.mcmc import ACCEPTED, FIRST, Energy, Move, hamiltonian

PILOTS = 64  # chains that find the path ...
SPREAD = 0.5  # ... and the deviation of their weights from one law of it to the next
LEAST = 0.02  # of beta, that it grows by whatever they say
LEAPFROG = 5  # the most leapfrog steps of a move
MOVED = 50  # moves after which chains that were drawn by their weights have gone apart
NEAR = 1e-6  # to an end of an interval, relative to its width, no state comes
GAIN = 0.5  # of the size of a move, by which share of the pilots it moved


class Base(NamedTuple):
    """A law with a known density, where annealing starts.

    Args:
        draw: of a number of states, `(n, ...)`.
        log_prob: nats `(B,)` of states in the box.
        box: what states are confined to, of one state's shape; exp(-E) is too. Chains move on the line that it is
            the image of, where no proposal can leave it.
    """

    draw: Callable[[int], Tensor]
    log_prob: Callable[[Tensor], Tensor]
    box: Box


def independent(mean: Tensor, scale: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Base:
    """Independent numbers, normal between bounds; uniform there where `scale` is infinite. All of one state's shape.

    Args:
        mean: of the normal law before it was cut.
        scale: its deviation.
        low: none unless given.
        high: none unless given.
    """
    low = torch.full_like(mean, -math.inf) if low is None else low
    high = torch.full_like(mean, math.inf) if high is None else high
    flat = scale.isinf()
    if bool((flat & ~((high - low) < math.inf)).any()):
        raise ValueError("a uniform law needs finite bounds")
    unit = torch.where(flat, 1.0, scale).double()
    bottom, top = (torch.special.ndtr((bound.double() - mean.double()) / unit) for bound in (low, high))
    edge = torch.where(flat, 0.0, low).double(), torch.where(flat, high - low, 1.0).double()
    normal = -(unit.log() + 0.5 * math.log(2 * math.pi) + (top - bottom).log())
    constant = torch.where(flat, -edge[1].log(), normal).sum().item()

    def draw(n: int) -> Tensor:
        u = torch.rand(n, *mean.shape, dtype=torch.float64, device=mean.device)
        gaussian = mean + unit * torch.special.ndtri(torch.lerp(bottom, top, u))
        return torch.where(flat, low + edge[1] * u, gaussian).to(mean.dtype).clamp(low, high)

    def log_prob(x: Tensor) -> Tensor:
        z = torch.where(flat, 0.0, (x - mean) / unit.to(x.dtype))
        return constant - 0.5 * z.square().flatten(1).sum(1)

    return Base(draw, log_prob, Box(low, high))


class Path(NamedTuple):
    """Laws p_0(x)^(1 - beta) exp(-beta E(x)) from a base to an energy, and the moves at each.

    Args:
        betas: inverse temperatures from 0 to 1, `(K + 1,)`.
        sizes: of a leapfrog step at each, `(K + 1,)`.
    """

    betas: tuple[float, ...]
    sizes: tuple[float, ...]


class Bracket(NamedTuple):
    """Estimates of ln Z, nats, one low and one high in expectation."""

    lower: LogPartition
    upper: LogPartition

    @property
    def middle(self) -> LogPartition:
        """Half way between them; its error is half of the gap and what both estimates vary by."""
        gap = self.upper.value - self.lower.value
        errors = torch.hypot(self.lower.error, self.upper.error)
        return LogPartition(self.lower.value + gap / 2, torch.hypot(gap, errors) / 2)


def find_path(energy: Energy, base: Base, temperatures: int, pilots: int = PILOTS) -> Path:
    """A path whose laws lie closer where they change faster, and the sizes of moves there.

    Pilot chains go from the base to the energy. The next law is as far as the deviation of their weights allows, and
    the size of moves follows how many are accepted. The chains that are counted use what the pilots found as it is: if
    moves adapted to the chains that they move, weights would not be unbiased any more.

    Args:
        energy: E in nats `(B,)` of states.
        base: where the path starts.
        temperatures: K; those that the pilots found are refined or thinned to as many.
        pilots: chains.
    """
    u, beta, size = base.box.line(base.draw(pilots), NEAR), 0.0, 1.0
    betas: list[float] = []
    sizes: list[float] = []
    while True:
        for _ in range(3 if betas else 30):  # the first size has far to go
            u, accepted = _move(energy, base, u, beta, size)
            size *= math.exp(GAIN * (accepted - ACCEPTED))
        betas.append(beta)
        sizes.append(size)
        if beta >= 1:
            break
        spread = _change(energy, base, u).std().item()
        beta = min(1.0, beta + max(SPREAD / spread if spread > 0 else 1.0, LEAST * beta))
    at, wanted = np.linspace(0, 1, len(betas)), np.linspace(0, 1, temperatures + 1)
    fine = np.interp(wanted, at, np.log(sizes))
    return Path(tuple(np.interp(wanted, at, betas).tolist()), tuple(np.exp(fine).tolist()))


def forwards(energy: Energy, base: Base, path: Path, chains: int) -> tuple[Tensor, Tensor]:
    """Ends of chains that started at the base's draws, and their log weights `(chains,)`: E of the weights is Z."""
    u = base.box.line(base.draw(chains), NEAR)
    weight = torch.zeros(chains, dtype=torch.float64, device=u.device)
    for (before, after), size in zip(pairwise(path.betas), path.sizes[1:], strict=True):
        weight += (after - before) * _change(energy, base, u)
        u, _ = _move(energy, base, u, after, size)
    return base.box.inside(u), weight


def backwards(energy: Energy, base: Base, path: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """As `forwards` from draws x of exp(-E) / Z to the base, the same moves in reverse: E of the weights is 1 / Z."""
    u, weight = base.box.line(x, NEAR), torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for (before, after), size in zip(pairwise(path.betas[::-1]), path.sizes[:0:-1], strict=True):
        u, _ = _move(energy, base, u, before, size)
        weight += (after - before) * _change(energy, base, u)
    return base.box.inside(u), weight


def bracket(energy: Energy, base: Base, draws: Tensor | None, temperatures: int, chains: int = 100) -> Bracket:
    """Bounds of ln of the integral of exp(-E) over the base's box.

    Args:
        energy: E in nats `(B,)` of states `(B, ...)`.
        base: where the path starts.
        draws: of exp(-E) / Z, as many as chains shall go backwards. None takes the ends of chains that went forwards,
            drawn by their weights and moved on: what these have not found the upper bound does not know of.
        temperatures: laws on the path; the gap closes as they become more.
        chains: that go forwards.
    """
    path = find_path(energy, base, temperatures)
    ends, weight = forwards(energy, base, path, chains)
    low, low_error = log_mean_exp(weight)
    if draws is None:
        draws = moved_on(energy, base, ends[torch.multinomial((weight - weight.max()).exp(), chains, True)])
    high, high_error = log_mean_exp(backwards(energy, base, path, draws)[1])
    return Bracket(LogPartition(low, low_error), LogPartition(-high, high_error))


def moved_on(energy: Energy, base: Base, x: Tensor, steps: int = MOVED) -> Tensor:
    """States after Hamiltonian moves that keep the law of exp(-E) / Z; as many moves to adapt sizes go before."""
    u = base.box.line(x, NEAR)
    return base.box.inside(hamiltonian(base.box.energy(energy), u, steps, Move(FIRST, warm_up=steps)).state)


@torch.no_grad()
def _change(energy: Energy, base: Base, u: Tensor) -> Tensor:
    """d ln f_beta / d beta = -E - ln p_0 of states on the line, `(B,)` float64."""
    x = base.box.inside(u)
    return -energy(x).double() - base.log_prob(x).double()


def _move(energy: Energy, base: Base, u: Tensor, beta: float, size: float) -> tuple[Tensor, float]:
    """One Hamiltonian move that keeps the law at beta, and the mean chance that it was accepted."""

    def between(x: Tensor) -> Tensor:
        return beta * energy(x) - (1 - beta) * base.log_prob(x)

    found = hamiltonian(base.box.energy(between), u, 1, Move(size**2, leapfrog=LEAPFROG))
    return found.state, found.accepted.mean().item()
