"""Markov chain Monte Carlo: transition kernels that leave a law invariant, or nearly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
