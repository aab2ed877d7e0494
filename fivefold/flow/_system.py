"""What all flows share: the change of variables or its bound, dequantised where the data are discrete."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.dequantisation import VariationalDequantisation
from fivefold.bijections.elementwise import Logit
from fivefold.nets.condition import ConditionEmbedding
from fivefold.space import Batch, Space
from fivefold.system import Density, LatentSystem
from fivefold.tools.distributions import standard_normal_log_prob
from fivefold.tools.scaling import dequantise, dequantise_log_det, importance_log_prob, midpoint, quantise
from fivefold.tools.schedule import warm_cosine

Dequantisation = Literal["uniform", "variational"]


class FlowSystem(LatentSystem):
    """A bijection to standard normal noise: log p(x) = log N(f(x); 0, I) + ln |det df/dx| (survey Eq. 29, 30).

    Discrete dimensions are dequantised, which makes the density a lower bound. Subclasses set `flow`,
    from encoded (and dequantised) examples `(B, *shape)` to noise `(B, D)`. Where it has surjections (survey Eq. 39)
    noise may have other dimensions (`noise_dims`); where a layer draws on the way there they set `density` to a bound.

    Args:
        space: of the examples.
        condition_width: of the condition's embedding.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
        dequantisation: uniform noise in the cells, or variational: noise from a flow given the example.
    """

    dials: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.7, 0.85, 1.0)}

    flow: Layer
    warmup: float = 0.0  # share of the budget over which the learning rate rises

    def __init__(
        self,
        space: Space,
        condition_width: int,
        score_samples: int,
        temperature: float,
        dequantisation: Dequantisation = "uniform",
    ) -> None:
        super().__init__(space)
        is_real = all(levels is None for levels in space.dim_levels)
        self.density = Density.EXACT if is_real else Density.LOWER_BOUND
        self.score_samples, self.temperature = score_samples, temperature
        self.embedding = ConditionEmbedding(space.condition, condition_width)
        self.noise_dims = space.dims
        learns = dequantisation == "variational" and not is_real
        self.dequantisation = VariationalDequantisation(space, self.embedding.width) if learns else None

    def _onto_line(self, flow: Layer, margin: float) -> Layer:
        """`flow`, behind a logit where the data are discrete images, which fill an interval; none at margin 0."""
        fills_cube = self.space.kind == "image" and self.space.levels is not None
        return Chain(Logit(margin), flow) if fills_cube and margin > 0 else flow

    def loss(self, batch: Batch) -> Tensor:
        return -self._drawn_log_prob(batch.x, batch.condition).mean()

    def optimizers(self, lr: float = 5e-3, weight_decay: float = 1e-4) -> dict[torch.nn.Module, torch.optim.Optimizer]:
        """AdamW, its rate following a cosine to zero.

        Args:
            lr: learning rate at the start.
            weight_decay: decoupled weight decay.
        """
        return {self: torch.optim.AdamW(self.parameters(), lr, weight_decay=weight_decay, fused=True)}

    def learning_rate(self, progress: float) -> float:
        return warm_cosine(progress, self.warmup, floor=0.0)

    def _point_log_prob(self, y: Tensor, condition: Tensor | None) -> Tensor:
        """Nats `(B,)` of continuous points."""
        z, log_det = self.flow(y, self.embedding(condition))
        return standard_normal_log_prob(z) + log_det

    def _drawn_log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Nats `(B,)`: ln of an unbiased estimate of P(x), from one draw of all that is drawn."""
        if self.dequantisation is None:
            return self._point_log_prob(dequantise(x, self.space), condition) + dequantise_log_det(self.space)
        y, term = self.dequantisation(x, self.embedding(condition))
        return self._point_log_prob(y, condition) + term

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.density is Density.EXACT:
            value = self._point_log_prob(x, condition)
            return value, torch.zeros_like(value)
        return importance_log_prob(self._drawn_log_prob, x, condition, self.score_samples)

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return self._decode(self.temperature * torch.randn(n, self.noise_dims, device=self.device), condition)

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        z, _ = self.flow(midpoint(x, self.space), self.embedding(condition))
        return z

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        y, _ = self.flow.inverse(z, self.embedding(condition))
        return quantise(y, self.space)
