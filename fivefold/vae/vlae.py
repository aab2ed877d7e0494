"""Variational lossy autoencoder."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from fivefold.nets.coders import Downsampler, Output, Upsampler, grid_size, halvings_to
from fivefold.options import option, slot
from fivefold.space import Space
from fivefold.system import Density, temperature_of
from fivefold.tools.schedule import warm_cosine
from fivefold.vae._system import VAESystem


class VLAE(VAESystem):
    """Variational lossy autoencoder (survey 3.3.1; Chen et al., 2017).

    The decoder p(x|z) is autoregressive, but each pixel sees only a small window of those before it, so that the
    code must hold whatever reaches further: the decoder takes texture, z what is global. It is a gated PixelCNN
    whose layers after the first are 1x1 (`decoder.first_kernel` is the window's width: it reaches half of that up and
    to the left), on maps that z is decoded to. The prior p(z) is an autoregressive flow.

    Free bits: the divergence costs nothing below `free_bits` nats for each dimension of x, on average over a batch,
    so a code is found before there is a reason to leave it unused. The divergence of q(z|x), a diagonal Gaussian,
    from the flow is estimated by the draw of z that the loss takes anyway.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND}
    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "autoregressive"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.7, 0.85, 1.0, 1.15)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.995, "clip": 100.0},
        "mnist": {
            "latent": 64, "width": 32, "depth": 2, "maps": 32, "decoder.channels": 64, "decoder.layers": 6,
            "decoder.first_kernel": 7, "decoder.dropout": 0.0, "prior.layers": 4, "prior.hidden": 640, "dropout": 0.0,
            "free_bits": 0.01, "batch_size": 64, "ema": 0.999,
        },
        # Appendix B: its code, prior, widths and 7x4 window; blocks at the smallest size alone, the decoder is ours.
        "cifar10": {
            "code_maps": 16, "width": 48, "depth": 3, "maps": 64, "decoder.channels": 256, "decoder.layers": 6,
            "decoder.first_kernel": 7, "decoder.dropout": 0.0, "decoder.likelihood.mixtures": 10, "prior.layers": 6,
            "prior.hidden": 128, "dropout": 0.0, "free_bits": 0.01, "batch_size": 64, "ema": 0.998,
        },
    }  # fmt: skip

    network = "conv"
    depth = 1
    warmup = 0.0
    score_samples = 16
    prior = slot("autoregressive")
    decoder = slot(
        "gated-pixelcnn", channels=32, layers=3, kernel=1, first_kernel=3, dropout=0.1, 
        likelihood=slot("logistic-mixture", mixtures=5),
    )  # fmt: skip
    code_maps: int = option(
        0, "channels of a z that is maps of a quarter of the image's sides, in place of `latent` dimensions; the flows "
        "of its prior are gated PixelCNNs, and a condition enters the prior alone; 0 for a vector", least=0,
    )  # fmt: skip

    temperature = temperature_of("decoder.system")

    def code_space(self) -> Space:
        if not self.code_maps:
            return super().code_space()
        self.halvings = min(2, halvings_to(self.space, smallest=1))
        return Space("image", (self.code_maps, *grid_size(self.space, self.halvings)), dtype="float32")

    def make_encoder(self, outputs: int) -> nn.Module:
        if not self.code_maps:
            return super().make_encoder(outputs)
        channels = outputs * self.code_maps // self.latent
        down = Downsampler(self.space, channels, self.width, self.halvings, self.depth, self.dropout)
        return _Flat(self.space.shape, down)

    def make_decoder(self, space: Space, head: Output) -> nn.Module:
        if not self.code_maps:
            return super().make_decoder(space, head)
        up = Upsampler(space, self.code_maps, head, self.width, self.halvings, self.depth, self.dropout)
        return _Flat(self.codes.shape, up)

    def learning_rate(self, progress: float) -> float:
        """Warmed up over a hundredth of the budget, then down to a hundredth along a cosine."""
        return warm_cosine(progress)


class _Flat(nn.Module):
    """A network of maps, which do not see the condition, as one of vectors.

    Args:
        shape: of the maps that it is given.
        net: from maps to maps.
    """

    def __init__(self, shape: tuple[int, ...], net: nn.Module) -> None:
        super().__init__()
        self.shape, self.net = shape, net

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.net(x.view(-1, *self.shape)).flatten(1)
