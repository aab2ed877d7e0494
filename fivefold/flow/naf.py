"""Neural autoregressive flow."""

from __future__ import annotations

from fivefold.bijections.monotone import DeepSigmoid
from fivefold.bijections.transforms import Transform
from fivefold.flow._autoregressive import AutoregressiveFlowSystem
from fivefold.options import option


class NAF(AutoregressiveFlowSystem):
    """NAF (survey 6.1.3; Huang et al., 2018).

    An autoregressive flow whose map of each dimension is itself a network, monotone since its weights are positive
    (deep dense sigmoidal flow); a masked network of the dimensions before gives those weights. The inverse is
    Newton's, dimension by dimension.
    """

    units: int = option(4, "of a layer of the monotone networks", least=1, tune=(2, 16))
    depth: int = option(2, "layers of the monotone networks", least=1, tune=(1, 4))

    def transform(self) -> Transform:
        return DeepSigmoid(self.units, self.depth)
