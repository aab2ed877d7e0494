"""Score-based diffusion in continuous time: learn the gradient of the log-density at every strength of noise."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fivefold.diffusion._system import Dequantised, DiffusionSystem
from fivefold.nets.ncsnpp import ScoreUNet
from fivefold.options import option
from fivefold.system import Density
from fivefold.tools import sde as equations
from fivefold.tools.scaling import averaged_log_prob

GRID = 2000  # times at which a weighting is tabulated
CHUNK = 2**15  # numbers scored at once


class ScoreSDE(Dequantised, DiffusionSystem):
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
    presets: ClassVar[dict[str, dict[str, Any]]] = {
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
    probes: int = option(2, "draws of noise and probe for each example's density", least=1)
    exact_dims: int = option(8, "up to how many dimensions the divergence is exact", least=0)
    network: Literal["ddpm++", "ncsn++"] = option(
        "ddpm++", "for images: ddpm++, or ncsn++, which filters where the resolution changes, takes the logarithm of "
        "the noise's deviation as random Fourier features, and adds the image again at each resolution",
    )  # fmt: skip

    def set_up(self) -> Tensor:
        least, most = equations.RANGES[self.sde]
        self.equation = equations.SDES[self.sde](self.low or least, self.high or most)
        middle = (torch.arange(GRID, dtype=torch.float64, device="cpu") + 0.5) / GRID
        self.exact = self.space.dims <= self.exact_dims
        self.discrete = any(levels is not None for levels in self.space.dim_levels)
        self.density = Density.LOWER_BOUND if self.discrete else Density.ESTIMATE
        self.plus = self.network == "ncsn++" and self.space.kind == "image"
        return self.first + (1 - self.first) * middle

    def image_net(self) -> ScoreUNet:
        return ScoreUNet(self.space, self.channels, self.blocks, self.attention, self.dropout, self.plus)

    def times(self, n: int) -> Tensor:
        """Anywhere in the cell of a tabulated time."""
        return super().times(n) + (1 - self.first) / GRID * (torch.rand(n, device=self.device) - 0.5)

    def clock(self, at: equations.Moment) -> Tensor:
        return at.noise.log() if self.plus else at.t

    @property
    def density_note(self) -> str:
        trace = "exact divergence" if self.exact else "Hutchinson's divergence"
        return f"{trace}, {self.probes} probes, tolerance {self.tolerance:g}"

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mean over draws of dequantisation and probe, nats `(B,)`, and its standard error.

        A mean of logarithms: each is unbiased (Hutchinson) or low (dequantisation), which exponentials would not be.
        """
        if self.exact and not self.discrete:
            value = self._flow_log_prob(x.float(), condition)
            return value, torch.zeros_like(value)
        return averaged_log_prob(self._flow_log_prob, x, condition, self.space, self.probes, CHUNK)

    def _flow_log_prob(self, y: Tensor, condition: Tensor | None) -> Tensor:
        score = self.denoiser(condition).score
        return equations.flow_log_prob(self.equation, score, y, self.first, self.tolerance, self.exact)[0]
