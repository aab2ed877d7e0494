"""PixelIQN: the gated PixelCNN's network with an implicit quantile function for every dimension."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.autoregressive._pixelcnn import PixelCNNSystem
from fivefold.options import fixed, option
from fivefold.space import Batch, Space
from fivefold.system import Density
from fivefold.tools.quantiles import cosines, quantile_huber
from fivefold.tools.scaling import dequantise, quantise


class Pixeliqn(PixelCNNSystem):
    """Autoregressive implicit quantile network, PixelIQN (survey 5.2; Ostrovski et al., 2018).

    What the gated PixelCNN sees of the dimensions before gives, together with any tau in (0, 1), the tau-quantile
    of the next one: no form of distribution is assumed. It is trained by the quantile Huber loss at random tau,
    which approaches a Wasserstein distance, and a sample draws a tau for each dimension.

    Levels count as the cells of an interval: the target is a random point of the cell, a sample the cell that the
    quantile falls in. A quantile function that is not told otherwise need not rise everywhere: there is no density.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.NONE}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"precision": "auto", "ema": 0.995},
        "cifar10": {
            "channels": 128, "layers": 15, "kernel": 3, "first_kernel": 7, "embedding": 1, "dropout": 0.0,
            "features": 128, "quantiles": 1, "batch_size": 16, "lr": 1e-4, "weight_decay": 0.0, "precision": "32",
            "ema": 0.9999,
        },
        "imagenet32": {
            "channels": 128, "layers": 15, "kernel": 3, "first_kernel": 7, "embedding": 1, "dropout": 0.0,
            "features": 128, "quantiles": 1, "batch_size": 16, "lr": 1e-4, "weight_decay": 0.0, "precision": "32",
            "ema": 0.9999,
        },
    }  # fmt: skip

    likelihood = fixed("quantiles")
    lr = 4e-3
    dropout = 0.1
    features: int = option(32, "of each dimension, that are multiplied by those of tau", least=1)
    cosine_features: int = option(64, "cosines that tau is embedded by", least=1)
    quantiles: int = option(8, "values of tau for each dimension and training step", least=1)
    kappa: float = option(0.004, "where the loss turns from quadratic to linear, the levels spanning [-1, 1]", above=0)

    def make_head(self) -> nn.Module:
        return QuantileHead(self.space, self.features, self.cosine_features)

    def loss(self, batch: Batch) -> Tensor:
        target = dequantise(batch.x, self.space).flatten(1).unsqueeze(-1)
        tau = torch.rand(*target.shape[:2], self.quantiles, device=target.device)
        tau = (tau + torch.arange(self.quantiles, device=target.device)) / self.quantiles  # one in each part of (0, 1)
        quantile = self.head(self.conditionals(batch.x, batch.condition), tau).float()
        return quantile_huber(target - quantile, tau, self.kappa).mean(2).sum(1).mean()


class QuantileHead(nn.Module):
    """Quantiles of each dimension from its features and tau, as the levels span [-1, 1].

    Both are multiplied and a small network makes one number of them (Dabney et al. 2018, section 3).

    Args:
        space: of the examples, D dimensions when flattened.
        width: features of a dimension.
        count: cosines of tau.
    """

    def __init__(self, space: Space, width: int, count: int) -> None:
        super().__init__()
        self.space, self.width, self.count, self.temperature = space, width, count, 1.0
        self.of_tau = nn.Linear(count, width)
        self.hidden, self.last = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, features: Tensor, tau: Tensor) -> Tensor:
        """Quantiles `(..., K)` at `tau` `(..., K)` from `features` `(..., width)`."""
        both = features.unsqueeze(-2) * F.silu(self.of_tau(cosines(tau, self.count)))
        rise = 2 * tau - 1  # an untrained network covers the data's range
        return self.last(F.silu(self.hidden(both))).squeeze(-1) + rise

    def sample_dim(self, dim: int, features: Tensor, tau: Tensor) -> Tensor:
        """Encoded values `(n,)` of one flattened dimension at `tau` `(n, 1)`."""
        if self.temperature != 1:  # a logistic's spread would be multiplied by it
            tau = torch.sigmoid(self.temperature * tau.logit(eps=1e-6))
        return quantise(self(features, tau)[..., 0], self.space)

    def noise(self, n: int) -> Tensor:
        """A tau for every dimension, `(n, D, 1)`."""
        return torch.rand(n, self.space.dims, 1, device=self.last.weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of encoded examples."""
        return torch.float32 if self.space.levels is None else torch.long
