"""The multi-layer perceptron."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """`layers` hidden layers of `hidden` units: `(B, inputs)` to `(B, outputs)`.

    Args:
        inputs: width of the input.
        outputs: width of the output.
        hidden: width of the hidden layers.
        layers: how many hidden layers.
        activation: between the layers.
        dropout: probability of dropping a hidden unit in training.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int = 128,
        layers: int = 2,
        activation: type[nn.Module] = nn.SiLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * layers]
        drop = [nn.Dropout(dropout)] if dropout else []
        body = [m for i, o in pairwise(widths) for m in (nn.Linear(i, o), activation(), *drop)]
        self.net = nn.Sequential(*body, nn.Linear(widths[-1], outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
