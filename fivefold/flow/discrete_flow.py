"""Discrete flow: arithmetic modulo the number of levels."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Bijection, Chain, sum_dims
from fivefold.bijections.discrete import ModuloAutoregressive, ModuloCoupling, Remainders
from fivefold.errors import Unfit
from fivefold.flow._discrete import DiscreteFlowSystem
from fivefold.nets.coders import zero
from fivefold.options import depth_option, option, width_option
from fivefold.system import Density
from fivefold.tools.laws import Draw, Levels

QUICK = 5.0  # the base's own logits have some units to go, and Adam's steps are of the size of its rate
MOST_WEIGHTS = 2**28


class DiscreteFlow(DiscreteFlowSystem):
    """Discrete flow (survey 6.5; Tran et al., 2019).

    Each dimension becomes (mu + sigma x) mod K, both functions of other dimensions and whole numbers themselves, chosen
    by an argmax whose gradient is a softmax's. What comes out is modelled as independent: a flow permutes the values
    of the joint probability table until they are. No order of the values is assumed.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.EXACT, "table": Density.EXACT, "text": Density.EXACT}
    sampling: ClassVar[str] = "autoregressive"

    layers: int = depth_option(
        2, "flows one after another; every second has the dimensions in the opposite order", tune=(1, 16)
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
    softness: float = option(0.1, "of the softmax whose gradient an argmax takes", above=0)
    lr = 1e-2

    def build(self) -> None:
        super().build()
        self.levels = tuple(levels or 1 for levels in self.space.dim_levels)
        _check_affordable(self.space.dims * max(self.levels), self.hidden)
        self.remainders = Remainders(self.levels)
        self.flow = Chain(*[self._flow(i) for i in range(self.layers)])
        width = self.embedding.width
        self.base = nn.Parameter(torch.zeros(self.space.dims, max(self.levels)))
        self.base_of = zero(nn.Linear(width, self.base.numel(), bias=False)) if width else None

    def _flow(self, layer: int) -> Bijection:
        width = self.embedding.width
        if self.order == "autoregressive":
            return ModuloAutoregressive(
                self.levels, self.hidden, width, self.scales, self.softness, reverse=layer % 2 == 1
            )
        mask = (torch.arange(self.space.dims, device="cpu") + layer) % 2 == 0
        return ModuloCoupling(mask, self.levels, self.hidden, width, self.scales, self.softness)

    def _law(self, n: int, context: Tensor | None) -> Levels:
        """What comes out: independent values `(n, D)`."""
        logits = QUICK * self.base.expand(n, *self.base.shape)
        if self.base_of is not None and context is not None:
            logits = logits + self.base_of(context).view_as(logits)
        return Levels(logits.masked_fill(~self.remainders.exists, -torch.inf))

    # --- the contract ---------------------------------------------------------------------------

    @property
    def sample_evaluations(self) -> int:
        return self.layers * (self.space.dims if self.order == "autoregressive" else 1)

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        context = self.embedding(condition)
        z, _ = self.flow(self._one_hot(x), context)
        log_p = self._law(len(x), context).logits.log_softmax(-1).masked_fill(~self.remainders.exists, 0.0)
        return sum_dims((z * log_p).sum(-1))  # linear in the one-hot vectors, through which the flow learns

    def _one_hot(self, x: Tensor) -> Tensor:
        return self.remainders.encode(x.flatten(1), self.base.dtype)

    def code(self, x: Tensor, condition: Tensor | None) -> list[Tensor]:
        return [self.flow(self._one_hot(x), self.embedding(condition))[0].argmax(-1)]

    def generate(self, n: int, condition: Tensor | None, draw: Draw) -> Tensor:
        context = self.embedding(condition)
        z = self.remainders.encode(draw(self._law(n, context)), self.base.dtype)
        x = self.flow.inverse(z, context)[0].argmax(-1).view(n, *self.space.shape)
        return x.float() if self.space.columns else x

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return self.generate(n, condition, lambda law: law.sample())

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.code(x, condition)[0].double()

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        most = self.remainders.levels[:, 0] - 1
        return self.generate(len(z), condition, lambda _: torch.minimum(z.round().long(), most))


def _check_affordable(features: int, hidden: int) -> None:
    if 3 * features * hidden > MOST_WEIGHTS:
        raise Unfit(
            f"DiscreteFlow's networks would have {3 * features * hidden:,} weights a layer: {features:,} dimensions "
            f"times levels, {hidden} hidden units; at most {MOST_WEIGHTS:,}. Take fewer units, dimensions or levels"
        )
