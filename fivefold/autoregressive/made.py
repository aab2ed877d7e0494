"""MADE: an autoencoder whose masks make it autoregressive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.autoregressive._system import AutoregressiveSystem
from fivefold.errors import Unfit
from fivefold.nets.condition import ConditionEmbedding
from fivefold.nets.embedding import DimFeatures
from fivefold.nets.heads import Head, Likelihood
from fivefold.nets.masked import MaskedLinear, degree_mask, spread_degrees
from fivefold.options import option
from fivefold.space import Batch, Space
from fivefold.tools.scaling import log_mean_exp

MOST_WEIGHTS = 2**26


class Made(AutoregressiveSystem):
    """MADE (survey 5.1.1; Germain et al., 2015).

    A residual MLP in which every unit has a degree and sees only units and inputs of no higher one, so that
    each dimension's output depends on the dimensions before it. Several orders and masks train one set of
    weights; the density is then that of their mixture.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.995},
        "mnist": {
            "hidden": 1000,
            "layers": 1,
            "dropout": 0.1,
            "batch_size": 100,
            "lr": 3e-3,
            "ema": 0.999,
        },
    }

    position: Tensor
    degrees: Tensor

    hidden: int = option(512, "units of each layer", least=1, tune=(16, 512), log=True)
    layers: int = option(1, "hidden layers after the first", least=1, tune=(1, 16))
    orders: int = option(1, "orders of the dimensions, the natural one and then random ones", least=1, tune=(1, 8))
    masks: int = option(
        1,
        "assignments of degrees to hidden units for each order, the even one and then random ones",
        least=1,
        tune=(1, 8),
    )
    direct: bool = option(
        True,
        "whether each output also sees the inputs before it linearly; left out where that would need more than "
        "2^26 weights",
    )
    dropout: float = option(
        0.2, "share of hidden units that are dropped in training", least=0, below=1, tune=(0.0, 0.5)
    )

    def build(self) -> None:
        super().build()
        dims = self.space.dims
        self.features = DimFeatures(self.space)
        self.register_buffer("position", _orders(self.orders, dims))
        self.register_buffer("degrees", _degrees(self.masks, self.hidden, dims))
        self.members = [(order, mask) for order in range(self.orders) for mask in range(self.masks)]
        self.condition = ConditionEmbedding(self.space.condition, self.hidden)
        self.first = MaskedLinear(len(self.features.dim_of_feature), self.hidden)
        self.blocks = nn.ModuleList(MaskedLinear(self.hidden, self.hidden) for _ in range(self.layers))
        self.last = MaskedLinear(self.hidden, dims * self.head.width)
        self.shortcut = None
        if self.direct and self.first.in_features * self.last.out_features <= MOST_WEIGHTS:
            self.shortcut = MaskedLinear(self.first.in_features, self.last.out_features, bias=False)
            nn.init.zeros_(self.shortcut.weight)
        self.drop = nn.Dropout(self.dropout)

    def loss(self, batch: Batch) -> Tensor:
        member = int(torch.randint(len(self.members), ()))
        return -self._member_log_prob(member, batch.x, batch.condition).mean()

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        values = [self._member_log_prob(member, x, condition) for member in range(len(self.members))]
        return log_mean_exp(torch.stack(values))[0]

    def _member_log_prob(self, member: int, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.head.log_prob(self.conditionals(x, condition, member), x).sum(1)

    def conditionals(self, x: Tensor, condition: Tensor | None, member: int = 0) -> Tensor:
        position, degrees = self._degrees_of(member)
        into = degree_mask(position[self.features.dim_of_feature], degrees, strict=True)
        within = degree_mask(degrees, degrees)
        out = degree_mask(degrees, position)
        inputs = self.features(x)
        h = self._with_condition(self.first(inputs, into), condition)
        for block in self.blocks:
            h = h + block(self._activate(h), within)
        params = self.last(self._activate(h), out)
        if self.shortcut is not None:
            params = params + self.shortcut(
                inputs, degree_mask(position[self.features.dim_of_feature], position, strict=True)
            )
        return params.view(len(x), -1, self.head.width)

    def _activate(self, h: Tensor) -> Tensor:
        return self.drop(F.relu(h))

    def _with_condition(self, h: Tensor, condition: Tensor | None) -> Tensor:
        context = self.condition(condition)
        return h if context is None else h + context

    def _degrees_of(self, member: int) -> tuple[Tensor, Tensor]:
        """The position of each dimension in the member's order, and the degree of each hidden unit."""
        order, mask = self.members[member]
        return self.position[order], self.degrees[mask]

    # --- sampling -------------------------------------------------------------------------------

    def _sample_from(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        return self._each_member(self._sample_member, noise, condition)

    def _sample_full_from(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        return self._each_member(self._sample_member_full, noise, condition)

    def _each_member(self, sample: _Sampler, noise: Tensor, condition: Tensor | None) -> Tensor:
        """Every example from a random member of the mixture."""
        chosen = torch.randint(len(self.members), (len(noise),), device=noise.device)
        x = self._blank(len(noise))
        for member in chosen.unique().tolist():
            rows = chosen == member
            x[rows] = sample(member, noise[rows], None if condition is None else condition[rows])
        return x

    def _sample_member_full(self, member: int, noise: Tensor, condition: Tensor | None) -> Tensor:
        x = self._blank(len(noise))
        for dim in self._degrees_of(member)[0].argsort().tolist():
            params = self.conditionals(x.view(-1, *self.space.shape), condition, member)[:, dim]
            x[:, dim] = self.head.sample_dim(dim, params, noise[:, dim])
        return x

    def _sample_member(self, member: int, noise: Tensor, condition: Tensor | None) -> Tensor:
        """Each hidden unit once, as soon as the inputs that it sees are drawn: the operations of one pass.

        With units sorted by degree and features by position, what is known is always a prefix.
        """
        position, degrees = self._degrees_of(member)
        order, units = position.argsort(), degrees.argsort(stable=True)
        columns = position[self.features.dim_of_feature].argsort(stable=True)
        first, base = self.first.weight[units][:, columns], self._with_condition(self.first.bias, condition)
        base = base.expand(len(noise), -1)[:, units]
        blocks = [(block.weight[units][:, units], block.bias[units]) for block in self.blocks]  # type: ignore[index]
        last, last_bias = (p.unflatten(0, (-1, self.head.width)) for p in (self.last.weight[:, units], self.last.bias))
        direct = None if self.shortcut is None else self.shortcut.weight[:, columns].unflatten(0, (-1, self.head.width))
        ends = torch.searchsorted(degrees[units], torch.arange(len(order), device=order.device), right=True).tolist()

        x, known, start = self._blank(len(noise)), 0, 0
        inputs = noise.new_zeros(len(noise), len(columns))
        active = [torch.zeros_like(base) for _ in range(len(blocks) + 1)]
        for dim, end in zip(order.tolist(), ends, strict=True):
            new = slice(start, end)
            h = base[:, new] + inputs[:, :known] @ first[new, :known].T
            for layer, (weight, bias) in enumerate(blocks):
                active[layer][:, new] = F.relu(h)
                h = h + F.linear(active[layer][:, :end], weight[new, :end], bias[new])
            active[-1][:, new] = F.relu(h)
            params = F.linear(active[-1][:, :end], last[dim, :, :end], last_bias[dim])
            if direct is not None:
                params = params + inputs[:, :known] @ direct[dim, :, :known].T
            x[:, dim] = self.head.sample_dim(dim, params, noise[:, dim])
            features = self.features.of(dim, x[:, dim])
            inputs[:, known : known + features.shape[1]] = features
            known, start = known + features.shape[1], end
        return x


def _affordable(space: Space, hidden: int, mixtures: int, likelihood: Likelihood) -> Likelihood:
    """The likelihood whose output layer can be paid for; raises `Unfit` where there is none."""
    weights = hidden * space.dims * Head(space, mixtures, likelihood).width
    if likelihood == "auto" and weights > MOST_WEIGHTS:
        return _affordable(space, hidden, mixtures, "logistic-mixture")
    if weights > 8 * MOST_WEIGHTS:
        raise Unfit(
            f"Made's output layer would have {weights:,} weights ({weights * 16 / 2**30:.0f} GiB in training) for "
            f"{space.dims:,} dimensions; take fewer hidden units or mixtures"
        )
    return likelihood


_Sampler = Callable[[int, Tensor, Tensor | None], Tensor]


def _orders(count: int, dims: int) -> Tensor:
    """Positions of the dimensions `(count, dims)`: the natural order, then random ones, the same for every run."""
    generator = torch.Generator().manual_seed(0)
    random = [torch.randperm(dims, generator=generator) for _ in range(count - 1)]
    return torch.stack([torch.arange(dims), *random])


def _degrees(count: int, units: int, dims: int) -> Tensor:
    """Degrees of the hidden units `(count, units)` in 0..dims-1; the first unit's is 0, for the first output."""
    generator = torch.Generator().manual_seed(0)
    random = [torch.randint(dims, (units,), generator=generator) for _ in range(count - 1)]
    degrees = torch.stack([spread_degrees(units, dims), *random])
    degrees[:, 0] = 0
    return degrees
