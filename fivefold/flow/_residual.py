"""What flows of contractions share: blocks on tables and images, scores by draws, the tolerance of fixed points."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fivefold.bijections.base import Chain, Inverse, Layer
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.residual import Residual, SeriesOptions, implicit_block
from fivefold.bijections.shape import FactorOut, Flatten, Squeeze
from fivefold.flow._inverted import InvertedFlowSystem
from fivefold.nets.attention import Attending, refuse_dense
from fivefold.nets.lipschitz import ContractiveNet, LipschitzAttention, Norm
from fivefold.options import depth_option, option, width_option
from fivefold.space import Space
from fivefold.system import Density
from fivefold.tools.scaling import averaged_log_prob

CHUNK = 2**13  # numbers scored at once
Activation = Literal["lipswish", "elu"]


class ContractionSystem(InvertedFlowSystem):
    """Residual blocks, or implicit ones, with actnorms in between."""

    noisy_log: ClassVar[bool] = True
    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.ESTIMATE}
    free_form: ClassVar[bool] = True
    implicit: ClassVar[bool] = False  # whether a block is a residual one and the inverse of another
    roulette: ClassVar[bool] = True  # whether the series is ended at random in training, or cut

    fill_steps = 20
    score_samples = 4
    blocks: int = depth_option(2, "blocks of convolutions at each resolution of an image", tune=(1, 8))
    scales: int = option(2, "the most resolutions; fewer where a side becomes odd", least=1, tune=(1, 3))
    hidden: int = width_option(32, "channels within a block of convolutions", tune=(16, 256))
    layers: int = option(
        2, "fully connected blocks at the end (on tables: those that an image would have in all)", least=0, tune=(1, 8)
    )
    width: int = width_option(128, "of the fully connected blocks", tune=(32, 512))
    coefficient: float = option(0.9, "the bound on every layer's norm", above=0, below=1, tune=(0.7, 0.98))
    activation: Activation = option(
        "lipswish", "lipswish, whose second derivative vanishes nowhere its first is large; elu"
    )
    norm: Norm = option(
        "2", "of layers, between vectors of which norm: 2 (spectral), 1, inf, or learned orders (a block each)"
    )
    attention: int = option(
        0, "heads of a block of L2 self-attention at each resolution of an image (Kim et al., 2021); 0 for none",
        least=0,
    )  # fmt: skip
    terms: int = option(2, "of the series that always count in training", least=1)
    score_terms: int = option(10, "of the series that always count when scoring", least=1)
    stop: float = option(0.5, "probability of the roulette's stopping after each further term", above=0, below=1)
    early_gradients: bool = option(
        False, "gradients of log-determinants are taken in the forward pass: less memory, a little slower"
    )
    exact_dims: int = option(
        16, "up to how many dimensions scores take the whole Jacobian in place of the series", least=0
    )
    squeeze_first: bool = option(
        True, "begin with a squeeze, where sides are even: convolutions at a quarter of the places"
    )
    factor_out: bool = option(False, "half of the variables leave after each resolution")

    @classmethod
    def density_on(cls, space: Space) -> Density | None:
        kind = super().density_on(space)
        return Density.ESTIMATE if kind is Density.EXACT else kind

    def build(self) -> None:
        super().build()
        if self.density is Density.ESTIMATE and self.exact:
            self.density = Density.EXACT

    @property
    def exact(self) -> bool:
        """Whether scores take the whole Jacobian."""
        return self.space.dims <= self.exact_dims

    @property
    def density_note(self) -> str:
        return f"{self.score_samples} draws, {'exact' if self.exact else 'unbiased'} log-determinant"

    @property
    def series(self) -> SeriesOptions:
        """How log-determinants and inverses are found."""
        return SeriesOptions(
            terms=self.terms, score_terms=self.score_terms, stop=self.stop if self.roulette else None,
            score_stop=self.stop, tolerance=self.tolerance, early=self.early_gradients, exact=self.exact,
        )  # fmt: skip

    # --- the flow -------------------------------------------------------------------------------

    def body(self) -> Layer:
        space = self.space
        if space.kind != "image":
            count = self.scales * self.blocks + self.layers
            return Chain(ActNorm(space.dims), *self._dense(space.dims, count, first=True))
        channels, height, width = space.shape
        if self.squeeze_first and not (height % 2 or width % 2):
            shape = (4 * channels, height // 2, width // 2)
            return Chain(Squeeze(), ActNorm(shape[0]), self._image_flow(shape, self.scales, first=True))
        return Chain(ActNorm(channels), self._image_flow(space.shape, self.scales, first=True))

    def _image_flow(self, shape: tuple[int, ...], scales: int, first: bool = False) -> Layer:
        """One resolution and the next, on all channels or, where the others are factored out, on half of them."""
        channels, height, width = shape
        parts: list[Layer] = []
        for block in range(self.blocks):
            parts += [self._block(shape, self.hidden, first and block == 0), ActNorm(channels)]
        if self.attention:
            parts += [self._attention(shape), ActNorm(channels)]
        if scales <= 1 or height % 2 or width % 2:
            return Chain(*parts, Flatten(shape), *self._dense(math.prod(shape), self.layers))
        smaller, kept = (4 * channels, height // 2, width // 2), 2 * channels
        if not self.factor_out:
            return Chain(*parts, Squeeze(), self._image_flow(smaller, scales - 1))
        return Chain(*parts, Squeeze(), FactorOut(smaller, kept, self._image_flow((kept, *smaller[1:]), scales - 1)))

    def _dense(self, dims: int, count: int, first: bool = False) -> list[Layer]:
        parts: list[Layer] = []
        for block in range(count):
            parts += [self._block((dims,), self.width, first and block == 0), ActNorm(dims)]
        return parts

    def _block(self, shape: tuple[int, ...], hidden: int, first: bool) -> Layer:
        def net(first: bool) -> ContractiveNet:
            given = self.embedding.width, self.coefficient, self.activation
            return ContractiveNet(shape, hidden, *given, first, self.norm)

        if self.implicit:
            return implicit_block(net(first), net(False), self.series)
        return Residual(net(first), self.series)

    def _attention(self, shape: tuple[int, ...]) -> Layer:
        positions = math.prod(shape[1:])
        refuse_dense("a residual flow", [Attending(positions, positions, self.attention)], "attention 0")
        given = self.embedding.width, self.coefficient, self.activation
        return Residual(LipschitzAttention(shape, self.attention, *given), self.series)

    def networks(self) -> list[torch.nn.Module]:
        """None: the gradient of the log-determinant differentiates twice."""
        return []

    @property
    def _limit(self) -> str:
        return super()._limit if self.exact else "approximate, for the log-determinant is an estimate"

    # --- density --------------------------------------------------------------------------------

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Nats `(B,)` and their standard errors; without an exact determinant the mean of draws.

        A mean of logarithms: each is unbiased (roulette) or low (dequantisation), which exponentials would not be.
        """
        if self.exact:
            return super()._log_prob(x, condition)
        return averaged_log_prob(self._point_log_prob, x, condition, self.space, self.score_samples, CHUNK)

    # --- fixed points ---------------------------------------------------------------------------

    def invert_to(self, tolerance: float) -> None:
        for block in self._residuals():
            block.options = dataclasses.replace(block.options, tolerance=tolerance)

    @property
    def sample_evaluations(self) -> int:
        """Evaluations of all networks on the last draw's way back, one after another."""
        return max(sum(1 if block in self._inverted() else block.steps for block in self._residuals()), 1)

    def _residuals(self) -> list[Residual]:
        return [part for part in self.flow.modules() if isinstance(part, Residual)]

    def _inverted(self) -> list[torch.nn.Module]:
        """Blocks that are gone through backwards on the way to noise, and so need no search on the way back."""
        return [part.part for part in self.flow.modules() if isinstance(part, Inverse)]
