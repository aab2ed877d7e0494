"""Discrete flow: arithmetic modulo the number of levels."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.base import Bijection, Chain, sum_dims
from fivefold.bijections.discrete import ModuloAutoregressive, ModuloCoupling, Remainders
from fivefold.errors import Unfit
from fivefold.flow._discrete import DiscreteFlowSystem
from fivefold.nets.coders import zero
from fivefold.nets.masked import MaskedLevels
from fivefold.options import depth_option, option, width_option
from fivefold.system import Density
from fivefold.tools.laws import Draw, Levels

QUICK = 25.0  # the independent part of the law has some units to go, and Adam's steps are of the size of its rate
MOST_WEIGHTS = 2**28


class DiscreteFlow(DiscreteFlowSystem):
    """Discrete flow (survey 6.5; Tran et al., 2019).

    Each dimension becomes (mu + sigma x) mod K, both functions of other dimensions and whole numbers themselves: the
    argmax of what a network expects each to bring. A flow permutes the values of the joint probability table until what
    comes out has a simple law: each dimension's given those before it, or independent dimensions. No order of the
    values is assumed.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.EXACT, "table": Density.EXACT, "text": Density.EXACT}
    sampling: ClassVar[str] = "autoregressive"

    layers: int = depth_option(
        1, "flows one after another; every second has the dimensions in the opposite order", tune=(1, 16)
    )
    hidden: int = width_option(256, "units of the two hidden layers of a flow's network", tune=(16, 512))
    order: Literal["autoregressive", "bipartite"] = option(
        "autoregressive",
        "given which dimensions each is mapped: those before it (autoregressive: an exact density in one pass, "
        "samples dimension by dimension), or every second one given the others (bipartite: one pass both ways)",
    )
    scales: bool = option(
        True, "whether sigma is learned, among the numbers without a factor in common with K; 1 if not"
    )
    base: Literal["paper", "autoregressive", "independent"] = option(
        "paper",
        "the law of what comes out: autoregressive (a masked network's, in the order of the dimensions), independent, "
        "or that of the paper: autoregressive beneath autoregressive flows, independent beneath bipartite ones",
    )
    lr = 2e-3

    def build(self) -> None:
        super().build()
        self.levels = tuple(levels or 1 for levels in self.space.dim_levels)
        _check_affordable(self.space.dims * max(self.levels), self.hidden)
        self.remainders = Remainders(self.levels)
        self.flow = Chain(*[self._flow(i) for i in range(self.layers)])
        width, most = self.embedding.width, max(self.levels)
        self.own = nn.Parameter(torch.zeros(self.space.dims, most))
        self.own_of = zero(nn.Linear(width, self.own.numel(), bias=False)) if width else None
        chained = (self.order if self.base == "paper" else self.base) == "autoregressive"
        self.chain = MaskedLevels(self.space.dims, most, most, self.hidden, width) if chained else None

    def _flow(self, layer: int) -> Bijection:
        width = self.embedding.width
        if self.order == "autoregressive":
            return ModuloAutoregressive(self.levels, self.hidden, width, self.scales, reverse=layer % 2 == 1)
        mask = (torch.arange(self.space.dims, device="cpu") + layer) % 2 == 0
        return ModuloCoupling(mask, self.levels, self.hidden, width, self.scales)

    def _law(self, z: Tensor, context: Tensor | None) -> Levels:
        """Of what comes out, `(n, D)`: each dimension's given those of `z` `(n, D, K)` that come before it."""
        logits = QUICK * self.own.expand_as(z)
        if self.own_of is not None and context is not None:
            logits = logits + self.own_of(context).view_as(logits)
        if self.chain is not None:
            logits = logits + self.chain(z, context)
        return Levels(logits.masked_fill(~self.remainders.exists, -torch.inf))

    def _lots(self) -> list[slice]:
        """Dimensions of what comes out that have a law at once: all, or one after another."""
        return [slice(0, self.space.dims)] if self.chain is None else [slice(d, d + 1) for d in range(self.space.dims)]

    # --- the contract ---------------------------------------------------------------------------

    @property
    def sample_evaluations(self) -> int:
        passes = self.layers * (self.space.dims if self.order == "autoregressive" else 1)
        return passes + (len(self._lots()) if self.chain is not None else 0)

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        context = self.embedding(condition)
        z, zero_term = self.flow(self._one_hot(x), context)
        log_p = self._law(z, context).logits.log_softmax(-1).masked_fill(~self.remainders.exists, 0.0)
        return sum_dims((z * log_p).sum(-1)) + zero_term  # linear in the one-hot vectors, through which the flow learns

    def _one_hot(self, x: Tensor) -> Tensor:
        return self.remainders.encode(x.flatten(1), self.own.dtype)

    def code(self, x: Tensor, condition: Tensor | None) -> list[Tensor]:
        z = self.flow(self._one_hot(x), self.embedding(condition))[0].argmax(-1)
        return [z[:, lot] for lot in self._lots()]

    def generate(self, n: int, condition: Tensor | None, draw: Draw) -> Tensor:
        context = self.embedding(condition)
        z = torch.zeros(n, *self.own.shape, dtype=self.own.dtype, device=self.device)
        for lot in self._lots():
            values = draw(Levels(self._law(z, context).logits[:, lot]))
            z = torch.cat([z[:, : lot.start], F.one_hot(values.long(), z.shape[-1]).to(z.dtype), z[:, lot.stop :]], 1)
        x = self.flow.inverse(z, context)[0].argmax(-1).view(n, *self.space.shape)
        return x.float() if self.space.columns else x

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return self.generate(n, condition, lambda law: law.sample())

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return torch.cat(self.code(x, condition), 1).double()

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        most = self.remainders.levels[:, 0] - 1
        lots = iter(torch.minimum(z.round().long(), most)[:, lot] for lot in self._lots())
        return self.generate(len(z), condition, lambda _: next(lots))


def _check_affordable(features: int, hidden: int) -> None:
    if 3 * features * hidden > MOST_WEIGHTS:
        raise Unfit(
            f"DiscreteFlow's networks would have {3 * features * hidden:,} weights a layer: {features:,} dimensions "
            f"times levels, {hidden} hidden units; at most {MOST_WEIGHTS:,}. Take fewer units, dimensions or levels"
        )
