"""The evidence lower bound: its terms, what training makes of them, and the tighter bound by importance weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.options import option
from fivefold.space import Batch
from fivefold.system import LatentSystem, System, Update, log_mean_exp
from fivefold.tools.given import Proposal, metropolis_within_gibbs
from fivefold.tools.particles import near
from fivefold.tools.scaling import at_once

SAMPLES = 64  # of z for each example, unless a system or the user says otherwise
MOST_NUMBERS = 2**22  # outputs of the decoder held at once when scoring

Lazy = Callable[[], Tensor]


class Terms:
    """The terms of the bound of K draws of z for each of B examples, in nats; each is computed when it is asked for.

    Args:
        log_likelihood: ln p(x|z) `(K, B)`.
        log_prior: gives ln p(z) `(K, B)`.
        log_posterior: gives ln q(z|x) `(K, B)`.
        divergence: gives KL(q(z|x) || p(z)) in closed form, of each part of z apart, `(parts, K or 1, B)`; None where
            there is no such form.
        log_ratio: gives ln p(z) - ln q(z|x) `(K, B)`, where it can be had without the digits that subtracting costs.
    """

    def __init__(
        self,
        log_likelihood: Tensor,
        log_prior: Lazy,
        log_posterior: Lazy,
        divergence: Lazy | None = None,
        log_ratio: Lazy | None = None,
    ) -> None:
        self.log_likelihood = log_likelihood
        self._log_prior, self._log_posterior = log_prior, log_posterior
        self._divergence, self._log_ratio = divergence, log_ratio

    @cached_property
    def log_prior(self) -> Tensor:
        return self._log_prior()

    @cached_property
    def log_posterior(self) -> Tensor:
        return self._log_posterior()

    @cached_property
    def log_ratio(self) -> Tensor:
        return self.log_prior - self.log_posterior if self._log_ratio is None else self._log_ratio()

    @cached_property
    def divergence(self) -> Tensor | None:
        return None if self._divergence is None else self._divergence()

    @cached_property
    def rate(self) -> Tensor:
        """What z costs, `(B,)`: the divergence in closed form where there is one, else by the draws."""
        if self.divergence is not None:
            return self.divergence.sum(0).mean(0)
        return -self.log_ratio.mean(0)

    @property
    def elbo(self) -> Tensor:
        """The evidence lower bound (survey Eq. 12), `(B,)`."""
        return self.log_likelihood.mean(0) - self.rate

    @property
    def log_weights(self) -> Tensor:
        """ln p(x, z) / q(z|x) of each draw, `(K, B)`."""
        return self.log_likelihood + self.log_ratio


def elbo(terms: Terms, weight: float) -> Tensor:
    """Minus the evidence lower bound (survey Eq. 12), what z costs weighted."""
    return weight * terms.rate.mean() - terms.log_likelihood.mean()


def iwae(terms: Terms, weight: float) -> Tensor:
    """Minus the bound of K draws, ln of the mean of their importance weights (Burda et al., 2016)."""
    return -log_mean_exp(terms.log_likelihood + weight * terms.log_ratio)[0].mean()


OBJECTIVES: dict[str, Callable[[Terms, float], Tensor]] = {"elbo": elbo, "iwae": iwae}


class VariationalSystem(LatentSystem):
    """A system that is trained through a bound on ln p(x), and scored by the tighter one of importance weights.

    Subclasses write `bound`: the terms for any number of draws, the encoder's work being done once.
    """

    fill_steps = 200
    lr = 2e-3
    objective: str = option("elbo", "what is made of the terms of the bound", choices=tuple(OBJECTIVES))
    draws: int = option(1, "of z for each example of a training step", least=1, tune=(1, 16), log=True)
    warmup: float = option(
        0.1, "share of the budget over which the weight of the divergence rises from 0 to 1", least=0, most=1,
        tune=(0.0, 0.5),
    )  # fmt: skip
    free_bits: float | None = option(
        None, "nats for each dimension of x that z may cost for nothing, on average over a batch; unless given 0, or "
        "0.05 where the decoder is a system, which could do without z", least=0, tune=(0.0, 0.2),
    )  # fmt: skip
    score_samples: int | None = option(
        None, "of z for each example in the importance-weighted bound; unless given 64, or 16 where the decoder is a "
        "system, which costs more", least=1,
    )  # fmt: skip
    weight_decay: float = option(
        1e-2, "decoupled from the gradient; multiplied by the learning rate", least=0, section="optimizers"
    )

    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)  # of AdamW

    @abstractmethod
    def bound(self, x: Tensor, condition: Tensor | None) -> Callable[[int], Terms]:
        """Of encoded examples: a function of the number of draws of z, which gives their terms."""

    @property
    @abstractmethod
    def numbers(self) -> int:
        """How many the decoder holds at once for one draw of z."""

    @abstractmethod
    def proposal(self, x: Tensor, condition: Tensor | None) -> Proposal:
        """The encoder's law of codes `(B, ...)` given encoded examples."""

    @abstractmethod
    def log_joint(self, x: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        """ln p(x, z) in nats `(B,)`."""

    @abstractmethod
    def complete(self, x: Tensor, known: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        """Encoded examples with what is not known drawn given codes and the rest."""

    @property
    def filling(self) -> str:
        return (
            "what is missing and the code by turns, the encoder's codes accepted or not by Metropolis and Hastings "
            "(Mattei and Frellsen, 2018): exact in the limit of many steps"
        )

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        start = torch.where(known, x, near(self._sample, self.space, x, known, condition))
        return metropolis_within_gibbs(
            lambda x, z: self.complete(x, known, z, condition),
            lambda x: self.proposal(x, condition),
            lambda x, z: self.log_joint(x, z, condition),
            start,
            self.fill_steps,
            lambda z: self.settle(z, x, known, condition),
        )

    def settle(self, z: Tensor, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        """Codes after another move that keeps their law given what is known; as they are unless a system has one."""
        return z

    @property
    def loss_scale(self) -> float:
        """Of the loss in nats."""
        return 1.0

    @property
    def density_note(self) -> str:
        return f"{self.score_samples or SAMPLES} samples"

    def terms(self, x: Tensor, condition: Tensor | None = None, draws: int = 1) -> Terms:
        """The terms of the bound of encoded examples."""
        return self.bound(x, condition)(draws)

    def elbo(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The evidence lower bound (Eq. 12) of encoded examples, with one draw of z each: nats `(B,)`."""
        return self.terms(x, condition).elbo

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        terms = self.terms(*batch, self.draws)
        weight = min(1.0, progress / self.warmup) if self.warmup else 1.0
        loss, rate = OBJECTIVES[self.objective](terms, weight), terms.rate.mean()
        if self.free_bits:  # a rate below it does not lower the loss
            loss = loss + weight * (self.free_bits * self.space.dims - rate).clamp(min=0)
        yield Update(self, self.loss_scale * loss, {"kl": rate})

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """AdamW; the systems in slots have their own learning rates and weight decays."""
        left = {id(parameter): parameter for parameter in self.parameters()}
        groups: list[dict[str, Any]] = []
        for part in self.modules():  # a system comes before those within it, whose parameters are its own
            if isinstance(part, System) and part is not self:
                params = [left.pop(id(parameter)) for parameter in part.parameters() if id(parameter) in left]
                groups.append({"params": params, "lr": part.lr, "weight_decay": getattr(part, "weight_decay", 0.0)})
        groups = [{"params": list(left.values())}, *(group for group in groups if group["params"])]
        return {self: torch.optim.AdamW(groups, self.lr, self.betas, weight_decay=self.weight_decay, fused=True)}

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ln of the mean over `score_samples` of p(x, z) / q(z|x), and its standard error.

        The encoder runs once; the decoder on many z at once, as memory allows.
        """
        bound, samples = self.bound(x, condition), self.score_samples or SAMPLES
        size = at_once(samples, len(x) * self.numbers, MOST_NUMBERS)
        counts = [min(size, samples - i) for i in range(0, samples, size)]
        return log_mean_exp(torch.cat([bound(k).log_weights for k in counts]))


def repeat(x: Tensor, k: int) -> Tensor:
    """`(B, ...)` k times over: `(k * B, ...)`."""
    return x.expand(k, *x.shape).flatten(0, 1)


def repeat_condition(condition: Tensor | None, k: int) -> Tensor | None:
    """As `repeat`, of a condition or None."""
    return None if condition is None else repeat(condition, k)


def kl_to_standard_normal(mean: Tensor, log_scale: Tensor) -> Tensor:
    """KL(N(mean, scale^2) || N(0, 1)) elementwise, in nats (survey Eq. 13)."""
    return 0.5 * (mean**2 + (2 * log_scale).exp() - 1) - log_scale
