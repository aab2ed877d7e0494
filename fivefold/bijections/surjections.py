"""Surjections: what they lose one way, the other way draws (survey 6.4, Eq. 39; Nielsen et al., 2020).

Each goes from data to noise by a formula, and its term ln p(x | z), the logarithm of the law of what is lost (and of
the volumes), is exact. `Inverse` of one goes from noise to data by that formula: it then draws z from q(z | x), and
its term, -ln q(z | x), makes a lower bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.base import Exactness, Inverse, Layer, sum_dims
from fivefold.bijections.elementwise import half_to_line, line_to_half
from fivefold.bijections.laws import Law
from fivefold.nets.masked import MaskedNet


class Surjection(Layer):
    """From data to noise by a formula; back at random. Its term is exact."""

    @property
    def exactness(self) -> Exactness:
        return Exactness(inverse="drawn")


class Slice(Surjection):
    """z is the first channels (or columns) of x, and the others leave with the term ln p(others | z).

    Args:
        keep: how many channels go on.
        law: of the others given those.
    """

    def __init__(self, keep: int, law: Law) -> None:
        super().__init__()
        self.keep, self.law = keep, law

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, others = x[:, : self.keep], x[:, self.keep :]
        return kept, self.law.log_prob(others, kept, condition)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        others, log_prob = self.law.sample(y, condition)
        return torch.cat([y, others], 1), -log_prob


def augment(channels: int, law: Law) -> Layer:
    """x and more channels (or columns) e ~ q(e | x), with the term -ln q(e | x); back they are left out: a bound.

    Args:
        channels: of x.
        law: q.
    """
    return Inverse(Slice(channels, law))


class Abs(Surjection):
    """z = |x|, and signs come back one after another by the law p(sign_i | z, x_<i).

    Args:
        gate: of vectors, z and then x, to the log-odds of plus, which are taken to 0 with z_i so that densities have
            no step there; all of z is free. None for even chances: the term is -ln 2 a dimension, and densities are
            symmetric.
    """

    def __init__(self, gate: MaskedNet | None = None) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = x.abs()
        return z, self._log_chances(x, z, condition)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = torch.where(torch.rand_like(y) < 0.5, y, -y) if self.gate is None else self._signed(y, condition)
        return x, -self._log_chances(x, y, condition)

    def _signed(self, z: Tensor, condition: Tensor | None) -> Tensor:
        x, uniform = z, torch.rand_like(z)
        for dim in range(z.shape[1]):
            log_odds = self._log_odds(x, z, condition)[:, dim]
            known = torch.where(uniform[:, dim] < log_odds.sigmoid(), z[:, dim], -z[:, dim])
            x = torch.cat([x[:, :dim], known.unsqueeze(1), x[:, dim + 1 :]], 1)
        return x

    def _log_odds(self, x: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        if self.gate is None:
            return torch.zeros_like(z)
        return torch.tanh(z) * self.gate(torch.cat([z, x], 1).T, condition)[0].T

    def _log_chances(self, x: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        log_odds = self._log_odds(x, z, condition)
        return sum_dims(F.logsigmoid(torch.where(x > 0, log_odds, -log_odds)))


class Max(Surjection):
    """z is the largest of every `group` channels in a row: of four after `Squeeze`, a max-pooling.

    Which it was comes back at random, with the term -ln group, and so do the gaps to the others, by their law.

    Args:
        channels: of z; x has `group` times as many.
        group: channels in a group.
        law: of the gaps given z, `(B, (group - 1) C, ...)`, each scaled and taken to the line by `half_to_line`, and in
            the order in which they follow the largest round the group.
    """

    def __init__(self, channels: int, group: int, law: Law) -> None:
        super().__init__()
        self.group, self.law = group, law
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        groups = x.unflatten(1, (-1, self.group))
        z, which = groups.max(2, keepdim=True)
        gaps = (z - groups).gather(2, (which + self._steps(z, 1)) % self.group)
        points, log_slope = half_to_line(gaps * self._inverse_scale(z))
        z = z.squeeze(2)
        log_prob = self.law.log_prob(points.flatten(1, 2), z, condition) + sum_dims(log_slope)
        return z, log_prob + self._constants(z)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        points, log_prob = self.law.sample(y, condition)
        z = y.unsqueeze(2)
        scaled, log_slope = line_to_half(points.unflatten(1, (-1, self.group - 1)))
        gaps = torch.cat([torch.zeros_like(z), scaled / self._inverse_scale(z)], 2)
        which = torch.randint(self.group, z.shape, device=y.device)
        x = z - gaps.gather(2, (self._steps(z, 0) - which) % self.group)
        return x.flatten(1, 2), sum_dims(log_slope) - log_prob - self._constants(y)

    def _steps(self, z: Tensor, first: int) -> Tensor:
        """`first` to group - 1 along the groups, for the whole of z `(B, C, 1, ...)`."""
        steps = torch.arange(first, self.group, device=z.device).view(-1, *[1] * (z.dim() - 3))
        return steps.expand(*z.shape[:2], -1, *z.shape[3:])

    def _inverse_scale(self, z: Tensor) -> Tensor:
        return torch.exp(-self.log_scale).view(-1, *[1] * (z.dim() - 2))

    def _constants(self, z: Tensor) -> Tensor:
        """Of the choices and of the scales."""
        positions = z[0, 0].numel()
        choices = positions * len(self.log_scale) * math.log(self.group)
        return (-positions * (self.group - 1) * self.log_scale.sum() - choices).expand(len(z))


class Piecewise(Surjection):
    """Each element's line is cut into pieces, and each piece is taken onto the whole line (Dinh et al., 2019: RAD).

    z = f_k(x) with k the piece of x, which a gating network gives back: ln p(x) = ln p(z) + ln p(k | z) + ln |f_k'(x)|.
    Of all pieces only one holds x, so that this is exact. Neighbours have opposite directions and meet at infinity,
    where their chances are such that densities of normal noise are continuous: knots can be learnt by gradients.

    Args:
        channels: of x; each has knots of its own.
        pieces: at least 2.
        gate: of `(2 Phi(z) - 1, condition)`, to log-odds `(B, pieces C, ...)`.
    """

    def __init__(self, channels: int, pieces: int, gate: nn.Module) -> None:
        super().__init__()
        self.pieces, self.gate = pieces, gate
        # At first normal noise is cut into equally likely pieces.
        quantiles = torch.special.ndtri(torch.arange(1, pieces) / pieces)
        self.first_knot = nn.Parameter(quantiles[:1].expand(channels).clone())
        self.log_widths = nn.Parameter(quantiles.diff().log().unsqueeze(1).repeat(1, channels))
        self.log_slopes = nn.Parameter(torch.zeros(2, channels))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        knots, log_widths, log_slopes = self._cuts(x)
        piece = (x > knots).sum(0)
        left, left_slope = half_to_line((knots[0] - x) * log_slopes[0].exp())
        right, right_slope = half_to_line((x - knots[-1]) * log_slopes[1].exp())
        guard = torch.finfo(x.dtype).eps
        inside = ((x - knots[:-1]) * torch.exp(-log_widths)).clamp(guard, 1 - guard)
        points = torch.special.ndtri(inside)
        inner_slope = 0.5 * points**2 + 0.5 * math.log(2 * math.pi) - log_widths
        z = torch.cat([left[None], points, right[None]]) * self._directions(x)
        slopes = torch.cat([(left_slope + log_slopes[0])[None], inner_slope, (right_slope + log_slopes[1])[None]])
        z, log_slope = (values.gather(0, piece[None])[0] for values in (z, slopes))
        chances = self._log_chances(z, condition).gather(0, piece[None])[0]
        return z, sum_dims(log_slope + chances)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        knots, log_widths, log_slopes = self._cuts(y)
        log_chances = self._log_chances(y, condition)
        below = log_chances.exp().cumsum(0)[:-1]
        piece = (torch.rand_like(y) > below).sum(0)
        points = y * self._directions(y)
        left, left_slope = line_to_half(points[0])
        right, right_slope = line_to_half(points[-1])
        x = torch.cat(
            [
                (knots[0] - left * torch.exp(-log_slopes[0]))[None],
                knots[:-1] + torch.special.ndtr(points[1:-1]) * log_widths.exp(),
                (knots[-1] + right * torch.exp(-log_slopes[1]))[None],
            ]
        )
        inner_slope = log_widths - 0.5 * points[1:-1] ** 2 - 0.5 * math.log(2 * math.pi)
        slopes = torch.cat([(left_slope - log_slopes[0])[None], inner_slope, (right_slope - log_slopes[1])[None]])
        x, log_slope, chances = (values.gather(0, piece[None])[0] for values in (x, slopes, log_chances))
        return x, sum_dims(log_slope - chances)

    def _cuts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Knots `(K - 1, 1, C, ...)`, log-widths of the inner pieces and log-slopes of the outer ones."""
        steps = torch.cat([self.first_knot[None], self.log_widths.exp()]).cumsum(0)
        knots, log_widths, log_slopes = (
            p.view(len(p), 1, p.shape[1], *[1] * (x.dim() - 2)) for p in (steps, self.log_widths, self.log_slopes)
        )
        return knots, log_widths, log_slopes

    def _directions(self, x: Tensor) -> Tensor:
        """Signs `(K, 1, ...)` of the maps: at even knots both neighbours go to minus infinity, at odd ones to plus.

        A piece after the first therefore increases where its left knot is even.
        """
        signs = [1.0, *[1.0 if left % 2 == 0 else -1.0 for left in range(self.pieces - 1)]]
        return torch.tensor(signs, dtype=x.dtype, device=x.device).view(-1, *[1] * x.dim())

    def _log_chances(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """ln p(k | z), `(K, B, C, ...)`."""
        _, log_widths, log_slopes = self._cuts(z)
        # Of normal noise, ln of the density at an end of each piece that is certain.
        outer = log_slopes + 0.5 * math.log(2 / math.pi)
        at_ends = torch.cat([outer[:1], -log_widths, outer[1:]])
        level = 2 * torch.special.ndtr(z) - 1
        odds = self.gate(level, condition).unflatten(1, (self.pieces, -1)).movedim(1, 0)
        return ((1 - level**2) * odds - at_ends).log_softmax(0)
