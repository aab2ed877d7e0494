"""Implicit generation and generalisation in energy-based models."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from fivefold.energy._system import PointSystem
from fivefold.nets.norm import spectral_norm
from fivefold.options import option
from fivefold.system import Batch


class IGEBM(PointSystem):
    """Implicit generation with an energy model (survey 2.2; Du and Mordatch, 2019).

    A spectrally normalised residual network f learns by contrastive divergence: its value falls on
    data and rises where Langevin chains (survey Eq. 4) end. The chains persist in a replay buffer from
    one step to the next. With noise of variance `noise`^2 beside a drift of `step_size` / 2 df/dx they
    follow p(x) = exp(-E(x)) / Z with E = f step_size / noise^2, and that E is the density's energy,
    Z unknown; clamping the gradient and stopping early make it approximate.

    It works on centred examples: discrete dimensions in [-1, 1], with noise of up to half a level on
    the data; categories are taken in their order.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # Unconditional; the paper's step of 10, noise of 0.005 and clamp of 0.01 are of images in [0, 1].
        "cifar10": {
            "width": 128, "depth": 3, "objective.chain_steps": 60, "step_size": 80.0, "noise": 0.01, "clamp": 0.005,
            "objective.buffer_size": 10_000, "regularisation": 1.0, "batch_size": 128, "lr": 1e-4, "ema": 0.0,
        },
        "imagenet32": {
            "width": 256, "depth": 3, "objective.chain_steps": 60, "step_size": 80.0, "noise": 0.01, "clamp": 0.005,
            "objective.buffer_size": 10_000, "regularisation": 1.0, "batch_size": 32, "lr": 1e-4, "ema": 0.0,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "cifar10": (18_606_727, "the authors' program, unconditional: its weights, counted from their shapes")
    }

    moves: ClassVar[dict[str, tuple[float, float, float]]] = {"image": (20.0, 0.03, 0.01), "table": (1.0, 0.1, 1.0)}

    regularisation: float = option(0.1, "weight of E_data^2 + E_chains^2, which keeps f near 0", least=0)

    def make_energy(self) -> nn.Module:
        return self.energy_net(spectral_norm)

    def held(self, on_data: Tensor, on_chains: Tensor) -> Tensor:
        """Both values near 0."""
        return self.regularisation * ((on_data**2).mean() + (on_chains**2).mean())

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Also how much of the chains lies on the border of the box."""
        found, buffer = super().monitor(batch), getattr(self.learner, "buffer", None)
        if buffer is None or not (buffer.ages > 0).any():
            return found
        chains = buffer.chains[buffer.ages > 0]
        return {**found, "saturated": (chains.abs() >= self.reach).float().mean().item()}
