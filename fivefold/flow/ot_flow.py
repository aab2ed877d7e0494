"""OT-Flow: a continuous flow down a potential, by optimal transport, with an exact trace."""

from __future__ import annotations

from fivefold.flow._continuous import PotentialSystem
from fivefold.nets.potential import Potential, PotentialVelocity
from fivefold.options import option


class OTFlow(PotentialSystem):
    """OT-Flow (survey 6.6.1; Onken et al., 2021).

    The velocity is minus the gradient of a potential Phi(x, t), as optimal transport's is: a residual network and a
    quadratic form. The loss has the transport cost, the integral of |v|^2 / 2, and that of how far Phi violates the
    Hamilton-Jacobi-Bellman equation -dPhi/dt + |grad Phi|^2 / 2 = 0; both make the ways straight, so few fixed steps of
    Runge-Kutta's method are enough. The trace, minus the Laplacian, is exact and in closed form, in training too.
    """

    rank: int = option(10, "of the quadratic form, at most the number of dimensions", least=1, tune=(2, 32))
    transport: float = option(0.01, "weight of the transport cost, in nats", least=0, tune=(1e-4, 1.0), log=True)
    hjb: float = option(
        0.05, "weight of the Hamilton-Jacobi-Bellman equation's residual, in nats", least=0, tune=(1e-4, 1.0), log=True
    )

    @property
    def weights(self) -> tuple[float, float]:
        return self.transport / 2, self.hjb

    def velocity(self, dims: int, condition: int) -> PotentialVelocity:
        rank = min(self.rank, dims)
        phi = Potential(dims, self.hidden, self.layers, rank, activation="log-cosh", condition=condition)
        return PotentialVelocity(phi, sign=-1)
