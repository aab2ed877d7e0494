"""Neural ODE: the first continuous-time flow, with planar dynamics and an exact trace."""

from __future__ import annotations

from torch import nn

from fivefold.flow._continuous import AdaptiveSystem, ClosedFormSystem
from fivefold.nets.planar import PlanarSum
from fivefold.options import width_option


class NeuralODE(AdaptiveSystem, ClosedFormSystem):
    """Neural ODE (survey 6.6; Chen et al., 2018).

    The paper's continuous normalizing flow: examples become noise along an ordinary differential equation (survey
    Eq. 41) whose velocity is a sum of gated planar functions of the point, their parameters given by a hypernetwork of
    the time. The log-density changes by the trace of its Jacobian (Eq. 44), which here has a formula. An adaptive
    solver takes as many evaluations as the tolerance asks; gradients come from a second equation backwards (Eq. 43).
    """

    gradients = "adjoint"
    width: int = width_option(64, "planar functions in the sum", tune=(16, 256))
    hidden: int = width_option(64, "width of the hypernetwork", tune=(16, 256))
    tolerance = 1e-2

    def velocity(self, dims: int, condition: int) -> nn.Module:
        return PlanarSum(dims, self.width, self.hidden, condition)
