"""Score-based diffusion in continuous time: learn the gradient of the log-density at every strength of noise."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fivefold.nets.ncsnpp import ScoreUNet
from fivefold.nets.unet import TimedMLP
from fivefold.options import option
from fivefold.space import Batch
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
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.ESTIMATE}
    sampling: ClassVar[str] = "iterative"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sampling_steps": (5, 10, 25, 50)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"batch_size": 16, "ema": 0.999, "clip": 1.0, "evaluations": 1},
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

    sde: Literal["ve", "vp", "sub-vp"] = option(
        "vp", "the equation: vp or sub-vp (variance preserving), or ve (exploding)"
    )
    low: float = option(
        0.0, "of its range: of beta (vp, sub-vp) or of the noise (ve); 0 takes the paper's, 0.1 or 0.01", least=0
    )
    high: float = option(0.0, "of its range; 0 takes the paper's, 20 or 50", least=0)
    first: float = option(
        1e-3, "the time at which data begin; less resolves finer detail and takes more evaluations", above=0, below=1
    )
    weighting: Literal["simple", "likelihood"] = option(
        "simple", "simple (each time alike) or likelihood (as it weighs in a bound on the likelihood)"
    )
    sampler: Literal["predictor-corrector", "euler-maruyama", "probability-flow"] = option(
        "predictor-corrector", "predictor-corrector, euler-maruyama or probability-flow (adaptive)"
    )
    sampling_steps: int = option(40, "of the first two samplers", least=1)
    corrections: int = option(1, "Langevin steps after each of the predictor's", least=0)
    signal_to_noise: float = option(0.16, "of the corrector: its step size", least=0)
    tolerance: float = option(
        1e-2, "of the probability flow's solver, absolute and relative, when sampling and scoring", above=0
    )
    probes: int = option(2, "draws of noise and probe for each example's density", least=1)
    exact_dims: int = option(8, "up to how many dimensions the divergence is exact", least=0)
    network: Literal["ddpm++", "ncsn++"] = option(
        "ddpm++",
        "for images: ddpm++, or ncsn++, which filters where the resolution changes, takes the logarithm of the "
        "noise's deviation as random Fourier features, and adds the image again at each resolution",
    )
    channels: int = option(24, "of the network at full resolution (images)", least=1, tune=(8, 128), log=True)
    blocks: int = option(1, "residual blocks at each resolution (images)", least=1, tune=(1, 8))
    attention: int = option(
        0, "resolution at which all positions attend to each other, as at the lowest; 0 for no other (images)", least=0
    )
    dropout: float = option(0.0, "in residual blocks (images)", least=0, below=1, tune=(0.0, 0.5))
    hidden: int = option(128, "width of the network (tables)", least=1, tune=(16, 512), log=True)
    layers: int = option(3, "residual layers of the network (tables)", least=1, tune=(1, 16))

    def build(self) -> None:
        super().build()
        least, most = equations.RANGES[self.sde]
        self.equation = equations.SDES[self.sde](self.low or least, self.high or most)
        self.exact = self.space.dims <= self.exact_dims
        self.discrete = any(levels is not None for levels in self.space.dim_levels)
        self.density = Density.LOWER_BOUND if self.discrete else Density.ESTIMATE
        self.register_buffer("share", self._weights(self.weighting).cumsum(0), persistent=False)
        self.plus = self.network == "ncsn++" and self.space.kind == "image"
        self.net: nn.Module = TimedMLP(self.space, self.hidden, self.layers)
        if self.space.kind == "image":
            self.net = ScoreUNet(self.space, self.channels, self.blocks, self.attention, self.dropout, self.plus)
        self.evaluations = 1

    @property
    def density_note(self) -> str:
        trace = "exact divergence" if self.exact else "Hutchinson's divergence"
        return f"{trace}, {self.probes} probes, tolerance {self.tolerance:g}"

    def _weights(self, weighting: str) -> Tensor:
        """How often each of GRID times is trained, with a loss that is the squared error of the unit noise."""
        middle = (torch.arange(GRID, dtype=torch.float64, device="cpu") + 0.5) / GRID
        t = self.first + (1 - self.first) * middle
        simple = torch.ones_like(t)
        return {"simple": simple, "likelihood": self.equation.variance(t) / self.equation.noise(t) ** 2}[weighting]

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
        return (noise - self.noise(self.equation.diffuse(x, t, noise), t, batch.condition)).square().mean()

    def noise(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The predicted noise in `x` at times `t` `(B,)`."""
        # Of unit variance where x_0 is; and what a standard normal x_0 would make optimal, corrected by the network as
        # far as there is a signal: at the last times the least error of the noise would be a large one of x_0.
        deviation = (self.equation.signal(t) ** 2 + self.equation.noise(t) ** 2).sqrt()
        scaled = x / rows(deviation, x)
        time = self.equation.noise(t).log() if self.plus else t
        found = rows(self.equation.signal(t) / deviation, x) * self.net(scaled, time, condition)
        return rows(self.equation.noise(t) / deviation, x) * scaled + found

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
        return equations.flow_log_prob(self.equation, score, y, self.first, self.tolerance, self.exact)[0]

    def _given(self, condition: Tensor | None) -> equations.Score:
        """The score, the gradient of ln p_t at x: less the noise, in units of its deviation."""
        return lambda x, t: -self.noise(x, t, condition) / rows(self.equation.noise(t), x)

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
        x = self.equation.prior((n, *self.space.shape), self.device)
        draw = {
            "predictor-corrector": self._predict_and_correct,
            "euler-maruyama": self._euler_maruyama,
            "probability-flow": self._flow_back,
        }[self.sampler]
        return quantise(draw(x, condition), self.space)

    def _predict_and_correct(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return equations.predictor_corrector(
            self.equation,
            self._given(condition),
            x,
            self.first,
            self.sampling_steps,
            self.corrections,
            self.signal_to_noise,
        )

    def _euler_maruyama(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return equations.euler_maruyama(self.equation, self._given(condition), x, self.first, self.sampling_steps)

    def _flow_back(self, x: Tensor, condition: Tensor | None) -> Tensor:
        score = self._given(condition)
        x, self.evaluations = equations.probability_flow(self.equation, score, x, 1.0, self.first, self.tolerance)
        return x

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        y, score = midpoint(x, self.space), self._given(condition)
        return equations.probability_flow(self.equation, score, y, self.first, 1.0, self.tolerance).state

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return quantise(self._flow_back(z, condition), self.space)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """The error of the predicted noise early, half-way and late: 1 is no better than chance."""
        y = dequantise(batch.x, self.space)
        errors = {}
        for name, time in (("early", 0.1), ("half_way", 0.5), ("late", 0.9)):
            t, noise = y.new_full((len(y),), time), torch.randn_like(y)
            predicted = self.noise(self.equation.diffuse(y, t, noise), t, batch.condition)
            errors[f"error_{name}"] = (predicted - noise).square().mean().item()
        return errors
