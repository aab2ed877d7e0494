"""Residual flow: blocks x + g(x) with g a contraction."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fivefold.bijections.base import Bijection, Chain
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.residual import Residual, SeriesOptions
from fivefold.bijections.shape import FactorOut, Flatten, Squeeze
from fivefold.flow._system import FlowSystem
from fivefold.nets.lipschitz import ContractiveNet
from fivefold.space import Batch, Space
from fivefold.system import Density
from fivefold.tools.scaling import dequantise, dequantise_log_det, midpoint

CONDITION_WIDTH = 32
CHUNK = 2**13  # numbers scored at once


class ResidualFlow(FlowSystem):
    """Residual flow (survey 6.3; Chen et al., 2019).

    Blocks x + g(x), with g a network whose Lipschitz constant is below 1: each of its layers is kept below
    `coefficient` by power iteration. Every dimension may depend on every other. The log-determinant is an infinite
    series, ended by Russian roulette without bias, its gradient a Neumann series; the inverse is a fixed point.

    On discrete data the density is a bound in expectation (over the noise in the cell, and over the roulette's ends and
    probes), with a standard error. On real data it is exact up to `exact_dims` dimensions and an estimate beyond.

    Args:
        space: of the examples.
        blocks: residual blocks of convolutions at each resolution.
        scales: the most resolutions; fewer where a side becomes odd.
        hidden: channels within a block of convolutions.
        layers: fully connected blocks at the end (on tables: those that an image would have in all).
        width: of the fully connected blocks.
        coefficient: the bound on every layer's norm, below 1.
        activation: lipswish, whose second derivative vanishes nowhere its first is large; or elu.
        terms: of the series that always count in training.
        score_terms: the same when scoring.
        stop: probability of the roulette's stopping after each further term.
        exact_dims: up to how many dimensions scores take the whole Jacobian in place of the series.
        tolerance: of a step of the inverse's iteration, relative to 1 + |x|.
        squeeze_first: begin with a squeeze.
        factor_out: half of the variables leave after each resolution.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: points in each cell, or draws of the roulette and its probes, when examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.ESTIMATE}
    free_form: ClassVar[bool] = True
    sampling: ClassVar[str] = "iterative"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {
        "temperature": (0.7, 0.85, 1.0),
        "tolerance": (0.3, 1e-1, 1e-2, 1e-4, 1e-6),
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.99, "clip": 5.0, "evaluations": 1},
        "mnist": {
            "blocks": 16, "scales": 3, "hidden": 512, "layers": 4, "width": 128, "margin": 1e-6,
            "lr": 1e-3, "weight_decay": 0.0, "ema": 0.999, "batch_size": 64,
        },
        "cifar10": {
            "blocks": 16, "scales": 3, "hidden": 512, "layers": 4, "width": 128,
            "lr": 1e-3, "weight_decay": 0.0, "ema": 0.999, "batch_size": 64,
        },
        "imagenet32": {
            "blocks": 32, "scales": 3, "hidden": 512, "layers": 4, "width": 128,
            "lr": 1e-3, "weight_decay": 0.0, "ema": 0.999, "batch_size": 64,
        },
        "imagenet64": {
            "blocks": 32, "scales": 3, "hidden": 512, "layers": 4, "width": 128, "squeeze_first": True,
            "factor_out": True, "lr": 1e-3, "weight_decay": 0.0, "ema": 0.999, "batch_size": 64,
        },
        "celebahq256": {
            "blocks": 16, "scales": 6, "hidden": 512, "layers": 0, "squeeze_first": True, "factor_out": True,
            "activation": "elu", "terms": 8, "lr": 1e-3, "weight_decay": 0.0, "ema": 0.999, "batch_size": 40,
            "accumulate": 5,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "mnist": (16.6e6, "Chen et al. 2019, experimental setup; its reference implementation"),
        "cifar10": (25.2e6, "Chen et al. 2019, experimental setup; its reference implementation"),
        "imagenet32": (47.1e6, "Chen et al. 2019, experimental setup; its reference implementation"),
        "imagenet64": (53.3e6, "Chen et al. 2019, experimental setup; its reference implementation"),
    }

    def __init__(
        self,
        space: Space,
        *,
        blocks: int = 4,
        scales: int = 2,
        hidden: int = 32,
        layers: int = 4,
        width: int = 128,
        coefficient: float = 0.98,
        activation: Literal["lipswish", "elu"] = "lipswish",
        terms: int = 2,
        score_terms: int = 10,
        stop: float = 0.5,
        exact_dims: int = 16,
        tolerance: float = 1e-6,
        squeeze_first: bool = False,
        factor_out: bool = False,
        margin: float = 0.05,
        score_samples: int = 4,
        temperature: float = 1.0,
    ) -> None:
        if not 0 < coefficient < 1:
            raise ValueError(f"a residual flow needs a coefficient in (0, 1) to be invertible, got {coefficient}")
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature)
        self.blocks, self.layers, self.hidden, self.width = blocks, layers, hidden, width
        self.coefficient, self.activation, self.factor_out = coefficient, activation, factor_out
        self.exact = space.dims <= exact_dims
        self.series = SeriesOptions(self.exact, terms, score_terms, stop, tolerance)
        self.density_note = f"{score_samples} draws, {'exact' if self.exact else 'unbiased'} log-determinant"
        if self.density is Density.EXACT and not self.exact:
            self.density = Density.ESTIMATE
        self.flow = self._onto_line(self._whole_flow(space, scales, squeeze_first), margin)

    # --- the flow -------------------------------------------------------------------------------

    def _whole_flow(self, space: Space, scales: int, squeeze_first: bool) -> Bijection:
        if space.kind != "image":
            return Chain(ActNorm(space.dims), *self._dense(space.dims, scales * self.blocks + self.layers, first=True))
        channels, height, width = space.shape
        if squeeze_first and not (height % 2 or width % 2):
            shape = (4 * channels, height // 2, width // 2)
            return Chain(Squeeze(), ActNorm(shape[0]), self._image_flow(shape, scales, first=True))
        return Chain(ActNorm(channels), self._image_flow(space.shape, scales, first=True))

    def _image_flow(self, shape: tuple[int, ...], scales: int, first: bool = False) -> Bijection:
        """One resolution and the next, on all channels or, where the others are factored out, on half of them."""
        channels, height, width = shape
        parts: list[Bijection] = []
        for block in range(self.blocks):
            parts += [self._block(shape, self.hidden, first and block == 0), ActNorm(channels)]
        if scales <= 1 or height % 2 or width % 2:
            return Chain(*parts, Flatten(shape), *self._dense(math.prod(shape), self.layers))
        smaller, kept = (4 * channels, height // 2, width // 2), 2 * channels
        if not self.factor_out:
            return Chain(*parts, Squeeze(), self._image_flow(smaller, scales - 1))
        return Chain(*parts, Squeeze(), FactorOut(smaller, kept, self._image_flow((kept, *smaller[1:]), scales - 1)))

    def _dense(self, dims: int, blocks: int, first: bool = False) -> list[Bijection]:
        parts: list[Bijection] = []
        for block in range(blocks):
            parts += [self._block((dims,), self.width, first and block == 0), ActNorm(dims)]
        return parts

    def _block(self, shape: tuple[int, ...], hidden: int, first: bool) -> Bijection:
        net = ContractiveNet(shape, hidden, self.embedding.width, self.coefficient, self.activation, first)
        return Residual(net, self.series)

    def networks(self) -> list[torch.nn.Module]:
        """None: the gradient of the log-determinant differentiates twice."""
        return []

    # --- density --------------------------------------------------------------------------------

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Nats `(B,)` and their standard errors; without an exact determinant the mean of draws.

        A mean of logarithms: each is unbiased (roulette) or low (dequantisation), which exponentials would not be.
        """
        if self.exact:
            return super()._log_prob(x, condition)
        at_once = max(min(CHUNK // x.numel(), self.score_samples), 1)
        counts = [min(at_once, self.score_samples - i) for i in range(0, self.score_samples, at_once)]
        values = torch.cat([self._draws(count, x, condition) for count in counts]).double()
        error = values.std(0) / math.sqrt(len(values)) if len(values) > 1 else torch.zeros_like(values[0])
        return values.mean(0), error

    def _draws(self, count: int, x: Tensor, condition: Tensor | None) -> Tensor:
        """Nats `(count, B)`, each with its own noise, probe and end of the series."""
        y = dequantise(x.repeat(count, *[1] * (x.dim() - 1)), self.space)
        condition = None if condition is None else condition.repeat(count, *[1] * (condition.dim() - 1))
        return self._point_log_prob(y, condition).view(count, -1) + dequantise_log_det(self.space)

    # --- the inverse ----------------------------------------------------------------------------

    @property
    def tolerance(self) -> float:
        """Of a step of every inverse's iteration; densities, which go forward alone, do not depend on it."""
        return self.series.tolerance

    @tolerance.setter
    def tolerance(self, value: float) -> None:
        self.series = dataclasses.replace(self.series, tolerance=value)
        for block in self._residuals():
            block.options = self.series

    @property
    def sample_evaluations(self) -> int:
        """Steps of all fixed points of the last draw, one after another."""
        return max(sum(block.steps for block in self._residuals()), 1)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """How far the inverse of the forward map ends from where it began, and the steps it took."""
        embedded = self.embedding(batch.condition)
        y = midpoint(batch.x, self.space)
        back, _ = self.flow.inverse(self.flow(y, embedded)[0], embedded)
        return {"inverse_error": (back - y).abs().max().item(), "inverse_steps": float(self.sample_evaluations)}

    def _residuals(self) -> list[Residual]:
        return [part for part in self.flow.modules() if isinstance(part, Residual)]
