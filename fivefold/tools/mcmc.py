"""Markov chain Monte Carlo: transition kernels that leave a law invariant, or nearly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fivefold.tools.diffusion import rows

Gradient = Callable[[Tensor], Tensor]


def energy_gradient(energy: Callable[[Tensor], Tensor]) -> Gradient:
    """dE/dx `(B, ...)` of an energy `(B, ...) -> (B,)`, by the input alone: parameters get no gradient."""

    def gradient(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(energy(x).sum(), x)[0]

    return gradient


class Move(NamedTuple):
    """How chains move; each sampler reads what it knows.

    Args:
        step_size: alpha of Eq. 4.
        noise: standard deviation of the noise, of all chains or each `(B,)`, where it is tweaked independently; None:
            sqrt(step_size). The chains then follow exp(-E / T) at the temperature T = noise^2 / step_size.
        clamp: largest magnitude of a component of the gradient that moves a chain.
        bounds: of a state, numbers or tensors.
        leapfrog: the most leapfrog steps of a proposal of Hamiltonian dynamics.
        warm_up: steps before those that are asked for, in which sizes adapt; their states are thrown away.
        keep: of how many chains, the first ones, all states are kept, as `Chains.trace`.
    """

    step_size: float
    noise: float | Tensor | None = None
    clamp: float = math.inf
    bounds: tuple[Any, Any] = (-math.inf, math.inf)
    leapfrog: int = 10
    warm_up: int = 0
    keep: int = 0

    @property
    def temperature(self) -> Any:
        """1 unless the noise is tweaked; a number, or one for each chain."""
        return 1.0 if self.noise is None else self.noise**2 / self.step_size

    def deviation(self, x: Tensor) -> Tensor:
        """Of the noise of each chain, `(B,)`."""
        return torch.as_tensor(math.sqrt(self.step_size) if self.noise is None else self.noise).to(x).expand(len(x))


class Chains(NamedTuple):
    """What a sampler gives.

    Args:
        state: where the chains ended, `(B, ...)`, without graph.
        accepted: of each chain the mean chance of acceptance after the warm-up, `(B,)`; 1 where nothing is refused.
        evaluations: of the energy's gradient (or of the energy where no gradient is taken), of each chain, in all.
        trace: the states after each step, `(steps, keep, ...)`; None unless they are kept.
    """

    state: Tensor
    accepted: Tensor
    evaluations: int
    trace: Tensor | None = None


Energy = Callable[[Tensor], Tensor]  # of states `(B, ...)`, `(B,)`, differentiable
Sampler = Callable[[Energy, Tensor, int, Move], Chains]  # `steps` of chains from states `(B, ...)`


def iterate(
    advance: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, steps: int, move: Move, each: int = 1
) -> Chains:
    """`steps`, after the warm-up, of a transition from states `(B, ...)` to states and chances of acceptance `(B,)`.

    One transition takes `each` evaluations.
    """
    accepted, trace = torch.zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device), []
    for step in range(move.warm_up + steps):
        x, chance = advance(x)
        if step >= move.warm_up:
            accepted = accepted + chance / steps
            trace += [x[: move.keep]] if move.keep else []
    return Chains(x, accepted, (move.warm_up + steps) * each, torch.stack(trace) if trace else None)


@torch.no_grad()
def langevin(energy: Energy, x: Tensor, steps: int, move: Move) -> Chains:
    """Langevin dynamics, x <- x - step_size / 2 dE/dx + e with e ~ N(0, noise^2 I) (survey Eq. 4).

    The gradient is clamped and x clipped to the bounds after each step. Its stationary law tends to exp(-E / T) as
    `step_size` goes to 0: for N(0, s^2) and T = 1 the chain's variance is s^2 / (1 - step_size / (4 s^2)).
    """
    noise, gradient, one = rows(move.deviation(x), x), energy_gradient(energy), x.new_ones(len(x))

    def advance(x: Tensor) -> tuple[Tensor, Tensor]:
        drift = gradient(x).clamp(-move.clamp, move.clamp)
        moved = (x - 0.5 * move.step_size * drift).add_(noise * torch.randn_like(x))
        return moved.clamp_(*move.bounds), one

    return iterate(advance, x, steps, move)


@torch.no_grad()
def metropolis_langevin(energy: Energy, x: Tensor, steps: int, move: Move) -> Chains:
    """Langevin steps as proposals that Metropolis and Hastings accept or not (Roberts and Tweedie, 1996).

    Its law tends to exp(-E / T) whatever the size of a step and the clamp of the gradient; proposals out of bounds are
    refused.
    """
    noise, gradient = move.deviation(x), energy_gradient(energy)

    def value_and_mean(y: Tensor) -> tuple[Tensor, Tensor]:
        return energy(y), y - 0.5 * move.step_size * gradient(y).clamp(-move.clamp, move.clamp)

    def log_proposal(y: Tensor, mean: Tensor) -> Tensor:
        return -(y - mean).square().flatten(1).sum(1) / (2 * noise**2)

    value, mean = value_and_mean(x)

    def advance(x: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal value, mean
        y = mean + rows(noise, x) * torch.randn_like(x)
        new_value, new_mean = value_and_mean(y)
        gain = (value - new_value) / move.temperature + log_proposal(x, new_mean) - log_proposal(y, mean)
        within = ((y >= move.bounds[0]) & (y <= move.bounds[1])).flatten(1).all(1)
        chance = gain.nan_to_num(-math.inf).clamp(max=0).exp() * within
        taken = torch.rand_like(chance) < chance
        value, mean = torch.where(taken, new_value, value), torch.where(rows(taken, x), new_mean, mean)
        return torch.where(rows(taken, x), y, x), chance

    return iterate(advance, x, steps, move)


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


FIRST = 0.01  # the square of the first step size where it adapts
ACCEPTED = 0.8  # share of proposals that step sizes are adapted to, about the best for Hamiltonian dynamics


class StepSizes:
    """A step size for each chain, adapted in a warm-up by stochastic approximation (Robbins and Monro, 1951).

    Kept after it is the geometric mean of its second half: adapting without end would change the stationary law.

    Args:
        start: the first size of each chain, `(B,)`.
        warm_up: steps in which it adapts.
        target: share of proposals that shall be accepted.
    """

    def __init__(self, start: Tensor, warm_up: int, target: float) -> None:
        self.log = start.log()
        self.sum, self.count = torch.zeros_like(start), 0
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


def reflected(x: Tensor, momentum: Tensor, bounds: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
    """Numbers beyond their bounds as far within, their momenta turned round: as a ball off a wall."""
    low, high = bounds
    for beyond, wall in ((x < low, low), (x > high, high)):
        x, momentum = torch.where(beyond, 2 * wall - x, x), torch.where(beyond, -momentum, momentum)
    return x, momentum


@torch.no_grad()
def hamiltonian(
    energy: Energy,
    x: Tensor,
    steps: int,
    move: Move,
    *,
    free: Tensor | None = None,
    between: Callable[[Tensor], Tensor] = lambda x: x,
) -> Chains:
    """Hamiltonian Monte Carlo (Duane et al., 1987; Neal, 2011): its law tends to exp(-E / T) given what is not free.

    A proposal follows the dynamics of E for a random number of leapfrog steps. Each chain has its own step size,
    adapted in the warm-up. At the bounds the dynamics are reflected. Where E is no number, or a state is out of bounds
    all the same, a proposal is refused.

    Args:
        energy: E in nats `(B,)` of states `(B, ...)`, differentiable.
        x: where the chains start, `(B, ...)`; E must be finite there.
        steps: after the warm-up.
        move: its noise's deviation is the first step size; the most leapfrog steps, the warm-up, bounds.
        free: which numbers move, of x's shape; all unless given.
        between: another move that keeps the law, made after each step.
    """
    moves = torch.ones_like(x) if free is None else free.to(x)
    sizes = StepSizes(move.deviation(x), move.warm_up, ACCEPTED)
    evaluations = 0

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal evaluations
        evaluations += 1
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = energy(x) / move.temperature
            gradient = torch.autograd.grad(value.sum(), x)[0]
        return value.detach(), gradient.nan_to_num(0.0, 0.0, 0.0) * moves

    def kinetic(momentum: Tensor) -> Tensor:
        return 0.5 * momentum.square().flatten(1).sum(1)

    value, slope = evaluate(x)

    def advance(x: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal value, slope
        size = rows(sizes.size, x)
        y, new_slope, new_value = x, slope, value
        momentum = torch.randn_like(x) * moves
        before = value + kinetic(momentum)
        for _ in range(int(torch.randint(1, move.leapfrog + 1, ()))):
            momentum = momentum - 0.5 * size * new_slope
            y, momentum = reflected(y + size * momentum, momentum, move.bounds)
            new_value, new_slope = evaluate(y)
            momentum = momentum - 0.5 * size * new_slope
        within = ((y >= move.bounds[0]) & (y <= move.bounds[1])).flatten(1).all(1)
        chance = (before - new_value - kinetic(momentum)).nan_to_num(-math.inf).clamp(max=0).exp() * within
        taken = torch.rand_like(chance) < chance
        x = torch.where(rows(taken, x), y, x)
        value, slope = torch.where(taken, new_value, value), torch.where(rows(taken, x), new_slope, slope)
        sizes.learn(chance)
        moved = between(x)
        if moved is not x:
            x = moved
            value, slope = evaluate(x)
        return x, chance

    return iterate(advance, x, steps, move)._replace(evaluations=evaluations)


REPLICAS, HOTTEST = 6, 30.0  # of tempering, and the highest temperature: from 1 on they are a geometric sequence


def annealed(energy: Energy, x: Tensor, steps: int, move: Move) -> Chains:
    """Langevin steps while the temperature falls to the energy's own, which it has for the last half of them.

    It finds modes that no chain at one temperature reaches, in proportions that depend on how slowly it cools: they
    follow no law. At a temperature T the drift stays and the noise grows by its root.
    """
    hot, noise = steps // 2, move.deviation(x)
    for temperature in torch.logspace(math.log10(HOTTEST), 0, hot).tolist():
        x = langevin(energy, x, 1, Move(move.step_size, noise * math.sqrt(temperature), move.clamp, move.bounds)).state
    rest = langevin(energy, x, steps - hot, move)
    return rest._replace(evaluations=rest.evaluations + hot)


@torch.no_grad()
def tempered(energy: Energy, x: Tensor, steps: int, move: Move) -> Chains:
    """Parallel tempering (Swendsen and Wang, 1986; Geyer, 1991): replicas at rising temperatures change places.

    Each moves by `metropolis_langevin`; every step neighbours exchange states as Metropolis says, even and odd pairs
    by turns. The law of the coldest tends to exp(-E / T); hot ones go from mode to mode.
    """
    chains, temperatures = len(x), torch.logspace(0, math.log10(HOTTEST), REPLICAS).to(x)
    inverse = 1 / (temperatures * move.temperature)
    noise = (temperatures.sqrt()[:, None] * move.deviation(x)).flatten()
    hot, turn = move._replace(noise=noise, warm_up=0, keep=0), 0
    all_states = x.repeat(REPLICAS, *[1] * (x.dim() - 1))

    def advance(_: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal all_states, turn
        moved = metropolis_langevin(energy, all_states, 1, hot)
        states, values = moved.state.view(REPLICAS, *x.shape), energy(moved.state).view(REPLICAS, chains)
        for first in range(turn, REPLICAS - 1, 2):
            gain = (inverse[first] - inverse[first + 1]) * (values[first] - values[first + 1])
            swap = rows(torch.rand_like(gain).log() < gain, x)
            states[first : first + 2] = torch.where(swap, states[first : first + 2].flip(0), states[first : first + 2])
        all_states, turn = states.view_as(all_states), 1 - turn
        return states[0].clone(), moved.accepted[:chains]

    return iterate(advance, x, steps, move, REPLICAS)


# How chains move by an energy `(B, ...) -> (B,)` of continuous states: from those, for so many steps, by a `Move`.
KERNELS: dict[str, Sampler] = {
    "langevin": langevin,
    "metropolis-langevin": metropolis_langevin,
    "hamiltonian": hamiltonian,
    "annealed": annealed,
    "tempered": tempered,
}
ADAPTIVE = ("hamiltonian",)  # those that need a warm-up
