"""Short-run energies: a fixed number of Langevin steps from noise as a generator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from fivefold.energy._system import PointSystem, twice
from fivefold.nets.norm import frozen
from fivefold.options import fixed, option
from fivefold.system import Batch, Density, LatentSystem, Update
from fivefold.tools.matching import score_of

INFERENCE_RATE = 0.1  # of Adam, when the noise of an example is looked for


class ShortRunEBM(PointSystem, LatentSystem):
    """Short-run energy (survey 2.2; Nijkamp et al., 2019).

    Chains of a fixed number of Langevin steps start from uniform noise, in training and in sampling alike. They do not
    mix, and need not: the energy is trained so that just those steps end at the data. What is learnt is less a density
    than a flow from noise to examples, and where an example comes from is its code: without the steps' noise the chain
    is a function, which interpolates, and reconstructs by a search for the noise that ends nearest.

    The energy's own law is another one than that of such samples, so there is no density.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.NONE, "table": Density.NONE}
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"clip": 10.0}}

    objective: Any = fixed(None)
    sample_steps = 30
    # on images mostly drift: as many steps of the usual noise would not leave where they start
    moves: ClassVar[dict[str, tuple[float, float, float]]] = {
        "image": (0.1, 0.01, math.inf), "table": (0.1, 0.0, math.inf),
    }  # fmt: skip

    inference_steps: int = option(30, "steps of the search for an example's code", least=1)

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        """Contrastive divergence with just the chains that samples take."""
        ends = self.run(self.fresh(len(batch.x)), batch.condition, self.sample_steps)
        yield self.contrast(self.data(batch.x), ends, twice(batch.condition))

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return self.leave(self.flow(z, condition))

    def flow(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Where the chains end without the noise of their steps; differentiable where gradients are enabled."""
        move = self.move()
        drift = score_of(lambda y: self.potential(y, condition))
        for _ in range(self.sample_steps):
            x = x + move.step_size / 2 * drift(x).clamp(-move.clamp, move.clamp)
            x = torch.clamp(x, -self.reach, self.reach)
        return x

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The noise whose chain ends nearest: gradient descent through all its steps."""
        target = self.enter(x)
        with torch.enable_grad(), frozen(self):
            z = self.fresh(len(x)).requires_grad_()
            search = torch.optim.Adam([z], INFERENCE_RATE)
            for _ in range(self.inference_steps):
                gap = (self.flow(z, condition) - target).square().sum()
                (z.grad,) = torch.autograd.grad(gap, z)
                search.step()
        return z.detach()
