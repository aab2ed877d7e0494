"""Vector-quantised variational autoencoder with two levels of codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.codebook import Codebook, straight_through
from fivefold.nets.coders import Downsampler, Upsampler, channels_at, grid_size, halvings_to
from fivefold.nets.embedding import DimFeatures
from fivefold.nets.heads import Head, Likelihood
from fivefold.space import Batch, Space
from fivefold.system import Density, LatentSystem, Update
from fivefold.vae.vq_vae import build_prior, second_stage

Quantise = Callable[[str, Tensor], Tensor]  # of a level's name and features


class VQVAE2(LatentSystem):
    """VQ-VAE-2, two levels of codes (survey 3.2; Razavi et al., 2019).

    The lower codes are a grid as in `vq-vae`; the upper ones half as fine, found first. What they say is given to
    the encoder of the lower codes, which so keep the details, and to the decoder. In the second stage two
    autoregressive priors are fitted: p(upper) and p(lower | upper). With the codes that the encoders choose,
    ln p(x) >= ln p(upper) + ln p(lower|upper) + ln p(x|upper, lower): a lower bound, whatever the priors have learnt.

    A condition enters the priors alone. Samples are drawn from the likelihood.

    Args:
        space: what one example is.
        prior: the autoregressive system that models each level of codes, by id.
        codes: size of each codebook.
        code_width: dimensions of their vectors.
        halvings: how often an image's sides are halved to give the lower grid; the upper one is half of that.
        width: channels at full size.
        depth: residual blocks at the size of each grid.
        likelihood: of the decoder: logistic-mixture (of ordered levels and real values), categorical, bernoulli
            (two levels) or gaussian (real values).
        mixtures: components of a logistic mixture.
        commitment: weight of the squared distance between an encoder's output and its code.
        decay: of the codebooks' running means, per step.
        revive: a code is moved to a random feature when its use falls below this share of the mean use.
        first_stage: share of the budget for the autoencoder; the rest is the priors'.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND}
    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "autoregressive"
    density_note = "one code of each level"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.7, 0.85, 1.0, 1.15)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.99, "prior_lr": 5e-3},
        "imagenet256": {
            "codes": 512, "code_width": 64, "halvings": 2, "width": 32, "depth": 2, "batch_size": 128, "lr": 3e-4,
            "ema": 0.0,
        },
    }  # fmt: skip

    def __init__(
        self,
        space: Space,
        *,
        prior: str = "gated-pixelcnn",
        codes: int = 64,
        code_width: int = 16,
        halvings: int = 2,
        width: int = 32,
        depth: int = 1,
        likelihood: Likelihood = "logistic-mixture",
        mixtures: int = 3,
        commitment: float = 0.25,
        decay: float = 0.99,
        revive: float = 0.05,
        first_stage: float = 0.4,
    ) -> None:
        super().__init__(space)
        self.commitment, self.first_stage = commitment, first_stage
        self.halvings = min(halvings, halvings_to(space, smallest=1))
        books = {name: Codebook(codes, code_width, decay, revive) for name in ("upper", "lower")}
        head = Head(space, mixtures, likelihood)
        bare, both = space.conditioned_on(None), nn.ModuleDict(books)
        self.autoencoder = _TwoLevels(bare, head, both, self.halvings, width, depth)
        self.label = None if space.condition is None else DimFeatures(space.condition)
        labels = 0 if self.label is None else len(self.label.dim_of_feature)
        upper, lower = self.autoencoder.grids
        above = Space("image", (code_width + labels, *upper), dtype="float32")  # what p(lower | upper) sees
        self.upper = build_prior(prior, Space("image", (1, *upper), levels=codes, condition=space.condition))
        self.lower = build_prior(prior, Space("image", (1, *lower), levels=codes, condition=above))

    @property
    def temperature(self) -> float:
        """Of the priors' conditionals that are sampled; 1 is the model's own."""
        return float(getattr(self.upper, "temperature", 1.0))

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.upper.temperature = self.lower.temperature = value  # type: ignore[assignment]

    # --- two stages -----------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        if progress < self.first_stage:
            yield from self._autoencode(batch.x)
            return
        upper, lower = self._codes(batch.x)
        later = second_stage(progress, self.first_stage)
        yield from self.upper.updates(Batch(upper, batch.condition), later)
        yield from self.lower.updates(Batch(lower, self._above(upper, batch.condition)), later)

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
            for name in model.books:
                start = f"{name}."
                model.book(name).move({key[len(start) :]: v for key, v in total.items() if key.startswith(start)})

    def optimizers(self, lr: float = 1e-3, prior_lr: float = 1e-3) -> dict[nn.Module, torch.optim.Optimizer]:
        """Adam for the autoencoder; the priors bring their own optimizers.

        Args:
            lr: learning rate of the autoencoder.
            prior_lr: that of the priors.
        """
        adam = torch.optim.Adam(self.autoencoder.parameters(), lr, fused=True)
        return {self.autoencoder: adam, **self.upper.optimizers(prior_lr), **self.lower.optimizers(prior_lr)}

    def learning_rate(self, progress: float) -> float:
        if progress < self.first_stage:
            return 1.0
        return self.upper.learning_rate(second_stage(progress, self.first_stage))

    # --- density, samples, codes ----------------------------------------------------------------

    def _log_priors(self, upper: Tensor, lower: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ln p(upper) and ln p(lower | upper) in nats, `(B,)` each."""
        above = self.upper._log_prob(upper, condition)
        below = self.lower._log_prob(lower, self._above(upper, condition))
        assert isinstance(above, Tensor)  # exact: without a standard error
        assert isinstance(below, Tensor)
        return above, below

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        upper, lower = self._codes(x)
        log_likelihood = self.autoencoder.log_likelihood(x, *self._vectors(upper, lower))
        return torch.stack(self._log_priors(upper, lower, condition)).sum(0) + log_likelihood

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        head = self.autoencoder.head
        upper = self.upper._sample(n, condition)
        params = self.autoencoder.decode(*self._vectors(upper, self._sample_lower(upper, condition)))
        return head.sample(params, head.noise(n)).view(n, *self.space.shape)

    def _sample_lower(self, upper: Tensor, condition: Tensor | None) -> Tensor:
        return self.lower._sample(len(upper), self._above(upper, condition))

    @torch.no_grad()
    def _codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Upper and lower codes, `(B, 1, h, w)` each, as the priors' spaces have them."""
        found = []

        def quantise(name: str, features: Tensor) -> Tensor:
            book = self.autoencoder.book(name)
            found.append(book.nearest(features))
            return book(found[-1])

        self.autoencoder.encode(x, quantise)
        return found[0].unsqueeze(1), found[1].unsqueeze(1)

    def _vectors(self, upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors `(B, h, w, code_width)` of both levels."""
        return self.autoencoder.book("upper")(upper.squeeze(1)), self.autoencoder.book("lower")(lower.squeeze(1))

    def _above(self, upper: Tensor, condition: Tensor | None) -> Tensor:
        """What the lower prior is conditioned on: the upper codes' vectors `(B, code_width + labels, h, w)`."""
        maps = self.autoencoder.book("upper")(upper.squeeze(1)).movedim(-1, 1)
        if self.label is None or condition is None:
            return maps
        labels = self.label(condition)[:, :, None, None].expand(-1, -1, *maps.shape[2:])
        return torch.cat([maps, labels], 1)

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The vectors of both levels, flattened, the upper ones first: `(B, ...)`."""
        return torch.cat([part.flatten(1) for part in self._vectors(*self._codes(x))], 1)

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """The likelihood's mode; `z` need not be in the codebooks (interpolations are not)."""
        (h, w), lower = self.autoencoder.grids
        width = self.autoencoder.book("upper").vectors.shape[1]
        first, second = z.split([h * w * width, z.shape[1] - h * w * width], 1)
        return self._mode(first.view(-1, h, w, width), second.view(-1, *lower, width))

    def _mode(self, upper: Tensor, lower: Tensor) -> Tensor:
        return self.autoencoder.head.mode(self.autoencoder.decode(upper, lower)).view(-1, *self.space.shape)

    def _rate_distortion(self, x: Tensor, condition: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """What each level's codes cost under its prior; for the upper level's image the lower codes are drawn."""
        upper, lower = self._codes(x)
        above, below = self._log_priors(upper, lower, condition)
        drawn = self._sample_lower(upper, condition)
        return [(-above, self._mode(*self._vectors(upper, drawn))), (-below, self._mode(*self._vectors(upper, lower)))]

    @property
    def sample_evaluations(self) -> int:
        return self.upper.sample_evaluations + self.lower.sample_evaluations + 1

    def networks(self) -> list[nn.Module]:
        return [self.autoencoder.bottom, self.autoencoder.decoder, *self.upper.networks(), *self.lower.networks()]

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Against collapse of the codebooks: how many codes are used and how evenly."""
        codes = dict(zip(("upper", "lower"), self._codes(batch.x), strict=True))
        found = {}
        for name, of_level in codes.items():
            levels = len(self.autoencoder.book(name).counts)
            use = torch.bincount(of_level.flatten(), minlength=levels) / of_level.numel()
            found[f"{name}_codes_used"] = (use > 0).float().mean().item()
            found[f"{name}_code_perplexity"] = torch.special.entr(use).sum().exp().item()
        log_likelihood = self.autoencoder.log_likelihood(batch.x, *self._vectors(*codes.values()))
        return {**found, "nats_of_example_given_codes": -log_likelihood.mean().item() - self.space.log_det}


class _TwoLevels(nn.Module):
    """Encoders, codebooks and decoder: what the first stage trains. Features and vectors are `(B, h, w, D)`.

    Args:
        space: of images.
        head: whose parameters are decoded.
        books: the codebooks `upper` and `lower`.
        halvings: from the image to the lower grid.
        width: channels at full size.
        depth: residual blocks at each size.
    """

    def __init__(self, space: Space, head: Head, books: nn.ModuleDict, halvings: int, width: int, depth: int) -> None:
        super().__init__()
        self.head, self.books = head, books
        self.grids = (grid_size(space, halvings + 1), grid_size(space, halvings))
        size, features = self.book("lower").vectors.shape[1], channels_at(width, halvings)[-1]
        below = Space("image", (features, *self.grids[1]), dtype="float32")
        self.bottom = Downsampler(space, features, width, halvings, depth)
        self.top = Downsampler(below, size, features, 1, depth)
        self.down = nn.ConvTranspose2d(size, features, 4, stride=2, padding=1)  # from the upper grid to the lower
        self.merge = nn.Conv2d(2 * features, size, 1)
        self.enlarge = nn.ConvTranspose2d(size, size, 4, stride=2, padding=1)
        self.decoder = Upsampler(space, 2 * size, head, width, halvings, depth)

    def book(self, name: str) -> Codebook:
        return self.books[name]  # type: ignore[return-value]

    def encode(self, x: Tensor, quantise: Quantise) -> tuple[Tensor, Tensor]:
        """What `quantise` makes of each level's features: the upper one's first, which the lower features see."""
        bottom = self.bottom(x)
        upper = quantise("upper", self.top(F.silu(bottom)).movedim(1, -1))
        from_above = self._to_lower(self.down, upper)
        lower = quantise("lower", self.merge(F.silu(torch.cat([bottom, from_above], 1))).movedim(1, -1))
        return upper, lower

    def decode(self, upper: Tensor, lower: Tensor) -> Tensor:
        """Parameters of the head."""
        return self.decoder(torch.cat([self._to_lower(self.enlarge, upper), lower.movedim(-1, 1)], 1))

    def _to_lower(self, double: nn.Module, upper: Tensor) -> Tensor:
        """Doubled, and cropped where a side was odd: `(B, C, H, W)`."""
        height, width = self.grids[1]
        return double(upper.movedim(-1, 1))[..., :height, :width]

    def log_likelihood(self, x: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
        """ln p(x | codes) in nats `(B,)`."""
        return self.head.log_prob(self.decode(upper, lower), x).sum(1)
