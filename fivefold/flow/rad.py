"""RAD: piecewise invertible flows with real and discrete latent variables."""

from __future__ import annotations

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.coupling import Alternate, alternate_channels
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.shape import Shape
from fivefold.bijections.surjections import Piecewise
from fivefold.flow._coupling import CouplingFlowSystem
from fivefold.options import option


class RAD(CouplingFlowSystem):
    """Real and discrete flow (survey 6.4; Dinh et al., 2019).

    Space is cut into regions, each taken onto all of noise by a bijection of its own; a gating network gives the chance
    of each region given the noise. An example lies in one region, so that its density is exact.

    After coupling layers come folds: every dimension's line is cut at learned knots and each piece is stretched over
    the whole line. The chances of the pieces are such that the density is continuous at the knots.
    """

    chooses = True
    folds: int = option(1, "how many, each followed by two coupling layers", least=1, tune=(1, 4))
    pieces: int = option(2, "of every dimension in a fold", least=2, tune=(2, 6))
    hidden = 64

    def body(self) -> Layer:
        return Chain(super().body(), *[self._fold(self.space.dims) for _ in range(self.folds)])

    def step(self, layer: int, shape: Shape, alternate: Alternate) -> list[Layer]:
        return [ActNorm(shape[0]), LULinear(shape[0]), self.couple(layer, shape, alternate)]

    def _fold(self, dims: int) -> Layer:
        """The map of every piece onto the line, and couplings of what lies there upon one another."""
        gate = self.make_net(dims, self.pieces * dims)
        couplings = [self.couple(layer, (dims,), alternate_channels) for layer in range(2)]
        return Chain(ActNorm(dims), Piecewise(dims, self.pieces, gate), *couplings)
