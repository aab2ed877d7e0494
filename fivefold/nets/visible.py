"""Units of harmoniums: the visible layer as exponential families with natural parameters from outside.

Each kind of unit has p(v | eta) = base(v) exp(eta . s(v) - A(eta)); a hidden layer shifts eta linearly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.space import Space


class Units(nn.Module, ABC):
    """One kind of unit: `width` statistics, natural parameters `(..., width)`, values v `(B, D)`."""

    width: int

    @abstractmethod
    def statistic(self, v: Tensor) -> Tensor:
        """s(v) `(B, width)`."""

    @abstractmethod
    def log_base(self, v: Tensor) -> Tensor:
        """ln base(v) in nats `(B,)`."""

    @abstractmethod
    def log_normaliser(self, natural: Tensor) -> Tensor:
        """A(eta) in nats `(...)`: ln of the integral of base(v) exp(eta . s(v))."""

    @abstractmethod
    def sample(self, natural: Tensor) -> Tensor:
        """v `(B, D)` given natural parameters `(B, width)`."""

    @abstractmethod
    def natural(self, mean: Tensor) -> Tensor:
        """The natural parameters of units with these mean statistics, kept off the ends of their range."""

    def singles(self) -> list[tuple[Units, slice]]:
        """Every unit by itself, and where its statistics are among the layer's."""
        raise NotImplementedError(f"{type(self).__name__} units are not drawn one by one")


class Binomial(Units):
    """Counts k of 0..n (binary for n = 1): base C(n, k), statistic k / sqrt(n).

    The same as n binary units that share their weights (Teh and Hinton 2001), with weights scaled so that a
    statistic varies as much as one binary unit does.

    Args:
        levels: n + 1 of every dimension.
    """

    trials: Tensor
    log_outcomes: Tensor

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        trials = torch.tensor(levels, dtype=torch.float64)[:, None] - 1
        count = torch.arange(max(levels))
        outcomes = (trials + 1).lgamma() - (count + 1).lgamma() - (trials - count + 1).clamp(min=1).lgamma()
        self.register_buffer("trials", trials[:, 0].float(), persistent=False)
        self.register_buffer("log_outcomes", outcomes.float(), persistent=False)  # ln C(n, k), `(D, max levels)`
        self.binary = max(levels) == 2
        self.width = len(levels)

    def statistic(self, v: Tensor) -> Tensor:
        return v if self.binary else v / self.trials.clamp(min=1).sqrt()

    def log_base(self, v: Tensor) -> Tensor:
        return torch.zeros_like(v[:, 0]) if self.binary else self.log_outcomes.gather(1, v.long().T).sum(0)

    def log_normaliser(self, natural: Tensor) -> Tensor:
        n = self.trials.clamp(min=1).sqrt()
        return (self.trials * F.softplus(natural / n)).sum(-1)

    def sample(self, natural: Tensor) -> Tensor:
        if self.binary:
            return bernoulli(natural)
        n = self.trials
        chance = (natural / n.clamp(min=1).sqrt()).sigmoid().nan_to_num(0.0)  # as `bernoulli`: no draw fails
        return torch.binomial(n.expand_as(natural), chance)

    def natural(self, mean: Tensor) -> Tensor:
        root = self.trials.clamp(min=1).sqrt()
        return root * torch.logit(mean / root, eps=1e-3)

    def singles(self) -> list[tuple[Units, slice]]:
        return [(Binomial([int(n) + 1]), slice(i, i + 1)) for i, n in enumerate(self.trials)]


class Gaussian(Units):
    """Reals of a learnt deviation: base exp(-v^2 / 2 scale^2), statistic v / scale, so v is N(scale eta, scale^2).

    Args:
        width: how many.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.log_scale = nn.Parameter(torch.full((width,), math.log(0.5)))

    def statistic(self, v: Tensor) -> Tensor:
        return v * torch.exp(-self.log_scale)

    def log_base(self, v: Tensor) -> Tensor:
        return -0.5 * self.statistic(v).square().sum(1)

    def log_normaliser(self, natural: Tensor) -> Tensor:
        return (0.5 * natural**2 + self.log_scale + 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(self, natural: Tensor) -> Tensor:
        return self.log_scale.exp() * (natural + torch.randn_like(natural))

    def natural(self, mean: Tensor) -> Tensor:
        return mean


class Categorical(Units):
    """One value of several, as softmax units: statistic one-hot.

    Args:
        levels: how many values each dimension has.
    """

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        self.levels, self.width = levels, sum(levels)

    def statistic(self, v: Tensor) -> Tensor:
        return torch.cat([F.one_hot(v[:, i].long(), n).float() for i, n in enumerate(self.levels)], 1)

    def log_base(self, v: Tensor) -> Tensor:
        return torch.zeros_like(v[:, 0])

    def log_normaliser(self, natural: Tensor) -> Tensor:
        return torch.stack([part.logsumexp(-1) for part in natural.split(self.levels, -1)]).sum(0)

    def sample(self, natural: Tensor) -> Tensor:
        noisy = natural - torch.empty_like(natural).exponential_().log()  # Gumbel noise: the largest is a draw
        return torch.stack([part.argmax(1) for part in noisy.split(self.levels, 1)], 1).float()

    def natural(self, mean: Tensor) -> Tensor:
        return mean.clamp(min=1e-3).log()

    def singles(self) -> list[tuple[Units, slice]]:
        ends = accumulate(self.levels)
        return [(Categorical([n]), slice(end - n, end)) for n, end in zip(self.levels, ends, strict=True)]


class VisibleUnits(Units):
    """The visible layer of a Space: encoded examples, flat and float `(B, D)`.

    Levels of images and integer columns are binomial (binary where there are two), real dimensions
    Gaussian, categorical columns softmax.

    Args:
        space: of the examples.
    """

    back: Tensor

    def __init__(self, space: Space) -> None:
        super().__init__()
        kinds = [c.kind for c in space.columns] or ["real" if space.levels is None else "integer"] * space.dims
        self.places: list[list[int]] = []
        self.kinds = nn.ModuleList()
        for kind, make in _MAKERS.items():
            place = [i for i, k in enumerate(kinds) if k == kind]
            if place:
                self.places.append(place)
                self.kinds.append(make([space.dim_levels[i] or 0 for i in place]))
        self.widths = [units.width for units in self._kinds]
        self.width = sum(self.widths)
        self.register_buffer(
            "back", torch.tensor([i for place in self.places for i in place]).argsort(), persistent=False
        )

    @property
    def _kinds(self) -> list[Units]:
        return cast(list[Units], list(self.kinds))

    def _values(self, v: Tensor) -> list[tuple[Units, Tensor]]:
        if len(self.kinds) == 1:
            return [(self._kinds[0], v)]
        return [(units, v[:, place]) for units, place in zip(self._kinds, self.places, strict=True)]

    def _parameters_of(self, natural: Tensor) -> list[tuple[Units, Tensor]]:
        return list(zip(self._kinds, natural.split(self.widths, -1), strict=True))

    def statistic(self, v: Tensor) -> Tensor:
        return torch.cat([units.statistic(part) for units, part in self._values(v)], 1)

    def log_base(self, v: Tensor) -> Tensor:
        return torch.stack([units.log_base(part) for units, part in self._values(v)]).sum(0)

    def log_normaliser(self, natural: Tensor) -> Tensor:
        return torch.stack([units.log_normaliser(part) for units, part in self._parameters_of(natural)]).sum(0)

    def sample(self, natural: Tensor) -> Tensor:
        parts = [units.sample(part) for units, part in self._parameters_of(natural)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)[:, self.back]

    def natural(self, mean: Tensor) -> Tensor:
        return torch.cat([units.natural(part) for units, part in self._parameters_of(mean)], -1)

    def singles(self) -> list[tuple[Units, slice]]:
        """In the order of the dimensions."""
        found, start = {}, 0
        for units, place in zip(self._kinds, self.places, strict=True):
            for dim, (single, columns) in zip(place, units.singles(), strict=True):
                found[dim] = single, slice(start + columns.start, start + columns.stop)
            start += units.width
        return [found[dim] for dim in range(len(found))]

    def copies(self) -> Tensor | None:
        """How the statistics are sums over binary units that share their weights, `(width, units)`; None if not so."""
        if len(self.kinds) > 1 or not isinstance(self.kinds[0], Binomial):
            return None
        trials = self.kinds[0].trials
        return torch.diag(trials.clamp(min=1).rsqrt()).repeat_interleave(trials.long(), 1)


_MAKERS: dict[str, Callable[[list[int]], Units]] = {
    "integer": Binomial,
    "real": lambda levels: Gaussian(len(levels)),
    "categorical": Categorical,
}


def bernoulli(logits: Tensor) -> Tensor:
    """0 or 1 of the logits' shape; 0 where a logit is not a number, so that the loss tells of it and not the draw."""
    return (torch.rand_like(logits) < logits.sigmoid()).to(logits.dtype)
