"""Potential flow: a continuous flow along the gradient of a potential that obeys the Hamilton-Jacobi equation."""

from __future__ import annotations

from fivefold.flow._continuous import PotentialSystem
from fivefold.nets.potential import Potential, PotentialVelocity
from fivefold.options import option


class PotentialFlow(PotentialSystem):
    """Potential flow generator (survey 6.6.1; Yang and Karniadakis, 2020).

    The velocity is the gradient of a potential phi(x, t) of point and time. Optimal transport in the L2 cost obeys the
    Hamilton-Jacobi equation dphi/dt + |grad phi|^2 / 2 = 0: its residual, squared and integrated along the ways, is a
    penalty in the loss, and the only one; where it is 0 every point moves straight on at its first speed. Here the
    generator is trained by its likelihood (the paper's other losses are adversarial).
    """

    layers = 3
    hj: float = option(
        0.01, "weight of the Hamilton-Jacobi equation's squared residual", least=0, tune=(1e-4, 1.0), log=True
    )

    @property
    def weights(self) -> tuple[float, float]:
        return 0.0, self.hj

    def velocity(self, dims: int, condition: int) -> PotentialVelocity:
        phi = Potential(dims, self.hidden, self.layers, activation="tanh", condition=condition)
        return PotentialVelocity(phi, squared=True)
