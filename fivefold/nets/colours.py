"""The joint distribution of the colours of a pixel."""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor, nn

from fivefold.space import Space
from fivefold.tools import distributions
from fivefold.tools.scaling import centre, uncentre


class ColourMixture(nn.Module):
    """A mixture of logistics for each pixel, discretised to the levels where there are any (PixelCNN++ [190]).

    One component is chosen for all C colours of a pixel. Within it the mean of a colour moves linearly with the
    values of the colours before it.

    Args:
        space: of images.
        mixtures: components, K.
    """

    start: Tensor

    def __init__(self, space: Space, mixtures: int) -> None:
        super().__init__()
        self.space, self.mixtures = space, mixtures
        self.colours = space.shape[0]
        self.pairs = [(late, early) for early, late in combinations(range(self.colours), 2)]
        self.parts = [1, self.colours, self.colours, len(self.pairs)]
        self.width = mixtures * sum(self.parts)  # maps that a network gives: 100 of 10 components and 3 colours
        reach = 1.0 if space.levels is not None else 1.5
        means = torch.tensor([reach * (2 * k + 1 - mixtures) / mixtures for k in range(mixtures)])
        start = torch.zeros(mixtures, sum(self.parts))
        start[:, 1 : 1 + self.colours] = means.unsqueeze(1)
        start[:, 1 + self.colours : 1 + 2 * self.colours] = math.log(reach / mixtures)
        self.register_buffer("start", start.view(-1, 1, 1), persistent=False)

    def log_prob(self, maps: Tensor, x: Tensor) -> Tensor:
        """Nats `(B,)` of encoded images `x` `(B, C, H, W)` under `maps` `(B, width, H, W)`."""
        weights, means, log_scales, slopes = self._split(maps)
        means = self._moved(means, slopes, centre(x, self.space).unsqueeze(1))
        if self.space.levels is None:
            each = distributions.logistic_log_prob(x.unsqueeze(1), means, log_scales)
        else:
            each = distributions.discretised_logistic_log_prob(x.unsqueeze(1), means, log_scales, self.space.levels)
        return (weights.log_softmax(1) + each.sum(2)).logsumexp(1).flatten(1).sum(1)

    def sample(self, maps: Tensor) -> Tensor:
        """Encoded images `(B, C, H, W)`."""
        weights, means, log_scales, slopes = self._split(maps)
        uniform = torch.rand(len(maps), *weights.shape[2:], device=maps.device)
        chosen = distributions.categorical_sample(weights.movedim(1, -1), uniform)
        noise = torch.logit(torch.rand(len(maps), *self.space.shape, device=maps.device), eps=1e-6)
        means, log_scales, slopes = (_chosen(part, chosen) for part in (means, log_scales, slopes))
        return self._colour_by_colour(means, slopes, log_scales.exp() * noise)

    def mode(self, maps: Tensor) -> Tensor:
        """Encoded images `(B, C, H, W)`: the centre of each pixel's heaviest component."""
        weights, means, _, slopes = self._split(maps)
        means, slopes = (_chosen(part, weights.argmax(1)) for part in (means, slopes))
        return self._colour_by_colour(means, slopes, torch.zeros_like(means))

    def push(self, maps: Tensor, noise: Tensor) -> Tensor:
        """Centred images `(B, C, H, W)` of standard normal `noise` of that shape: of one component, a draw from it.

        It can be differentiated: where levels are discrete values are rounded, their gradients are not. Of several
        components only the heaviest is used.
        """
        weights, means, log_scales, slopes = self._split(maps)
        means, log_scales, slopes = (_chosen(part, weights.argmax(1)) for part in (means, log_scales, slopes))
        logistic = torch.special.log_ndtr(noise) - torch.special.log_ndtr(
            -noise
        )  # the logit of its distribution function
        y = torch.zeros_like(means)
        for colour in range(self.colours):
            drawn = (self._moved(means, slopes, y) + log_scales.exp() * logistic)[:, colour : colour + 1]
            y = torch.cat([y[:, :colour], drawn, y[:, colour + 1 :]], 1)
            y = y + (centre(uncentre(y, self.space), self.space) - y).detach()
        return y

    def _split(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits `(B, K, H, W)`; means, log-scales `(B, K, C, H, W)` and slopes `(B, K, pairs, H, W)`."""
        parts = (maps.float() + self.start).unflatten(1, (self.mixtures, -1)).split(self.parts, 2)
        least = -7.0 if self.space.levels is None else distributions.narrowest(self.space.levels)
        return parts[0].squeeze(2), parts[1], parts[2].clamp(min=least), parts[3].tanh()

    def _moved(self, means: Tensor, slopes: Tensor, y: Tensor) -> Tensor:
        """Means `(..., C, H, W)` given the centred values `y` of all colours."""
        moved = list(means.unbind(-3))
        for pair, (late, early) in enumerate(self.pairs):
            moved[late] = moved[late] + slopes[..., pair, :, :] * y[..., early, :, :]
        return torch.stack(moved, -3)

    def _colour_by_colour(self, means: Tensor, slopes: Tensor, noise: Tensor) -> Tensor:
        """Each colour given those before it as they are encoded: the density conditions on levels."""
        y = torch.zeros_like(means)
        for colour in range(self.colours):
            drawn = self._moved(means, slopes, y) + noise
            y[:, colour] = centre(uncentre(drawn, self.space), self.space)[:, colour]
        return uncentre(y, self.space)


def _chosen(parts: Tensor, component: Tensor) -> Tensor:
    """`parts` `(B, K, n, H, W)` of the component `(B, H, W)` of each pixel: `(B, n, H, W)`."""
    index = component[:, None, None].expand(-1, 1, parts.shape[2], -1, -1)
    return parts.gather(1, index).squeeze(1)
