"""Residual networks without normalisation layers: `(B, *shape)` to one number each or several, for energies."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.condition import ConditionEmbedding, with_maps
from fivefold.space import Space

Wrap = Callable[[nn.Module], nn.Module]
Bend = Callable[[Tensor], Tensor]


def leaky(x: Tensor) -> Tensor:
    """LeakyReLU of slope 0.2: it bends at every scale.

    A smooth activation is nearly linear on the small activations that spectral norm leaves, and the energy
    then little more than a quadratic form.
    """
    return F.leaky_relu(x, 0.2)


def _one(found: Tensor) -> Tensor:
    """`(B,)` of one number each, `(B, outputs)` of several."""
    return found.squeeze(1) if found.shape[1] == 1 else found


class ResidualBlock(nn.Module):
    """x + f(x), f two layers of the same kind, each behind a bend; a third layer widens x where the widths differ.

    Args:
        layer: makes one layer from its input and output widths.
        inputs: width of x.
        outputs: width of the result.
        bend: the activation.
    """

    def __init__(self, layer: Callable[[int, int], nn.Module], inputs: int, outputs: int, bend: Bend = leaky) -> None:
        super().__init__()
        self.bend = bend
        self.first, self.second = layer(inputs, outputs), layer(outputs, outputs)
        self.skip = nn.Identity() if inputs == outputs else layer(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.second(self.bend(self.first(self.bend(x))))


class ConvEnergy(nn.Module):
    """Residual blocks of 3x3 convolutions on images `(B, C, H, W)`, at several widths, each twice the one before.

    The first block of a width widens and the sides are halved after it, but not after the last block of all.

    Args:
        space: of images of any size.
        width: channels at full resolution.
        wrap: around every layer with weights, such as `spectral_norm`.
        blocks: how many widths.
        depth: blocks of each width.
        outputs: how many numbers.
        bend: the activation; a smooth one where second derivatives are asked for, which `leaky` has none of.
        condition_width: channels that a condition adds.
    """

    def __init__(
        self,
        space: Space,
        width: int,
        wrap: Wrap,
        blocks: int = 3,
        depth: int = 1,
        outputs: int = 1,
        bend: Bend = leaky,
        condition_width: int = 16,
    ) -> None:
        super().__init__()
        self.embed = ConditionEmbedding(space.condition, condition_width)
        self.depth, self.bend = depth, bend

        def layer(inputs: int, outputs: int) -> nn.Module:
            return wrap(nn.Conv2d(inputs, outputs, 3, padding=1))

        widths = [width * 2 ** (i // depth) for i in range(blocks * depth)]
        self.first = layer(space.shape[0] + self.embed.width, width)
        self.blocks = nn.ModuleList(
            ResidualBlock(layer, i, o, bend) for i, o in zip([width, *widths], widths, strict=False)
        )
        self.last = wrap(nn.Linear(widths[-1], outputs))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.first(with_maps(x, self.embed(condition)))
        for i, block in enumerate(self.blocks, 1):
            h = block(h)
            if (i - 1) % self.depth == 0 and i < len(self.blocks):
                h = F.avg_pool2d(h, 2, ceil_mode=True)
        return _one(self.last(self.bend(h).sum((2, 3))))


class MLPEnergy(nn.Module):
    """Residual blocks of linear layers on tables `(B, D)`.

    Args:
        space: of the examples.
        width: a quarter of the layers' units.
        wrap: around every layer with weights, such as `spectral_norm`.
        blocks: how many, `depth` times.
        depth: see `blocks`.
        outputs: how many numbers.
        bend: the activation; a smooth one where second derivatives are asked for, which `leaky` has none of.
        condition_width: columns that a condition adds.
    """

    def __init__(
        self,
        space: Space,
        width: int,
        wrap: Wrap,
        blocks: int = 3,
        depth: int = 1,
        outputs: int = 1,
        bend: Bend = leaky,
        condition_width: int = 16,
    ) -> None:
        super().__init__()
        self.embed, width = ConditionEmbedding(space.condition, condition_width), 4 * width
        self.bend = bend

        def layer(inputs: int, outputs: int) -> nn.Module:
            return wrap(nn.Linear(inputs, outputs))

        self.first = layer(space.dims + self.embed.width, width)
        self.blocks = nn.Sequential(*[ResidualBlock(layer, width, width, bend) for _ in range(blocks * depth)])
        self.last = layer(width, outputs)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.blocks(self.first(with_maps(x.flatten(1), self.embed(condition))))
        return _one(self.last(self.bend(h)))


class Field(nn.Module):
    """A vector field of examples, `(B, *shape)` to the same shape: smooth layers of one width, residual in between.

    Args:
        space: of images (3x3 convolutions, dilated by turns) or tables.
        width: of the layers.
        layers: hidden ones.
        condition_width: channels (columns) that a condition adds.
    """

    def __init__(self, space: Space, width: int, layers: int = 3, condition_width: int = 16) -> None:
        super().__init__()
        self.embed = ConditionEmbedding(space.condition, condition_width)
        inputs = space.shape[0] + self.embed.width

        def layer(inputs: int, outputs: int, reach: int) -> nn.Module:
            if space.kind == "image":
                return nn.Conv2d(inputs, outputs, 3, padding=reach, dilation=reach)
            return nn.Linear(inputs, outputs)

        self.first = layer(inputs, width, 1)
        self.hidden = nn.ModuleList(layer(width, width, 2 - i % 2) for i in range(layers))
        self.last = layer(width, space.shape[0], 1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.first(with_maps(x, self.embed(condition)))
        for hidden in self.hidden:
            h = h + hidden(F.silu(h))
        return self.last(F.silu(h))
