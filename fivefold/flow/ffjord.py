"""FFJORD: continuous-time flows with free-form dynamics."""

from __future__ import annotations

from typing import ClassVar

from fivefold.bijections.ode import Gradients
from fivefold.flow._continuous import FreeFormSystem
from fivefold.nets.velocity import TimeLayer
from fivefold.space import Space
from fivefold.system import Density


class FFJORD(FreeFormSystem):
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
        super().__init__(
            space,
            flows=flows,
            layers=layers,
            hidden=hidden,
            channels=channels,
            time_layer=time_layer,
            dense_dims=dense_dims,
            steps=0,
            tolerance=tolerance,
            sampling_tolerance=sampling_tolerance,
            gradients=gradients,
            exact_dims=exact_dims,
            margin=margin,
            score_samples=score_samples,
            temperature=temperature,
        )
