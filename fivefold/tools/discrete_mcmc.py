"""Markov chains of discrete states: transition kernels that leave exp(-E) invariant, with the signature of `mcmc`.

States are whole numbers `(B, D)` and the energy is a function of their one-hot form, `(B, D, K) -> (B,)`, which it
extends to real numbers: there it has a gradient. The bounds of a `Move`, numbers or `(D,)`, are the least and largest
value of each number, both possible; the largest of all is K - 1. Step sizes and noise mean nothing here.
"""

from __future__ import annotations

import math
from functools import cached_property, partial

import torch
from torch import Tensor

from fivefold.errors import OptionError
from fivefold.tools.mcmc import Chains, Energy, Move, Sampler, iterate

NEVER = -1e30  # ln of a chance that is none: exponentials of infinities take several times as long


class Values:
    """Which values the numbers of states can take.

    Args:
        x: states `(B, D)`, whole.
        move: with bounds.
        free: which numbers move, of x's shape; all unless given.
    """

    def __init__(self, x: Tensor, move: Move, free: Tensor | None) -> None:
        low, high = (torch.as_tensor(bound, device=x.device) for bound in move.bounds)
        if x.is_floating_point() or not (low.isfinite().all() and high.isfinite().all()):
            raise OptionError(
                f"chains of discrete states need whole numbers and bounds of their values, got {x.dtype} within "
                f"{move.bounds}"
            )
        self.low, count = low.long().expand_as(x), (high - low).long().expand_as(x) + 1
        self.count = count if free is None else torch.where(free, count, 1)
        self.most, self.free = int(high.max()) + 1, free
        self.value = torch.arange(self.most, device=x.device)

    @cached_property
    def possible(self) -> Tensor:
        """Whether a number can change to each value, `(B, D, K)`, unless it has that."""
        within = (self.value >= self.low[..., None]) & (self.value < (self.low + self.count)[..., None])
        return within if self.free is None else within & self.free[..., None]

    def has(self, x: Tensor) -> Tensor:
        """The one-hot form, of bools."""
        return x[..., None] == self.value

    def one_hot(self, x: Tensor) -> Tensor:
        """`(B, D, K)`, float."""
        return self.has(x).to(torch.get_default_dtype())

    def choose(self, x: Tensor) -> Tensor:
        """A number of each state at random, of those that move, `(B, 1)`."""
        if self.free is None:
            return torch.randint(x.shape[1], (len(x), 1), device=x.device)
        return torch.multinomial(self.free.float() + 1e-30, 1)


def pick(log_weight: Tensor) -> Tensor:
    """One of each row `(B, N)` with probability in proportion to its weight, `(B, 1)`; anything where none has any."""
    weight = (log_weight - log_weight.amax(1, keepdim=True)).exp_().nan_to_num_(0.0)
    below = weight.cumsum(1, dtype=torch.float64)
    place = below[:, -1:] * torch.rand(len(weight), 1, dtype=torch.float64, device=weight.device)
    return torch.searchsorted(below, place, right=True).clamp_(max=weight.shape[1] - 1)


@torch.no_grad()
def gibbs(
    energy: Energy, x: Tensor, steps: int, move: Move, *, free: Tensor | None = None, in_turn: bool = False
) -> Chains:
    """Gibbs sampling (Geman and Geman, 1984): a step draws one number given all others.

    Evaluations are of the energy: of every value of the number but the present one, each of all chains at once.

    Args:
        energy: E in nats `(B,)` of one-hot states `(B, D, K)`.
        x: where the chains start, whole numbers `(B, D)`.
        steps: after the warm-up.
        move: the bounds of values, the warm-up.
        free: which numbers move, of x's shape; all unless given.
        in_turn: whether one number is drawn after another, from one that is chosen at random on, in place of one at
            random for each chain.
    """
    values, one = Values(x, move, free), torch.ones(len(x), device=x.device)
    offset, turn = torch.arange(1, values.most, device=x.device), int(torch.randint(x.shape[1], ()))
    value = energy(values.one_hot(x))

    def advance(x: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal value, turn
        turn = (turn + 1) % x.shape[1]
        dim = torch.full_like(x[:, :1], turn) if in_turn else values.choose(x)
        low, count = values.low.gather(1, dim), values.count.gather(1, dim)
        # A held number counts one value, which is the one that it has and not the lowest.
        others = torch.where(count > 1, (x.gather(1, dim) - low + offset) % count + low, x.gather(1, dim))
        found = [energy(values.one_hot(x.scatter(1, dim, other))) for other in others.split(1, 1)]  # a value at a time
        every = torch.stack([value, *found], 1)
        every[:, 1:][offset >= count] = math.inf
        chosen = pick(-every)
        value = every.gather(1, chosen).squeeze(1)
        return x.scatter(1, dim, torch.cat([x.gather(1, dim), others], 1).gather(1, chosen)), one

    return iterate(advance, x, steps, move, len(offset))


@torch.no_grad()
def gibbs_with_gradients(energy: Energy, x: Tensor, steps: int, move: Move, *, free: Tensor | None = None) -> Chains:
    """Gibbs with gradients (Grathwohl et al., 2021, Algorithm 1): a step changes one number that is likely to change.

    With g = dE/dx at the one-hot form of x, d(x)[i, k] = g[i, x_i] - g[i, k] is what setting number i to k adds to ln p
    to first order. One change of all is proposed from q(i, k | x) in proportion to exp(d / 2), and accepted with the
    chance min(1, exp(E(x) - E(y)) q(i, x_i | y) / q(i, k | x)), so that the law tends to exp(-E) however good d is.

    Arguments as of `gibbs`; evaluations are of the energy with its gradient, one a step.
    """
    values = Values(x, move, free)
    movable = (values.count > 1).any(1)

    def look(y: Tensor) -> tuple[Tensor, Tensor]:
        """E `(B,)` and ln q `(B, D K)` of every change."""
        has = values.has(y)
        with torch.enable_grad():
            one_hot = has.to(torch.get_default_dtype()).requires_grad_()
            value = energy(one_hot)
            slope = torch.autograd.grad(value.sum(), one_hot)[0]
        gain = slope.gather(2, y[..., None]) - slope
        return value.detach(), torch.where(values.possible & ~has, gain / 2, NEVER).flatten(1).log_softmax(1)

    value, log_q = look(x)

    def advance(x: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal value, log_q
        change = pick(log_q)
        dim = change // values.most
        y = x.scatter(1, dim, change % values.most)
        new_value, new_log_q = look(y)
        back = dim * values.most + x.gather(1, dim)
        gain = value - new_value + (new_log_q.gather(1, back) - log_q.gather(1, change)).squeeze(1)
        chance = gain.nan_to_num(-math.inf, 0.0, -math.inf).clamp(max=0).exp() * movable
        taken = torch.rand_like(chance) < chance
        value, log_q = torch.where(taken, new_value, value), torch.where(taken[:, None], new_log_q, log_q)
        return torch.where(taken[:, None], y, x), chance

    return iterate(advance, x, steps, move)


# How chains move by an energy `(B, D, K) -> (B,)` of discrete states: from those, for so many steps, by a `Move`.
DISCRETE_KERNELS: dict[str, Sampler] = {
    "gibbs": gibbs,
    "gibbs-in-turn": partial(gibbs, in_turn=True),
    "gibbs-with-gradients": gibbs_with_gradients,
}
