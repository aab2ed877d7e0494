"""Masked autoregressive flow."""

from __future__ import annotations

from fivefold.bijections.transforms import Affine, Transform
from fivefold.flow._autoregressive import AutoregressiveFlowSystem


class MAFFlow(AutoregressiveFlowSystem):
    """MAF (survey 6.1.3; Papamakarios et al., 2017).

    Each dimension is scaled and shifted by functions of those before it, all at once by a masked network; layers in
    alternating orders. A density takes one pass, a sample is made dimension by dimension (each unit of the networks
    computed once).
    """

    presets = {
        "small": {"weight_decay": 10.0, "hidden": 64},  # tables of a few hundred rows
        # The paper's section 4.3, MAF (10), without its batch normalisation.
        "cifar10": {"layers": 10, "hidden": 2048, "lr": 1e-4, "batch_size": 100},
    }

    layers = 5

    def transform(self) -> Transform:
        return Affine()
