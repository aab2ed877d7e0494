"""A sampler that learns on a system's energy, and draws from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fivefold.energy._samplers import LEARNERS
from fivefold.tools.boxes import Box
from fivefold.tools.mcmc import FIRST, Energy, Move

TAUGHT = 100  # chains that it learns from
NEAR = 1e-4  # to an end of an interval, relative to its width, no state comes


def teach(name: str, energy: Energy, box: Box, start: Tensor) -> Callable[[Tensor, int], Tensor]:
    """States after so many steps from others, by a sampler of `LEARNERS` that has learned on an energy in a box.

    It moves on the line that the box is the image of, where there are no bounds.

    Args:
        name: of the sampler.
        energy: E in nats `(B,)` of states `(B, ...)`.
        box: what they are confined to.
        start: where chains start while it learns.
    """
    on_line = box.energy(energy)
    with torch.enable_grad():
        learned = LEARNERS[name](on_line, box.line(start, NEAR))

    def draw(x: Tensor, steps: int) -> Tensor:
        move = Move(FIRST, warm_up=steps)
        return box.inside(learned.sample(on_line, box.line(x, NEAR), steps, move).state)

    return draw
