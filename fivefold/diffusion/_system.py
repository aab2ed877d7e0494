"""The base of diffusion: a forward law, what a network predicts of it, which times are trained, how it is run back."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fivefold.errors import Unfit
from fivefold.nets.unet import TimedMLP
from fivefold.options import depth_option, option, width_option
from fivefold.space import Space
from fivefold.system import Batch, Density, LatentSystem
from fivefold.tools.diffusion import quantile, rows, spread
from fivefold.tools.paths import bound_costs, cheapest_path
from fivefold.tools.scaling import centre, dequantise, midpoint, quantise, uncentre
from fivefold.tools.schedule import warm_cosine
from fivefold.tools.sde import (
    PREDICTIONS,
    SAMPLERS,
    SDE,
    STEPS,
    WEIGHTINGS,
    Denoiser,
    Moment,
    Plan,
    filled_in,
    probability_flow,
)

BINS = 100  # of time, in which errors are remembered
MEMORY = 0.99  # of an error, an example later
CANDIDATES = 200  # times of which a path is made
CORRECTIONS = 5  # when filling in: Langevin steps at each time


class Dequantised:
    """For diffusions of levels that are dequantised: they start anywhere in the cell of a level."""

    space: Space

    def start(self, x: Tensor) -> Tensor:
        return dequantise(x, self.space)

    def enter(self, x: Tensor) -> Tensor:
        return midpoint(x, self.space)

    def leave(self, y: Tensor) -> Tensor:
        return quantise(y, self.space)


class DiffusionSystem(LatentSystem):
    """Base of systems that learn to remove noise (survey 2.3).

    A leaf gives the law of the noise, `equation`, and the network, `image_net`; everything else is a choice by name
    from a table: what the network predicts (`PREDICTIONS`), how the times weigh (`WEIGHTINGS`), the sampler
    (`SAMPLERS`, any on whatever was trained). Codes are those of the probability flow.
    """

    points: ClassVar[bool] = True
    noisy_log: ClassVar[bool] = True
    densities: ClassVar[dict[str, Density]] = {"image": Density.NONE, "table": Density.NONE}
    sampling: ClassVar[str] = "iterative"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sampling_steps": (5, 10, 20, 50)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.999, "clip": 1.0}}

    limit: Tensor
    share: Tensor
    errors: Tensor

    prediction: str = option(
        "velocity", "of the noise in an example: by what the network's output gives it", choices=tuple(PREDICTIONS)
    )
    weighting: str = option(
        "simple", "of times: all alike, or as they weigh in a bound on the likelihood", choices=tuple(WEIGHTINGS),
    )  # fmt: skip
    sampler: str = option("predictor-corrector", "how noise is turned into samples", choices=tuple(SAMPLERS))
    sampling_steps: int = option(
        40, "of all samplers but probability-flow and adaptive-sde, whose steps adapt", least=1
    )
    spacing: Literal["even", "dp-timesteps"] = option(
        "even", "of the steps: even in time, or at the times that make the bound of so many steps best, by dynamic "
        "programming over the errors met in training",
    )  # fmt: skip
    eta: float = option(
        -1.0,
        "noise of ddim: 0 is deterministic, 1 ancestral; below 0 the usual one: 1 of tables, whose rare categories few "
        "steps without noise lose, else 0",
        least=-1,
        most=1,
    )
    corrections: int = option(
        1, "Langevin steps after each of predictor-corrector's, or at each noise of annealed-langevin", least=0
    )
    signal_to_noise: float = option(0.16, "of predictor-corrector's Langevin steps: their size", least=0)
    stride: float = option(1.0, "of annealed-langevin's steps, in units of the noise's variance", above=0, below=4)
    tolerance: float = option(
        1e-2, "of probability-flow's and adaptive-sde's steps and of codes, absolute and relative", above=0
    )
    channels: int = width_option(24, "of the network at full resolution (images)", tune=(8, 128))
    blocks: int = depth_option(1, "residual blocks at each resolution (images)", tune=(1, 8))
    attention: int = option(
        0, "resolution at which all positions attend to each other, as at the lowest; 0 for no other (images)", least=0
    )
    dropout: float = option(0.0, "in residual blocks (images)", least=0, below=1, tune=(0.0, 0.5))
    hidden: int = width_option(128, "width of the network (tables)", tune=(16, 512))
    layers: int = depth_option(3, "residual layers of the network (tables)", tune=(1, 16))

    equation: SDE
    first: float  # the time at which data begin
    trained: Tensor  # times `(T,)` that are trained, float64

    def build(self) -> None:
        super().build()
        limit = torch.tensor([math.inf if levels is None else 1.0 for levels in self.space.dim_levels])
        self.register_buffer("limit", limit.view(self.space.shape), persistent=False)
        self.register_buffer("trained", self.set_up(), persistent=False)
        self.register_buffer("share", self.weights().cumsum(0), persistent=False)
        self.register_buffer("errors", torch.ones(BINS))  # squared, of the unit noise, by time
        image = self.space.kind == "image"
        self.net: nn.Module = self.image_net() if image else self.table_net()
        self.evaluations = 1
        self.eta = float(not image) if self.eta < 0 else self.eta

    # --- what a leaf writes -----------------------------------------------------------------------

    def set_up(self) -> Tensor:
        """Set `equation` and `first`, before any network is built; gives the times that are trained, float64."""
        raise NotImplementedError

    def image_net(self) -> nn.Module:
        """From images `(B, C, H, W)` of unit variance, times `(B,)` and a condition to maps of the images' shape."""
        raise NotImplementedError

    def table_net(self) -> nn.Module:
        """The same of tables `(B, D)`."""
        return TimedMLP(self.space, self.hidden, self.layers)

    def weights(self) -> Tensor:
        """How often each of the `trained` times is trained: as it weighs in the loss of the unit noise."""
        return WEIGHTINGS[self.weighting](self.equation, self.trained)

    def times(self, n: int) -> Tensor:
        """Times `(n,)` to train at, in the proportion of their weights; spread, so that the loss varies less."""
        drawn = quantile(self.share, spread(n, self.device).double())
        return self.trained[drawn].float()

    def clock(self, at: Moment) -> Tensor:
        """The time as the network takes it."""
        return at.t

    def enter(self, x: Tensor) -> Tensor:
        """The point of encoded examples at which the diffusion starts, on [-1, 1] where they are discrete."""
        return centre(x, self.space)

    def leave(self, y: Tensor) -> Tensor:
        """The encoded examples that are there or next to it."""
        return uncentre(y, self.space)

    def start(self, x: Tensor) -> Tensor:
        """Where the diffusion of an example in training starts; it may be drawn."""
        return self.enter(x)

    # --- training ---------------------------------------------------------------------------------

    def learning_rate(self, progress: float) -> float:
        """Warm-up over the first hundredth, then a cosine to a twentieth."""
        return warm_cosine(progress, floor=0.05)

    def loss(self, batch: Batch) -> Tensor:
        """Denoising score matching as the squared error of the unit noise (Ho et al. Eq. 14; Song et al. Eq. 7)."""
        x = self.start(batch.x)
        at, noise = self.equation.at(self.times(len(x))), torch.randn_like(x)
        errors = (noise - self.noise(at.diffuse(x, noise), at, batch.condition)).square().flatten(1).mean(1)
        self.remember(at.t, errors.detach())
        return errors.mean()

    def remember(self, t: Tensor, errors: Tensor) -> None:
        """Follow the errors `(B,)` met at times `(B,)`, by bins of time."""
        place = (t * BINS).long().clamp(max=BINS - 1)
        count = torch.zeros_like(self.errors).index_add_(0, place, torch.ones_like(errors))
        total = torch.zeros_like(self.errors).index_add_(0, place, errors.to(self.errors))
        self.errors.lerp_(torch.where(count > 0, total / count.clamp(min=1), self.errors), 1 - MEMORY**count)

    def path(self) -> tuple[float, ...]:
        """Times from 1 to `first`, one for each step, whose bound is best; none for even steps."""
        if self.spacing == "even" or self.sampling_steps < 2:
            return ()
        times = torch.linspace(self.first, 1, max(CANDIDATES, self.sampling_steps), dtype=torch.float64)
        at = self.equation.at(times)
        errors = self.errors.double().cpu()[(times * BINS).long().clamp(max=BINS - 1)]
        steps = cheapest_path(bound_costs((at.signal / at.noise) ** 2, errors), self.sampling_steps - 1)
        return tuple(times[steps].tolist())

    def noise(self, x: Tensor, at: Moment, condition: Tensor | None) -> Tensor:
        """The predicted unit noise in `x` at a moment."""
        return PREDICTIONS[self.prediction](at, x, self.output(x, at, condition))

    def output(self, x: Tensor, at: Moment, condition: Tensor | None) -> Tensor:
        """What the network gives for `x` at a moment."""
        return self.net(x / rows(at.deviation, x), self.clock(at), condition)

    def denoiser(self, condition: Tensor | None) -> Denoiser:
        """The network under a condition, as samplers take it."""
        return Denoiser(
            self.equation, lambda x, at: self.noise(x, at, condition), lambda x: torch.clamp(x, -self.limit, self.limit)
        )

    # --- samples and codes --------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        steps, corrections, tolerance = self.sampling_steps, self.corrections, self.tolerance
        return Plan(self.first, steps, self.eta, corrections, self.signal_to_noise, tolerance, self.path(), self.stride)

    @property
    def sample_evaluations(self) -> int:
        """Of the network, for one sample: those of the last draw, or of its plan before there was one."""
        each = {
            "predictor-corrector": 1 + self.corrections, "annealed-langevin": self.corrections,
            "probability-flow": 0, "adaptive-sde": 0,
        }.get(self.sampler, 1)  # fmt: skip
        return (self.sampling_steps - 1) * each + 1 if each else self.evaluations

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        noise = self.equation.prior((n, *self.space.shape), self.device)
        x, self.evaluations = SAMPLERS[self.sampler](self.denoiser(condition), noise, self.plan)
        return self.leave(x)

    def _step(self, y: Tensor, t: Tensor, s: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """A step of the sampler from points `(B, ...)` at time t `(1,)` to s, and the encoded examples predicted at t.

        Raises Unfit where the sampler chooses its steps itself.
        """
        if self.sampler not in STEPS:
            raise Unfit(f"the sampler {self.sampler} has no single step; those that have: {', '.join(STEPS)}")
        denoiser, at = self.denoiser(condition), self.equation.at(t)
        after = STEPS[self.sampler](denoiser, y, at, self.equation.at(s), self.plan)
        return after, self.leave(denoiser.clean(y, at))

    @property
    def filling(self) -> str:
        return (
            "the reverse equation with what is known put in at each step, and Langevin dynamics of what is missing in "
            "between: approximate"
        )

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        plan = self.plan._replace(steps=self.fill_steps, path=())
        return self.leave(filled_in(self.denoiser(condition), self.start(x), known, plan, CORRECTIONS))

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self._flow(self.enter(x), condition, self.first, 1.0)

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return self.leave(self._flow(z, condition, 1.0, self.first))

    def _flow(self, x: Tensor, condition: Tensor | None, start: float, end: float) -> Tensor:
        return probability_flow(self.equation, self.denoiser(condition).score, x, start, end, self.tolerance).state

    def monitor(self, batch: Batch) -> dict[str, float]:
        """The error of the predicted noise early, half-way and late: 1 is no better than chance."""
        y = self.enter(batch.x)
        errors = {}
        for name, time in (("early", 0.1), ("half_way", 0.5), ("late", 0.9)):
            at, noise = self.equation.at(y.new_full((1,), time)), torch.randn_like(y)
            predicted = self.noise(at.diffuse(y, noise), at, batch.condition)
            errors[f"error_{name}"] = (predicted - noise).square().mean().item()
        return errors
