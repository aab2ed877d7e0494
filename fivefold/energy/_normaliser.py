"""ln Z of energies of points, and what turns their densities into estimates."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fivefold.space import Space
from fivefold.system import log_mean_exp, seeded
from fivefold.tools.ais import LogPartition
from fivefold.tools.annealing import Base, Bracket, bracket, independent
from fivefold.tools.scaling import centre

POINTS = 16  # in the cell of a discrete example, for its mass
MOST = 64  # conditions that are annealed for, one after another

Energy = Callable[[Tensor, Tensor | None], Tensor]  # nats `(B,)` of centred points, given a condition


class Normaliser:
    """ln Z of an energy in nats, found once for every condition it is asked for.

    Annealing starts at uniform levels and standard normal reals, and goes forwards and backwards (see
    `tools.annealing`). Backwards it starts where chains ended that went forwards.

    Args:
        energy: E of centred points.
        reach: largest magnitude of a number, of one point's shape; 1 where it is discrete.
        temperatures: laws on the way.
        chains: each way.
        seed: the same gives the same estimates.
    """

    def __init__(self, energy: Energy, reach: Tensor, temperatures: int, chains: int, seed: int) -> None:
        self.energy, self.temperatures, self.chains, self.seed = energy, temperatures, chains, seed
        self.base = start_of(reach)
        self.found: dict[tuple[float, ...], Bracket] = {}

    def bracket(self, condition: Tensor | None) -> Bracket:
        """Of one condition `(1, ...)`, encoded, where there are any."""
        key = () if condition is None else tuple(condition.flatten().tolist())
        if key not in self.found and len(self.found) >= MOST:
            raise ValueError(f"ln Z differs by condition and was estimated for {MOST} already: score fewer of them")
        if key not in self.found:

            def energy(y: Tensor) -> Tensor:
                given = None if condition is None else condition.expand(len(y), *condition.shape[1:])
                return self.energy(y, given)

            with seeded(self.seed, self.base.box.low.device):
                self.found[key] = bracket(energy, self.base, None, self.temperatures, self.chains)
        return self.found[key]

    def log_z(self, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ln Z `(1,)` and its standard error; of one condition."""
        value, error = self.bracket(condition).middle
        return value.view(1), error.view(1)

    @property
    def words(self) -> str:
        """What was found, of the last condition."""
        if not self.found:
            return f"ln Z by annealing, {self.temperatures} temperatures"
        found = list(self.found.values())[-1]
        both = f"{say(found.lower)} from below and {say(found.upper)} from above"
        return f"ln Z {say(found.middle)} by annealing, {self.temperatures} temperatures: {both}"


def say(estimate: LogPartition) -> str:
    """A number with its error."""
    return f"{estimate.value.item():.5g} ± {estimate.error.item():.2g}"


def start_of(reach: Tensor) -> Base:
    """Uniform where numbers are discrete, standard normal where real, cut at `reach`."""
    scale = torch.where(reach > 1, 1.0, math.inf)
    return independent(torch.zeros_like(reach), scale, -reach, reach)


def cell_log_mass(energy: Energy, x: Tensor, condition: Tensor | None, space: Space) -> tuple[Tensor, Tensor]:
    """ln of the integral of exp(-E) over the cells of encoded examples, nats `(B,)`, and its standard error.

    The cell of a level reaches half way to its neighbours, in units where levels span [-1, 1]; real numbers are points.
    """
    levels = torch.tensor([n or 0 for n in space.dim_levels], device=x.device).view(space.shape)
    half = torch.where(levels > 1, 1 / (levels - 1), 2.0 * (levels == 1))
    y = centre(x, space)
    edge = torch.where(levels > 0, 1.0, math.inf)
    low, high = (y - half).clamp(-edge, edge), (y + half).clamp(-edge, edge)
    volume = torch.where(levels > 0, (high - low).log(), 0.0).double().flatten(1).sum(1)
    if not bool((levels > 0).any()):
        return -energy(y, condition).double(), torch.zeros_like(volume)
    values = [-energy(torch.lerp(low, high, torch.rand_like(y)), condition).double() for _ in range(POINTS)]
    mean, error = log_mean_exp(torch.stack(values))
    return mean + volume, error


def by_condition(
    normaliser: Callable[[Tensor | None], tuple[Tensor, Tensor]], condition: Tensor | None
) -> tuple[Tensor, Tensor]:
    """ln Z and its standard error: `(1,)`, or of the condition of every example, each estimated once."""
    if condition is None:
        return normaliser(None)
    each, which = condition.unique(dim=0, return_inverse=True)
    value, error = (torch.cat(parts) for parts in zip(*map(normaliser, each.split(1)), strict=True))
    return value[which], error[which]
