"""Output heads: what a network says about each dimension of a Space, as a distribution.

A network gives `width` parameters for every flattened dimension, `(B, D, width)`; the head turns
them into log-probabilities and samples. Mixed tables have another distribution per column, each
using the first of its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from fivefold.errors import Unfit
from fivefold.options import Configured, Need, option
from fivefold.space import Space
from fivefold.tools import distributions

MOST_CATEGORIES = 256  # of ordered values; beyond, a discretised logistic mixture needs far fewer parameters


class Output(Protocol):
    """The distribution of one dimension, from `width` parameters in the last axis.

    `start` are added to the network's outputs, so that an untrained network covers the data's range. `tempered`
    gives the parameters of p^(1/temperature), normalised (of a mixture: of its weights and of each component).
    """

    @property
    def start(self) -> list[float]: ...
    def log_prob(self, params: Tensor, x: Tensor) -> Tensor: ...
    def sample(self, params: Tensor, uniform: Tensor) -> Tensor: ...
    def mode(self, params: Tensor) -> Tensor: ...
    def tempered(self, params: Tensor, temperature: float) -> Tensor: ...


@dataclass(frozen=True)
class Bernoulli:
    """Two levels by one logit."""

    @property
    def start(self) -> list[float]:
        return [0.0]

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        return distributions.bernoulli_log_prob(params[..., 0], x)

    def sample(self, params: Tensor, uniform: Tensor) -> Tensor:
        return (uniform[..., 0] < params[..., 0].sigmoid()).long()

    def mode(self, params: Tensor) -> Tensor:
        return (params[..., 0] > 0).long()

    def tempered(self, params: Tensor, temperature: float) -> Tensor:
        return params / temperature

    def logit(self, params: Tensor, x: Tensor) -> Tensor:
        return params[..., 0] * x


@dataclass(frozen=True)
class Categorical:
    """Any levels, ordered or not, by a logit each."""

    levels: int

    @property
    def start(self) -> list[float]:
        return [0.0] * self.levels

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        return distributions.categorical_log_prob(params, x)

    def sample(self, params: Tensor, uniform: Tensor) -> Tensor:
        return distributions.categorical_sample(params, uniform[..., 0])

    def mode(self, params: Tensor) -> Tensor:
        return params.argmax(-1)

    def tempered(self, params: Tensor, temperature: float) -> Tensor:
        return params / temperature

    def logit(self, params: Tensor, x: Tensor) -> Tensor:
        return params.gather(-1, x.long().unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class _Mixture:
    """Of components with a logit, a mean and a log-scale each."""

    mixtures: int
    reach: ClassVar[float] = 1.5  # untrained, the means lie evenly up to here

    @property
    def start(self) -> list[float]:
        """Equal weights, and scales that join neighbours."""
        means = [self.reach * (2 * k + 1 - self.mixtures) / self.mixtures for k in range(self.mixtures)]
        return [0.0] * self.mixtures + means + [math.log(self.reach / self.mixtures)] * self.mixtures

    def mode(self, params: Tensor) -> Tensor:
        """The mean of the heaviest."""
        weights, means, _ = params.chunk(3, -1)
        return means.gather(-1, weights.argmax(-1, keepdim=True)).squeeze(-1)

    def tempered(self, params: Tensor, temperature: float) -> Tensor:
        """Weights to the power, and scales that spread each component as a Gaussian's would."""
        weights, means, log_scales = params.chunk(3, -1)
        return torch.cat([weights / temperature, means, log_scales + math.log(temperature) / 2], -1)


@dataclass(frozen=True)
class DiscretisedLogisticMixture(_Mixture):
    """Ordered levels by the cells of a mixture of logistics on [-1, 1] (PixelCNN++ [190]; survey 5.2)."""

    levels: int
    reach = 1.0

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        return distributions.discretised_logistic_mixture_log_prob(params, x, self.levels)

    def sample(self, params: Tensor, uniform: Tensor) -> Tensor:
        return distributions.discretised_logistic_mixture_sample(params, uniform, self.levels)

    def mode(self, params: Tensor) -> Tensor:
        centre = super().mode(params)
        return ((centre + 1) * (self.levels - 1) / 2).round().clamp(0, self.levels - 1).long()


@dataclass(frozen=True)
class LogisticMixture(_Mixture):
    """Real values, standardised, by a mixture of logistics."""

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        return distributions.logistic_mixture_log_prob(params, x)

    def sample(self, params: Tensor, uniform: Tensor) -> Tensor:
        return distributions.logistic_mixture_sample(params, uniform)


@dataclass(frozen=True)
class GaussianMixture(_Mixture):
    """Real values, standardised, by a mixture of Gaussians (Uria et al., 2013)."""

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        return distributions.gaussian_mixture_log_prob(params, x)

    def sample(self, params: Tensor, uniform: Tensor) -> Tensor:
        return distributions.gaussian_mixture_sample(params, uniform)


@dataclass(frozen=True)
class Gaussian:
    """Real values by a mean and a log-scale (clamped below at -7)."""

    @property
    def start(self) -> list[float]:
        return [0.0, 0.0]

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        return distributions.gaussian_log_prob(x, params[..., 0], params[..., 1].clamp(min=-7.0))

    def sample(self, params: Tensor, uniform: Tensor) -> Tensor:
        noise = torch.special.ndtri(uniform[..., 0].clamp(1e-7, 1 - 1e-7))
        return params[..., 0] + params[..., 1].clamp(min=-7.0).exp() * noise

    def mode(self, params: Tensor) -> Tensor:
        return params[..., 0]

    def tempered(self, params: Tensor, temperature: float) -> Tensor:
        return torch.stack([params[..., 0], params[..., 1].clamp(min=-7.0) + math.log(temperature) / 2], -1)


class Likelihood(Configured):
    """Which distribution each dimension has: a part for a slot, with the options that go with it.

    This one takes what suits: a categorical for up to 256 levels and for unordered values, a discretised logistic
    mixture for more, a logistic mixture for real values. Others name one for the dimensions that they model and leave
    the rest to this.
    """

    models: ClassVar[str] = ""  # in words, what it is for

    mixtures: int = option(8, "components, where a dimension has a mixture", least=1, tune=(1, 16))

    def __init__(self, **options: Any) -> None:
        self.configure(options)

    def fits(self, levels: int | None) -> bool:
        """Whether dimensions of so many levels (None: real) are what it is for."""
        return True

    def output(self, levels: int | None, ordered: bool) -> Output:
        """The distribution of a dimension."""
        if levels is None:
            return LogisticMixture(self.mixtures)
        if ordered and levels > MOST_CATEGORIES:
            return DiscretisedLogisticMixture(self.mixtures, levels)
        return Bernoulli() if levels == 2 else Categorical(levels)


class OfLevels(Likelihood):
    """A categorical, however many levels there are."""

    models = "levels"

    def fits(self, levels: int | None) -> bool:
        return levels is not None

    def output(self, levels: int | None, ordered: bool) -> Output:
        return super().output(levels, False)


class OfTwoLevels(Likelihood):
    """One logit for two levels."""

    models = "two levels"

    def fits(self, levels: int | None) -> bool:
        return levels == 2


class OfOrder(Likelihood):
    """Logistic mixtures for ordered levels, discretised, and for real values."""

    def output(self, levels: int | None, ordered: bool) -> Output:
        if levels is None or not ordered or levels <= 2:
            return super().output(levels, ordered)
        return DiscretisedLogisticMixture(self.mixtures, levels)


class OfReals(Likelihood):
    """A Gaussian for real values."""

    models = "real values"

    def fits(self, levels: int | None) -> bool:
        return levels is None

    def output(self, levels: int | None, ordered: bool) -> Output:
        return Gaussian() if levels is None else super().output(levels, ordered)


class OfRealsInModes(OfReals):
    """Gaussian mixtures for real values."""

    def output(self, levels: int | None, ordered: bool) -> Output:
        return GaussianMixture(self.mixtures) if levels is None else super().output(levels, ordered)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "auto": Likelihood,
    "bernoulli": OfTwoLevels,
    "categorical": OfLevels,
    "logistic-mixture": OfOrder,
    "gaussian": OfReals,
    "gaussian-mixture": OfRealsInModes,
}
LIKELIHOOD = Need("a distribution for the values of a dimension", parts=LIKELIHOODS, systems=False)
LIKELIHOOD_HELP = (
    "of each dimension's values: logistic-mixture (of ordered levels and real values), categorical, bernoulli (two "
    "levels), gaussian or gaussian-mixture (real values); auto, and what it does not model, take what suits a dimension"
)


class Head(nn.Module):
    """The distributions of all dimensions of `space`.

    Args:
        space: of the examples, D dimensions when flattened.
        likelihood: which each dimension has; what suits it unless given.

    Raises:
        Unfit: where the likelihood models no dimension of the space.
    """

    def __init__(self, space: Space, likelihood: Likelihood | None = None) -> None:
        super().__init__()
        self.space, self.temperature = space, 1.0  # of what is drawn dimension by dimension
        likelihood = likelihood or Likelihood()
        if not any(map(likelihood.fits, space.dim_levels)):
            name = next(name for name, kind in LIKELIHOODS.items() if kind is type(likelihood))
            raise Unfit(f"a {name} likelihood needs {likelihood.models}; there are none in {space.describe()}")
        ordered = ordered_dims(space)
        self.outputs = [likelihood.output(n, o) for n, o in zip(space.dim_levels, ordered, strict=True)]
        self.width = max(len(output.start) for output in self.outputs)
        groups: dict[Output, list[int]] = {}
        for dim, output in enumerate(self.outputs):
            groups.setdefault(output, []).append(dim)
        self.groups = list(groups.items())
        padded = [output.start + [0.0] * (self.width - len(output.start)) for output in self.outputs]
        start = torch.tensor(padded[:1] if len(groups) == 1 else padded)
        self.register_buffer("start", start, persistent=False)
        self.start: Tensor
        order = [dim for dims in groups.values() for dim in dims]
        self.register_buffer("position", torch.tensor(order).argsort(), persistent=False)
        self.position: Tensor

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Nats `(B, D)` of encoded `x` `(B, *shape)` under `params` `(B, D, width)`."""
        return self._by_group(lambda output, p, v: output.log_prob(p, v), params, x.flatten(1))

    @property
    def has_logits(self) -> bool:
        """Whether every value of every dimension has an output of its own (of two values, one of them 0)."""
        return all(isinstance(output, Bernoulli | Categorical) for output in self.outputs)

    def logit(self, params: Tensor, x: Tensor) -> Tensor:
        """As `log_prob`, not normalised: the outputs of the values x; where there are such (`has_logits`)."""
        return self._by_group(lambda output, p, v: cast(Categorical, output).logit(p, v), params, x.flatten(1))

    def sample(self, params: Tensor, uniform: Tensor) -> Tensor:
        """Encoded values `(B, D)` by inverting the distributions at `uniform` `(B, D, 2)` (see `noise`)."""
        return self._by_group(lambda output, p, u: output.sample(p, u).to(self.dtype), params, uniform)

    def sample_at(self, dim: Tensor, params: Tensor) -> Tensor:
        """Values `(B, 1)` of one dimension of each example, `dim` `(B, 1)`, by its `params` `(B, 1, width)`."""
        if len(self.groups) == 1:
            uniform = torch.rand(len(params), 1, 2, device=params.device)
            return self.outputs[0].sample(params + self.start, uniform).to(self.dtype)
        return self.sample(params.expand(-1, self.space.dims, -1), self.noise(len(params))).gather(1, dim)

    def log_prob_at(self, dim: Tensor, params: Tensor, x: Tensor) -> Tensor:
        """Nats `(B,)` of these dimensions of encoded `x` `(B, D)`."""
        if len(self.groups) == 1:
            return self.outputs[0].log_prob(params + self.start, x.gather(1, dim)).squeeze(1)
        return self.log_prob(params.expand(-1, self.space.dims, -1), x).gather(1, dim).squeeze(1)

    def mode(self, params: Tensor) -> Tensor:
        """About the most likely encoded values `(B, D)`: without noise."""
        return self._by_group(lambda output, p, _: output.mode(p).to(self.dtype), params, params)

    def sample_dim(self, dim: int, params: Tensor, uniform: Tensor) -> Tensor:
        """As `sample`, of one flattened dimension: `params` `(B, width)`, `uniform` `(B, 2)`, values `(B,)`."""
        output, params = self._of_dim(dim, params)
        if self.temperature != 1:
            params = output.tempered(params, self.temperature)
        return output.sample(params, uniform).to(self.dtype)

    def log_prob_dim(self, dim: int, params: Tensor, x: Tensor) -> Tensor:
        """As `log_prob`, of one flattened dimension: `params` `(B, width)`, `x` and nats `(B,)`."""
        output, params = self._of_dim(dim, params)
        return output.log_prob(params, x)

    def _of_dim(self, dim: int, params: Tensor) -> tuple[Output, Tensor]:
        output = self.outputs[dim]
        return output, (params + self.start[min(dim, len(self.start) - 1)])[..., : len(output.start)]

    def noise(self, n: int) -> Tensor:
        """Uniform noise `(n, D, 2)` for `sample`: all that sampling `n` examples draws."""
        return torch.rand(n, self.space.dims, 2, device=self.start.device)

    def from_maps(self, maps: Tensor) -> Tensor:
        """`(B, C * width, H, W)`, as convolutions give them, as parameters `(B, D, width)`."""
        return dims_of_maps(maps, self.space.shape[0])

    @property
    def dtype(self) -> torch.dtype:
        """Of encoded examples."""
        whole = self.space.levels is not None and not self.space.columns
        return torch.long if whole else torch.float32

    def _by_group(self, f: Callable[[Output, Tensor, Tensor], Tensor], params: Tensor, values: Tensor) -> Tensor:
        params = params + self.start
        if len(self.groups) == 1:
            return f(self.outputs[0], params, values)
        parts = [f(output, params[:, dims, : len(output.start)], values[:, dims]) for output, dims in self.groups]
        return torch.cat(parts, 1)[:, self.position]


def dims_of_maps(maps: Tensor, colours: int) -> Tensor:
    """`(B, colours * width, H, W)`, as convolutions give them, as parameters `(B, D, width)`."""
    return maps.unflatten(1, (colours, -1)).movedim(2, -1).flatten(1, 3)


def ordered_dims(space: Space) -> list[bool]:
    """Whether the values of each dimension have an order that a smooth density can use."""
    if space.columns:
        return [column.kind != "categorical" for column in space.columns]
    return [space.kind != "text"] * space.dims
