"""Monge-Ampere flow: a continuous flow along the gradient of a fixed potential."""

from __future__ import annotations

from fivefold.flow._continuous import PotentialSystem
from fivefold.nets.potential import Potential, PotentialVelocity


class MongeAmpere(PotentialSystem):
    """Monge-Ampere flow (survey 6.6.1; Zhang et al., 2018).

    The velocity is the gradient of a potential phi(x) that does not change with the time: each instant is an
    infinitesimal solution of the Monge-Ampere equation of optimal transport. The log-density changes by phi's
    Laplacian, which has a formula; fixed steps of Runge-Kutta's method solve both. There is no penalty.
    """

    hidden = 256
    layers = 1  # the paper's
    steps = 8

    def velocity(self, dims: int, condition: int) -> PotentialVelocity:
        phi = Potential(dims, self.hidden, self.layers, timed=False, activation="softplus", condition=condition)
        return PotentialVelocity(phi)
