"""RNODE: FFJORD with straight ways."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.bijections.ode import Gradients
from fivefold.flow._continuous import FreeFormSystem
from fivefold.nets.velocity import TimeLayer
from fivefold.space import Space
from fivefold.system import Density


class RNODE(FreeFormSystem):
    """RNODE (survey 6.6.1; Finlay et al., 2020).

    FFJORD, whose loss also has the kinetic energy of each way, the integral of |f|^2, and the squared Frobenius norm
    of the velocity's Jacobian along it, estimated by the trace's own probe. Both are solved beside the state. The ways
    become nearly straight and of constant speed: training needs few fixed steps, samples few adaptive ones.

    The density is as FFJORD's: it does not depend on the penalties.

    Args:
        space: of the examples.
        kinetic: weight of the kinetic energy, in nats.
        jacobian: weight of the Jacobian's squared norm, in nats.
        steps: of Runge-Kutta's method in training; 0 to adapt them to the tolerance.
        flows: in a row (on multi-scale images: before and after each squeeze).
        layers: hidden layers of each velocity.
        hidden: width of velocities that are fully connected.
        channels: width of convolutional velocities.
        time_layer: how the time enters a layer: concat (one more channel) or concatsquash (a gate and a shift).
        dense_dims: images of up to so many dimensions have fully connected velocities; larger ones are multi-scale
            with convolutions, as all are in the paper (0).
        tolerance: of the adaptive solver, absolute and relative, when scoring.
        sampling_tolerance: of the adaptive solver when sampling.
        gradients: direct (through the solver's steps) or adjoint (a second equation backwards; least memory).
        exact_dims: up to how many dimensions the trace is exact when scoring.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: draws (points in the cell of a discrete example, probes) for each example that is scored.
        temperature: the standard deviation of the noise that samples are made from.
    """

    densities = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    sampling = "iterative"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"lr": 1e-2, "ema": 0.995, "clip": 5.0, "evaluations": 6},
        "cifar10": {
            "flows": 2, "layers": 3, "channels": 64, "time_layer": "concat", "dense_dims": 0, "tolerance": 1e-5,
            "sampling_tolerance": 1e-5, "gradients": "adjoint", "margin": 0.05, "lr": 1e-3, "batch_size": 200,
        },
    }  # fmt: skip

    def __init__(
        self,
        space: Space,
        *,
        kinetic: float = 0.01,
        jacobian: float = 0.01,
        steps: int = 4,
        flows: int = 1,
        layers: int = 2,
        hidden: int = 192,
        channels: int = 32,
        time_layer: TimeLayer = "concatsquash",
        dense_dims: int = 256,
        tolerance: float = 1e-2,
        sampling_tolerance: float = 1e-3,
        gradients: Gradients = "direct",
        exact_dims: int = 64,
        margin: float = 0.003,
        score_samples: int = 4,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(
            space,
            flows=flows,
            layers=layers,
            hidden=hidden,
            channels=channels,
            time_layer=time_layer,
            dense_dims=dense_dims,
            steps=steps,
            tolerance=tolerance,
            sampling_tolerance=sampling_tolerance,
            gradients=gradients,
            exact_dims=exact_dims,
            margin=margin,
            score_samples=score_samples,
            temperature=temperature,
            weights=(kinetic, jacobian),
        )
