"""Improved denoising diffusion: learned variances, trained by the bound at the times where it is large."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fivefold.diffusion.ddpm import DDPM
from fivefold.nets.unet import TimedMLP, UNet
from fivefold.options import fixed, option
from fivefold.space import Batch
from fivefold.system import Update
from fivefold.tools.importance import LossAware
from fivefold.tools.sde import PREDICTIONS, Denoiser, Moment


class ImprovedDDPM(DDPM):
    """Improved denoising diffusion (survey 2.3.2; Nichol and Dhariwal, 2021).

    A network that learns, beside the noise, how much of it each step back should draw: the variance of every number
    lies between that of the posterior and that of the forward step. The bound is better and few steps lose less.

    The variances learn by the bound, with a small weight and without moving the noise that is predicted (the hybrid
    loss); times are drawn in proportion to how large their losses were, and weighted so that the mean stays the same.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar10": {
            "channels": 128, "blocks": 3, "attention": 16, "dropout": 0.3, "timesteps": 4000, "sampling_steps": 4000,
            "time_sampling": "uniform", "score_steps": 0, "lr": 1e-4, "batch_size": 128, "ema": 0.9999,
        },
        "cifar10-bound": {
            "channels": 128, "blocks": 3, "attention": 16, "dropout": 0.3, "timesteps": 4000, "objective": "bound",
            "sampling_steps": 4000, "score_steps": 0, "lr": 1e-4, "batch_size": 128, "ema": 0.9999,
        },
        "imagenet64": {
            "channels": 128, "multipliers": (1, 2, 3, 4), "blocks": 3, "attention": 16, "timesteps": 4000,
            "sampling_steps": 4000, "time_sampling": "uniform", "score_steps": 0, "lr": 1e-4, "batch_size": 128,
            "ema": 0.9999,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {}  # nothing of its own

    objective: Literal["hybrid", "bound"] = option(
        "hybrid", "what is minimised: the noise's error and a little of the bound, by which the variances alone learn, "
        "or the bound, by which all does",
    )  # fmt: skip
    bound_weight: float = option(0.001, "of the bound, in nats a dimension, in the hybrid loss", least=0)
    time_sampling: Literal["loss-aware", "uniform"] = option("loss-aware", "which times are trained more often")
    sampler = "ancestral"
    variance = fixed("posterior")  # that from which the learnt one starts
    weighting = fixed("simple")

    def build(self) -> None:
        super().build()
        self.aware = LossAware(self.timesteps)

    def image_net(self) -> UNet:
        more = {"outputs": 2 * self.space.shape[0]}
        return UNet(self.space, self.channels, self.multipliers, self.blocks, self.attention, self.dropout, **more)

    def table_net(self) -> nn.Module:
        return TimedMLP(self.space, self.hidden, self.layers, outputs=2 * self.space.dims)

    def both(self, x: Tensor, at: Moment, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """The unit noise, and the share of the variance: see `Denoiser`. (The paper leaves the share unbounded.)"""
        found, share = self.output(x, at, condition).chunk(2, 1)
        return PREDICTIONS[self.prediction](at, x, found), share.sigmoid()

    def noise(self, x: Tensor, at: Moment, condition: Tensor | None) -> Tensor:
        return self.both(x, at, condition)[0]

    def denoiser(self, condition: Tensor | None) -> Denoiser:
        return super().denoiser(condition)._replace(both=lambda x, at: self.both(x, at, condition))

    def parts(self, batch: Batch, t: Tensor) -> tuple[Tensor, Tensor]:
        """At times t `(B,)` in 1, ..., T the noise's squared error, and T L_{t-1} in nats, both a dimension's: `(B,)`.

        In the hybrid loss the bound's term takes the noise as given, clipped as it is when the bound is evaluated.
        """
        x = self.start(batch.x)
        at, noise = self.equation.at(t.float() / self.timesteps), torch.randn_like(x)
        noisy = at.diffuse(x, noise)
        found, share = self.both(noisy, at, batch.condition)
        denoiser = self.denoiser(batch.condition)
        if self.objective == "hybrid":
            predicted = denoiser.clean_of(noisy, found.detach(), at)
        else:  # where clipped nothing could be learnt
            predicted = denoiser._replace(clip=lambda x: x).clean_of(noisy, found, at)
        terms = self.terms_of(x, predicted, t, share) * (self.timesteps / self.space.dims)
        return (noise - found).square().flatten(1).mean(1), terms

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        index, weights = self.aware.draw(len(batch.x), uniform=self.time_sampling == "uniform")
        errors, terms = self.parts(batch, index + 1)
        self.remember((index + 1) / self.timesteps, errors.detach())
        losses = self.objective_of(errors, terms)
        found = yield Update(self, (weights * losses).mean(), self.aware.record(index, losses))
        if found is not None:
            self.aware.remember(found)

    def loss(self, batch: Batch) -> Tensor:
        """Of times that are all alike."""
        index, _ = self.aware.draw(len(batch.x), uniform=True)
        return self.objective_of(*self.parts(batch, index + 1)).mean()

    def objective_of(self, errors: Tensor, terms: Tensor) -> Tensor:
        """What is minimised, of the `parts`: `(B,)`."""
        return errors + self.bound_weight * terms if self.objective == "hybrid" else terms

    def monitor(self, batch: Batch) -> dict[str, float]:
        """And the mean share of the variances early, half-way and late."""
        y, found = self.enter(batch.x), super().monitor(batch)
        for name, time in (("early", 0.1), ("half_way", 0.5), ("late", 0.9)):
            at = self.equation.at(y.new_full((1,), time))
            found[f"variance_{name}"] = (
                self.both(at.diffuse(y, torch.randn_like(y)), at, batch.condition)[1].mean().item()
            )
        return found
