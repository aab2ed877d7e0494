"""StyleGAN2's networks: mapping, synthesis by modulated convolutions, residual discriminator (Karras et al., 2020)."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.condition import ConditionEmbedding
from fivefold.nets.equalised import CriticHead, EqualConv, EqualLinear, leaky, pixel_norm
from fivefold.space import Space
from fivefold.tools.resample import conv_down, conv_up, downsample, upsample


def widths(width: int, widest: int, depth: int) -> list[int]:
    """Channels from the smallest resolution to the full one: `width` there, doubled at each halving up to `widest`."""
    return [min(width * 2**i, widest) for i in range(depth, -1, -1)]


class Mapping(nn.Module):
    """From codes `(B, latent)` and a condition to styles w `(B, latent)`.

    Both inputs are normalised; its layers learn at a hundredth of the others' rate.

    Args:
        space: whose condition it takes.
        latent: width of codes and styles.
        layers: how many.
    """

    def __init__(self, space: Space, latent: int, layers: int) -> None:
        super().__init__()
        self.embed = ConditionEmbedding(space.condition, latent)
        sizes = [latent + self.embed.width] + [latent] * layers
        self.layers = nn.ModuleList(EqualLinear(a, b, rate=0.01) for a, b in itertools.pairwise(sizes))

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        embedded = self.embed(condition)
        w = pixel_norm(z) if embedded is None else torch.cat([pixel_norm(z), pixel_norm(embedded)], 1)
        for layer in self.layers:
            w = leaky(layer(w))
        return w


class ModulatedConv(nn.Module):
    """A convolution whose weights each example's style scales, input channel by input channel.

    Demodulation divides every output channel by the norm of its scaled weights: unit variance stays unit variance,
    whatever the style. Scaling the inputs and the outputs of one shared convolution is the same as weights of each
    example's own, and much faster.

    Args:
        inputs: channels.
        outputs: channels of the result.
        latent: width of the style.
        kernel: its side, 3 or 1.
        demodulate: whether to.
        up: doubles the sides.
    """

    def __init__(
        self, inputs: int, outputs: int, latent: int, kernel: int = 3, demodulate: bool = True, up: bool = False
    ) -> None:
        super().__init__()
        self.style = EqualLinear(latent, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.scale, self.demodulate, self.up = 1 / math.sqrt(inputs * kernel**2), demodulate, up

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style, weight = self.style(w), self.weight * self.scale
        x = x * style[:, :, None, None]
        y = conv_up(x, weight) if self.up else F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if not self.demodulate:
            return y
        norm = torch.rsqrt(style.square() @ weight.square().sum((2, 3)).T + 1e-8)
        return y * norm[:, :, None, None]


class StyledLayer(nn.Module):
    """Modulated convolution, noise of a learnt strength (0 at first), bias, LeakyReLU.

    Args:
        inputs: channels.
        outputs: channels of the result.
        latent: width of the style.
        up: doubles the sides.
    """

    def __init__(self, inputs: int, outputs: int, latent: int, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, latent, up=up)
        self.strength, self.bias = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(outputs, 1, 1))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = self.conv(x, w)
        noise = torch.randn(len(x), 1, *x.shape[2:], device=x.device, dtype=x.dtype)
        return leaky(x + self.strength * noise + self.bias)


class ToImage(nn.Module):
    """A 1x1 modulated convolution to the image's channels, not demodulated, and a bias."""

    def __init__(self, inputs: int, channels: int, latent: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, channels, latent, kernel=1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.conv(x, w) + self.bias


class Synthesis(nn.Module):
    """From styles `(B, styles, latent)`, one a layer, to images `(B, *shape)`: the skip generator.

    A learnt constant of about 4x4 is doubled block by block; each resolution adds its own image to the one from
    below, upsampled. Sides that are no multiple of 2^depth are generated too large and cropped.

    Args:
        space: of images.
        latent: width of the styles.
        channels: of each resolution, smallest first.
    """

    def __init__(self, space: Space, latent: int, channels: list[int]) -> None:
        super().__init__()
        colours, self.height, self.width = space.shape
        depth = len(channels) - 1
        sides = -(-self.height // 2**depth), -(-self.width // 2**depth)
        self.start = nn.Parameter(torch.randn(channels[0], *sides))
        layers = [StyledLayer(channels[0], channels[0], latent)]
        for a, b in itertools.pairwise(channels):
            layers += [StyledLayer(a, b, latent, up=True), StyledLayer(b, b, latent)]
        self.layers = nn.ModuleList(layers)
        self.to_image = nn.ModuleList(ToImage(c, colours, latent) for c in channels)
        self.styles = len(layers) + 1

    def forward(self, styles: Tensor) -> Tensor:
        w = styles.unbind(1)
        x = self.layers[0](self.start.expand(len(styles), -1, -1, -1), w[0])
        image = self.to_image[0](x, w[1])
        for i, to_image in enumerate(list(self.to_image)[1:]):
            first = 2 * i + 1
            x = self.layers[first + 1](self.layers[first](x, w[first]), w[first + 1])
            image = upsample(image) + to_image(x, w[first + 2])
        return image[..., : self.height, : self.width]


class StyleGenerator(nn.Module):
    """Mapping and synthesis: from codes `(B, latent)` and a condition to images `(B, *shape)`.

    Args:
        space: of images.
        latent: width of codes and styles.
        layers: of the mapping network.
        channels: of each resolution, smallest first.
    """

    def __init__(self, space: Space, latent: int, layers: int, channels: list[int]) -> None:
        super().__init__()
        self.latent = latent
        self.mapping = Mapping(space, latent, layers)
        self.synthesis = Synthesis(space, latent, channels)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.synthesis(self.every_layer(self.mapping(z, condition)))

    def every_layer(self, w: Tensor) -> Tensor:
        """Styles `(B, styles, latent)`: w `(B, latent)` for all of them."""
        return w.unsqueeze(1).expand(-1, self.synthesis.styles, -1)

    def mixed(self, w: Tensor, other: Tensor, probability: float) -> Tensor:
        """Styles `(B, styles, latent)`: w, and in this share of them `other` from a random layer on."""
        layers = self.synthesis.styles
        cut = torch.randint(1, layers, (len(w), 1, 1), device=w.device)
        cut = torch.where(torch.rand(len(w), 1, 1, device=w.device) < probability, cut, layers)
        is_first = torch.arange(layers, device=w.device).view(1, -1, 1) < cut
        return torch.where(is_first, self.every_layer(w), self.every_layer(other))


class ResidualDown(nn.Module):
    """Two 3x3 convolutions, the second halving the sides, beside a 1x1 one that halves them too; their sum / sqrt(2).

    Args:
        inputs: channels.
        outputs: channels of the result.
        residual: whether the second path is there.
    """

    def __init__(self, inputs: int, outputs: int, residual: bool = True) -> None:
        super().__init__()
        self.first, self.second = EqualConv(inputs, inputs), EqualConv(inputs, outputs)
        self.skip = EqualConv(inputs, outputs, 1, bias=False) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        second = self.second
        y = conv_down(leaky(self.first(x)), second.weight * second.scale)
        y = leaky(y + second.bias.view(-1, 1, 1)) if second.bias is not None else leaky(y)
        return y if self.skip is None else (y + self.skip(downsample(x))) / math.sqrt(2)


class ResidualCritic(nn.Module):
    """From centred images `(B, *shape)` and a condition to one number each, `(B,)`.

    Residual blocks down to about 4x4, and the head that sees variety, within each of the `batches` that are passed.

    Args:
        space: of images.
        channels: of each resolution, smallest first.
        group: examples that the deviation is taken over; 1 for none.
        residual: whether its blocks are.
    """

    def __init__(self, space: Space, channels: list[int], group: int, residual: bool = True) -> None:
        super().__init__()
        colours, height, across = space.shape
        depth = len(channels) - 1
        self.from_image = EqualConv(colours, channels[-1], 1)
        pairs = itertools.pairwise(reversed(channels))
        self.blocks = nn.ModuleList(ResidualDown(a, b, residual) for a, b in pairs)
        self.head = CriticHead(space, channels[0], (height // 2**depth, across // 2**depth), group)

    def forward(self, x: Tensor, condition: Tensor | None = None, batches: int = 1) -> Tensor:
        x = leaky(self.from_image(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x, condition, batches)
