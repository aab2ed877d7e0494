"""Energies trained by Stein's discrepancy."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.energy._system import PointSystem
from fivefold.options import slot


class SteinEBM(PointSystem):
    """Learned Stein discrepancy (survey 2.5; Grathwohl et al., 2020).

    For every vector field f the mean of s(x) f(x) + tr df/dx over the law whose score is s is 0 (Stein's identity). A
    critic looks for the field that shows most plainly that the data are not of the energy's law, and the energy makes
    that little. No sample of the model is drawn, and no second derivative of the energy is taken.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"clip": 10.0}}

    objective: Any = slot("stein")
    sampler = "hamiltonian"
    sample_steps = 50
    beta1 = 0.5
