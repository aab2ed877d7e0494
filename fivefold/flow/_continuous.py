"""What continuous-time flows share: how their equations are solved, the costs of the way, evaluations, and shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Bijection, Chain, Layer
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.ode import ContinuousFlow, Gradients, Trace, measured
from fivefold.bijections.shape import FactorOut, Flatten, Squeeze
from fivefold.flow._system import FlowSystem
from fivefold.nets.potential import PotentialVelocity
from fivefold.nets.velocity import TimeLayer, Velocity
from fivefold.space import Batch, Space
from fivefold.system import Density, Update, seeded
from fivefold.tools.scaling import averaged_log_prob, dequantise

CONDITION_WIDTH = 16
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

    The loss is minus the log-density, and the costs of the way times `weights`. Subclasses set `flow`.

    Args:
        space: of the examples.
        trace: of the parts when scoring: exact, hutchinson or closed.
        training: the solver.
        scoring: the solver, and that of codes and reconstructions.
        score_samples: draws for each example that is scored.
        temperature: the standard deviation of the noise that samples are made from.
        weights: of the two costs of the way in the loss (see `bijections.ode.measured`).
    """

    costs: ClassVar[tuple[str, str]] = ("kinetic", "jacobian")  # the costs' names

    def __init__(
        self,
        space: Space,
        trace: Trace,
        training: Solver,
        scoring: Solver,
        score_samples: int,
        temperature: float,
        weights: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature)
        self.trace, self.training_solver, self.scoring_solver, self.weights = trace, training, scoring, weights
        self.evaluations = 1
        how = f"Hutchinson's trace, {score_samples} draws" if trace == "hutchinson" else "exact trace"
        self.density_note = f"{how}, {scoring.note}"
        if trace == "hutchinson" and self.density is Density.EXACT:
            self.density = Density.ESTIMATE

    @property
    def sampling_solver(self) -> Solver:
        """That of samples: what the dials say."""
        return self.scoring_solver

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

    def _costly(self) -> list[ContinuousFlow]:
        """The parts whose costs count."""
        return self._parts() if any(self.weights) else []

    def networks(self) -> list[nn.Module]:
        """None: compiled code has no double backward, and no loop of a solver."""
        return []

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
        z = self.temperature * torch.randn(n, self.noise_dims, device=self.device)
        return self._back(z, condition, self.sampling_solver)

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


class FreeFormSystem(ContinuousSystem):
    """Flows whose velocities are any smooth network, their trace by autograd.

    Args:
        space: of the examples.
        flows: in a row (on multi-scale images: before and after each squeeze).
        layers: hidden layers of each velocity.
        hidden: width of velocities that are fully connected.
        channels: width of convolutional velocities.
        time_layer: how the time enters a layer.
        dense_dims: images of up to so many dimensions have fully connected velocities.
        steps: of the solver in training; 0 to adapt them.
        tolerance: of the solver when training (without steps) and scoring.
        sampling_tolerance: of the solver when sampling.
        gradients: direct or adjoint.
        exact_dims: up to how many dimensions the trace is exact when scoring.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: draws for each example that is scored.
        temperature: the standard deviation of the noise that samples are made from.
        weights: of the two costs of the way in the loss.
        extra: channels (of convolutional flows) or dimensions that `augment` adds.
        augment: makes the layer that adds them, from the shape of an example.
    """

    dials: ClassVar[dict[str, tuple[float, ...]]] = {
        "temperature": (0.7, 0.85, 1.0),
        "sampling_tolerance": (0.3, 1e-1, 1e-2, 1e-3),
    }

    def __init__(
        self,
        space: Space,
        flows: int,
        layers: int,
        hidden: int,
        channels: int,
        time_layer: TimeLayer,
        dense_dims: int,
        steps: int,
        tolerance: float,
        sampling_tolerance: float,
        gradients: Gradients,
        exact_dims: int,
        margin: float,
        score_samples: int,
        temperature: float,
        weights: tuple[float, float] = (0.0, 0.0),
        extra: int = 0,
        augment: Callable[[Shape, int], Layer] | None = None,
    ) -> None:
        is_dense = space.kind != "image" or space.dims <= dense_dims
        shape = (space.dims,) if is_dense else space.shape
        whole = (shape[0] + extra, *shape[1:])
        noise_dims = torch.Size(whole).numel()
        trace: Trace = "exact" if noise_dims <= exact_dims else "hutchinson"
        solvers = Solver(steps, tolerance), Solver(0, tolerance)
        super().__init__(space, trace, *solvers, score_samples, temperature, weights)
        self.noise_dims, self.sampling_tolerance = noise_dims, sampling_tolerance

        def row(shape: Shape) -> list[Bijection]:
            width = hidden if is_dense else channels
            nets = (Velocity(shape, width, layers, self.embedding.width, time_layer) for _ in range(flows))
            return [ContinuousFlow(net, tolerance, trace, gradients) for net in nets]

        wider = [] if augment is None else [augment(shape, extra)]
        flat = [Flatten(space.shape)] if is_dense else []
        inner = [ActNorm(noise_dims), *row(whole)] if is_dense else [image_flow(whole, row)]
        self.flow = self._onto_line(Chain(*flat, *wider, *inner), margin)

    @property
    def sampling_solver(self) -> Solver:
        return Solver(0, self.sampling_tolerance)


class ClosedFormSystem(ContinuousSystem):
    """One flow of vectors after an actnorm, its velocity's trace by a formula.

    Args:
        space: of the examples.
        velocity: makes it, from the number of dimensions and the width of a condition.
        training: the solver.
        scoring: the solver, and that of codes and reconstructions.
        gradients: direct or adjoint.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: points in each cell of a discrete example that is scored.
        temperature: the standard deviation of the noise that samples are made from.
        weights: of the two costs of the way in the loss.
    """

    def __init__(
        self,
        space: Space,
        velocity: Callable[[int, int], nn.Module],
        training: Solver,
        scoring: Solver,
        gradients: Gradients,
        margin: float,
        score_samples: int,
        temperature: float,
        weights: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__(space, "closed", training, scoring, score_samples, temperature, weights)
        net = velocity(space.dims, self.embedding.width)
        part = ContinuousFlow(net, scoring.tolerance, "closed", gradients, scoring.steps)
        self.flow = self._onto_line(Chain(Flatten(space.shape), ActNorm(space.dims), part), margin)


class PotentialSystem(ClosedFormSystem):
    """A flow along the gradient of a potential, in equal steps of Runge-Kutta's method, differentiated through them.

    Args:
        space: of the examples.
        velocity: makes it, from the number of dimensions and the width of a condition.
        steps: of the solver in training.
        scoring_steps: of the solver when scoring.
        sampling_steps: of the solver when sampling.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: points in each cell of a discrete example that is scored.
        temperature: the standard deviation of the noise that samples are made from.
        transport: weight in the loss of the transport cost, the integral of |dx/dt|^2 / 2.
        residual: weight in the loss of the Hamilton-Jacobi residual (see `PotentialVelocity`), integrated.
    """

    dials: ClassVar[dict[str, tuple[float, ...]]] = {
        "temperature": (0.7, 0.85, 1.0),
        "sampling_steps": (1, 2, 4, 8, 16),
    }
    costs = ("kinetic", "residual")

    def __init__(
        self,
        space: Space,
        velocity: Callable[[int, int], PotentialVelocity],
        steps: int,
        scoring_steps: int,
        sampling_steps: int,
        margin: float,
        score_samples: int,
        temperature: float,
        transport: float = 0.0,
        residual: float = 0.0,
    ) -> None:
        super().__init__(
            space,
            velocity,
            training=Solver(steps),
            scoring=Solver(scoring_steps),
            gradients="direct",
            margin=margin,
            score_samples=score_samples,
            temperature=temperature,
            weights=(transport / 2, residual),
        )
        self.sampling_steps = sampling_steps

    @property
    def sampling_solver(self) -> Solver:
        return Solver(self.sampling_steps)


def image_flow(shape: Shape, row: Callable[[Shape], list[Bijection]]) -> Bijection:
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
