"""Noise-contrastive estimation: an energy, its normaliser a parameter, that tells data from known noise."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.energy._system import PointSystem
from fivefold.options import slot


class NCE(PointSystem):
    """Noise-contrastive estimation (survey 2.4.2; Gutmann and Hyvärinen, 2010).

    A classifier whose logit is ln p(x) - ln q(x), q a fixed noise law, at best knows p whole: ln Z is a parameter of
    the energy and learnt like any other (survey Eq. 10). There is no chain in training. The noise is a Gaussian with
    the data's mean and covariance; the further it is from the data, the less there is to learn.

    Samples are ends of Metropolis chains whose proposals are the noise, which ask the energy where it was trained;
    `sample_steps` moves them on by its gradient. `log_prob` holds the learnt ln Z, of which nothing says how right it
    is: it counts as unnormalised.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"clip": 10.0}}

    objective: Any = slot("noise-contrast")
    sampler = "hamiltonian"
    sample_steps = 0
    beta1 = 0.9

    @property
    def sample_evaluations(self) -> int:
        """Also of the noise that a sample was chosen among."""
        return super().sample_evaluations + getattr(self.learner, "proposals", 0) + 1
