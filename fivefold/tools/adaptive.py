"""Langevin proposals whose covariance is learned (Titsias and Dellaportas, 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fivefold.tools.mcmc import Chains, Energy, Move
from fivefold.tools.proposals import Learned, Seen, metropolis, value_and_slope

FIRST = 0.1  # size of the first proposals, over the root of the number of dimensions
TARGET = 0.55  # share of proposals that shall be accepted
WEIGHT_RATE = 0.02  # of the entropy's weight


class Preconditioner(torch.nn.Module):
    """L = diag(e^s) (I + U), U strictly lower triangular: the root of a proposal's covariance L L^T.

    Args:
        dims: D.
        size: of the diagonal at first.
    """

    def __init__(self, dims: int, size: float) -> None:
        super().__init__()
        self.log_diagonal = torch.nn.Parameter(torch.full((dims,), math.log(size)))
        self.lower = torch.nn.Parameter(torch.zeros(dims, dims))

    def forward(self) -> Tensor:
        """`(D, D)`."""
        return self.log_diagonal.exp()[:, None] * (self.lower.tril(-1) + torch.eye(len(self.lower)).to(self.lower))


def preconditioned_langevin(energy: Energy, x: Tensor, steps: int, move: Move, *, root: Tensor) -> Chains:
    """Langevin steps of covariance L L^T as proposals that Metropolis and Hastings accept or not.

    y = x - 1/2 L L^T dE/dx + L e with e ~ N(0, I). Its law tends to exp(-E / T) for any L.

    Args:
        energy: E in nats `(B,)` of states `(B, ...)`.
        x: where the chains start.
        steps: after the warm-up.
        move: temperature, bounds, warm-up; the size of steps is that of L.
        root: L, `(D, D)`.
    """

    def look(x: Tensor) -> Seen:
        return value_and_slope(lambda y: energy(y) / move.temperature, x)

    def propose(x: Tensor, seen: Seen) -> tuple[Tensor, Seen, Tensor]:
        noise = torch.randn_like(x.flatten(1))
        y = (x.flatten(1) + _offset(seen[1], noise, root)).view_as(x)
        at_y = look(y)
        return y, at_y, seen[0] - at_y[0] + _log_ratio(seen[1], at_y[1], noise, root)

    return metropolis(look, propose, x, steps, move, 1)


def _offset(slope: Tensor, noise: Tensor, root: Tensor) -> Tensor:
    """-1/2 L L^T dE/dx + L e `(B, D)`."""
    return (noise - 0.5 * slope.flatten(1) @ root) @ root.T


def _log_ratio(slope: Tensor, slope_after: Tensor, noise: Tensor, root: Tensor) -> Tensor:
    """ln q(x | y) - ln q(y | x), `(B,)`: the way back takes the noise L^T (dE/dx + dE/dy) / 2 - e."""
    back = 0.5 * (slope + slope_after).flatten(1) @ root - noise
    return 0.5 * (noise.square() - back.square()).sum(1)


@torch.no_grad()
def adaptive_langevin(
    energy: Energy, start: Tensor, steps: int = 1000, lr: float = 0.02, target: float = TARGET
) -> Learned:
    """Learn the covariance of Langevin proposals while chains run from `start` `(B, ...)`.

    Maximised is ln of a generalised speed measure, the chance of acceptance times e^{weight entropy}, by its lower
    bound E min(0, ln ratio) + weight ln |L| (Eq. 5 of the paper): it has a gradient where proposals are refused too.
    The weight rises where more than `target` of them are accepted. As in the paper's fast variant no second derivative
    of the energy is taken.

    Args:
        energy: E in nats `(B,)` of states.
        start: where the chains start; how many there are is the batch.
        steps: of the chains, each with one of L.
        lr: of Adam, on ln L's diagonal and what is below it relative to that.
        target: share of proposals that shall be accepted.
    """
    x, dims = start, start[0].numel()
    net = Preconditioner(dims, FIRST / math.sqrt(dims)).to(start)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    (value, slope), weight, losses = value_and_slope(energy, x), 1.0, []
    for _ in range(steps):
        noise = torch.randn_like(x.flatten(1))
        with torch.enable_grad():
            root = net()
            offset = _offset(slope, noise, root)
            y = x + offset.detach().view_as(x)
            new_value, new_slope = value_and_slope(energy, y)
            # the gradient of -E(y) by L is that of -offset dE/dy
            path = ((offset.detach() - offset) * new_slope.flatten(1)).sum(1)
            ratio = value - new_value + path + _log_ratio(slope, new_slope, noise, root)
            ratio = ratio.nan_to_num(-math.inf, neginf=-math.inf)
            bound = torch.where(ratio.isfinite(), ratio.clamp(max=0), 0.0).mean()
            loss = -bound - weight * net.log_diagonal.sum()
            optimizer.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        chance = ratio.detach().clamp(max=0).exp()
        weight *= 1 + WEIGHT_RATE * (chance.mean().item() - target)
        taken = torch.rand_like(chance) < chance
        keep = taken.view(-1, *[1] * (x.dim() - 1))
        x, slope, value = (
            torch.where(keep, y, x),
            torch.where(keep, new_slope, slope),
            torch.where(taken, new_value, value),
        )
        losses.append(loss.detach())
    root = net()

    def sample(energy: Energy, x: Tensor, steps: int, move: Move) -> Chains:
        return preconditioned_langevin(energy, x, steps, move, root=root.to(x))

    return Learned(sample, (steps + 1) * len(start), torch.stack(losses))
