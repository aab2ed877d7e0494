"""Autoencoders of discrete codes, and priors of the codes that are fitted afterwards (survey 3.2)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.nets.codebook import Codebook, straight_through
from fivefold.nets.heads import LIKELIHOOD, LIKELIHOOD_HELP, Head
from fivefold.options import Need, depth_option, option, slot, width_option
from fivefold.space import Batch, Space
from fivefold.system import LatentSystem, System, Update
from fivefold.tools.given import gibbs_sweeps
from fivefold.tools.particles import near
from fivefold.tools.schedule import second_stage
from fivefold.vae._parts import nats

PRIOR = Need("an autoregressive system with an exact density of codes", densities=("EXACT",), sampling="autoregressive")

Quantise = Callable[[str, Tensor], Tensor]  # of a level's name and features `(B, h, w, D)`


class Autoencoder(nn.Module):
    """Encoder, codebooks and decoder: what the first stage trains. Features and vectors are `(B, h, w, D)`.

    Args:
        head: of the examples.
        books: a codebook for each level of codes, by its name.
    """

    grids: tuple[tuple[int, int], ...]  # of each level's codes, in the order in which they are found

    def __init__(self, head: Head, books: nn.ModuleDict) -> None:
        super().__init__()
        self.head, self.books = head, books

    def book(self, name: str) -> Codebook:
        return self.books[name]  # type: ignore[return-value]

    def encode(self, x: Tensor, quantise: Quantise) -> tuple[Tensor, ...]:
        """What `quantise` makes of each level's features, one level after another."""
        raise NotImplementedError

    def decode(self, *vectors: Tensor) -> Tensor:
        """Parameters of the head."""
        raise NotImplementedError

    def networks(self) -> list[nn.Module]:
        raise NotImplementedError

    def log_likelihood(self, x: Tensor, *vectors: Tensor) -> Tensor:
        """ln p(x | vectors) in nats `(B,)`."""
        return self.head.log_prob(self.decode(*vectors), x).sum(1)

    def mode(self, *vectors: Tensor) -> Tensor:
        """The likelihood's mode `(B, *shape)`."""
        return self.head.mode(self.decode(*vectors)).view(-1, *self.head.space.shape)


class CodeSystem(LatentSystem):
    """First an autoencoder whose code is grids of vectors from codebooks, trained through the quantisation by the
    straight-through estimator; then an autoregressive prior of each level of codes, any system with an exact density.

    With one code of each example in the sum over codes, ln p(x) >= ln p(codes) + ln p(x|codes): a lower bound,
    whatever the priors have learnt. A condition enters the priors alone. Samples are drawn from the likelihood.

    Subclasses name their `levels` and make the autoencoder; where there are several, `given` says what the prior of a
    level sees of those before it.
    """

    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "autoregressive"
    levels: ClassVar[tuple[str, ...]]
    prior_lr: ClassVar[float] = 1e-3  # of a prior that does not say otherwise

    fill_steps = 30
    prior: Any = option(slot("gated-pixelcnn"), "of the codes, of each level", needs=PRIOR)
    codes: int = option(64, "size of a codebook", least=2, tune=(16, 512), log=True)
    code_width: int = option(16, "dimensions of its vectors", least=1, tune=(4, 64), log=True)
    halvings: int = option(2, "how often an image's sides are halved to give the finest grid of codes", least=0)
    width: int = width_option(16, "channels at full size, or a sixteenth of the units of a hidden layer", tune=(8, 64))
    depth: int = depth_option(1, "residual blocks at the size of a grid, or hidden layers", least=0, tune=(1, 3))
    likelihood: Any = option(slot("logistic-mixture", mixtures=3), LIKELIHOOD_HELP, needs=LIKELIHOOD)
    commitment: float = option(
        0.25, "weight of the squared distance between the encoder's output and its code", least=0, tune=(0.05, 1.0)
    )
    decay: float = option(0.99, "of the codebook's running means, per step", least=0, below=1)
    revive: float = option(
        0.05, "a code is moved to a random feature when its use falls below this share of the mean use", least=0
    )
    first_stage: float = option(
        0.5, "share of the budget for the autoencoder; the rest is the prior's", least=0, most=1
    )

    # --- parts ----------------------------------------------------------------------------------

    def build(self) -> None:
        books = {name: Codebook(self.codes, self.code_width, self.decay, self.revive) for name in self.levels}
        head = Head(self.space, self.fill("likelihood", self.space))
        self.autoencoder = self.make_autoencoder(self.space.conditioned_on(None), head, nn.ModuleDict(books))
        spaces = [Space("image", (1, *grid), levels=self.codes) for grid in self.autoencoder.grids]
        conditions = [self.space.condition, *map(self.given_space, self.autoencoder.grids[:-1])]
        # codes have no order
        usual: dict[str, Any] = {"likelihood": "categorical", "lr": self.prior_lr, "weight_decay": 0.01}
        self.priors = nn.ModuleList(
            self.fill("prior", space.conditioned_on(condition), **usual)
            for space, condition in zip(spaces, conditions, strict=True)
        )

    @abstractmethod
    def make_autoencoder(self, space: Space, head: Head, books: nn.ModuleDict) -> Autoencoder:
        """Of examples without their condition."""

    def given_space(self, grid: tuple[int, int]) -> Space:
        """Of what the next level's prior sees of the codes on a grid."""
        raise NotImplementedError

    def given(self, codes: Tensor, condition: Tensor | None) -> Tensor:
        """What the next level's prior sees of codes `(B, 1, h, w)`."""
        raise NotImplementedError

    @property
    def _priors(self) -> list[System]:
        return list(self.priors)  # type: ignore[arg-type]

    # --- two stages -----------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        if progress < self.first_stage:
            yield from self._autoencode(batch.x)
            return
        codes, later = self._codes(batch.x), second_stage(progress, self.first_stage)
        for prior, of_level, given in zip(self._priors, codes, self._conditions(codes, batch.condition), strict=True):
            yield from prior.updates(Batch(of_level, given), later)

    def _autoencode(self, x: Tensor) -> Iterator[Update]:
        """One step of the autoencoder; the codebooks move after it, once for all micro-batches."""
        model, statistics = self.autoencoder, dict[str, Tensor]()
        distances = []

        def quantise(name: str, features: Tensor) -> Tensor:
            book = model.book(name)
            codes = book.nearest(features)
            # Before the codebook has seen a feature there is nothing to quantise with.
            vectors = book(codes) if book.initialised else features.detach()
            distances.append((features - vectors).square().flatten(1).sum(1).mean())
            statistics.update({f"{name}.{key}": value for key, value in book.statistics(features, codes).items()})
            return straight_through(features, vectors)

        log_likelihood = model.log_likelihood(x, *model.encode(x, quantise)).mean()
        distance = torch.stack(distances).sum()
        loss = self.commitment * distance - log_likelihood
        total = yield Update(model, loss, {"distance": distance, **statistics})
        if total is not None:
            for name in self.levels:
                start = f"{name}."
                model.book(name).move({key[len(start) :]: v for key, v in total.items() if key.startswith(start)})

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """Adam for the autoencoder; the priors bring their own optimizers."""
        players: dict[nn.Module, torch.optim.Optimizer] = {
            self.autoencoder: torch.optim.Adam(self.autoencoder.parameters(), self.lr, fused=True)
        }
        for prior in self._priors:
            players |= prior.optimizers()
        return players

    def learning_rate(self, progress: float) -> float:
        if progress < self.first_stage:
            return 1.0
        return self._priors[0].learning_rate(second_stage(progress, self.first_stage))

    # --- density, samples, codes ----------------------------------------------------------------

    @torch.no_grad()
    def _codes(self, x: Tensor) -> list[Tensor]:
        """Of each level `(B, 1, h, w)`, as the priors' spaces have them."""
        found = []

        def quantise(name: str, features: Tensor) -> Tensor:
            book = self.autoencoder.book(name)
            found.append(book.nearest(features))
            return book(found[-1])

        self.autoencoder.encode(x, quantise)
        return [codes.unsqueeze(1) for codes in found]

    def _vectors(self, *codes: Tensor) -> list[Tensor]:
        """The vectors `(B, h, w, code_width)` of codes of each level."""
        return [self.autoencoder.book(n)(c.squeeze(1)) for n, c in zip(self.levels, codes, strict=True)]

    def _conditions(self, codes: list[Tensor], condition: Tensor | None) -> list[Tensor | None]:
        """What each level's prior sees."""
        return [condition, *(self.given(above, condition) for above in codes[:-1])]

    def _log_priors(self, codes: list[Tensor], condition: Tensor | None) -> list[Tensor]:
        """ln p of each level's codes given those before, in nats `(B,)`."""
        each = zip(self._priors, codes, self._conditions(codes, condition), strict=True)
        return [nats(prior._log_prob(of_level, given)) for prior, of_level, given in each]

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        codes = self._codes(x)
        log_likelihood = self.autoencoder.log_likelihood(x, *self._vectors(*codes))
        return torch.stack(self._log_priors(codes, condition)).sum(0) + log_likelihood

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        head, codes = self.autoencoder.head, self._sample_below([], n, condition)
        return head.sample(self.autoencoder.decode(*self._vectors(*codes)), head.noise(n)).view(n, *self.space.shape)

    @property
    def filling(self) -> str:
        return (
            "Gibbs sampling of the codes given what is known, then what is missing given them: exact in the limit of "
            "many steps"
        )

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        """From the codes of samples near what is known."""
        model, grids = self.autoencoder, self.autoencoder.grids
        start = self._codes(torch.where(known, x, near(self._sample, self.space, x, known, condition)))
        codes = torch.cat([part.flatten(1) for part in start], 1)

        def split(codes: Tensor) -> list[Tensor]:
            parts = codes.split([h * w for h, w in grids], 1)
            return [part.view(-1, 1, *grid) for part, grid in zip(parts, grids, strict=True)]

        def log_prob(states: Tensor, rows: Tensor) -> Tensor:
            levels, given = split(states), None if condition is None else condition[rows]
            of_dims = model.head.log_prob(model.decode(*self._vectors(*levels)), x[rows])
            priors = torch.stack(self._log_priors(levels, given)).sum(0)
            return priors + (of_dims * known[rows].flatten(1)).sum(1)

        count = torch.full((codes.shape[1],), self.codes)
        codes = gibbs_sweeps(log_prob, codes, torch.ones_like(codes, dtype=torch.bool), count, self.fill_steps)
        params = model.decode(*self._vectors(*split(codes)))
        return model.head.sample(params, model.head.noise(len(x))).view_as(x)

    def _sample_below(self, codes: list[Tensor], n: int, condition: Tensor | None) -> list[Tensor]:
        """The first levels' codes, with draws of those after them from their priors."""
        for prior in self._priors[len(codes) :]:
            codes = [*codes, prior._sample(n, self.given(codes[-1], condition) if codes else condition)]
        return codes

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The vectors of all levels, flattened, one level after another: `(B, ...)`."""
        return torch.cat([part.flatten(1) for part in self._vectors(*self._codes(x))], 1)

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """The likelihood's mode; `z` need not be in the codebooks (interpolations are not)."""
        shapes = [(*grid, self.code_width) for grid in self.autoencoder.grids]
        parts = z.split([h * w * size for h, w, size in shapes], 1)
        return self.autoencoder.mode(*(part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)))

    def _rate_distortion(self, x: Tensor, condition: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """What each level's codes cost under its prior, and the image with those after it drawn."""
        codes = self._codes(x)
        upto = [self._sample_below(codes[: i + 1], len(x), condition) for i in range(len(codes))]
        images = [self.autoencoder.mode(*self._vectors(*some)) for some in upto]
        return [(-log_p, image) for log_p, image in zip(self._log_priors(codes, condition), images, strict=True)]

    @property
    def sample_evaluations(self) -> int:
        return sum(prior.sample_evaluations for prior in self._priors) + 1

    def networks(self) -> list[nn.Module]:
        return self.autoencoder.networks() + [net for prior in self._priors for net in prior.networks()]

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Against collapse of the codebooks: how many codes are used and how evenly; and the decoder's term."""
        codes, found = self._codes(batch.x), {}
        for name, of_level in zip(self.levels, codes, strict=True):
            use = torch.bincount(of_level.flatten(), minlength=self.codes) / of_level.numel()
            prefix = f"{name}_" if len(self.levels) > 1 else ""
            found[f"{prefix}codes_used"] = (use > 0).float().mean().item()
            found[f"{prefix}code_perplexity"] = torch.special.entr(use).sum().exp().item()
        log_likelihood = self.autoencoder.log_likelihood(batch.x, *self._vectors(*codes))
        nats = -log_likelihood.mean() - self.space.log_det(batch.x).mean()
        return {**found, "nats_of_example_given_codes": nats.item()}
