"""Gated PixelCNN: masked convolutions in two stacks, so that no pixel above is unseen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor

from fivefold.autoregressive._system import AutoregressiveSystem
from fivefold.nets.pixelcnn import GatedPixelCNN, raster
from fivefold.nets.states import States
from fivefold.options import option
from fivefold.system import Density


class GatedPixelcnn(AutoregressiveSystem):
    """Gated PixelCNN (survey 5.1.3; van den Oord et al., 2016).

    A vertical stack sees all rows above a pixel, a horizontal stack the pixels before it in its row and, by a
    1x1 convolution, the vertical stack; gated layers with residual connections. Within a pixel the features
    are in groups, one a colour channel, each seeing the channels before it. A condition that is an image is
    aligned with this one: each of its places reaches the pixels there.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.EXACT}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # Strong decay lets small data train long enough for its samples to cohere.
        "default": {"batch_size": 16, "precision": "auto", "ema": 0.995},
        "mnist": {
            "channels": 32,
            "layers": 7,
            "kernel": 3,
            "first_kernel": 7,
            "dropout": 0.0,
            "batch_size": 16,
            "lr": 2e-3,
            "weight_decay": 0.01,
            "ema": 0.999,
        },
        # CIFAR-10's sizes are those of the baseline in Ostrovski et al. (2018), ImageNet's the paper's own.
        "cifar10": {
            "channels": 128, "layers": 15, "kernel": 3, "first_kernel": 7, "embedding": 1, "dropout": 0.0,
            "batch_size": 16, "lr": 1e-4, "weight_decay": 0.0, "precision": "32", "ema": 0.9999,
        },
        "imagenet32": {
            "channels": 384, "layers": 20, "kernel": 5, "first_kernel": 7, "embedding": 1, "dropout": 0.0,
            "batch_size": 128, "lr": 1e-4, "weight_decay": 0.0, "precision": "32", "ema": 0.9999,
        },
    }  # fmt: skip

    channels: int = option(24, "features of each stack", least=1, tune=(8, 128), log=True)
    layers: int = option(6, "gated layers after the first", least=1, tune=(1, 16))
    kernel: int = option(5, "width of the convolutions, odd; they reach half of it up and left", least=1)
    first_kernel: int = option(5, "the same of the first layer", least=0)
    embedding: int = option(16, "features of each input value", least=1, tune=(2, 64), log=True)
    dropout: float = option(0.2, "share of features that are dropped in training", least=0, below=1, tune=(0.0, 0.5))

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
        params: Tensor = self.net(x, condition)
        return params

    def _order(self) -> Iterable[int]:
        return raster(self.space)

    def states(self, n: int, condition: Tensor | None) -> States:
        return self.net.states(n, condition)
