"""Gated PixelCNN: masked convolutions in two stacks, so that no pixel above is unseen."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.autoregressive._pixelcnn import PixelCNNSystem


class GatedPixelcnn(PixelCNNSystem):
    """Gated PixelCNN (survey 5.1.3; van den Oord et al., 2016).

    A vertical stack sees all rows above a pixel, a horizontal stack the pixels before it in its row and, by a
    1x1 convolution, the vertical stack; gated layers with residual connections. Within a pixel the features
    are in groups, one a colour channel, each seeing the channels before it. A condition that is an image is
    aligned with this one: each of its places reaches the pixels there.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # Strong decay lets small data train long enough for its samples to cohere.
        "default": {"precision": "auto", "ema": 0.995},
        "mnist": {
            "channels": 32, "layers": 7, "kernel": 3, "first_kernel": 7, "dropout": 0.0, "batch_size": 16, "lr": 2e-3,
            "weight_decay": 0.01, "ema": 0.999,
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
