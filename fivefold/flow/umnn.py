"""Unconstrained monotonic neural network."""

from __future__ import annotations

from fivefold.bijections.monotone import Integral
from fivefold.bijections.transforms import Transform
from fivefold.flow._autoregressive import AutoregressiveFlowSystem
from fivefold.options import option, width_option


class UMNN(AutoregressiveFlowSystem):
    """UMNN-MAF (survey 6.1.2, Eq. 33; Wehenkel and Louppe, 2019).

    An autoregressive flow whose map of each dimension is the integral of a positive, otherwise free network, found by
    Clenshaw and Curtis's rule. A masked network of the dimensions before gives an embedding, which that network sees
    beside the point. The inverse is Newton's, dimension by dimension.
    """

    context: int = option(8, "width of what the integrand sees of the dimensions before", least=1, tune=(2, 32))
    integrand: int = width_option(32, "units of each of its two hidden layers", tune=(8, 128))
    nodes: int = option(16, "of the rule, even", least=2)

    def transform(self) -> Transform:
        return Integral(self.context, self.integrand, self.nodes)
