"""Deep energy estimator networks: an energy whose gradient removes noise."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fivefold.energy._objectives import DenoisingScoreMatching
from fivefold.energy._system import FOLLOWED, PointSystem
from fivefold.options import Need, option, slot
from fivefold.tools.mcmc import energy_gradient
from fivefold.tools.scaling import uncentre


class DEEN(PointSystem):
    """Deep energy estimator network (survey 2.3; Saremi et al., 2018; sampled as by Saremi and Hyvärinen, 2019).

    Denoising score matching (survey Eq. 7) with noise of one strength, where the score is the gradient of an energy
    and so has no curl. The energy is that of the *noisy* law. Samples walk there by Langevin dynamics, which noise
    makes smooth, and then jump: x - deviation^2 dE/dx is the mean of the clean examples at a noisy point (Miyasawa,
    1961).
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"clip": 10.0}}

    objective: Any = option(
        slot("denoising-score-matching", deviation=0.3), "what the energy learns by",
        needs=Need("removing noise", parts={"denoising-score-matching": DenoisingScoreMatching}, systems=False),
    )  # fmt: skip
    learner: DenoisingScoreMatching
    sampler = "hamiltonian"
    sample_steps = 50
    beta1 = 0.9

    def jump(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """E of the clean examples at noisy points, centred."""
        slope = energy_gradient(lambda y: self.nats(y, condition))(x)
        return torch.clamp(x - self.learner.deviation**2 * slope, -self.reach, self.reach)

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        walked = self.run(self.sample_start(n, condition), condition, self.sample_steps, keep=FOLLOWED)
        return uncentre(self.jump(walked, condition), self.space)
