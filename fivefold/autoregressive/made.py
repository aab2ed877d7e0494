"""MADE: an autoencoder whose masks make it autoregressive."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.autoregressive._system import AutoregressiveSystem, Way
from fivefold.errors import Unfit
from fivefold.nets.condition import ConditionEmbedding
from fivefold.nets.embedding import DimFeatures
from fivefold.nets.heads import LIKELIHOODS, Head
from fivefold.nets.masked import MaskedLinear, degree_mask, spread_degrees
from fivefold.nets.states import Recomputed, States
from fivefold.options import depth_option, dropout_option, option, slot, width_option
from fivefold.space import Batch
from fivefold.system import log_mean_exp

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
            "hidden": 2048, "layers": 1, "dropout": 0.25, "batch_size": 100, "lr": 1e-3, "ema": 0.999,
        },
    }  # fmt: skip

    position: Tensor
    degrees: Tensor

    hidden: int = width_option(512, "units of each layer", tune=(16, 512))
    layers: int = depth_option(1, "hidden layers after the first", least=0, tune=(0, 4))
    orders: int = option(1, "orders of the dimensions, the natural one and then random ones", least=1, tune=(1, 8))
    masks: int = option(
        1, "assignments of degrees to hidden units for each order, the even one and then random ones", least=1,
        tune=(1, 8),
    )  # fmt: skip
    direct: bool = option(
        True, "whether each output also sees the inputs before it linearly; left out where that would need more than "
        "2^26 weights", scales="extra",
    )  # fmt: skip
    dropout: float = dropout_option(0.2, "share of hidden units that are dropped in training")

    def build(self) -> None:
        super().build()
        dims = self.space.dims
        self.features = DimFeatures(self.space, standardised=True)
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
        self.kept_masks: tuple[Tensor, ...] | None = None

    def make_head(self) -> nn.Module:
        """One whose output layer can be paid for; raises `Unfit` where there is none."""
        head: Any = super().make_head()
        if self._weights(head) > MOST_WEIGHTS and self.arguments["likelihood"] == slot("auto"):
            head = Head(self.space, LIKELIHOODS["logistic-mixture"]())
        if (weights := self._weights(head)) > 8 * MOST_WEIGHTS:
            raise Unfit(
                f"Made's output layer would have {weights:,} weights ({weights * 16 / 2**30:.0f} GiB in training) for "
                f"{self.space.dims:,} dimensions; take fewer hidden units or mixtures"
            )
        return head

    def _weights(self, head: Head) -> int:
        return self.hidden * self.space.dims * head.width

    def loss(self, batch: Batch) -> Tensor:
        member = int(torch.randint(len(self.members), ()))
        return -self._member_log_prob(member, batch.x, batch.condition).mean()

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        values = [self._member_log_prob(member, x, condition) for member in range(len(self.members))]
        return log_mean_exp(torch.stack(values))[0]

    def _member_log_prob(self, member: int, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.head.log_prob(self.conditionals(x, condition, member), x).sum(1)

    def conditionals(self, x: Tensor, condition: Tensor | None, member: int = 0) -> Tensor:
        into, within, out, across = self._masks_of(member)
        inputs = self.features(x)
        h = self._with_condition(self.first(inputs, into), condition)
        for block in self.blocks:
            h = h + block(self._activate(h), within)
        params = self.last(self._activate(h), out)
        if self.shortcut is not None:
            params = params + self.shortcut(inputs, across)
        return params.view(len(x), -1, self.head.width)

    def _masks_of(self, member: int) -> tuple[Tensor, ...]:
        """Into the hidden units, within them, out of them, and across; kept where there is one member: to make them
        takes a fifth of a step."""
        position, degrees = self._degrees_of(member)
        if self.kept_masks is not None and self.kept_masks[0].device == position.device:
            return self.kept_masks
        inputs = position[self.features.dim_of_feature]
        masks = (
            degree_mask(inputs, degrees, strict=True), degree_mask(degrees, degrees), degree_mask(degrees, position),
            degree_mask(inputs, position, strict=True),
        )  # fmt: skip
        self.kept_masks = masks if len(self.members) == 1 else None
        return masks

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
        return self._each_member(partial(_States, self), noise, condition)

    def _sample_full_from(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        def states(n: int, condition: Tensor | None, member: int) -> States:
            shape = (n, *self.space.shape)
            return Recomputed(lambda x: self.conditionals(x.view(shape), condition, member), self._blank(n))

        return self._each_member(states, noise, condition)

    def _ways(self) -> list[Way]:
        """The members of the mixture."""

        def way(member: int) -> Way:
            order = self._degrees_of(member)[0].argsort().tolist()
            return lambda n, condition: _States(self, n, condition, member), order

        return [way(member) for member in range(len(self.members))]

    def _each_member(self, states: Callable[..., States], noise: Tensor, condition: Tensor | None) -> Tensor:
        """Every example from a random member of the mixture, by its `states` of (n, condition, member)."""
        chosen = torch.randint(len(self.members), (len(noise),), device=noise.device)
        x = self._blank(len(noise))
        for member in chosen.unique().tolist():
            rows, order = chosen == member, self._degrees_of(member)[0].argsort().tolist()
            given = None if condition is None else condition[rows]
            x[rows] = self._filled(states(int(rows.sum()), given, member), order, noise[rows])
        return x


class _States:
    """Each hidden unit once, as soon as the inputs that it sees are drawn: the operations of one pass.

    With units sorted by degree and features by position, what is known is always a prefix.
    """

    def __init__(self, net: Made, n: int, condition: Tensor | None, member: int) -> None:
        position, degrees = net._degrees_of(member)
        units = degrees.argsort(stable=True)
        columns = position[net.features.dim_of_feature].argsort(stable=True)
        width = net.head.width
        self.net = net
        ends = torch.searchsorted(degrees[units], torch.arange(len(position), device=position.device), right=True)
        self.ends = dict(zip(position.argsort().tolist(), ends.tolist(), strict=True))
        self.first = net.first.weight[units][:, columns]
        self.base = net._with_condition(net.first.bias, condition).expand(n, -1)[:, units]
        blocks: list[MaskedLinear] = list(net.blocks)  # type: ignore[arg-type]
        self.blocks = [(block.weight[units][:, units], block.bias[units]) for block in blocks]
        self.last, self.bias = (p.unflatten(0, (-1, width)) for p in (net.last.weight[:, units], net.last.bias))
        self.direct = None if net.shortcut is None else net.shortcut.weight[:, columns].unflatten(0, (-1, width))
        self.inputs = self.base.new_zeros(n, len(columns))
        self.active = [torch.zeros_like(self.base) for _ in range(len(self.blocks) + 1)]
        self.known = self.start = 0  # features and units so far

    def params(self, dim: int) -> Tensor:
        end = self.ends[dim]
        new, seen = slice(self.start, end), self.inputs[:, : self.known]
        h = self.base[:, new] + seen @ self.first[new, : self.known].T
        for layer, (weight, bias) in enumerate(self.blocks):
            self.active[layer][:, new] = F.relu(h)
            h = h + F.linear(self.active[layer][:, :end], weight[new, :end], bias[new])
        self.active[-1][:, new] = F.relu(h)
        self.start = end
        params = F.linear(self.active[-1][:, :end], self.last[dim, :, :end], self.bias[dim])
        return params if self.direct is None else params + seen @ self.direct[dim, :, : self.known].T

    def add(self, dim: int, value: Tensor) -> None:
        features = self.net.features.of(dim, value)
        self.inputs[:, self.known : self.known + features.shape[1]] = features
        self.known += features.shape[1]


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
