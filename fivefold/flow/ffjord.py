"""FFJORD: continuous-time flows with free-form dynamics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Bijection, Chain
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.ode import ContinuousFlow, Gradients, Trace
from fivefold.bijections.shape import FactorOut, Flatten, Squeeze
from fivefold.flow._system import FlowSystem
from fivefold.nets.velocity import TimeLayer, Velocity
from fivefold.space import Batch, Space
from fivefold.system import Density, Update, seeded
from fivefold.tools.scaling import averaged_log_prob, dequantise

CONDITION_WIDTH = 16
CHUNK = 2**18  # numbers scored at once by Hutchinson's estimator
MONITORED = 64  # examples
SMALLEST = 4  # the smallest side that multi-scale flows reach


class FFJORD(FlowSystem):
    """FFJORD (survey 6.6; Grathwohl et al., 2019).

    Examples become noise along an ordinary differential equation whose velocity is any smooth network (survey Eq. 41).
    The log-density changes by the trace of the velocity's Jacobian (Eq. 44): Hutchinson's estimate in training, a
    probe for each example and the whole way; exact when scoring up to `exact_dims` dimensions. An adaptive solver
    takes as many evaluations as the tolerance asks, there and back. Flows of vectors come after an actnorm.

    Beyond `exact_dims` the density is an average of unbiased logarithms with a standard error: an estimate, or a
    bound in expectation where a dimension is discrete.

    Args:
        space: of the examples.
        flows: in a row (on multi-scale images: before and after each squeeze).
        layers: hidden layers of each velocity.
        hidden: width of velocities that are fully connected.
        channels: width of convolutional velocities.
        time_layer: how the time enters a layer: concat (one more channel) or concatsquash (a gate and a shift).
        dense_dims: images of up to so many dimensions have fully connected velocities; larger ones are multi-scale
            with convolutions, as all are in the paper (0).
        tolerance: of the solver, absolute and relative, when training and scoring.
        sampling_tolerance: of the solver when sampling.
        gradients: direct (through the solver's steps) or adjoint (a second equation backwards; least memory).
        exact_dims: up to how many dimensions the trace is exact when scoring.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: draws (points in the cell of a discrete example, probes) for each example that is scored.
        temperature: the standard deviation of the noise that samples are made from.
    """

    densities = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    sampling = "iterative"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {
        "temperature": (0.7, 0.85, 1.0),
        "sampling_tolerance": (0.3, 1e-1, 1e-2, 1e-3),
    }
    presets = {
        "default": {"lr": 1e-2, "ema": 0.995, "clip": 5.0, "evaluations": 6},
        "cifar10": {
            "flows": 2, "layers": 3, "channels": 64, "time_layer": "concat", "dense_dims": 0, "tolerance": 1e-5,
            "sampling_tolerance": 1e-5, "gradients": "adjoint", "margin": 0.05, "lr": 1e-3, "batch_size": 900,
        },
        "mnist": {
            "flows": 2, "layers": 3, "channels": 64, "time_layer": "concat", "dense_dims": 0, "tolerance": 1e-5,
            "sampling_tolerance": 1e-5, "gradients": "adjoint", "margin": 1e-6, "lr": 1e-3, "batch_size": 900,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "cifar10": (2_717_764 / 2, "half of a count of the reference implementation with twice the flows (4 in a row)")
    }

    def __init__(
        self,
        space: Space,
        *,
        flows: int = 1,
        layers: int = 2,
        hidden: int = 192,
        channels: int = 32,
        time_layer: TimeLayer = "concatsquash",
        dense_dims: int = 256,
        tolerance: float = 3e-2,
        sampling_tolerance: float = 1e-3,
        gradients: Gradients = "direct",
        exact_dims: int = 64,
        margin: float = 0.003,
        score_samples: int = 4,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature)
        self.flows, self.layers, self.time_layer = flows, layers, time_layer
        self.tolerance, self.sampling_tolerance, self.gradients = tolerance, sampling_tolerance, gradients
        self.trace: Trace = "exact" if space.dims <= exact_dims else "hutchinson"
        if space.kind == "image" and space.dims > dense_dims:
            flow = self._image_flow(space.shape, channels)
        else:
            flow = Chain(Flatten(space.shape), ActNorm(space.dims), *self._in_a_row((space.dims,), hidden))
        self.flow = self._onto_line(flow, margin)
        self.evaluations = 1
        how = "exact trace" if self.trace == "exact" else f"Hutchinson's trace, {score_samples} draws"
        self.density_note = f"{how}, tolerance {tolerance:g}"
        if self.trace == "hutchinson" and self.density is Density.EXACT:
            self.density = Density.ESTIMATE

    def _in_a_row(self, shape: tuple[int, ...], width: int) -> list[Bijection]:
        return [
            ContinuousFlow(
                Velocity(shape, width, self.layers, self.embedding.width, self.time_layer),
                self.tolerance,
                self.trace,
                self.gradients,
            )
            for _ in range(self.flows)
        ]

    def _image_flow(self, shape: tuple[int, ...], width: int) -> Bijection:
        """Flows, and while the sides allow a squeeze, more flows, half of the channels taken out and the next scale."""
        channels, height, w = shape
        here = self._in_a_row(shape, width)
        if height % 2 or w % 2 or min(height, w) < 2 * SMALLEST:
            return Chain(*here, Flatten(shape))
        shape, kept = (4 * channels, height // 2, w // 2), 2 * channels
        rest = self._image_flow((kept, *shape[1:]), width)
        return Chain(*here, Squeeze(), *self._in_a_row(shape, width), FactorOut(shape, kept, rest))

    # --- the equation ---------------------------------------------------------------------------

    def _parts(self) -> list[ContinuousFlow]:
        return [part for part in self.flow.modules() if isinstance(part, ContinuousFlow)]

    def _taken(self) -> int:
        """Evaluations of all velocities in the last solution."""
        return sum(part.evaluations for part in self._parts())

    @contextlib.contextmanager
    def _solving(self, tolerance: float, trace: Trace) -> Iterator[None]:
        parts = self._parts()
        try:
            for part in parts:
                part.tolerance, part.trace = tolerance, trace
            yield
        finally:
            for part in parts:
                part.tolerance, part.trace = self.tolerance, self.trace

    # --- training -------------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        loss = self.loss(batch)
        yield Update(self, loss, {"evaluations": loss.new_tensor(self._taken())})

    def networks(self) -> list[nn.Module]:
        """None: the trace is differentiated twice, and compiled code has no double backward."""
        return []

    # --- density and samples --------------------------------------------------------------------

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.trace == "exact":
            return super()._log_prob(x, condition)
        return averaged_log_prob(self._point_log_prob, x, condition, self.space, self.score_samples, CHUNK)

    @property
    def sample_evaluations(self) -> int:
        """Of all velocities, one after another, in the last draw: the steps adapt."""
        return self.evaluations

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        z = self.temperature * torch.randn(n, self.space.dims, device=self.device)
        return self._back(z, condition, self.sampling_tolerance)

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        with self._solving(self.tolerance, "none"):
            return super()._encode(x, condition)

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return self._back(z, condition, self.tolerance)

    def _back(self, z: Tensor, condition: Tensor | None, tolerance: float) -> Tensor:
        with self._solving(tolerance, "none"):
            x = super()._decode(z, condition)
        self.evaluations = self._taken()
        return x

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Evaluations of the velocities there and back, and what the tolerance does to the log-density, in nats."""
        y, condition = dequantise(batch.x[:MONITORED], self.space), batch.condition
        condition = None if condition is None else condition[:MONITORED]
        values, evaluations = [], []
        for tolerance in (self.tolerance, self.tolerance / 100):
            with self._solving(tolerance, "hutchinson"), seeded(0, y.device):
                values.append(self._point_log_prob(y, condition))
                evaluations.append(self._taken())
        self._sample(MONITORED, condition)
        error = (values[0] - values[1]).square().mean().sqrt().item()
        return {"evaluations": evaluations[0], "evaluations_sampling": self.evaluations, "solver_error": error}
