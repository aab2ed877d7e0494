"""Laws whose moments are known, to try samplers on; states are `(B, D)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Moment(NamedTuple):
    """Mean and variance of a function of states; None where there is no closed form."""

    of: Callable[[Tensor], Tensor]
    mean: float
    variance: float | None = None


def numbers_and_squares(trace: Tensor) -> Tensor:
    return torch.cat([trace, trace**2], -1)


def neck(trace: Tensor) -> Tensor:
    """Of a funnel its width's logarithm alone: the others' tails are too heavy for moments to be estimated."""
    return numbers_and_squares(trace[..., :1])


class Law(NamedTuple):
    """A law by its energy, what is known of it, and where chains start that have not been there.

    Args:
        energy: `(B, D)` to nats `(B,)`.
        dims: D.
        moments: of functions of states.
        start: of a number of chains, states `(n, D)` of float64.
        watched: what effective samples are of, functions of a trace `(steps, chains, D)` to `(steps, chains, k)`.
    """

    energy: Callable[[Tensor], Tensor]
    dims: int
    moments: tuple[Moment, ...]
    start: Callable[[int], Tensor]
    watched: Callable[[Tensor], Tensor] = numbers_and_squares


def normal(dims: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, dims).double()


# --- in the plane -------------------------------------------------------------------------------------


def gaussian(x: Tensor) -> Tensor:
    """Of means (1, -1), variances 1 and 0.25, correlation 0.6."""
    precision = torch.tensor([[1.0, 0.3], [0.3, 0.25]], dtype=x.dtype).inverse()
    gap = x - torch.tensor([1.0, -1.0], dtype=x.dtype)
    return 0.5 * ((gap @ precision) * gap).sum(1)


def mixture(x: Tensor) -> Tensor:
    """A quarter around (-2, 0), the rest around (2, 0), deviations 0.5: E x = 1, var x = 3.25."""
    parts = torch.stack([((x - x.new_tensor([a, 0.0])) ** 2).sum(1) / 0.5 for a in (-2, 2)])
    return -torch.logsumexp(-parts + torch.tensor([[0.25], [0.75]], dtype=x.dtype).log(), 0)


def both_sides(n: int) -> Tensor:
    """Draws of the mixture: of chains that do not cross from part to part the shares are those of their starts."""
    side = torch.where(torch.rand(n, 1) < 0.25, -2.0, 2.0) * torch.tensor([1.0, 0.0])
    return 0.5 * torch.randn(n, 2).double() + side


def ring(x: Tensor) -> Tensor:
    """Radius about 2: in one dimension r exp(-(r - 2)^2 / 0.18)."""
    return (x.norm(dim=1) - 2) ** 2 / (2 * 0.3**2)


R = torch.linspace(0, 6, 60_001).double()
RADIUS = (R.log() - (R - 2) ** 2 / 0.18).softmax(0)  # its law on the grid


def funnel(x: Tensor, deviation: float = 1.5) -> Tensor:
    """Neal's: v ~ N(0, deviation^2), the others ~ N(0, e^v)."""
    v, others = x[:, 0], x[:, 1:]
    return v**2 / (2 * deviation**2) + (others.square().sum(1) / v.exp() + others.shape[1] * v) / 2


def drawn_funnel(n: int, dims: int = 2, deviation: float = 1.5) -> Tensor:
    """Draws of it."""
    v = deviation * torch.randn(n, 1).double()
    return torch.cat([v, (v / 2).exp() * torch.randn(n, dims - 1).double()], 1)


LAWS: dict[str, Law] = {
    "gaussian": Law(
        gaussian,
        2,
        (Moment(lambda x: x[:, 0], 1.0, 1.0), Moment(lambda x: (x[:, 0] - 1) * (x[:, 1] + 1), 0.3, 1 * 0.25 + 0.09)),
        normal(2),
    ),
    "mixture": Law(
        mixture, 2, (Moment(lambda x: x[:, 0], 1.0, 3.25), Moment(lambda x: x[:, 1], 0.0, 0.25)), both_sides
    ),
    "ring": Law(
        ring,
        2,
        (
            Moment(lambda x: x.norm(dim=1), (RADIUS * R).sum().item()),
            Moment(lambda x: x[:, 0], 0.0, (RADIUS * R**2).sum().item() / 2),
        ),
        normal(2),
    ),
    "funnel": Law(funnel, 2, (Moment(lambda x: x[:, 0], 0.0, 2.25),), normal(2), neck),
}


# --- harder ones --------------------------------------------------------------------------------------

SPREAD = torch.logspace(-1, 1, 20, dtype=torch.float64)  # deviations of the ill-conditioned law


def ill_conditioned(x: Tensor) -> Tensor:
    """Twenty independent normal numbers of deviations from 0.1 to 10."""
    return 0.5 * (x / SPREAD.to(x)).square().sum(1)


def banana(x: Tensor) -> Tensor:
    """A warped Gaussian: x_0 ~ N(0, 3^2), x_1 ~ N(x_0^2 / 4, 0.5^2)."""
    return x[:, 0] ** 2 / 18 + 2 * (x[:, 1] - x[:, 0] ** 2 / 4) ** 2


HARD: dict[str, Law] = {
    "ill-conditioned": Law(
        ill_conditioned,
        20,
        tuple(Moment(lambda x, i=i: x[:, i], 0.0, SPREAD[i].item() ** 2) for i in (0, 19)),  # type: ignore[misc]
        lambda n: SPREAD * torch.randn(n, 20).double(),
    ),
    "banana": Law(
        banana,
        2,
        (Moment(lambda x: x[:, 0], 0.0, 9.0), Moment(lambda x: x[:, 1], 9 / 4, 0.25 + 2 * 81 / 16)),
        normal(2),
    ),
    "deep funnel": Law(
        lambda x: funnel(x, 2.0), 10, (Moment(lambda x: x[:, 0], 0.0, 4.0),), lambda n: drawn_funnel(n, 10, 2.0), neck
    ),
}
