"""What autoregressive systems share: the density is the product of their conditionals (survey Eq. 25)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.errors import Unfit
from fivefold.nets.heads import LIKELIHOOD, LIKELIHOOD_HELP, Head
from fivefold.nets.states import Recomputed, States, fill, fill_given
from fivefold.options import option, slot
from fivefold.space import Batch
from fivefold.system import Density, System
from fivefold.tools.schedule import warm_cosine

MOST_NUMBERS = 2**18  # of particles that are drawn at once
Way = tuple[Callable[[int, Tensor | None], States], list[int]]


class AutoregressiveSystem(System):
    """A system that gives every dimension's distribution from the dimensions before it.

    Subclasses write `conditionals` (all dimensions at once) and `states` (to compute nothing twice when sampling).
    """

    dials: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.7, 0.85, 1.0, 1.15)}

    densities: ClassVar[dict[str, Density]] = {
        "image": Density.EXACT,
        "table": Density.EXACT,
        "text": Density.EXACT,
        "audio": Density.EXACT,
    }
    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "autoregressive"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"clip": 100.0}}

    lr = 2e-3
    weight_decay: float = option(
        0.01, "of matrices and kernels; biases and gains are not decayed", least=0, tune=(1e-4, 1.0), log=True,
        section="optimizers",
    )  # fmt: skip
    likelihood: Any = option(slot("auto"), LIKELIHOOD_HELP, needs=LIKELIHOOD)
    temperature: float = option(1.0, "of every conditional that is sampled; 1 is the model's own", above=0)

    def build(self) -> None:
        super().build()
        self.head: Any = self.make_head()

    def make_head(self) -> nn.Module:
        """The distribution of a dimension; or what draws as that does: `noise`, `sample_dim`, `dtype`, `width`."""
        return Head(self.space, self.fill("likelihood", self.space))

    @abstractmethod
    def conditionals(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Parameters `(B, D, width)` for the head, those of a dimension from the ones before it in `x` alone."""

    def states(self, n: int, condition: Tensor | None) -> States:
        """What sampling `n` examples keeps, so that nothing is computed twice; nothing unless a system says so."""
        return self._recomputed(n, condition)

    def _recomputed(self, n: int, condition: Tensor | None) -> States:
        shape = (n, *self.space.shape)
        return Recomputed(lambda x: self.conditionals(x.view(shape), condition), self._blank(n))

    def loss(self, batch: Batch) -> Tensor:
        return -self._log_prob(batch.x, batch.condition).mean()

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.head.log_prob(self.conditionals(x, condition), x).sum(1)

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        self.head.temperature = self.temperature
        return self._sample_from(self.head.noise(n), condition).view(n, *self.space.shape)

    def _sample_from(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        """Encoded examples, flattened `(B, D)`, that the head's `noise` gives."""
        return self._filled(self.states(len(noise), condition), self._order(), noise)

    def _filled(self, states: States, order: Iterable[int], noise: Tensor) -> Tensor:
        blank = self._blank(len(noise))
        return fill(states, order, blank, lambda dim, params: self.head.sample_dim(dim, params, noise[:, dim]))

    def _sample_full_from(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        """As `_sample_from`, evaluating the whole network for every dimension."""
        return self._filled(self._recomputed(len(noise), condition), self._order(), noise)

    # --- what is missing --------------------------------------------------------------------------

    @property
    def filling(self) -> str:
        first = "ancestral sampling with what is known held: exact where it comes first in the model's order"
        if self.density is Density.NONE:
            return f"{first}, refused elsewhere"
        return (
            f"{first}; elsewhere by particles (as many as steps) weighted by the probabilities of what is known "
            "(sequential Monte Carlo), exact in the limit of many"
        )

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        """Examples of which all that is known comes first need one particle."""
        self.head.temperature = 1.0
        flat, known = x.flatten(1).to(self.head.dtype), known.flatten(1)
        ways = self._ways()
        orders = [torch.tensor(order, device=x.device) for _, order in ways]
        is_first = torch.stack([(known[:, order].int().diff(dim=1) <= 0).all(1) for order in orders]).all(0)
        if self.density is Density.NONE and not is_first.all():
            raise Unfit(
                f"{type(self).__name__} has no probabilities to weigh draws by: it fills in only what comes after all "
                "that is known, in the order of the model (of images, the lower rows)"
            )
        filled = flat.clone()
        for rows, particles in ((is_first, 1), (~is_first, self.fill_steps)):
            at_once = max(1, MOST_NUMBERS // (particles * self.space.dims))
            for row in rows.nonzero().squeeze(1).split(at_once) if rows.any() else ():
                given = None if condition is None else condition[row]
                filled[row] = self._fill_by(ways, flat[row], known[row], given, particles)
        return filled.view_as(x)

    def _fill_by(self, ways: list[Way], x: Tensor, known: Tensor, condition: Tensor | None, particles: int) -> Tensor:
        """By every factorisation, and of these one, by the probability that it gives to what is known."""
        x, known = x.repeat_interleave(particles, 0), known.repeat_interleave(particles, 0)
        condition = None if condition is None else condition.repeat_interleave(particles, 0)
        log_prob = self.head.log_prob_dim if self.density is not Density.NONE else None
        found = []
        for make, order in ways:
            noise = self.head.noise(len(x))

            def draw(dim: int, params: Tensor, noise: Tensor = noise) -> Tensor:
                return self.head.sample_dim(dim, params, noise[:, dim])

            states = partial(make, len(x), condition)
            found.append(fill_given(states, order, x, known, draw, log_prob, particles))
        if len(found) == 1:
            return found[0][0]
        examples, evidence = (torch.stack(parts) for parts in zip(*found, strict=True))
        chosen = torch.multinomial(evidence.T.softmax(1), 1).squeeze(1)
        return examples[chosen, torch.arange(len(chosen), device=x.device)]

    def _ways(self) -> list[Way]:
        """Of every factorisation that the density is a mean of: what makes its states, and its order."""
        return [(self.states, list(self._order()))]

    def _order(self) -> Iterable[int]:
        """Flattened dimensions in the order of the factorisation."""
        return range(self.space.dims)

    def _blank(self, n: int) -> Tensor:
        return torch.zeros(n, self.space.dims, dtype=self.head.dtype, device=self.device)

    @property
    def sample_evaluations(self) -> int:
        return self.space.dims

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """AdamW, its rate warmed up linearly and then down along a cosine."""
        params = list(self.parameters())
        groups = [
            {"params": [p for p in params if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return {self: torch.optim.AdamW([g for g in groups if g["params"]], self.lr, betas=(0.9, 0.98), fused=True)}

    def learning_rate(self, progress: float) -> float:
        return warm_cosine(progress, warmup=0.03)
