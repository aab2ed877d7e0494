"""What flows of contractions share: blocks on tables and images, scores by draws, the tolerance of fixed points."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fivefold.bijections.base import Bijection, Chain, Inverse
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.residual import Residual, SeriesOptions, implicit_block
from fivefold.bijections.shape import FactorOut, Flatten, Squeeze
from fivefold.flow._system import FlowSystem
from fivefold.nets.attention import Attending, refuse_dense
from fivefold.nets.lipschitz import ContractiveNet, LipschitzAttention, Norm
from fivefold.space import Batch, Space
from fivefold.system import Density
from fivefold.tools.scaling import averaged_log_prob, midpoint

CONDITION_WIDTH = 32
CHUNK = 2**13  # numbers scored at once
Activation = Literal["lipswish", "elu"]


@dataclass(frozen=True)
class Blocks:
    """The blocks of a flow of contractions.

    Args:
        each: blocks of convolutions at each resolution of an image.
        scales: the most resolutions; fewer where a side becomes odd.
        hidden: channels within a block of convolutions.
        layers: fully connected blocks at the end (on tables: those that an image would have in all).
        width: of the fully connected blocks.
        coefficient: the bound on every layer's norm, below 1.
        activation: lipswish or elu.
        norm: in which layers are bounded.
        attention: heads of a block of attention after those of convolutions at each resolution; 0 for none.
        implicit: whether a block is one of them and the inverse of another.
        squeeze_first: begin with a squeeze.
        factor_out: half of the variables leave after each resolution.
    """

    each: int
    scales: int
    hidden: int
    layers: int
    width: int
    coefficient: float
    activation: Activation
    norm: Norm = "2"
    attention: int = 0
    implicit: bool = False
    squeeze_first: bool = False
    factor_out: bool = False


class ContractionSystem(FlowSystem):
    """Residual blocks, or implicit ones, with actnorms in between.

    Args:
        space: of the examples.
        blocks: of which it is made.
        series: how their log-determinants and inverses are found; `exact` is set by `exact_dims`.
        exact_dims: up to how many dimensions scores take the whole Jacobian in place of the series.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: points in each cell, or draws of the roulette and its probes, when examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
    """

    def __init__(
        self,
        space: Space,
        blocks: Blocks,
        series: SeriesOptions,
        exact_dims: int,
        margin: float,
        score_samples: int,
        temperature: float,
    ) -> None:
        if not 0 < blocks.coefficient < 1:
            raise ValueError(
                f"a flow of contractions needs a coefficient in (0, 1) to be invertible, got {blocks.coefficient}"
            )
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature)
        self.blocks = blocks
        self.exact = space.dims <= exact_dims
        self.series = dataclasses.replace(series, exact=self.exact)
        self.density_note = f"{score_samples} draws, {'exact' if self.exact else 'unbiased'} log-determinant"
        if self.density is Density.EXACT and not self.exact:
            self.density = Density.ESTIMATE
        self.flow = self._onto_line(self._whole_flow(space), margin)

    # --- the flow -------------------------------------------------------------------------------

    def _whole_flow(self, space: Space) -> Bijection:
        blocks = self.blocks
        if space.kind != "image":
            count = blocks.scales * blocks.each + blocks.layers
            return Chain(ActNorm(space.dims), *self._dense(space.dims, count, first=True))
        channels, height, width = space.shape
        if blocks.squeeze_first and not (height % 2 or width % 2):
            shape = (4 * channels, height // 2, width // 2)
            return Chain(Squeeze(), ActNorm(shape[0]), self._image_flow(shape, blocks.scales, first=True))
        return Chain(ActNorm(channels), self._image_flow(space.shape, blocks.scales, first=True))

    def _image_flow(self, shape: tuple[int, ...], scales: int, first: bool = False) -> Bijection:
        """One resolution and the next, on all channels or, where the others are factored out, on half of them."""
        blocks, (channels, height, width) = self.blocks, shape
        parts: list[Bijection] = []
        for block in range(blocks.each):
            parts += [self._block(shape, blocks.hidden, first and block == 0), ActNorm(channels)]
        if blocks.attention:
            parts += [self._attention(shape), ActNorm(channels)]
        if scales <= 1 or height % 2 or width % 2:
            return Chain(*parts, Flatten(shape), *self._dense(math.prod(shape), blocks.layers))
        smaller, kept = (4 * channels, height // 2, width // 2), 2 * channels
        if not blocks.factor_out:
            return Chain(*parts, Squeeze(), self._image_flow(smaller, scales - 1))
        return Chain(*parts, Squeeze(), FactorOut(smaller, kept, self._image_flow((kept, *smaller[1:]), scales - 1)))

    def _dense(self, dims: int, count: int, first: bool = False) -> list[Bijection]:
        parts: list[Bijection] = []
        for block in range(count):
            parts += [self._block((dims,), self.blocks.width, first and block == 0), ActNorm(dims)]
        return parts

    def _block(self, shape: tuple[int, ...], hidden: int, first: bool) -> Bijection:
        blocks = self.blocks

        def net(first: bool) -> ContractiveNet:
            given = self.embedding.width, blocks.coefficient, blocks.activation
            return ContractiveNet(shape, hidden, *given, first, blocks.norm)

        if blocks.implicit:
            return implicit_block(net(first), net(False), self.series)
        return Residual(net(first), self.series)

    def _attention(self, shape: tuple[int, ...]) -> Bijection:
        blocks = self.blocks
        positions = math.prod(shape[1:])
        refuse_dense("a residual flow", [Attending(positions, positions, blocks.attention)], "attention 0")
        given = self.embedding.width, blocks.coefficient, blocks.activation
        return Residual(LipschitzAttention(shape, blocks.attention, *given), self.series)

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
        return averaged_log_prob(self._point_log_prob, x, condition, self.space, self.score_samples, CHUNK)

    # --- fixed points ---------------------------------------------------------------------------

    @property
    def tolerance(self) -> float:
        """Of the last step to every fixed point."""
        return self.series.tolerance

    @tolerance.setter
    def tolerance(self, value: float) -> None:
        self.series = dataclasses.replace(self.series, tolerance=value)
        for block in self._residuals():
            block.options = self.series

    @property
    def sample_evaluations(self) -> int:
        """Evaluations of all networks on the last draw's way back, one after another."""
        return max(sum(1 if block in self._inverted() else block.steps for block in self._residuals()), 1)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """How far the inverse of the forward map ends from where it began, and the steps it took."""
        embedded = self.embedding(batch.condition)
        y = midpoint(batch.x, self.space)
        back, _ = self.flow.inverse(self.flow(y, embedded)[0], embedded)
        return {"inverse_error": (back - y).abs().max().item(), "inverse_steps": float(self.sample_evaluations)}

    def _residuals(self) -> list[Residual]:
        return [part for part in self.flow.modules() if isinstance(part, Residual)]

    def _inverted(self) -> list[torch.nn.Module]:
        """Blocks that are gone through backwards on the way to noise, and so need no search on the way back."""
        return [part.part for part in self.flow.modules() if isinstance(part, Inverse)]
