"""Augmented neural ODE: a continuous flow with further dimensions to move through."""

from __future__ import annotations

from fivefold.bijections.base import Layer
from fivefold.bijections.laws import FlowLaw
from fivefold.bijections.shape import Shape
from fivefold.bijections.surjections import augment
from fivefold.flow._continuous import FreeFormSystem
from fivefold.options import fixed, option
from fivefold.system import Density


class ANODE(FreeFormSystem):
    """Augmented neural ODE (survey 6.6; Dupont et al., 2019).

    Ways of an ordinary differential equation cannot cross, so a flow of x keeps the topology of its noise. With further
    dimensions a they can pass one another: the velocity moves (x, a), and the noise has the dimensions of both. Samples
    leave a out. It starts as standard normal noise, as in augmented flows (survey 6.4), which makes the density a lower
    bound, ln p(x) >= E[ln p(x, a) - ln q(a)] (survey Eq. 39); the paper, which has none, starts a at 0, as codes do.
    """

    densities = {"image": Density.LOWER_BOUND, "table": Density.LOWER_BOUND}
    draws = True

    steps = fixed(0)
    extra: int = option(
        5, "dimensions that are added; channels, where velocities are convolutions", least=1, tune=(1, 16)
    )
    exact_dims = 72

    def widen(self, shape: Shape) -> list[Layer]:
        return [augment(shape[0], FlowLaw(self.extra))]
