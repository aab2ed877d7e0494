"""Layers whose masks make a network autoregressive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.coders import zero
from fivefold.nets.units import UnitsFirst


def degree_mask(inputs: Tensor, outputs: Tensor, strict: bool = False) -> Tensor:
    """Which inputs each output may see, `(outputs, inputs)`: of no higher degree, or (`strict`) of a lower one.

    1.0 and 0.0, since in training a product takes half the time of a choice.
    """
    return (outputs[:, None] > inputs if strict else outputs[:, None] >= inputs).float()


def spread_degrees(units: int, groups: int) -> Tensor:
    """Degrees 0..groups-1 in ascending order, evenly over `units`: `(units,)`."""
    return torch.arange(units) * groups // units


class MaskedLinear(nn.Linear):
    """A linear layer that is given its mask `(rows, inputs)`, so that one set of weights serves many masks.

    Where the layer has more outputs than the mask rows, each row serves equally many consecutive outputs.
    """

    def masked_weight(self, mask: Tensor) -> Tensor:
        """`(outputs, inputs)`."""
        return (self.weight.unflatten(0, (len(mask), -1)) * mask.unsqueeze(1)).flatten(0, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return F.linear(x, self.masked_weight(mask), self.bias)


class MaskedNet(nn.Module):
    """P numbers for each dimension from the dimensions before it, by three layers (Germain et al., 2015); 0 at first.

    Vectors lie units first: `(D, B)`, or `(free + D, B)`, and a condition `(B, condition)` to `(P, D, B)`.

    Args:
        dims: D.
        size: P.
        hidden: units of each of the two hidden layers.
        condition: width of the condition, 0 for none.
        free: how many inputs, which come first, are seen by all.
        backwards: whether the last dimension comes first.
    """

    degrees: Tensor
    mask: Tensor

    def __init__(
        self, dims: int, size: int, hidden: int, condition: int = 0, free: int = 0, backwards: bool = False
    ) -> None:
        super().__init__()
        order = torch.arange(dims).flip(0) if backwards else torch.arange(dims)
        degrees = spread_degrees(hidden, dims)
        masks = [  # a unit of degree d sees x_<d, and speaks for the dimensions from d on
            degree_mask(torch.cat([torch.full((free,), -1), order]), degrees, strict=True),
            degree_mask(degrees, degrees),
            degree_mask(degrees, order).repeat(size, 1),  # the first number of all dimensions, then others
        ]
        self.shapes = [mask.shape for mask in masks]
        self.outputs, self.sizes = [len(mask) for mask in masks], [mask.numel() for mask in masks]
        layers = [nn.Linear(inputs, outputs) for outputs, inputs in self.shapes]
        zero(layers[-1])
        # One array each: what is done to all layers alike, masking first of all, takes as long as for one.
        self.weights = nn.Parameter(torch.cat([layer.weight.detach().flatten() for layer in layers]))
        self.biases = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]).unsqueeze(1))
        self.context = UnitsFirst(condition, hidden) if condition else None
        self.dims = dims
        self.register_buffer("degrees", degrees, persistent=False)
        self.register_buffer("mask", torch.cat([mask.flatten() for mask in masks]), persistent=False)

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """The masked weight `(outputs, inputs)` and the bias `(outputs, 1)` of each."""
        weights = torch.split_with_sizes(self.weights * self.mask, self.sizes)
        biases = torch.split_with_sizes(self.biases, self.outputs)
        return [(weights[i].view(self.shapes[i]), biases[i]) for i in range(3)]

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        (w1, b1), (w2, b2), (w3, b3) = self.layers()
        h = torch.addmm(b1, w1, x)
        if self.context is not None and condition is not None:
            h = h + self.context(condition.T)
        h = torch.addmm(b2, w2, F.relu_(h))
        return torch.addmm(b3, w3, F.relu_(h)).view(-1, self.dims, x.shape[1])


class MaskedLevels(nn.Module):
    """Numbers for each dimension from the levels of the dimensions before it: `(B, D, K)` one-hot to `(B, D, size)`.

    0 at first; but the hidden units tell contexts apart at once, as their weights are of the size that D inputs need,
    not the D K of which most are 0.

    Args:
        dims: D.
        levels: K.
        size: numbers for each dimension.
        hidden: units of each of the two hidden layers.
        condition: width of the condition, 0 for none.
        reverse: whether the last dimension comes first.
    """

    position: Tensor
    degrees: Tensor

    def __init__(
        self, dims: int, levels: int, size: int, hidden: int, condition: int = 0, reverse: bool = False
    ) -> None:
        super().__init__()
        self.dims, self.levels = dims, levels
        order = torch.arange(dims)
        self.register_buffer("position", order.flip(0) if reverse else order, persistent=False)
        self.register_buffer("degrees", spread_degrees(hidden, dims), persistent=False)
        self.first, self.second = MaskedLinear(dims * levels, hidden), MaskedLinear(hidden, hidden)
        with torch.no_grad():
            self.first.weight.mul_(levels**0.5)
        self.context = nn.Linear(condition, hidden) if condition else None
        self.last = zero(MaskedLinear(hidden, dims * size))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        features = self.position.repeat_interleave(self.levels)
        h = self.first(x.flatten(1), degree_mask(features, self.degrees, strict=True))
        if self.context is not None and condition is not None:
            h = h + self.context(condition)
        h = h + self.second(F.silu(h), degree_mask(self.degrees, self.degrees))
        return self.last(F.silu(h), degree_mask(self.degrees, self.position)).unflatten(1, (self.dims, -1))


class CausalConv2d(nn.Conv2d):
    """A convolution that sees only what precedes each pixel, within a row or in the rows above it.

    The kernel `(height, width)` reaches `height - 1` rows up, and its odd width to both sides. `above`: it leaves
    out the pixel's own row and reaches `height` rows up. With a `mask`: its width ends at the pixel itself, of
    which each output may see the features that the mask `(outputs, inputs)` says.
    """

    mask: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        *,
        above: bool = False,
        mask: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(inputs, outputs, kernel, **options)
        height, width = kernel
        self.above = above
        side = (width - 1, 0) if mask is not None else (width // 2, width // 2)
        self.pad = (*side, height if above else height - 1, 0)
        if mask is not None:
            full = torch.ones(outputs, inputs, *kernel)
            full[:, :, -1, -1] = mask
            mask = full
        self.register_buffer("mask", mask, persistent=False)

    @property
    def masked_weight(self) -> Tensor:
        """`(outputs, inputs, *kernel)`."""
        return self.weight if self.mask is None else self.weight * self.mask

    @property
    def rows(self) -> int:
        """How many rows it sees."""
        return int(self.kernel_size[0])

    def row(self, x: Tensor) -> Tensor:
        """One row `(B, outputs, 1, W)` from just the rows that it sees, `(B, inputs, rows, W)`."""
        return F.conv2d(F.pad(x, self.pad[:2]), self.masked_weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.above:
            x = x[:, :, :-1]
        return F.conv2d(F.pad(x, self.pad), self.masked_weight, self.bias)


class ConvPiece:
    """The rows of a horizontal convolution that make one colour's features at one pixel.

    Args:
        conv: the convolution, of height 1.
        outputs: which of its outputs.
        visible: how many features of the pixel itself they may see; the first so many.
    """

    def __init__(self, conv: CausalConv2d, outputs: Tensor, visible: int) -> None:
        self.left = conv.kernel_size[1] - 1
        self.reach = self.left * conv.in_channels + visible
        weight = conv.masked_weight[outputs, :, 0].transpose(1, 2).flatten(1)  # pixel by pixel from the left
        self.weight = weight[:, : self.reach].T.contiguous()
        assert conv.bias is not None
        self.bias = conv.bias[outputs]

    def __call__(self, pixels: Tensor, column: int = 0, base: Tensor | None = None) -> Tensor:
        """Of `pixels` `(n, left + W, channels)`, or of one `(n, channels)`, at `column`; plus `base`, else the bias."""
        n, channels = len(pixels), pixels.shape[-1]
        window = pixels.view(n, -1)[:, column * channels : column * channels + self.reach]
        return torch.addmm(self.bias if base is None else base, window, self.weight)
