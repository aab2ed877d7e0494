"""Stochastic differential equations with additive noise, a step size of its own for every example of a batch.

A step that is refused must not be drawn anew: large increments are refused more often than small ones, so that what is
accepted would no longer be normal. What was drawn stays, and only what lies between is drawn after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fivefold.tools.diffusion import rows

SAFETY, POWER = 0.9, 0.9  # of the next step's size (Jolicoeur-Martineau et al. 2021, Algorithm 1)
SHRINK, GROW = 0.2, 5.0  # the most that it changes
FIRST = 0.01  # of the way: the first step
LEAST = 1e-4  # of the way: steps that are no longer are taken whatever their error


class Increments:
    """The intervals of time that each of B examples goes through next, and its Brownian motion's increments over them.

    Args:
        x: of the increments' form, `(B, ...)`.
        length: of the first interval, `(B,)`.
    """

    def __init__(self, x: Tensor, length: Tensor) -> None:
        self.length, self.noise = length, _drawn(x, length)
        self.depth = torch.zeros(len(x), dtype=torch.long, device=x.device)  # how many second halves wait
        self.lengths = length.new_zeros(len(x), 0)
        self.noises = x.new_zeros(len(x), 0, *x.shape[1:])

    def halve(self, which: Tensor) -> None:
        """Of these rows, an index: the first half is next, and the second waits with the rest of the noise.

        At the middle a Brownian bridge of length h has half of its increment, and a variance of h / 4 about it.
        """
        if self.lengths.shape[1] == self.depth[which].max():
            self.lengths = torch.cat([self.lengths, torch.zeros_like(self.length)[:, None]], 1)
            self.noises = torch.cat([self.noises, torch.zeros_like(self.noise)[:, None]], 1)
        whole, length = self.noise[which], self.length[which] / 2
        first = whole / 2 + _drawn(whole, length / 2)
        place = self.depth[which]
        self.lengths[which, place], self.noises[which, place] = length, whole - first
        self.length[which], self.noise[which] = length, first
        self.depth[which] += 1

    def go_on(self, which: Tensor, length: Tensor) -> None:
        """Of these rows, an index: what waits is next, the last first, and where nothing does a new one of `length`."""
        waits = self.depth[which] > 0
        again, new = which[waits], which[~waits]
        self.depth[again] -= 1
        place = self.depth[again]
        self.length[again], self.noise[again] = self.lengths[again, place], self.noises[again, place]
        self.length[new] = length[~waits]
        self.noise[new] = _drawn(self.noise[new], length[~waits])

    def keep(self, which: Tensor) -> None:
        """These rows alone, an index."""
        self.length, self.noise, self.depth = self.length[which], self.noise[which], self.depth[which]
        self.lengths, self.noises = self.lengths[which], self.noises[which]


def _drawn(like: Tensor, length: Tensor) -> Tensor:
    return rows(length.sqrt().to(like), like) * torch.randn_like(like)


def adaptive_heun(
    drift: Callable[[Tensor, Tensor], Tensor],
    scale: Callable[[Tensor], Tensor],
    x: Tensor,
    end: float,
    tolerance: float,
) -> tuple[Tensor, int]:
    """dx = drift(x, s) ds + scale(s) dW from s = 0 to `end` by stochastic improved Euler steps.

    Each step's error is told by Euler's on the same noise, root mean square over an example's numbers, in units of
    the tolerance or so much of the larger of the numbers here and one step before (Jolicoeur-Martineau et al. 2021,
    Algorithm 1). One that is refused is halved.

    Args:
        drift: of points `(B, ...)` and times `(B,)`, float64.
        scale: of times `(B,)`, float64.
        x: points at 0, `(B, ...)`.
        end: the last time.
        tolerance: absolute and relative.

    Returns:
        Points at the end, and how many evaluations of the drift an example took, on average, rounded up.
    """
    found, examples = x.clone(), torch.arange(len(x), device=x.device)
    s = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    path, before, slope = Increments(x, torch.full_like(s, FIRST * end)), x, drift(x, s)
    evaluated = len(x)
    while len(examples):
        to, length = s + path.length, rows(path.length.to(x), x)
        here, there = (rows(scale(time).to(x), x) for time in (s, to))
        euler = x + length * slope + here * path.noise
        evaluated += len(examples)
        heun = x + length / 2 * (slope + drift(euler, to)) + (here + there) / 2 * path.noise
        unit = tolerance * torch.maximum(euler.abs(), before.abs()).clamp(min=1)
        error = ((heun - euler) / unit).flatten(1).square().mean(1).sqrt()
        taken = ~(error > 1) | (path.length <= LEAST * end)  # what is not a number cannot get better
        after = (SAFETY * error.double() ** -POWER).nan_to_num(GROW).clamp(SHRINK, GROW) * path.length
        done = taken & (to > end * (1 - 1e-9))
        found[examples[done]] = heun[done]
        refused, goes_on = (~taken).nonzero()[:, 0], (taken & ~done).nonzero()[:, 0]
        s, x = torch.where(taken, to, s), torch.where(rows(taken, x), heun, x)
        before = torch.where(rows(taken, x), euler, before)
        if len(refused):
            path.halve(refused)
        if len(goes_on):
            path.go_on(goes_on, torch.minimum(after, end - s)[goes_on])
            slope = slope.index_copy(0, goes_on, drift(x[goes_on], s[goes_on]))
            evaluated += len(goes_on)
        if done.any():
            left = (~done).nonzero()[:, 0]
            path.keep(left)
            examples, s, x, before, slope = (part[left] for part in (examples, s, x, before, slope))
    return found, math.ceil(evaluated / len(found))
