"""Noise-conditional score network: one network of the score under noises of several strengths, strong to weak."""

from __future__ import annotations

import torch
from torch import Tensor

from fivefold.diffusion._system import Dequantised, DiffusionSystem
from fivefold.nets.unet import UNet
from fivefold.options import option
from fivefold.tools.sde import variance_exploding

USUAL = {"image": (0.02, 2.0), "table": (0.02, 5.0)}  # least and most noise, where data are of about unit size


class NCSN(Dequantised, DiffusionSystem):
    """NCSN (survey 2.3; Song and Ermon, 2019).

    A network learns the score of the data with each of a geometric sequence of noises added, by denoising score
    matching in which every noise weighs by its variance. Samples are chains of Langevin dynamics, some steps at each
    noise from the strongest to the weakest; the last are denoised (Song and Ermon, 2020).

    Levels are dequantised by uniform noise and scaled to [-1, 1]; the papers' noises are of images in [0, 1], half of
    those here.
    """

    noises: int = option(10, "strengths of noise, a geometric sequence", least=2)
    low: float = option(0.0, "the least, a standard deviation; 0 takes the usual one, 0.02", least=0)
    high: float = option(0.0, "the most; 0 takes the usual one, 2 of images and 5 of tables", least=0)
    multipliers: tuple[int, ...] = option(
        (1, 2, 2, 2), "of the channels at each resolution, the full one first; as many as there are are used (images)"
    )
    prediction = "velocity"
    sampler = "annealed-langevin"
    corrections = 20

    def set_up(self) -> Tensor:
        low, high = (given or usual for given, usual in zip((self.low, self.high), USUAL[self.space.kind], strict=True))
        self.equation = variance_exploding(low, high)
        deviations = torch.logspace(0, 1, self.noises, high / low, dtype=torch.float64, device="cpu") * low
        times = self.equation.time(deviations).clamp(max=1)
        self.first = float(times[0])
        if self.sampler == "annealed-langevin":
            self.sampling_steps = self.noises
        return times

    def path(self) -> tuple[float, ...]:
        """The noises that are trained, for chains; other samplers take any between."""
        return tuple(self.trained.flip(0).tolist()) if self.sampler == "annealed-langevin" else super().path()

    def image_net(self) -> UNet:
        return UNet(self.space, self.channels, self.multipliers, self.blocks, self.attention, self.dropout)
