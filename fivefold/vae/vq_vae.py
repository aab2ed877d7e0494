"""Vector-quantised variational autoencoder."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from fivefold import catalog
from fivefold.errors import Unfit
from fivefold.nets.codebook import Codebook, straight_through
from fivefold.nets.coders import Downsampler, MLPDecoder, MLPEncoder, Upsampler, grid_size, halvings_to
from fivefold.nets.heads import Head, Likelihood
from fivefold.system import Batch, Density, LatentSystem, Space, System, Update


class VQVAE(LatentSystem):
    """Vector-quantised variational autoencoder (survey 3.2; van den Oord et al., 2017).

    First an autoencoder whose code is a small grid of vectors from a codebook, trained through the
    quantisation by the straight-through estimator; then an autoregressive prior of the codes, any system
    of the catalogue with an exact density. With one code of each example in the sum over codes,
    ln p(x) >= ln p(codes) + ln p(x|codes): a lower bound, whatever the prior has learnt.

    A condition enters the prior alone. Samples are drawn from the likelihood p(x|codes).

    Args:
        space: what one example is.
        prior: the autoregressive system that models the codes, by id.
        codes: size of the codebook.
        code_width: dimensions of its vectors.
        slots: codes of an example that is not an image.
        halvings: how often an image's sides are halved to give the grid of codes.
        width: channels at full size, or a sixteenth of the units of a hidden layer.
        depth: residual blocks at the smallest size, or hidden layers.
        likelihood: of the decoder: logistic-mixture (of ordered levels and real values), categorical, bernoulli
            (two levels) or gaussian (real values). Dimensions that it does not model, such as columns of
            categories, have the one that suits them.
        mixtures: components of a logistic mixture.
        commitment: weight of the squared distance between the encoder's output and its code.
        decay: of the codebook's running means, per step.
        revive: a code is moved to a random feature when its use falls below this share of the mean use.
        first_stage: share of the budget for the autoencoder; the rest is the prior's.
    """

    densities = {
        "image": Density.LOWER_BOUND,
        "table": Density.LOWER_BOUND,
        "text": Density.LOWER_BOUND,
        "audio": Density.LOWER_BOUND,
    }
    free_form = False
    sampling = "autoregressive"
    density_note = "one code"
    presets = {
        "default": {"ema": 0.99},
        "cifar10": {
            "codes": 512, "code_width": 64, "width": 64, "depth": 2, "batch_size": 128, "lr": 2e-4, "ema": 0.0,
        },
        "imagenet128": {
            "codes": 512, "code_width": 64, "width": 64, "depth": 2, "batch_size": 128, "lr": 2e-4, "ema": 0.0,
        },
    }  # fmt: skip
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.7, 0.85, 1.0, 1.15)}

    def __init__(
        self,
        space: Space,
        *,
        prior: str = "gated-pixelcnn",
        codes: int = 64,
        code_width: int = 16,
        slots: int = 4,
        halvings: int = 2,
        width: int = 16,
        depth: int = 1,
        likelihood: Likelihood = "logistic-mixture",
        mixtures: int = 3,
        commitment: float = 0.25,
        decay: float = 0.99,
        revive: float = 0.05,
        first_stage: float = 0.5,
    ) -> None:
        super().__init__(space)
        self.commitment, self.first_stage = commitment, first_stage
        head = Head(space, mixtures, likelihood)
        book = Codebook(codes, code_width, decay, revive)
        coder = _ConvAutoencoder if space.kind == "image" else _MLPAutoencoder
        size = halvings if space.kind == "image" else slots
        self.autoencoder = coder(space.conditioned_on(None), head, book, size, width, depth)
        grid = Space("image", (1, *self.autoencoder.grid), levels=codes, condition=space.condition)
        self.prior = build_prior(prior, grid)

    @property
    def temperature(self) -> float:
        """Of the prior's conditionals that are sampled; 1 is the model's own."""
        return float(getattr(self.prior, "temperature", 1.0))

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.prior.temperature = value  # type: ignore[assignment]

    # --- two stages -----------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        if progress < self.first_stage:
            yield from self._autoencode(batch.x)
        else:
            codes = Batch(self._codes(batch.x), batch.condition)
            yield from self.prior.updates(codes, second_stage(progress, self.first_stage))

    def _autoencode(self, x: Tensor) -> Iterator[Update]:
        """One step of the autoencoder; the codebook moves after it, once for all micro-batches."""
        model, book = self.autoencoder, self.autoencoder.codebook
        features = model.encode(x)
        codes = book.nearest(features)
        # Before the codebook has seen a feature there is nothing to quantise with.
        vectors = book(codes) if book.initialised else features.detach()
        log_likelihood = model.log_likelihood(x, straight_through(features, vectors)).mean()
        distance = (features - vectors).square().flatten(1).sum(1).mean()
        loss = self.commitment * distance - log_likelihood
        total = yield Update(model, loss, {"distance": distance, **book.statistics(features, codes)})
        if total is not None:
            book.move(total)

    def optimizers(self, lr: float = 1e-3, prior_lr: float = 1e-3) -> dict[nn.Module, torch.optim.Optimizer]:
        """Adam for the autoencoder; the prior brings its own optimizer.

        Args:
            lr: learning rate of the autoencoder.
            prior_lr: that of the prior.
        """
        return {
            self.autoencoder: torch.optim.Adam(self.autoencoder.parameters(), lr, fused=True),
            **self.prior.optimizers(prior_lr),
        }

    def learning_rate(self, progress: float) -> float:
        if progress < self.first_stage:
            return 1.0
        return self.prior.learning_rate(second_stage(progress, self.first_stage))

    # --- density, samples, codes ----------------------------------------------------------------

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        codes = self._codes(x)
        log_prior = self.prior._log_prob(codes, condition)
        assert isinstance(log_prior, Tensor)  # exact: without a standard error
        return log_prior + self.autoencoder.log_likelihood(x, self._vectors(codes))

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        head = self.autoencoder.head
        params = self.autoencoder.decode(self._vectors(self.prior._sample(n, condition)))
        return head.sample(params, head.noise(n)).view(n, *self.space.shape)

    @torch.no_grad()
    def _codes(self, x: Tensor) -> Tensor:
        """`(B, 1, h, w)`, as the prior's space has them."""
        return self.autoencoder.codebook.nearest(self.autoencoder.encode(x)).unsqueeze(1)

    def _vectors(self, codes: Tensor) -> Tensor:
        return self.autoencoder.codebook(codes.squeeze(1))

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The vectors `(B, h, w, code_width)` of the codes."""
        return self._vectors(self._codes(x))

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """The likelihood's mode; `z` need not be in the codebook (interpolations are not)."""
        return self.autoencoder.head.mode(self.autoencoder.decode(z)).view(-1, *self.space.shape)

    def _rate_distortion(self, x: Tensor, condition: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """One level: what the codes cost under the prior, and the reconstruction."""
        codes = self._codes(x)
        log_prior = self.prior._log_prob(codes, condition)
        assert isinstance(log_prior, Tensor)
        return [(-log_prior, self._decode(self._vectors(codes), condition))]

    @property
    def sample_evaluations(self) -> int:
        return self.prior.sample_evaluations + 1

    def networks(self) -> list[nn.Module]:
        return [self.autoencoder.encoder, self.autoencoder.decoder, *self.prior.networks()]

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Against collapse of the codebook: how many codes are used and how evenly; the two terms of the bound."""
        codes = self._codes(batch.x)
        levels = len(self.autoencoder.codebook.counts)
        use = torch.bincount(codes.flatten(), minlength=levels) / codes.numel()
        log_likelihood = self.autoencoder.log_likelihood(batch.x, self._vectors(codes))
        return {
            "codes_used": (use > 0).float().mean().item(),
            "code_perplexity": torch.special.entr(use).sum().exp().item(),
            "nats_of_example_given_codes": -log_likelihood.mean().item() - self.space.log_det,
        }


class _Autoencoder(nn.Module):
    """Encoder, codebook and decoder: what the first stage trains."""

    encoder: nn.Module
    decoder: nn.Module
    grid: tuple[int, int]

    def __init__(self, head: Head, codebook: Codebook) -> None:
        super().__init__()
        self.head, self.codebook = head, codebook

    def log_likelihood(self, x: Tensor, vectors: Tensor) -> Tensor:
        """ln p(x | vectors) in nats `(B,)`, of vectors `(B, h, w, D)`."""
        return self.head.log_prob(self.decode(vectors), x).sum(1)

    def encode(self, x: Tensor) -> Tensor:
        """Features `(B, h, w, D)`."""
        raise NotImplementedError

    def decode(self, vectors: Tensor) -> Tensor:
        """Parameters of the head."""
        raise NotImplementedError


class _ConvAutoencoder(_Autoencoder):
    """Of images, with a grid of codes of about the shape of the image."""

    def __init__(self, space: Space, head: Head, codebook: Codebook, halvings: int, width: int, depth: int) -> None:
        super().__init__(head, codebook)
        halvings = min(halvings, halvings_to(space, smallest=1))
        self.grid = grid_size(space, halvings)
        features = codebook.vectors.shape[1]
        self.encoder = Downsampler(space, features, width, halvings, depth)
        self.decoder = Upsampler(space, features, head, width, halvings, depth)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x).movedim(1, -1)

    def decode(self, vectors: Tensor) -> Tensor:
        return self.decoder(vectors.movedim(-1, 1))


class _MLPAutoencoder(_Autoencoder):
    """Of everything else, with a row of codes."""

    def __init__(self, space: Space, head: Head, codebook: Codebook, slots: int, width: int, depth: int) -> None:
        super().__init__(head, codebook)
        self.grid = (1, slots)
        features = slots * codebook.vectors.shape[1]
        self.encoder = MLPEncoder(space, features, width, depth)
        self.decoder = MLPDecoder(space, features, head, width, depth)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x).unflatten(1, (*self.grid, -1))

    def decode(self, vectors: Tensor) -> Tensor:
        return self.decoder(vectors.flatten(1))


def second_stage(progress: float, first: float) -> float:
    """Progress within the second stage, `first` being the share of the first."""
    return (progress - first) / max(1 - first, 1e-9)


def build_prior(name: str, space: Space) -> System:
    """The system of that name on grids of codes; `Unfit` if it has no exact autoregressive density of them."""
    fits = [
        entry.id
        for entry in catalog.entries().values()
        if entry.sampling == "autoregressive" and entry.densities.get("image") == Density.EXACT.value
    ]
    system = catalog.find(name).load()
    unordered = {"likelihood": "categorical"} if "likelihood" in inspect.signature(system).parameters else {}
    prior = catalog.build(name, space, **unordered) if system.sampling == "autoregressive" else None
    if prior is None or prior.density is not Density.EXACT:
        needs = "it needs an autoregressive system with an exact density"
        raise Unfit(f"{name} cannot be the prior of codes: {needs}. These fit: {', '.join(fits)}")
    return prior
