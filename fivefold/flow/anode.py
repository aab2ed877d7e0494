"""Augmented neural ODE: a continuous flow with further dimensions to move through."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from fivefold.bijections.laws import FlowLaw
from fivefold.bijections.ode import Gradients
from fivefold.bijections.surjections import augment
from fivefold.flow._continuous import CHUNK, FreeFormSystem
from fivefold.nets.velocity import TimeLayer
from fivefold.space import Space
from fivefold.system import Density
from fivefold.tools.scaling import averaged_log_prob, dequantise, dequantise_log_det, log_mean_exp


class ANODE(FreeFormSystem):
    """Augmented neural ODE (survey 6.6; Dupont et al., 2019).

    Ways of an ordinary differential equation cannot cross, so a flow of x keeps the topology of its noise. With further
    dimensions a they can pass one another: the velocity moves (x, a), and the noise has the dimensions of both. Samples
    leave a out.

    The density is a lower bound. The flow is one of (x, a), and a starts as standard normal noise with density q, as in
    augmented normalizing flows (survey 6.4): ln p(x) >= E[ln p(x, a) - ln q(a)] (survey Eq. 39), p(x) being that of
    samples. Scores tighten it by a mean of p(x, a) / q(a) over draws; beyond `exact_dims` dimensions they average
    logarithms. (The paper, which has no density, starts a at 0; so do `encode` and `reconstruct` here.)

    Args:
        space: of the examples.
        extra: dimensions that are added; channels, where the velocities are convolutions.
        flows: in a row (on multi-scale images: before and after each squeeze).
        layers: hidden layers of each velocity.
        hidden: width of velocities that are fully connected.
        channels: width of convolutional velocities.
        time_layer: how the time enters a layer: concat (one more channel) or concatsquash (a gate and a shift).
        dense_dims: images of up to so many dimensions have fully connected velocities; larger ones are multi-scale
            with convolutions.
        tolerance: of the solver, absolute and relative, when training and scoring.
        sampling_tolerance: of the solver when sampling.
        gradients: direct (through the solver's steps) or adjoint (a second equation backwards; least memory).
        exact_dims: up to how many dimensions, the further ones counted, the trace is exact when scoring.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: draws (of a, of points in the cell of a discrete example, of probes) when scoring.
        temperature: the standard deviation of the noise that samples are made from.
    """

    densities = {"image": Density.LOWER_BOUND, "table": Density.LOWER_BOUND}
    sampling = "iterative"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"lr": 1e-2, "ema": 0.995, "clip": 5.0, "evaluations": 6}
    }

    def __init__(
        self,
        space: Space,
        *,
        extra: int = 5,
        flows: int = 1,
        layers: int = 2,
        hidden: int = 192,
        channels: int = 32,
        time_layer: TimeLayer = "concatsquash",
        dense_dims: int = 256,
        tolerance: float = 3e-2,
        sampling_tolerance: float = 1e-3,
        gradients: Gradients = "direct",
        exact_dims: int = 72,
        margin: float = 0.003,
        score_samples: int = 4,
        temperature: float = 1.0,
    ) -> None:
        if extra < 1:
            raise ValueError(f"an augmented flow needs at least 1 extra dimension, got {extra}; ffjord has none")
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
            extra=extra,
            augment=lambda shape, extra: augment(shape[0], FlowLaw(extra)),
        )
        self.density = Density.LOWER_BOUND
        self.density_note += f", {score_samples} draws of {extra} extra " + (
            "dimensions" if self.noise_dims == space.dims + extra else "channels"
        )

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.trace == "hutchinson":
            return averaged_log_prob(self._point_log_prob, x, condition, self.space, self.score_samples, CHUNK)
        y = dequantise(x.repeat(self.score_samples, *[1] * (x.dim() - 1)), self.space)
        condition = None if condition is None else condition.repeat(self.score_samples, *[1] * (condition.dim() - 1))
        values = self._point_log_prob(y, condition).view(self.score_samples, -1)
        return log_mean_exp(values + dequantise_log_det(self.space))

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        (noise,) = (part for part in self.flow.modules() if isinstance(part, FlowLaw))
        noise.still = True
        try:
            return super()._encode(x, condition)
        finally:
            noise.still = False
