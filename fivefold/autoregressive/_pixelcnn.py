"""What systems with a gated PixelCNN share: its sizes, its order, and what it keeps while sampled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from fivefold.autoregressive._system import AutoregressiveSystem
from fivefold.nets.pixelcnn import GatedPixelCNN, raster
from fivefold.nets.states import States
from fivefold.options import depth_option, dropout_option, option, width_option
from fivefold.system import Density


class PixelCNNSystem(AutoregressiveSystem):
    """A gated PixelCNN whose outputs for each dimension go to the head (survey 5.1.3)."""

    densities: ClassVar[dict[str, Density]] = {"image": Density.EXACT}

    channels: int = width_option(24, "features of each stack", tune=(8, 128))
    layers: int = depth_option(6, "gated layers after the first", tune=(1, 16))
    kernel: int = option(5, "width of the convolutions, odd; they reach half of it up and left", least=1)
    first_kernel: int = option(5, "the same of the first layer", least=0)
    embedding: int = option(16, "features of each input value", least=1, tune=(2, 64), log=True)
    dropout: float = dropout_option(0.2, "share of features that are dropped in training")

    def build(self) -> None:
        super().build()
        self.net = GatedPixelCNN(
            self.space,
            self.head.width,
            channels=self.channels,
            layers=self.layers,
            kernel=self.kernel,
            first_kernel=self.first_kernel,
            embedding=self.embedding,
            dropout=self.dropout,
        )

    def conditionals(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.net(x, condition)

    def _order(self) -> Iterable[int]:
        return raster(self.space)

    def states(self, n: int, condition: Tensor | None) -> States:
        return self.net.states(n, condition)
