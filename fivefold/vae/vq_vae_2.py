"""Vector-quantised variational autoencoder with two levels of codes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.coders import Downsampler, Upsampler, channels_at, grid_size, halvings_to
from fivefold.nets.embedding import DimFeatures
from fivefold.nets.heads import Head
from fivefold.space import Space
from fivefold.system import Density, temperature_of
from fivefold.vae._codes import Autoencoder, CodeSystem, Quantise


class VQVAE2(CodeSystem):
    """VQ-VAE-2, two levels of codes (survey 3.2; Razavi et al., 2019).

    The lower codes are a grid as in `vq-vae`; the upper ones half as fine, found first. What they say is given to
    the encoder of the lower codes, which so keep the details, and to the decoder. In the second stage two
    autoregressive priors are fitted: p(upper) and p(lower | upper). With the codes that the encoders choose,
    ln p(x) >= ln p(upper) + ln p(lower|upper) + ln p(x|upper, lower): a lower bound, whatever the priors have learnt.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND}
    density_note = "one code of each level"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.7, 0.85, 1.0, 1.15)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.99},
        "imagenet256": {
            "codes": 512, "code_width": 64, "halvings": 2, "width": 32, "depth": 2, "batch_size": 128, "lr": 3e-4,
            "ema": 0.0,
        },
    }  # fmt: skip
    levels: ClassVar[tuple[str, ...]] = ("upper", "lower")
    prior_lr: ClassVar[float] = 5e-3

    width = 32
    first_stage = 0.4

    temperature = temperature_of("priors.0", "priors.1")

    def build(self) -> None:
        condition = self.space.condition
        self.label = None if condition is None else DimFeatures(condition)
        super().build()

    def make_autoencoder(self, space: Space, head: Head, books: nn.ModuleDict) -> Autoencoder:
        return _TwoLevels(
            space, head, books, min(self.halvings, halvings_to(space, smallest=1)), self.width, self.depth
        )

    def given_space(self, grid: tuple[int, int]) -> Space:
        labels = 0 if self.label is None else len(self.label.dim_of_feature)
        return Space("image", (self.code_width + labels, *grid), dtype="float32")

    def given(self, codes: Tensor, condition: Tensor | None) -> Tensor:
        """The upper codes' vectors and the condition: `(B, code_width + labels, h, w)`."""
        maps = self.autoencoder.book("upper")(codes.squeeze(1)).movedim(-1, 1)
        if self.label is None or condition is None:
            return maps
        labels = self.label(condition)[:, :, None, None].expand(-1, -1, *maps.shape[2:])
        return torch.cat([maps, labels], 1)


class _TwoLevels(Autoencoder):
    """Of images.

    Args:
        space: of images.
        head: whose parameters are decoded.
        books: the codebooks `upper` and `lower`.
        halvings: from the image to the lower grid.
        width: channels at full size.
        depth: residual blocks at each size.
    """

    def __init__(self, space: Space, head: Head, books: nn.ModuleDict, halvings: int, width: int, depth: int) -> None:
        super().__init__(head, books)
        self.grids = (grid_size(space, halvings + 1), grid_size(space, halvings))
        size, features = self.book("lower").vectors.shape[1], channels_at(width, halvings)[-1]
        below = Space("image", (features, *self.grids[1]), dtype="float32")
        self.bottom = Downsampler(space, features, width, halvings, depth)
        self.top = Downsampler(below, size, features, 1, depth)
        self.down = nn.ConvTranspose2d(size, features, 4, stride=2, padding=1)  # from the upper grid to the lower
        self.merge = nn.Conv2d(2 * features, size, 1)
        self.enlarge = nn.ConvTranspose2d(size, size, 4, stride=2, padding=1)
        self.decoder = Upsampler(space, 2 * size, head, width, halvings, depth)

    def encode(self, x: Tensor, quantise: Quantise) -> tuple[Tensor, ...]:
        """The upper level first, which the lower features see."""
        bottom = self.bottom(x)
        upper = quantise("upper", self.top(F.silu(bottom)).movedim(1, -1))
        from_above = self._to_lower(self.down, upper)
        lower = quantise("lower", self.merge(F.silu(torch.cat([bottom, from_above], 1))).movedim(1, -1))
        return upper, lower

    def decode(self, *vectors: Tensor) -> Tensor:
        upper, lower = vectors
        return self.decoder(torch.cat([self._to_lower(self.enlarge, upper), lower.movedim(-1, 1)], 1))

    def _to_lower(self, double: nn.Module, upper: Tensor) -> Tensor:
        """Doubled, and cropped where a side was odd: `(B, C, H, W)`."""
        height, width = self.grids[1]
        return double(upper.movedim(-1, 1))[..., :height, :width]

    def networks(self) -> list[nn.Module]:
        return [self.bottom, self.decoder]
