"""Score-based diffusion in continuous time: learn the gradient of the log-density at every strength of noise."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fivefold.nets.ncsnpp import ScoreUNet
from fivefold.nets.unet import TimedMLP
from fivefold.space import Batch, Space
from fivefold.system import Density, LatentSystem
from fivefold.tools import sde as equations
from fivefold.tools.diffusion import quantile, rows, spread
from fivefold.tools.scaling import averaged_log_prob, dequantise, midpoint, quantise
from fivefold.tools.schedule import warm_cosine

GRID = 2000  # times at which a weighting is tabulated
CHUNK = 2**15  # numbers scored at once


class ScoreSDE(LatentSystem):
    """Score SDE, DDPM++ continuous (survey 2.3.2; Song et al., 2021).

    A stochastic differential equation turns data into noise; a network learns the score (the gradient of the
    log-density) at every time, by denoising, and the equation is run backwards. The same score gives an ordinary
    differential equation, the probability flow: a deterministic sampler with codes and a density.

    Levels are dequantised by uniform noise and scaled to [-1, 1]; categories are taken in their order. The density is
    that of the probability flow at time `first`: its divergence is summed exactly on few dimensions and by
    Hutchinson's estimator beyond. Where a dimension is discrete it is a bound in expectation (over the noise in
    the cell), else an estimate; either with a standard error.

    Args:
        sde: the equation: vp or sub-vp (variance preserving), or ve (exploding).
        low: of its range: of beta (vp, sub-vp) or of the noise (ve); 0 takes the paper's, 0.1 or 0.01.
        high: of its range; 0 takes the paper's, 20 or 50.
        first: the time at which data begin; less resolves finer detail and takes more evaluations.
        weighting: simple (each time alike) or likelihood (as it weighs in a bound on the likelihood).
        sampler: predictor-corrector, euler-maruyama or probability-flow (adaptive).
        sampling_steps: of the first two samplers.
        corrections: Langevin steps after each of the predictor's.
        signal_to_noise: of the corrector: its step size.
        tolerance: of the probability flow's solver, absolute and relative, when sampling and scoring.
        probes: draws of noise and probe for each example's density.
        exact_dims: up to how many dimensions the divergence is exact.
        network: for images: ddpm++, or ncsn++, which filters where the resolution changes, takes the logarithm of
            the noise's deviation as random Fourier features, and adds the image again at each resolution.
        channels: of the network at full resolution (images).
        blocks: residual blocks at each resolution (images).
        attention: resolution at which all positions attend to each other, as at the lowest; 0 for no other (images).
        dropout: in residual blocks (images).
        hidden: width of the network (tables).
        layers: residual layers of the network (tables).
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.ESTIMATE}
    sampling: ClassVar[str] = "iterative"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sampling_steps": (5, 10, 25, 50)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"lr": 3e-3, "batch_size": 16, "ema": 0.999, "clip": 1.0, "evaluations": 1},
        "cifar10": {
            "channels": 128, "blocks": 4, "attention": 16, "dropout": 0.1, "first": 1e-5, "sampler": "euler-maruyama",
            "sampling_steps": 1000, "tolerance": 1e-5, "lr": 2e-4, "batch_size": 128, "ema": 0.9999,
        },
        "cifar10-deep": {
            "channels": 128, "blocks": 8, "attention": 16, "dropout": 0.1, "first": 1e-5, "sampler": "euler-maruyama",
            "sampling_steps": 1000, "tolerance": 1e-5, "lr": 2e-4, "batch_size": 128, "ema": 0.9999,
        },
        "cifar10-ncsn++": {
            "network": "ncsn++", "sde": "ve", "channels": 128, "blocks": 4, "attention": 16, "dropout": 0.1,
            "first": 1e-5, "sampling_steps": 1000, "tolerance": 1e-5, "lr": 2e-4, "batch_size": 128, "ema": 0.999,
        },
        "cifar10-ncsn++-deep": {
            "network": "ncsn++", "sde": "ve", "channels": 128, "blocks": 8, "attention": 16, "dropout": 0.1,
            "first": 1e-5, "sampling_steps": 1000, "tolerance": 1e-5, "lr": 2e-4, "batch_size": 128, "ema": 0.999,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "cifar10": (62e6, "DDPM++: Balcerak et al. 2025, Table 1"),
        "cifar10-ncsn++-deep": (107e6, "NCSN++: Balcerak et al. 2025, Table 1"),
    }

    share: Tensor

    def __init__(
        self,
        space: Space,
        *,
        sde: Literal["ve", "vp", "sub-vp"] = "vp",
        low: float = 0.0,
        high: float = 0.0,
        first: float = 1e-3,
        weighting: Literal["simple", "likelihood"] = "simple",
        sampler: Literal["predictor-corrector", "euler-maruyama", "probability-flow"] = "predictor-corrector",
        sampling_steps: int = 40,
        corrections: int = 1,
        signal_to_noise: float = 0.16,
        tolerance: float = 1e-2,
        probes: int = 2,
        exact_dims: int = 8,
        network: Literal["ddpm++", "ncsn++"] = "ddpm++",
        channels: int = 24,
        blocks: int = 1,
        attention: int = 0,
        dropout: float = 0.0,
        hidden: int = 128,
        layers: int = 3,
    ) -> None:
        super().__init__(space)
        least, most = equations.RANGES[sde]
        self.sde = equations.SDES[sde](low or least, high or most)
        self.first, self.tolerance = first, tolerance
        self.sampler, self.sampling_steps, self.corrections = sampler, sampling_steps, corrections
        self.signal_to_noise, self.probes = signal_to_noise, probes
        self.exact = space.dims <= exact_dims
        self.discrete = any(levels is not None for levels in space.dim_levels)
        self.density = Density.LOWER_BOUND if self.discrete else Density.ESTIMATE
        self.register_buffer("share", self._weights(weighting).cumsum(0), persistent=False)
        self.plus = network == "ncsn++" and space.kind == "image"
        self.network: nn.Module = TimedMLP(space, hidden, layers)
        if space.kind == "image":
            self.network = ScoreUNet(space, channels, blocks, attention, dropout, self.plus)
        self.evaluations = 1
        trace = "exact divergence" if self.exact else "Hutchinson's divergence"
        self.density_note = f"{trace}, {probes} probes, tolerance {tolerance:g}"

    def _weights(self, weighting: str) -> Tensor:
        """How often each of GRID times is trained, with a loss that is the squared error of the unit noise."""
        middle = (torch.arange(GRID, dtype=torch.float64, device="cpu") + 0.5) / GRID
        t = self.first + (1 - self.first) * middle
        simple = torch.ones_like(t)
        return {"simple": simple, "likelihood": self.sde.variance(t) / self.sde.noise(t) ** 2}[weighting]

    # --- training -------------------------------------------------------------------------------

    def learning_rate(self, progress: float) -> float:
        """Warm-up over the first hundredth, then a cosine to a twentieth."""
        return warm_cosine(progress, floor=0.05)

    def loss(self, batch: Batch) -> Tensor:
        """Denoising score matching at continuous times (Song et al. 2021, Eq. 7), as the error of the noise."""
        x = dequantise(batch.x, self.space)
        index = quantile(self.share, spread(len(x), x.device).double()) + torch.rand(len(x), device=x.device)
        t = self.first + (1 - self.first) * index / GRID
        noise = torch.randn_like(x)
        return (noise - self.noise(self.sde.diffuse(x, t, noise), t, batch.condition)).square().mean()

    def noise(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The predicted noise in `x` at times `t` `(B,)`."""
        # Of unit variance where x_0 is; and what a standard normal x_0 would make optimal, corrected by the network as
        # far as there is a signal: at the last times the least error of the noise would be a large one of x_0.
        deviation = (self.sde.signal(t) ** 2 + self.sde.noise(t) ** 2).sqrt()
        scaled = x / rows(deviation, x)
        time = self.sde.noise(t).log() if self.plus else t
        found = rows(self.sde.signal(t) / deviation, x) * self.network(scaled, time, condition)
        return rows(self.sde.noise(t) / deviation, x) * scaled + found

    # --- density --------------------------------------------------------------------------------

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mean over draws of dequantisation and probe, nats `(B,)`, and its standard error.

        A mean of logarithms: each is unbiased (Hutchinson) or low (dequantisation), which exponentials would not be.
        """
        if self.exact and not self.discrete:
            value = self._flow_log_prob(x.float(), condition)
            return value, torch.zeros_like(value)
        return averaged_log_prob(self._flow_log_prob, x, condition, self.space, self.probes, CHUNK)

    def _flow_log_prob(self, y: Tensor, condition: Tensor | None) -> Tensor:
        score = self._given(condition)
        return equations.flow_log_prob(self.sde, score, y, self.first, self.tolerance, self.exact)[0]

    def _given(self, condition: Tensor | None) -> equations.Score:
        """The score, the gradient of ln p_t at x: less the noise, in units of its deviation."""
        return lambda x, t: -self.noise(x, t, condition) / rows(self.sde.noise(t), x)

    # --- sampling -------------------------------------------------------------------------------

    @property
    def sample_evaluations(self) -> int:
        """Of the probability flow, whose steps adapt: those of the last draw."""
        return {
            "predictor-corrector": self.sampling_steps * (1 + self.corrections) + 1,
            "euler-maruyama": self.sampling_steps + 1,
            "probability-flow": self.evaluations,
        }[self.sampler]

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        x = self.sde.prior((n, *self.space.shape), self.device)
        draw = {
            "predictor-corrector": self._predict_and_correct,
            "euler-maruyama": self._euler_maruyama,
            "probability-flow": self._flow_back,
        }[self.sampler]
        return quantise(draw(x, condition), self.space)

    def _predict_and_correct(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return equations.predictor_corrector(
            self.sde,
            self._given(condition),
            x,
            self.first,
            self.sampling_steps,
            self.corrections,
            self.signal_to_noise,
        )

    def _euler_maruyama(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return equations.euler_maruyama(self.sde, self._given(condition), x, self.first, self.sampling_steps)

    def _flow_back(self, x: Tensor, condition: Tensor | None) -> Tensor:
        score = self._given(condition)
        x, self.evaluations = equations.probability_flow(self.sde, score, x, 1.0, self.first, self.tolerance)
        return x

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        y, score = midpoint(x, self.space), self._given(condition)
        return equations.probability_flow(self.sde, score, y, self.first, 1.0, self.tolerance).state

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return quantise(self._flow_back(z, condition), self.space)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """The error of the predicted noise early, half-way and late: 1 is no better than chance."""
        y = dequantise(batch.x, self.space)
        errors = {}
        for name, time in (("early", 0.1), ("half_way", 0.5), ("late", 0.9)):
            t, noise = y.new_full((len(y),), time), torch.randn_like(y)
            predicted = self.noise(self.sde.diffuse(y, t, noise), t, batch.condition)
            errors[f"error_{name}"] = (predicted - noise).square().mean().item()
        return errors
