"""What flows of whole numbers share: their density is that of the code, which can be compressed by it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.nets.condition import ConditionEmbedding
from fivefold.options import option
from fivefold.space import Batch, Space
from fivefold.system import Density, LatentSystem
from fivefold.tools.given import gibbs_sweeps
from fivefold.tools.laws import Draw
from fivefold.tools.particles import near
from fivefold.tools.schedule import warm_cosine

CONDITION_WIDTH = 32


class DiscreteFlowSystem(LatentSystem):
    """A map of whole numbers to whole numbers whose law is simple: no Jacobian, no dequantisation (survey 6.5)."""

    densities: ClassVar[dict[str, Density]] = {"image": Density.EXACT, "table": Density.EXACT}
    free_form: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.99, "clip": 5.0}}

    fill_steps = 30
    warmup: float = option(0.02, "share of the budget over which the learning rate rises", least=0, most=1)

    @classmethod
    def density_on(cls, space: Space) -> Density | None:
        """None where a dimension is real."""
        return super().density_on(space) if space.discrete else None

    def build(self) -> None:
        super().build()
        self.embedding = ConditionEmbedding(self.space.condition, CONDITION_WIDTH)

    @abstractmethod
    def code(self, x: Tensor, condition: Tensor | None) -> list[Tensor]:
        """The whole numbers of encoded examples, in the order in which `generate` asks for them."""

    @abstractmethod
    def generate(self, n: int, condition: Tensor | None, draw: Draw) -> Tensor:
        """Encoded examples of the whole numbers that `draw` gives, each with the law of it given those before."""

    @property
    def filling(self) -> str:
        return "Gibbs sampling, number by number, of what is missing given all else: exact in the limit of many steps"

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        start = torch.where(known, x, near(self._sample, self.space, x, known, condition)).flatten(1)

        def log_prob(states: Tensor, rows: Tensor) -> Tensor:
            given = None if condition is None else condition[rows]
            return self._log_prob(states.view(-1, *self.space.shape), given)  # type: ignore[return-value]

        levels = torch.tensor([count or 1 for count in self.space.dim_levels])
        return gibbs_sweeps(log_prob, start, ~known.flatten(1), levels, self.fill_steps).view_as(x)

    def loss(self, batch: Batch) -> Tensor:
        return -self._log_prob(batch.x, batch.condition).mean()  # type: ignore[union-attr]

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        return {self: torch.optim.Adam(self.parameters(), self.lr, fused=True)}

    def learning_rate(self, progress: float) -> float:
        return warm_cosine(progress, self.warmup, floor=0.0)
