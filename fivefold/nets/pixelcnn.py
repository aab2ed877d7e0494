"""The gated PixelCNN's network: masked convolutions in two stacks, so that no pixel above is unseen."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.errors import Unfit
from fivefold.nets.condition import ConditionEmbedding, Embedded, MapEmbedding
from fivefold.nets.embedding import DimEmbedding
from fivefold.nets.heads import dims_of_maps
from fivefold.nets.masked import CausalConv2d, ConvPiece, degree_mask, spread_degrees
from fivefold.nets.states import States
from fivefold.space import Space


class GatedPixelCNN(nn.Module):
    """Parameters of every dimension of an image from those before it: pixels in raster order, their colours in turn.

    Args:
        space: of images `(C, H, W)`.
        width: parameters of each dimension.
        channels: features of each stack.
        layers: gated layers after the first.
        kernel: width of the convolutions, odd; they reach half of it up and left.
        first_kernel: the same of the first layer.
        embedding: features of each input value.
        dropout: share of features that are dropped in training.
        embedded: width of a condition that comes as a vector, in place of one of the space; 0 for none.

    Raises:
        Unfit: where there are fewer features than colours.
    """

    def __init__(
        self,
        space: Space,
        width: int,
        *,
        channels: int,
        layers: int,
        kernel: int = 3,
        first_kernel: int = 5,
        embedding: int = 16,
        dropout: float = 0.0,
        embedded: int = 0,
    ) -> None:
        super().__init__()
        self.space, self.width = space, width
        colours = space.shape[0]
        if channels < colours:
            raise Unfit(f"{colours} colour channels need as many features or more, got channels={channels}")
        if kernel % 2 == 0 or first_kernel % 2 == 0 or first_kernel < 3:
            raise ValueError(
                f"kernels must be odd, the first at least 3; got kernel={kernel}, first_kernel={first_kernel}"
            )
        self.group = spread_degrees(channels, colours)
        colour = torch.arange(colours)
        inputs, outputs = (colour.repeat_interleave(width) for width in (embedding, width))
        up, side, size = first_kernel // 2, first_kernel // 2 + 1, embedding * colours
        self.embedding = DimEmbedding(space, embedding)
        self.condition = Embedded(embedded) if embedded else _embedding(space, channels)
        self.vertical = CausalConv2d(size, channels, (up, first_kernel), above=True)
        self.horizontal = CausalConv2d(size, channels, (1, side), mask=degree_mask(inputs, self.group, strict=True))
        self.blocks = nn.ModuleList(_Block(self.group, kernel, self.condition.width, dropout) for _ in range(layers))
        self.mix = CausalConv2d(channels, channels, (1, 1), mask=degree_mask(self.group, self.group))
        self.last = CausalConv2d(channels, len(outputs), (1, 1), mask=degree_mask(self.group, outputs))

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Parameters `(B, D, width)` of the dimensions of encoded images `(B, C, H, W)`."""
        maps, context = self._embed(x), self.condition(condition)
        v, h = self.vertical(maps), self.horizontal(maps)
        for block in self.blocks:
            v, h = block(v, h, context)
        return dims_of_maps(self.last(F.silu(self.mix(F.silu(h)))), self.space.shape[0])

    def _embed(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` as maps `(B, C * embedding, H, W)`, the features of a colour together."""
        return self.embedding(x).unflatten(1, self.space.shape).movedim(-1, 2).flatten(1, 2)

    def states(self, n: int, condition: Tensor | None) -> States:
        """What sampling `n` images keeps."""
        return _States(self, n, condition)


def raster(space: Space) -> Iterator[int]:
    """Flattened dimensions of an image pixel by pixel, the colours of each together."""
    colours, pixels = space.shape[0], space.dims // space.shape[0]
    return (colour * pixels + pixel for pixel in range(pixels) for colour in range(colours))


class _Block(nn.Module):
    """A gated layer of both stacks (the paper's Figure 2): `(B, channels, H, W)` each."""

    def __init__(self, group: Tensor, kernel: int, context: int, dropout: float) -> None:
        super().__init__()
        n = len(group)
        self.vertical = CausalConv2d(n, 2 * n, (kernel // 2 + 1, kernel))
        self.link = nn.Conv2d(2 * n, 2 * n, 1)
        self.horizontal = CausalConv2d(n, 2 * n, (1, kernel // 2 + 1), mask=degree_mask(group, group.repeat(2)))
        self.out = CausalConv2d(n, n, (1, 1), mask=degree_mask(group, group))
        self.context = nn.Linear(context, 4 * n, bias=False) if context else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, v: Tensor, h: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        gates, link = self.from_above(self.vertical(v), context)
        gated = self.dropout(_gate(self.horizontal(h) + link))
        return v + _gate(gates), h + self.out(gated)

    def from_above(self, gates: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The vertical stack's `gates` with their bias, and what they add to the horizontal one's."""
        if self.context is None or context is None:
            return gates, self.link(gates)
        maps = context if context.dim() == 4 else context[:, :, None, None]
        to_gates, to_link = self.context(maps.movedim(1, -1)).movedim(-1, 1).chunk(2, 1)
        gates = gates + to_gates
        return gates, self.link(gates) + to_link


def _embedding(space: Space, width: int) -> ConditionEmbedding | MapEmbedding:
    if space.condition is None or space.condition.kind != "image":
        return ConditionEmbedding(space.condition, width)
    return MapEmbedding(space.condition, width, (space.shape[1], space.shape[2]))


def _gate(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, 1)
    return value.tanh() * gate.sigmoid()


class _States:
    """All that sampling keeps: of the vertical stack the rows, of the horizontal stack the pixels still in reach.

    A row of the vertical stack is computed at once, a pixel of the horizontal stack colour by colour. What
    precedes a colour lies in one piece of memory (pixels to the left, then the features of earlier colours),
    so that a layer is one matrix product.
    """

    def __init__(self, net: GatedPixelCNN, n: int, condition: Tensor | None) -> None:
        colours, _, width = net.space.shape
        self.net, self.context, self.row = net, net.condition(condition), 0
        self.blocks: list[_Block] = list(net.blocks)  # type: ignore[arg-type]
        zeros = net.last.weight.new_zeros
        channels, inputs = len(net.group), net.horizontal.in_channels
        self.rows = [zeros(n, inputs, net.vertical.rows, width)]
        self.rows += [zeros(n, channels, block.vertical.rows, width) for block in self.blocks]
        self.pixels = [zeros(n, net.horizontal.kernel_size[1] - 1 + width, inputs)]
        self.pixels += [zeros(n, block.horizontal.kernel_size[1] - 1 + width, channels) for block in self.blocks]
        self.gated = [zeros(n, channels) for _ in self.blocks]
        self.top, self.mixed = zeros(n, channels), zeros(n, channels)
        groups = [(net.group == colour).nonzero()[:, 0].to(zeros(0).device) for colour in range(colours)]
        self.spans = [slice(int(g[0]), int(g[-1]) + 1) for g in groups]
        both = [torch.cat([g, g + channels]) for g in groups]
        heads = torch.arange(colours * net.width).view(colours, -1).to(zeros(0).device)
        self.first = [ConvPiece(net.horizontal, g, c * inputs // colours) for c, g in enumerate(groups)]
        seen = [span.stop for span in self.spans]
        self.gates = [[ConvPiece(b.horizontal, g, s) for b in self.blocks] for g, s in zip(both, seen, strict=True)]
        self.outs = [[ConvPiece(b.out, g, s) for b in self.blocks] for g, s in zip(groups, seen, strict=True)]
        self.mixes = [ConvPiece(net.mix, g, s) for g, s in zip(groups, seen, strict=True)]
        self.lasts = [ConvPiece(net.last, h, s) for h, s in zip(heads, seen, strict=True)]
        self.both = both

    def _start_row(self) -> None:
        """The vertical stack at the next row, and what it gives to each of its pixels."""
        v = self.net.vertical.row(self.rows[0])
        context = self.context
        if context is not None and context.dim() == 4:
            context = context[:, :, self.row : self.row + 1]
        self.row += 1
        self.links: list[list[Tensor]] = [[] for _ in self.spans]
        for i, block in enumerate(self.blocks):
            self.rows[i + 1] = torch.cat([self.rows[i + 1][:, :, 1:], v], 2)
            above, link = block.from_above(block.vertical.row(self.rows[i + 1]), context)
            v = v + _gate(above)
            for links, rows, gates in zip(self.links, self.both, self.gates, strict=True):
                links.append(link[:, rows, 0].permute(2, 0, 1) + gates[i].bias)  # (W, n, ...)
        self.rows[0] = torch.cat([self.rows[0][:, :, 1:], torch.zeros_like(self.rows[0][:, :, :1])], 2)

    def params(self, dim: int) -> Tensor:
        colour, column = self._place(dim)
        if column == colour == 0:
            self._start_row()
        span = self.spans[colour]
        h = self.first[colour](self.pixels[0], column)
        for i, (gates, out) in enumerate(zip(self.gates[colour], self.outs[colour], strict=True)):
            pixels, gated = self.pixels[i + 1], self.gated[i]
            pixels[:, column + gates.left, span] = h
            gated[:, span] = _gate(gates(pixels, column, self.links[colour][i][column]))
            h = h + out(gated)
        self.top[:, span] = F.silu(h)
        self.mixed[:, span] = F.silu(self.mixes[colour](self.top))
        return self.lasts[colour](self.mixed)

    def add(self, dim: int, value: Tensor) -> None:
        colour, column = self._place(dim)
        features = self.net.embedding.of(slice(dim, dim + 1), value[:, None])[:, 0]
        span = slice(colour * features.shape[1], (colour + 1) * features.shape[1])
        self.pixels[0][:, column + self.first[0].left, span] = features
        self.rows[0][:, span, -1, column] = features

    def _place(self, dim: int) -> tuple[int, int]:
        """Colour and column."""
        _, height, width = self.net.space.shape
        return dim // (height * width), dim % width
