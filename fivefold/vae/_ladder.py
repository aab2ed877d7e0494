"""Hierarchies of codes: one way down a ladder, whoever chooses the codes (survey 3.1.1, Eq. 15)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fivefold.errors import Unfit
from fivefold.nets.condition import ConditionEmbedding
from fivefold.options import option
from fivefold.space import Batch
from fivefold.tools.distributions import gaussian_log_prob
from fivefold.tools.given import Proposal
from fivefold.vae._bound import Terms, VariationalSystem, kl_to_standard_normal, repeat, repeat_condition

COARSE = 4  # sides up to which a grid is not halved but followed by one of a single position


class Law(Protocol):
    """A distribution of one code, `(B, C, h, w)`: of a posterior."""

    @property
    def mean(self) -> Tensor: ...
    def draw(self) -> Tensor: ...
    def log_prob(self, z: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Gaussian:
    """Independent Gaussians of these means and log-scales."""

    mean: Tensor
    log_scale: Tensor

    def draw(self, temperature: float = 1.0) -> Tensor:
        return self.push(temperature * torch.randn_like(self.mean))

    def push(self, noise: Tensor) -> Tensor:
        """What standard normal noise becomes."""
        return self.mean + self.log_scale.exp() * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """Elementwise, in nats."""
        return gaussian_log_prob(z, self.mean, self.log_scale)


class Rung(Protocol):
    """One code: its prior and posterior given the stream `h`, and its way into it."""

    latent: int  # channels of the code

    def prior_of(self, h: Tensor) -> tuple[Gaussian, Tensor]:
        """p(z|h), and the stream with what the prior adds to it."""

    def posterior_of(self, h: Tensor, found: Tensor, prior: Gaussian) -> Law:
        """q(z|h, x), from what the encoder found on this grid."""

    def merge(self, h: Tensor, z: Tensor) -> Tensor:
        """The stream with the code in it."""


class Head(Protocol):
    """The likelihood of encoded examples from maps, `(B, width, H, W)`."""

    width: int

    def log_prob(self, maps: Tensor, x: Tensor) -> Tensor: ...
    def sample(self, maps: Tensor) -> Tensor: ...
    def mode(self, maps: Tensor) -> Tensor: ...


Choose = Callable[[int, Tensor, Gaussian], Tensor]


class LadderSystem(VariationalSystem):
    """A hierarchy of codes on grids from the smallest to full size, p(z) = prod p(z_l|z_<l) (survey Eq. 15).

    The posterior q(z_l|z_<l, x) goes down the same way and sees what an encoder found on its way up. Subclasses set
    `grids` (smallest first), `rungs` and the level of each in `grids`, `levels`, an `encoder` and a `head`, and write
    how the stream starts, is enlarged from one grid to the next and ends. The loss is in nats per dimension.
    """

    dials: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.6, 0.8, 0.9, 1.0)}

    warmup = 0.0
    score_samples = 16
    temperature: float = option(1.0, "of the codes that are sampled; 1 is the model's own", above=0)

    grids: list[tuple[int, int]]
    levels: list[int]
    rungs: nn.ModuleList
    embed: ConditionEmbedding
    encoder: nn.Module
    head: Head

    @property
    def loss_scale(self) -> float:
        """Thresholds of the gradient's norm are of this scale."""
        return 1 / self.space.dims

    # --- what a hierarchy writes ----------------------------------------------------------------

    @abstractmethod
    def features(self, x: Tensor, condition: Tensor | None) -> list[Tensor]:
        """What the encoder finds on each grid, smallest first."""

    @abstractmethod
    def start(self, n: int) -> Tensor:
        """The stream above all grids, `(n, C, 1, 1)`."""

    @abstractmethod
    def enlarge(self, h: Tensor, level: int, embedding: Tensor | None) -> Tensor:
        """The stream on the next grid, that of `level`."""

    @abstractmethod
    def finish(self, h: Tensor) -> Tensor:
        """Maps for the head."""

    # --- one way down, whoever chooses the codes ------------------------------------------------

    @property
    def _rungs(self) -> list[Rung]:
        return list(self.rungs)  # type: ignore[arg-type]

    def descend(self, n: int, condition: Tensor | None, choose: Choose) -> Tensor:
        """Maps for the head; `choose` gives each rung's code, from its number, the stream and the prior there."""
        embedding, h, level = self.embed(condition), self.start(n), -1
        for number, rung in enumerate(self._rungs):
            if self.levels[number] != level:
                level = self.levels[number]
                h = self.enlarge(h, level, embedding)
            prior, onward = rung.prior_of(h)
            h = rung.merge(onward, choose(number, h, prior))
        return self.finish(h)

    def posterior(self, found: list[Tensor], number: int, h: Tensor, prior: Gaussian) -> Law:
        """Of the rung of that number, from the encoder's `features`, which are repeated for several draws."""
        at = found[self.levels[number]]
        return self._rungs[number].posterior_of(h, at.repeat(len(h) // len(at), 1, 1, 1), prior)

    def bound(self, x: Tensor, condition: Tensor | None) -> Callable[[int], Terms]:
        return partial(self._terms, x, condition, self.features(x, condition))

    def _terms(self, x: Tensor, condition: Tensor | None, found: list[Tensor], draws: int) -> Terms:
        """The terms of `draws` of all codes, the divergence of each rung apart."""
        x, codes = repeat(x, draws), list[tuple[Tensor, Gaussian, Law]]()

        def choose(number: int, h: Tensor, prior: Gaussian) -> Tensor:
            law = self.posterior(found, number, h, prior)
            codes.append((law.draw(), prior, law))
            return codes[-1][0]

        def over_rungs(of: Callable[[Tensor, Gaussian, Law], Tensor]) -> Tensor:
            return torch.stack([of(*code).flatten(1).sum(1).view(draws, -1) for code in codes])

        log_likelihood = self.head.log_prob(self.descend(len(x), repeat_condition(condition, draws), choose), x)
        return Terms(
            log_likelihood.view(draws, -1),
            lambda: over_rungs(lambda z, prior, law: prior.log_prob(z)).sum(0),
            lambda: over_rungs(lambda z, prior, law: law.log_prob(z)).sum(0),
            lambda: over_rungs(divergence),
            lambda: over_rungs(lambda z, prior, law: prior.log_prob(z) - law.log_prob(z)).sum(0),
        )

    @property
    def numbers(self) -> int:
        """The stream's at full size."""
        return self.start(1).shape[1] * math.prod(self.grids[-1])

    # --- samples and codes ----------------------------------------------------------------------

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return self.head.sample(self.descend(n, condition, lambda number, h, prior: prior.draw(self.temperature)))

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The posterior's mean of every code, one after another: `(B, codes)`."""
        found, codes = self.features(x, condition), list[Tensor]()

        def choose(number: int, h: Tensor, prior: Gaussian) -> Tensor:
            codes.append(self.posterior(found, number, h, prior).mean)
            return codes[-1]

        self.descend(len(x), condition, choose)
        return torch.cat([code.flatten(1) for code in codes], 1)

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        codes = self._split(z)
        return self.head.mode(self.descend(len(z), condition, lambda number, *_: codes[number]))

    @property
    def code_shapes(self) -> list[tuple[int, int, int]]:
        """Of each rung's code."""
        return [(rung.latent, *self.grids[level]) for rung, level in zip(self._rungs, self.levels, strict=True)]

    def _split(self, z: Tensor) -> list[Tensor]:
        """The codes of each rung, which lie one after another in `z` `(B, codes)`."""
        shapes = self.code_shapes
        parts = z.split([math.prod(shape) for shape in shapes], 1)
        return [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]

    def generate(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        """Maps for the head of codes that are the prior's means plus deviations times `noise` `(B, codes)`.

        Standard normal noise gives draws from the prior; it can be differentiated.
        """
        parts = self._split(noise)
        return self.descend(len(noise), condition, lambda number, h, prior: prior.push(parts[number]))

    # --- what is missing --------------------------------------------------------------------------

    def proposal(self, x: Tensor, condition: Tensor | None) -> Proposal:
        return Ladder(self, self.features(x, condition), condition)

    def log_joint(self, x: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        parts, priors = self._split(z), list[Tensor]()

        def choose(number: int, h: Tensor, prior: Gaussian) -> Tensor:
            priors.append(prior.log_prob(parts[number]).flatten(1).sum(1))
            return parts[number]

        return self.head.log_prob(self.descend(len(x), condition, choose), x) + torch.stack(priors).sum(0)

    def complete(self, x: Tensor, known: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        """Pixels are independent given the codes, and the colours of one are not."""
        if (known != known[:, :1]).any():
            raise Unfit(f"{type(self).__name__} draws the colours of a pixel together: let whole pixels be missing")
        parts = self._split(z)
        return torch.where(known, x, self.head.sample(self.descend(len(x), condition, lambda i, *_: parts[i])))

    def _rate_distortion(self, x: Tensor, condition: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Of each grid, smallest first; the codes below are the prior's means."""
        nats, found = self._nats_of_grids(self.terms(x, condition)), self.features(x, condition)

        def upto(deepest: int) -> Tensor:
            def choose(number: int, h: Tensor, prior: Gaussian) -> Tensor:
                return self.posterior(found, number, h, prior).mean if self.levels[number] <= deepest else prior.mean

            return self.head.mode(self.descend(len(x), condition, choose))

        return [(nats[level], upto(level)) for level in range(len(self.grids))]

    def _nats_of_grids(self, terms: Terms) -> Tensor:
        """`(grids, B)`: what the codes on each cost."""
        assert terms.divergence is not None
        kls, index = terms.divergence.mean(1), torch.tensor(self.levels, device=self.device)
        return kls.new_zeros(len(self.grids), kls.shape[1]).index_add_(0, index, kls)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Against unused codes: what those on each grid cost; and the evidence lower bound."""
        terms = self.terms(*batch)
        assert terms.divergence is not None
        by_grid = self._nats_of_grids(terms).mean(1)
        return {
            "elbo": terms.elbo.mean().item() + self.space.log_det(batch.x).mean().item(),
            "kl": by_grid.sum().item(),
            "least_block": terms.divergence.mean((1, 2)).min().item(),
            **{f"kl_{h}x{w}": nats.item() for (h, w), nats in zip(self.grids, by_grid, strict=True)},
        }

    def networks(self) -> list[nn.Module]:
        return [self.encoder]


class Ladder(NamedTuple):
    """The posterior of all codes, one after another in `(B, codes)`, given what the encoder found."""

    system: LadderSystem
    found: list[Tensor]
    condition: Tensor | None

    def draw(self) -> Tensor:
        drawn = list[Tensor]()

        def choose(number: int, h: Tensor, prior: Gaussian) -> Tensor:
            drawn.append(self.system.posterior(self.found, number, h, prior).draw())
            return drawn[-1]

        self.system.descend(len(self.found[0]), self.condition, choose)
        return torch.cat([z.flatten(1) for z in drawn], 1)

    def log_prob(self, z: Tensor) -> Tensor:
        parts, nats = self.system._split(z), list[Tensor]()

        def choose(number: int, h: Tensor, prior: Gaussian) -> Tensor:
            law = self.system.posterior(self.found, number, h, prior)
            nats.append(law.log_prob(parts[number]).flatten(1).sum(1))
            return parts[number]

        self.system.descend(len(z), self.condition, choose)
        return torch.stack(nats).sum(0)


def divergence(z: Tensor, prior: Gaussian, law: Law) -> Tensor:
    """KL(law || prior) elementwise in nats: in closed form of Gaussians, else what the draw `z` says of it."""
    if isinstance(law, Gaussian):
        return gaussian_kl(law, prior)
    return law.log_prob(z) - prior.log_prob(z)


def gaussian_kl(law: Gaussian, prior: Gaussian) -> Tensor:
    """KL(law || prior) elementwise, in nats: that to N(0, 1) in the prior's units."""
    return kl_to_standard_normal((law.mean - prior.mean) * torch.exp(-prior.log_scale), law.log_scale - prior.log_scale)


def grids_of(height: int, width: int) -> list[tuple[int, int]]:
    """Smallest first: one position, then those that halving, rounding up, gives while a side exceeds 4."""
    grids = [(height, width)]
    while max(grids[-1]) > COARSE:
        grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
    return ([] if grids[-1] == (1, 1) else [(1, 1)]) + grids[::-1]
