"""Vector-quantised variational autoencoder."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from fivefold.nets.coders import Downsampler, MLPDecoder, MLPEncoder, Upsampler, grid_size, halvings_to
from fivefold.nets.heads import Head
from fivefold.options import option
from fivefold.space import Space
from fivefold.system import Density, temperature_of
from fivefold.vae._codes import Autoencoder, CodeSystem, Quantise


class VQVAE(CodeSystem):
    """Vector-quantised variational autoencoder (survey 3.2; van den Oord et al., 2017).

    First an autoencoder whose code is a small grid of vectors from a codebook, trained through the
    quantisation by the straight-through estimator; then an autoregressive prior of the codes, any system
    of the catalogue with an exact density. With one code of each example in the sum over codes,
    ln p(x) >= ln p(codes) + ln p(x|codes): a lower bound, whatever the prior has learnt.
    """

    densities: ClassVar[dict[str, Density]] = {
        "image": Density.LOWER_BOUND,
        "table": Density.LOWER_BOUND,
        "text": Density.LOWER_BOUND,
        "audio": Density.LOWER_BOUND,
    }
    density_note = "one code"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.7, 0.85, 1.0, 1.15)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.99},
        "cifar10": {
            "codes": 512, "code_width": 64, "width": 64, "depth": 2, "batch_size": 128, "lr": 2e-4, "ema": 0.0,
        },
        "imagenet128": {
            "codes": 512, "code_width": 64, "width": 64, "depth": 2, "batch_size": 128, "lr": 2e-4, "ema": 0.0,
        },
    }  # fmt: skip
    levels: ClassVar[tuple[str, ...]] = ("codes",)

    slots: int = option(4, "codes of an example that is not an image", least=1, tune=(1, 16))

    temperature = temperature_of("priors.0")

    def make_autoencoder(self, space: Space, head: Head, books: nn.ModuleDict) -> Autoencoder:
        if space.kind == "image":
            return _Images(space, head, books, self.halvings, self.width, self.depth)
        return _Rows(space, head, books, self.slots, self.width, self.depth)


class _OneLevel(Autoencoder):
    encoder: nn.Module
    decoder: nn.Module

    def encode(self, x: Tensor, quantise: Quantise) -> tuple[Tensor, ...]:
        return (quantise("codes", self.features(x)),)

    def features(self, x: Tensor) -> Tensor:
        """`(B, h, w, D)`."""
        raise NotImplementedError

    def networks(self) -> list[nn.Module]:
        return [self.encoder, self.decoder]


class _Images(_OneLevel):
    """Of images, with a grid of codes of about the shape of the image."""

    def __init__(self, space: Space, head: Head, books: nn.ModuleDict, halvings: int, width: int, depth: int) -> None:
        super().__init__(head, books)
        halvings = min(halvings, halvings_to(space, smallest=1))
        self.grids = (grid_size(space, halvings),)
        features = self.book("codes").vectors.shape[1]
        self.encoder = Downsampler(space, features, width, halvings, depth)
        self.decoder = Upsampler(space, features, head, width, halvings, depth)

    def features(self, x: Tensor) -> Tensor:
        return self.encoder(x).movedim(1, -1)

    def decode(self, *vectors: Tensor) -> Tensor:
        return self.decoder(vectors[0].movedim(-1, 1))


class _Rows(_OneLevel):
    """Of everything else, with a row of codes."""

    def __init__(self, space: Space, head: Head, books: nn.ModuleDict, slots: int, width: int, depth: int) -> None:
        super().__init__(head, books)
        self.grids = ((1, slots),)
        features = slots * self.book("codes").vectors.shape[1]
        self.encoder = MLPEncoder(space, features, width, depth)
        self.decoder = MLPDecoder(space, features, head, width, depth)

    def features(self, x: Tensor) -> Tensor:
        return self.encoder(x).unflatten(1, (*self.grids[0], -1))

    def decode(self, *vectors: Tensor) -> Tensor:
        return self.decoder(vectors[0].flatten(1))
