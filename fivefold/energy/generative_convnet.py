"""Generative ConvNets: an energy that tilts a Gaussian, its chains started at the data."""

from __future__ import annotations

from typing import Any

from fivefold.energy._system import PointSystem
from fivefold.options import slot


class GenerativeConvNet(PointSystem):
    """Generative ConvNet (survey 2.2; Xie et al., 2016).

    p(x) is a Gaussian, the reference law, tilted by exp(-E) of a convolutional network. It learns by contrastive
    divergence whose Langevin chains start at the batch of data: what short chains change of it is unlearnt.

    Samples go on from where chains of training ended, which are not far from data that they started at.
    """

    objective: Any = slot("contrastive-divergence", chain_start="data", chain_steps=20)
    reference = 1.0
