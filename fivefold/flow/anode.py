"""Augmented neural ODE: a continuous flow with further dimensions to move through."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fivefold.bijections.base import Layer
from fivefold.bijections.laws import FlowLaw
from fivefold.bijections.shape import Shape
from fivefold.bijections.surjections import augment
from fivefold.flow._continuous import CHUNK, FreeFormSystem
from fivefold.options import fixed, option
from fivefold.system import Density
from fivefold.tools.scaling import averaged_log_prob, dequantise, dequantise_log_det, log_mean_exp


class ANODE(FreeFormSystem):
    """Augmented neural ODE (survey 6.6; Dupont et al., 2019).

    Ways of an ordinary differential equation cannot cross, so a flow of x keeps the topology of its noise. With further
    dimensions a they can pass one another: the velocity moves (x, a), and the noise has the dimensions of both. Samples
    leave a out.

    The density is a lower bound. The flow is one of (x, a), and a starts as standard normal noise with density q, as in
    augmented normalizing flows (survey 6.4): ln p(x) >= E[ln p(x, a) - ln q(a)] (survey Eq. 39), p(x) being that of
    samples. Scores tighten it by a mean of p(x, a) / q(a) over draws; beyond `exact_dims` dimensions they average
    logarithms. (The paper, which has no density, starts a at 0; so do `encode` and `reconstruct` here.)
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.LOWER_BOUND}
    draws: ClassVar[bool] = True

    steps = fixed(0)
    extra: int = option(
        5, "dimensions that are added; channels, where velocities are convolutions", least=1, tune=(1, 16)
    )
    exact_dims = 72

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.trace == "hutchinson":
            return averaged_log_prob(self._point_log_prob, x, condition, self.space, self.score_samples, CHUNK)
        y = dequantise(x.repeat(self.score_samples, *[1] * (x.dim() - 1)), self.space)
        condition = None if condition is None else condition.repeat(self.score_samples, *[1] * (condition.dim() - 1))
        values = self._point_log_prob(y, condition).view(self.score_samples, -1)
        return log_mean_exp(values + dequantise_log_det(self.space))

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        (noise,) = (part for part in self.flow.modules() if isinstance(part, FlowLaw))
        noise.still = True
        try:
            return super()._encode(x, condition)
        finally:
            noise.still = False

    @property
    def density_note(self) -> str:
        what = "dimensions" if self.is_dense else "channels"
        return f"{super().density_note}, {self.score_samples} draws of {self.extra} extra {what}"

    def widen(self, shape: Shape) -> list[Layer]:
        return [augment(shape[0], FlowLaw(self.extra))]
