"""MintNet: masked convolutions with known diagonals, inverted by Newton's method."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.bijections.base import Bijection, Chain
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.masked_convolution import MintLayer, mint_pair
from fivefold.bijections.shape import Flatten, Shape, Squeeze
from fivefold.flow._glow import CONDITION_WIDTH
from fivefold.flow._system import FlowSystem
from fivefold.space import Batch, Space
from fivefold.system import Density
from fivefold.tools.scaling import midpoint


class MintNet(FlowSystem):
    """MintNet (survey 6.2; Song et al., 2019).

    Networks of masked convolutions whose Jacobians are triangular with a positive diagonal, in pairs of opposite
    orders: no couplings, and nothing is factored out. The log-determinant is exact; the inverse is Newton's method
    with the diagonal alone, all numbers at once, which triangular maps bring to an end.

    Args:
        space: of the examples.
        layers: pairs at each resolution.
        scales: the most resolutions; fewer where a side becomes odd.
        hidden: features within a layer, in all its channels.
        tolerance: of a step of the inverse's iteration, relative to 1 + |x|.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND}
    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "iterative"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {
        "temperature": (0.7, 0.85, 1.0),
        "tolerance": (0.3, 1e-1, 1e-2, 1e-4, 1e-6),
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.99, "clip": 5.0, "evaluations": 1},
        "cifar10": {
            "layers": 7, "scales": 3, "hidden": 255, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.0, "ema": 0.0,
        },
        "imagenet32": {
            "layers": 7, "scales": 3, "hidden": 255, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.0, "ema": 0.0,
        },
    }  # fmt: skip

    def __init__(
        self,
        space: Space,
        *,
        layers: int = 3,
        scales: int = 3,
        hidden: int = 48,
        tolerance: float = 1e-6,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature)
        self.layers, self.hidden = layers, hidden
        flow = Chain(ActNorm(space.shape[0]), self._resolution(space.shape, scales))
        self.flow = self._onto_line(flow, margin)
        self.tolerance = tolerance

    def _resolution(self, shape: Shape, scales: int) -> Bijection:
        channels, height, width = shape
        pairs = [mint_pair(shape, self.hidden, self.embedding.width) for _ in range(self.layers)]
        if scales <= 1 or height % 2 or width % 2:
            return Chain(*pairs, Flatten(shape))
        return Chain(*pairs, Squeeze(), self._resolution((4 * channels, height // 2, width // 2), scales - 1))

    @property
    def tolerance(self) -> float:
        """Of a step of every inverse's iteration; densities, which go forward alone, do not depend on it."""
        return self._mint_layers()[0].tolerance

    @tolerance.setter
    def tolerance(self, value: float) -> None:
        for layer in self._mint_layers():
            layer.tolerance = value

    @property
    def sample_evaluations(self) -> int:
        """Evaluations of all layers for the last draw, one after another."""
        return max(sum(layer.steps for layer in self._mint_layers()), 1)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """How far the inverse of the forward map ends from where it began, and the evaluations it took."""
        embedded = self.embedding(batch.condition)
        y = midpoint(batch.x, self.space)
        back, _ = self.flow.inverse(self.flow(y, embedded)[0], embedded)
        return {"inverse_error": (back - y).abs().max().item(), "inverse_steps": float(self.sample_evaluations)}

    def _mint_layers(self) -> list[MintLayer]:
        return [part for part in self.flow.modules() if isinstance(part, MintLayer)]
