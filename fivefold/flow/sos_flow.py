"""Sum-of-squares polynomial flow."""

from __future__ import annotations

from fivefold.bijections.monotone import SumOfSquares
from fivefold.bijections.transforms import Transform
from fivefold.flow._autoregressive import AutoregressiveFlowSystem
from fivefold.options import option


class SOSFlow(AutoregressiveFlowSystem):
    """SOS flow (survey 6.1.2; Jaini et al., 2019).

    An autoregressive flow whose map of each dimension is the integral of a sum of squared polynomials, which a masked
    network of the dimensions before gives. Exact where the map is a polynomial; the inverse is Newton's, dimension
    by dimension.
    """

    layers = 3
    squares: int = option(3, "how many are summed", least=1, tune=(1, 8))
    degree: int = option(2, "of each polynomial that is squared", least=0, tune=(1, 5))

    def transform(self) -> Transform:
        return SumOfSquares(self.squares, self.degree)
