"""Boltzmann machines: weights between all pairs of units, within the layers too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.energy._boltzmann import BoltzmannSystem
from fivefold.nets.visible import Units, bernoulli
from fivefold.options import option
from fivefold.space import Space
from fivefold.system import Density, log_mean_exp
from fivefold.tools.ais import anneal, every_state

FEW_HIDDEN = 10  # whose states are summed over for every example
CLAMPED_CHAINS, CLAMPED_STEPS = 20, 50  # of annealing over the hidden states of an example where they are more


class BoltzmannMachine(BoltzmannSystem):
    """Boltzmann machine (survey 2.1.1, Eq. 3; Hinton and Sejnowski, 1983).

    A fully connected network of stochastic units, visible and hidden: weights within the layers as well as between
    them, so that pairs of visible units need no hidden one to agree. Units are drawn one by one, each given all others.

    E(v, h) = -ln base(v) - a.s(v) - b.h - s(v)'L s(v) / 2 - h'J h / 2 - s(v)'W h, L and J symmetric and 0 within a
    unit, with the statistics s of binary, binomial (more levels) or softmax (categories) visible units. Both phases of
    the gradient are sampled: the hidden units of an example too. Where visible and hidden units are few (16 binary
    ones) the density is a sum over all states; else ln Z, and beyond 10 hidden units the sum over theirs, are estimated
    by annealed importance sampling.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.99}}

    hidden = 64
    settling: int = option(2, "Gibbs steps of an example's hidden units at each update", least=0)
    lr = 0.1
    sampling_steps = 100
    ais_steps = 500
    fill_steps = 100

    apart: Tensor

    @classmethod
    def density_on(cls, space: Space) -> Density | None:
        """None where a dimension is real: lateral weights between Gaussian units can have no integral."""
        return super().density_on(space) if space.discrete else None

    def build(self) -> None:
        super().build()
        single = self.units.singles()
        self.singles = nn.ModuleList(unit for unit, _ in single)
        columns, width = [columns for _, columns in single], self.units.width
        self.columns = columns + [slice(i, i + 1) for i in range(width, width + self.hidden)]
        apart = torch.ones(width, width)
        for place in columns:
            apart[place, place] = 0  # a unit's own values exclude each other already
        self.register_buffer("apart", apart.triu(), persistent=False)
        self.visible_pairs = nn.Parameter(torch.zeros(width, width))
        self.hidden_pairs = nn.Parameter(0.01 * torch.randn(self.hidden, self.hidden))

    # --- the model: a state is v and h, (B, D + hidden); their statistics (B, width + hidden) --------

    def lateral(self) -> tuple[Tensor, Tensor]:
        """L and J, of which the upper triangles are learnt."""
        upper, hidden = self.visible_pairs * self.apart, self.hidden_pairs.triu(1)
        return upper + upper.T, hidden + hidden.T

    def biases(self, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        a, b = super().biases(condition)
        if self.centred:
            visible, hidden = self.lateral()
            a, b = a - self.offset @ visible, b - 0.5 * hidden.sum(1)
        return a, b

    def field(self, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Biases `(n,)` or of each condition, and the symmetric weights `(n, n)` between all n statistics."""
        visible, hidden = self.lateral()
        rows = torch.cat([visible, self.weight], 1), torch.cat([self.weight.T, hidden], 1)
        return torch.cat(self.biases(condition), -1), torch.cat(rows)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return state[:, : self.space.dims], state[:, self.space.dims :]

    def statistics(self, state: Tensor) -> Tensor:
        v, h = self.split(state)
        return torch.cat([self.units.statistic(v), h], 1)

    def energy(self, state: Tensor, condition: Tensor | None) -> Tensor:
        """E(v, h)."""
        (bias, weight), s = self.field(condition), self.statistics(state)
        return -self.units.log_base(self.split(state)[0]) - (s * bias).sum(1) - quadratic(s, weight)

    def start(self, natural: Tensor) -> Tensor:
        return torch.cat([self.units.sample(natural), bernoulli(natural.new_zeros(len(natural), self.hidden))], 1)

    def explained(self, v: Tensor, condition: Tensor | None) -> Tensor:
        """As if they had no weights among them, and then as they are, one by one."""
        h = bernoulli(self.units.statistic(v) @ self.weight + self.biases(condition)[1])
        (bias, weight), state = self.field(condition), torch.cat([v, h], 1)
        for _ in range(self.settling):
            state = self.sweep(state, bias, weight, range(self.space.dims, state.shape[1]))
        return state

    def activity(self, state: Tensor, condition: Tensor | None) -> Tensor:
        bias, weight = self.field(condition)
        return (bias + self.statistics(state) @ weight)[:, self.units.width :].sigmoid()

    # --- chains -------------------------------------------------------------------------------------

    def sweep(
        self, state: Tensor, bias: Tensor, weight: Tensor, units: Sequence[int], known: Tensor | None = None
    ) -> Tensor:
        """Each of these units is drawn once given all others, in a random order."""
        state, s, dims = state.clone(), self.statistics(state), self.space.dims
        for place in torch.randperm(len(units)).tolist():
            unit = units[place]
            columns = self.columns[unit]
            natural = bias[..., columns] + s @ weight[:, columns]
            if unit >= dims:
                state[:, unit, None] = s[:, columns] = bernoulli(natural)
                continue
            single = cast(Units, self.singles[unit])
            drawn = single.sample(natural)
            if known is not None:
                drawn = torch.where(known[:, unit, None], state[:, unit, None], drawn)
            state[:, unit, None], s[:, columns] = drawn, single.statistic(drawn)
        return state

    def gibbs(self, state: Tensor, condition: Tensor | None, steps: int, known: Tensor | None = None) -> Tensor:
        """Gibbs sampling over single units (Geman and Geman, 1984): a step draws each of them."""
        bias, weight = self.field(condition)
        units = [i for i in range(state.shape[1]) if known is None or i >= self.space.dims or not known[:, i].all()]
        for _ in range(steps):
            state = self.sweep(state, bias, weight, units, known)
        return state

    # --- density ------------------------------------------------------------------------------------

    @property
    def summed(self) -> float:
        return self.hidden + sum(torch.tensor(float(levels or 1)).log2().item() for levels in self.space.dim_levels)

    def exact_log_z(self, condition: Tensor | None) -> Tensor:
        v = every_state(self.space.dim_levels).to(self.weight)
        given = None if condition is None else condition.expand(len(v), -1)
        return self.sum_over_hidden(v, given).double().logsumexp(0)

    def unnormalised(self, v: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | float]:
        if self.density is Density.EXACT or self.hidden <= FEW_HIDDEN:
            return self.sum_over_hidden(v, condition), 0.0
        return self.anneal_over_hidden(v, condition)

    def _given(self, v: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What v adds to -E by itself `(B,)`, the logits of hidden units but for J `(B, hidden)`, and J."""
        (a, b), (visible, hidden), s = self.biases(condition), self.lateral(), self.units.statistic(v)
        return self.units.log_base(v) + (s * a).sum(1) + quadratic(s, visible), s @ self.weight + b, hidden

    def sum_over_hidden(self, v: Tensor, condition: Tensor | None) -> Tensor:
        """ln of the sum over h of exp(-E(v, h)), nats `(B,)`."""
        alone, logits, pairs = self._given(v, condition)
        h = every_state([2] * self.hidden).to(v)
        return alone + (logits @ h.T + quadratic(h, pairs)).logsumexp(1)

    def anneal_over_hidden(self, v: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same estimated: J grows from 0, where hidden units are independent given v; low on average."""
        alone, logits, pairs = self._given(v, condition)
        many = logits.repeat_interleave(CLAMPED_CHAINS, 0)

        def step(h: Tensor, beta: float, next_beta: float) -> tuple[Tensor, Tensor]:
            log_ratio, h = (next_beta - beta) * quadratic(h, pairs), h.clone()
            for i in range(self.hidden):
                h[:, i] = bernoulli(many[:, i] + next_beta * (h @ pairs[:, i]))
            return log_ratio, h

        _, log_weight = anneal(bernoulli(many), step, CLAMPED_STEPS)
        value, error = log_mean_exp(log_weight.view(-1, CLAMPED_CHAINS).T)
        return alone + F.softplus(logits).sum(1) + value, error

    def anneal(self, n: int, condition: Tensor | None, temperatures: int) -> tuple[Tensor, Tensor]:
        """On the path weights and hidden biases are times beta, visible biases between the data's and the model's."""
        bias, weight = self.field(condition)
        natural = self.units.natural(self.mean)
        base = F.pad(natural, (0, self.hidden))

        def step(state: Tensor, beta: float, next_beta: float) -> tuple[Tensor, Tensor]:
            s = self.statistics(state)
            log_ratio = (next_beta - beta) * ((s * (bias - base)).sum(1) + quadratic(s, weight))
            units = range(state.shape[1])
            return log_ratio, self.sweep(state, torch.lerp(base, bias, next_beta), next_beta * weight, units)

        return anneal(self.start(natural.expand(n, -1)), step, temperatures)


def quadratic(s: Tensor, weight: Tensor) -> Tensor:
    """s'M s / 2 of rows `(B, n)`."""
    return 0.5 * ((s @ weight) * s).sum(1)
