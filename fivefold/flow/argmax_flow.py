"""Argmax flow: a density of reals whose argmax the categories are."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fivefold.bijections.argmax import ArgmaxCode, code_width
from fivefold.nets.condition import ConditionEmbedding
from fivefold.options import Need, depth_option, option, slot, width_option
from fivefold.space import Batch, Column, Space
from fivefold.system import Density, System
from fivefold.tools.scaling import importance_log_prob
from fivefold.tools.schedule import warm_cosine

CONDITION_WIDTH = 32
MOST_REALS = 256  # of an example by the argmax, beyond which they are fewer in binary code
FLOW = Need("an exact density of real vectors, of images one of real images", densities=("EXACT",))


class ArgmaxFlow(System):
    """Argmax flow (survey 2.3.1; Hoogeboom et al., 2021).

    Categories are the argmax of as many real numbers, which have the density of any flow. On the way to the flow the
    reals are drawn from a law that lies where the argmax is the category: no order of the values is assumed, and
    every point of the reals is a value.

    Values of which there are many are coded by the signs of a few reals instead, a Cartesian product of binary digits.
    The density is a bound on the probability, tighter with each draw of the reals.
    """

    densities: ClassVar[dict[str, Density]] = {
        "image": Density.LOWER_BOUND, "table": Density.LOWER_BOUND, "text": Density.LOWER_BOUND,
    }  # fmt: skip
    free_form: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.99, "clip": 5.0}}

    lr = 5e-3
    flow: Any = option(slot("spline-flow"), "over the reals", needs=FLOW)
    encoding: Literal["auto", "argmax", "binary"] = option(
        "auto", "of values: argmax, one real for each; binary, one for each digit; auto takes the argmax where an "
        f"example has at most {MOST_REALS} reals by it",
    )  # fmt: skip
    code_hidden: int = width_option(48, "width of the networks of the reals' law given the values", tune=(16, 256))
    code_layers: int = depth_option(3, "couplings of that law; with one it is Gaussian before the argmax", tune=(1, 6))
    score_samples: int = option(16, "draws of the reals for each example scored", least=1)
    weight_decay: float = option(1e-4, "decoupled weight decay", least=0, section="optimizers")

    @classmethod
    def density_on(cls, space: Space) -> Density | None:
        """None where a dimension is real."""
        return super().density_on(space) if space.discrete else None

    def build(self) -> None:
        super().build()
        reals = sum(code_width(count or 1, False) for count in self.space.dim_levels)
        self.binary = self.encoding == "binary" or (self.encoding == "auto" and reals > MOST_REALS)
        self.embedding = ConditionEmbedding(self.space.condition, CONDITION_WIDTH)
        self.code = ArgmaxCode(self.space, self.binary, self.embedding.width, self.code_hidden, self.code_layers)
        self.flow = self.fill("flow", self._reals())

    def _reals(self) -> Space:
        """What the flow models: images of images, else vectors."""
        shape, condition = self.code.code_shape, self.space.condition
        if self.space.kind == "image":
            return Space("image", shape, condition=condition)
        columns = tuple(Column(f"v{i}") for i in range(torch.Size(shape).numel()))
        return Space("table", (len(columns),), columns=columns, condition=condition)

    @property
    def density_note(self) -> str:
        return f"{self.score_samples} samples"

    @property
    def sample_evaluations(self) -> int:
        return int(self.flow.sample_evaluations)

    def loss(self, batch: Batch) -> Tensor:
        return -self._drawn(batch.x, batch.condition).mean()

    def optimizers(self) -> dict[torch.nn.Module, torch.optim.Optimizer]:
        """AdamW, its rate following a cosine to zero."""
        return {self: torch.optim.AdamW(self.parameters(), self.lr, weight_decay=self.weight_decay, fused=True)}

    def learning_rate(self, progress: float) -> float:
        return warm_cosine(progress, 0.02, floor=0.0)

    def _drawn(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """ln of an unbiased estimate of P(x), nats `(B,)`: p(v) / q(v | x) of one draw of v."""
        v, term = self.code(x, self.embedding(condition))
        found = self.flow._log_prob(v.reshape(-1, *self.flow.space.shape), condition)
        return (found[0] if isinstance(found, tuple) else found) + term

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        return importance_log_prob(self._drawn, x, condition, self.score_samples)

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return self.code.decode(self.flow._sample(n, condition).reshape(-1, *self.code.code_shape))
