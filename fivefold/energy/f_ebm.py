"""Energies trained by f-divergences."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.energy._system import PointSystem
from fivefold.options import slot


class FEBM(PointSystem):
    """f-EBM (survey 2.5; Yu et al., 2020).

    Contrastive divergence follows one divergence between data and energy, Kullback's and Leibler's. Any f-divergence
    has a variational form that knows the energy, though not its normaliser: a critic learns what the logarithm of the
    ratio of both laws lacks beside the energy, and the energy goes down the divergence that this shows. Chains persist
    as they do in contrastive divergence; the choice of f says what is punished, missed modes or stray samples.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"clip": 10.0}}

    objective: Any = slot("f-divergence", restart="data")
    reference = 1.0
