"""What flows share whose way back is an iteration to a tolerance."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from fivefold.flow._system import FlowSystem
from fivefold.options import option
from fivefold.space import Batch
from fivefold.tools.scaling import midpoint


class InvertedFlowSystem(FlowSystem):
    """Flows that are inverted by iteration; densities, which go forward, do not depend on its tolerance."""

    sampling: ClassVar[str] = "iterative"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {
        "temperature": (0.7, 0.85, 1.0),
        "tolerance": (0.3, 1e-1, 1e-2, 1e-4, 1e-6),
    }

    tolerance: float = option(1e-6, "of the last step to an inverse, relative to 1 + |x|", above=0)

    @abstractmethod
    def invert_to(self, tolerance: float) -> None:
        """Have every part's iteration end at this tolerance."""

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        self.invert_to(self.tolerance)
        return super()._decode(z, condition)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """How far the inverse of the forward map ends from where it began, and the evaluations it took."""
        self.invert_to(self.tolerance)
        embedded = self.embedding(batch.condition)
        y = midpoint(batch.x, self.space)
        back, _ = self.flow.inverse(self.flow(y, embedded)[0], embedded)
        return {"inverse_error": (back - y).abs().max().item(), "inverse_steps": float(self.sample_evaluations)}
