"""What continuous-time flows share: how their equations are solved, the costs of the way, evaluations, and shapes."""

from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.ode import ContinuousFlow, Gradients, Trace, measured
from fivefold.bijections.shape import FactorOut, Flatten, Squeeze
from fivefold.flow._system import FlowSystem
from fivefold.nets.velocity import TimeLayer, Velocity
from fivefold.options import fixed, option, width_option
from fivefold.space import Batch
from fivefold.system import Density, Update, seeded
from fivefold.tools.scaling import averaged_log_prob, dequantise

CHUNK = 2**18  # numbers scored at once by Hutchinson's estimator
MONITORED = 64  # examples
SMALLEST = 4  # the smallest side that multi-scale flows reach
Shape = tuple[int, ...]


class Solver(NamedTuple):
    """Equal steps of Runge-Kutta's method; with `steps` 0, the adaptive solver to a tolerance."""

    steps: int = 0
    tolerance: float = 1e-5

    @property
    def note(self) -> str:
        return f"{self.steps} steps" if self.steps else f"tolerance {self.tolerance:g}"


class ContinuousSystem(FlowSystem):
    """Flows with `ContinuousFlow`s among their parts, each equation solved by a solver that fits what is done.

    The loss is minus the log-density, and the costs of the way times `weights`.
    """

    noisy_log: ClassVar[bool] = True
    free_form: ClassVar[bool] = True
    sampling: ClassVar[str] = "iterative"
    condition_width: ClassVar[int] = 16
    costs: ClassVar[tuple[str, str]] = ("kinetic", "jacobian")  # the costs' names

    fill_steps = 20
    lr = 1e-2
    margin = 0.003

    def build(self) -> None:
        self.evaluations = 1
        super().build()
        if self.trace == "hutchinson" and self.density is Density.EXACT:
            self.density = Density.ESTIMATE

    @property
    def density_note(self) -> str:
        """How the trace is found, and the equation solved."""
        how = f"Hutchinson's trace, {self.score_samples} draws" if self.trace == "hutchinson" else "exact trace"
        return f"{how}, {self.scoring_solver.note}"

    @property
    @abstractmethod
    def trace(self) -> Trace:
        """Of the parts when scoring."""

    @property
    @abstractmethod
    def training_solver(self) -> Solver:
        """That of losses."""

    @property
    @abstractmethod
    def scoring_solver(self) -> Solver:
        """That of densities, and of codes and reconstructions."""

    @property
    @abstractmethod
    def sampling_solver(self) -> Solver:
        """That of samples: what the dials say."""

    # --- the equation ---------------------------------------------------------------------------

    def _parts(self) -> list[ContinuousFlow]:
        return [part for part in self.flow.modules() if isinstance(part, ContinuousFlow)]

    def _taken(self) -> int:
        """Evaluations of all velocities in the last solution."""
        return sum(part.evaluations for part in self._parts())

    @contextlib.contextmanager
    def _solving(self, solver: Solver, trace: Trace) -> Iterator[None]:
        """With all parts solved so, then as when scoring."""
        try:
            self._set(solver, trace)
            yield
        finally:
            self._set(self.scoring_solver, self.trace)

    def _set(self, solver: Solver, trace: Trace) -> None:
        for part in self._parts():
            part.steps, part.tolerance, part.trace = solver.steps, solver.tolerance, trace

    # --- training -------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Tensor:
        return self._loss(batch)[0]

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        loss, stats = self._loss(batch)
        yield Update(self, loss, stats)

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and what is logged: evaluations, and the costs of the way before their weights."""
        with self._solving(self.training_solver, self.trace), measured(self._costly()) as ways:
            loss = super().loss(batch)
        stats = {"evaluations": loss.new_tensor(self._taken())}
        if ways:
            costs = torch.stack(ways).sum(0).mean(0)
            loss = loss + costs @ costs.new_tensor(self.weights)
            stats |= dict(zip(self.costs, costs.detach(), strict=True))
        return loss, stats

    @property
    def weights(self) -> tuple[float, float]:
        """Of the two costs of the way in the loss, in nats."""
        return 0.0, 0.0

    def _costly(self) -> list[ContinuousFlow]:
        """The parts whose costs count."""
        return self._parts() if any(self.weights) else []

    def networks(self) -> list[nn.Module]:
        """None: compiled code has no double backward, and no loop of a solver."""
        return []

    @property
    def _limit(self) -> str:
        exact = self.trace != "hutchinson"
        return f"{super()._limit} and of the solver" if exact else "approximate, for the trace is an estimate"

    # --- density and samples --------------------------------------------------------------------

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.trace == "hutchinson":
            return averaged_log_prob(self._point_log_prob, x, condition, self.space, self.score_samples, CHUNK)
        return super()._log_prob(x, condition)

    @property
    def sample_evaluations(self) -> int:
        """Of all velocities, one after another, in the last draw."""
        return self.evaluations

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return self._back(self.temperature * self.noise(n), condition, self.sampling_solver)

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        with self._solving(self.scoring_solver, "none"):
            return super()._encode(x, condition)

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return self._back(z, condition, self.scoring_solver)

    def _back(self, z: Tensor, condition: Tensor | None, solver: Solver) -> Tensor:
        with self._solving(solver, "none"):
            x = super()._decode(z, condition)
        self.evaluations = self._taken()
        return x

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Evaluations of the velocities there and back, and what the solver does to the log-density, in nats."""
        y, condition = dequantise(batch.x[:MONITORED], self.space), batch.condition
        condition = None if condition is None else condition[:MONITORED]
        values, evaluations = [], []
        coarse = self.scoring_solver
        trace: Trace = "closed" if self.trace == "closed" else "hutchinson"
        for solver in (coarse, Solver(4 * coarse.steps, coarse.tolerance / 100)):
            with self._solving(solver, trace), seeded(0, y.device):
                values.append(self._point_log_prob(y, condition))
                evaluations.append(self._taken())
        self._sample(MONITORED, condition)
        error = (values[0] - values[1]).square().mean().sqrt().item()
        return {"evaluations": evaluations[0], "evaluations_sampling": self.evaluations, "solver_error": error}


class AdaptiveSystem(ContinuousSystem):
    """Flows solved to a tolerance, but in training where `steps` says otherwise."""

    dials: ClassVar[dict[str, tuple[float, ...]]] = {
        "temperature": (0.7, 0.85, 1.0),
        "sampling_tolerance": (0.3, 1e-1, 1e-2, 1e-3),
    }
    steps = 0

    tolerance: float = option(3e-2, "of the adaptive solver, absolute and relative, when training and scoring", above=0)
    sampling_tolerance: float = option(1e-3, "of the adaptive solver when sampling", above=0)

    @property
    def training_solver(self) -> Solver:
        return Solver(self.steps, self.tolerance)

    @property
    def scoring_solver(self) -> Solver:
        return Solver(0, self.tolerance)

    @property
    def sampling_solver(self) -> Solver:
        return Solver(0, self.sampling_tolerance)


class FreeFormSystem(AdaptiveSystem):
    """Flows whose velocities are any smooth network, their trace by autograd."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.995}}
    extra = 0  # channels (of convolutional flows) or dimensions that are added

    score_samples = 4
    flows: int = option(1, "in a row (on multi-scale images: before and after each squeeze)", least=1, tune=(1, 4))
    layers: int = option(2, "hidden layers of each velocity", least=1, tune=(1, 4))
    hidden: int = width_option(192, "width of velocities that are fully connected", tune=(32, 512))
    channels: int = width_option(32, "width of convolutional velocities", tune=(16, 128))
    time_layer: TimeLayer = option(
        "concatsquash", "how the time enters a layer: concat (one more channel) or concatsquash (a gate and a shift)"
    )
    dense_dims: int = option(
        256, "images of up to so many dimensions have fully connected velocities; larger ones are multi-scale with "
        "convolutions, as all are in the papers (0)", least=0,
    )  # fmt: skip
    steps: int = option(4, "of Runge-Kutta's method in training; 0 to adapt them to the tolerance", least=0)
    gradients: Gradients = option(
        "direct", "direct (through the solver's steps) or adjoint (a second equation backwards; least memory)"
    )
    exact_dims: int = option(64, "up to how many dimensions the trace is exact when scoring", least=0)

    @property
    def density_note(self) -> str:
        if not self.extra:
            return super().density_note
        what = "dimensions" if self.is_dense else "channels"
        return f"{super().density_note}, {self.score_samples} draws of {self.extra} extra {what}"

    @property
    def trace(self) -> Trace:
        return "exact" if self.noise_dims <= self.exact_dims else "hutchinson"

    @property
    def is_dense(self) -> bool:
        """Whether velocities are fully connected."""
        return self.space.kind != "image" or self.space.dims <= self.dense_dims

    def body(self) -> Layer:
        shape = (self.space.dims,) if self.is_dense else self.space.shape
        whole = (shape[0] + self.extra, *shape[1:])
        self.noise_dims = math.prod(whole)
        wider = self.widen(shape)
        if self.is_dense:
            return Chain(Flatten(self.space.shape), *wider, ActNorm(self.noise_dims), *self._row(whole))
        return Chain(*wider, image_flow(whole, self._row))

    def widen(self, shape: Shape) -> list[Layer]:
        """What adds the `extra` channels or dimensions to `(B, *shape)`."""
        return []

    def _row(self, shape: Shape) -> list[Layer]:
        width = self.hidden if self.is_dense else self.channels
        nets = (Velocity(shape, width, self.layers, self.embedding.width, self.time_layer) for _ in range(self.flows))
        return [ContinuousFlow(net, self.tolerance, self.trace, self.gradients) for net in nets]


class ClosedFormSystem(ContinuousSystem):
    """One flow of vectors after an actnorm, its velocity's trace by a formula."""

    gradients: Gradients = option(
        "direct", "direct (through the solver's steps) or adjoint (memory does not grow with the steps)"
    )

    @property
    def trace(self) -> Trace:
        return "closed"

    @abstractmethod
    def velocity(self, dims: int, condition: int) -> nn.Module:
        """Of vectors of so many dimensions, given a condition of that width."""

    def body(self) -> Layer:
        net, solver = self.velocity(self.space.dims, self.embedding.width), self.scoring_solver
        part = ContinuousFlow(net, solver.tolerance, "closed", self.gradients, solver.steps)
        return Chain(Flatten(self.space.shape), ActNorm(self.space.dims), part)


class PotentialSystem(ClosedFormSystem):
    """A flow along the gradient of a potential, in equal steps of Runge-Kutta's method, differentiated through them."""

    dials: ClassVar[dict[str, tuple[float, ...]]] = {
        "temperature": (0.7, 0.85, 1.0),
        "sampling_steps": (1, 2, 4, 8, 16),
    }
    costs = ("kinetic", "residual")

    gradients = fixed("direct")
    hidden: int = width_option(64, "width of the potential's network", tune=(16, 512))
    layers: int = option(2, "of that network: the first, and residual ones", least=1, tune=(1, 4))
    steps: int = option(4, "of the solver in training", least=1)
    scoring_steps: int = option(8, "of the solver when scoring", least=1)
    sampling_steps: int = option(8, "of the solver when sampling", least=1)

    @property
    def training_solver(self) -> Solver:
        return Solver(self.steps)

    @property
    def scoring_solver(self) -> Solver:
        return Solver(self.scoring_steps)

    @property
    def sampling_solver(self) -> Solver:
        return Solver(self.sampling_steps)


def image_flow(shape: Shape, row: Callable[[Shape], list[Layer]]) -> Layer:
    """Flows, and while the sides allow a squeeze, more flows, half of the channels taken out and the next scale.

    Args:
        shape: (C, H, W).
        row: makes flows in a row of images of a shape.
    """
    channels, height, width = shape
    here = row(shape)
    if height % 2 or width % 2 or min(height, width) < 2 * SMALLEST:
        return Chain(*here, Flatten(shape))
    shape, kept = (4 * channels, height // 2, width // 2), 2 * channels
    rest = image_flow((kept, *shape[1:]), row)
    return Chain(*here, Squeeze(), *row(shape), FactorOut(shape, kept, rest))
