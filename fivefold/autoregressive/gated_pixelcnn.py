"""Gated PixelCNN: masked convolutions in two stacks, so that no pixel above is unseen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.autoregressive._system import AutoregressiveSystem
from fivefold.nets.condition import ConditionEmbedding, MapEmbedding
from fivefold.nets.embedding import DimEmbedding
from fivefold.nets.heads import Likelihood
from fivefold.nets.masked import CausalConv2d, degree_mask, spread_degrees
from fivefold.space import Space
from fivefold.system import Density, Unfit


class GatedPixelcnn(AutoregressiveSystem):
    """Gated PixelCNN (survey 5.1.3; van den Oord et al., 2016).

    A vertical stack sees all rows above a pixel, a horizontal stack the pixels before it in its row and, by a
    1x1 convolution, the vertical stack; gated layers with residual connections. Within a pixel the features
    are in groups, one a colour channel, each seeing the channels before it. A condition that is an image is
    aligned with this one: each of its places reaches the pixels there.

    Args:
        space: what the examples are.
        channels: features of each stack.
        layers: gated layers after the first.
        kernel: width of the convolutions, odd; they reach half of it up and left.
        first_kernel: the same of the first layer.
        embedding: features of each input value.
        dropout: share of features that are dropped in training.
        mixtures: components where an output is a mixture of logistics.
        likelihood: distribution of each dimension: auto | categorical | logistic-mixture | gaussian.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.EXACT}
    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "autoregressive"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # As strong a decay as this lets small data train long enough for its samples to cohere.
        "default": {"lr": 5e-3, "weight_decay": 1.0, "precision": "bf16", "ema": 0.995, "clip": 100.0},
        "mnist": {
            "channels": 32,
            "layers": 7,
            "first_kernel": 7,
            "dropout": 0.0,
            "batch_size": 16,
            "lr": 2e-3,
            "weight_decay": 0.01,
            "ema": 0.999,
        },
    }

    def __init__(
        self,
        space: Space,
        *,
        channels: int = 64,
        layers: int = 8,
        kernel: int = 3,
        first_kernel: int = 5,
        embedding: int = 16,
        dropout: float = 0.5,
        mixtures: int = 8,
        likelihood: Likelihood = "auto",
    ) -> None:
        super().__init__(space, mixtures, likelihood)
        colours = space.shape[0]
        if channels < colours:
            raise Unfit(f"{colours} colour channels need as many features or more, got channels={channels}")
        if kernel % 2 == 0 or first_kernel % 2 == 0 or first_kernel < 3:
            raise ValueError(
                f"kernels must be odd, the first at least 3; got kernel={kernel}, first_kernel={first_kernel}"
            )
        self.group = spread_degrees(channels, colours)
        colour = torch.arange(colours)
        inputs, outputs = (colour.repeat_interleave(width) for width in (embedding, self.head.width))
        up, side, size = first_kernel // 2, first_kernel // 2 + 1, embedding * colours
        self.embedding = DimEmbedding(space, embedding)
        self.condition = _embedding(space, channels)
        self.vertical = CausalConv2d(size, channels, (up, first_kernel), above=True)
        self.horizontal = CausalConv2d(size, channels, (1, side), mask=degree_mask(inputs, self.group, strict=True))
        self.blocks = nn.ModuleList(_Block(self.group, kernel, self.condition.width, dropout) for _ in range(layers))
        self.mix = CausalConv2d(channels, channels, (1, 1), mask=degree_mask(self.group, self.group))
        self.last = CausalConv2d(channels, len(outputs), (1, 1), mask=degree_mask(self.group, outputs))

    def conditionals(self, x: Tensor, condition: Tensor | None) -> Tensor:
        maps, context = self._embed(x), self.condition(condition)
        v, h = self.vertical(maps), self.horizontal(maps)
        for block in self.blocks:
            v, h = block(v, h, context)
        return self.head.from_maps(self.last(F.silu(self.mix(F.silu(h)))))

    def _embed(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` as maps `(B, C * embedding, H, W)`, the features of a colour together."""
        return self.embedding(x).unflatten(1, self.space.shape).movedim(-1, 2).flatten(1, 2)

    def _order(self) -> Iterable[int]:
        colours, pixels = self.space.shape[0], self.space.dims // self.space.shape[0]
        return (colour * pixels + pixel for pixel in range(pixels) for colour in range(colours))

    def _sample_from(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        colours, height, width = self.space.shape
        x = self._blank(len(noise))
        cache = _Cache(self, len(noise), condition)
        for row in range(height):
            cache.start_row()
            for column in range(width):
                for colour in range(colours):
                    dim = (colour * height + row) * width + column
                    x[:, dim] = self.head.sample_dim(dim, cache.params(column, colour), noise[:, dim])
                    cache.add(column, colour, self.embedding.of(slice(dim, dim + 1), x[:, dim : dim + 1])[:, 0])
        return x


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


class _Cache:
    """All that sampling keeps: of the vertical stack the rows, of the horizontal stack the pixels still in reach.

    A row of the vertical stack is computed at once, a pixel of the horizontal stack colour by colour. What
    precedes a colour lies in one piece of memory (pixels to the left, then the features of earlier colours),
    so that a layer is one matrix product.
    """

    def __init__(self, net: GatedPixelcnn, n: int, condition: Tensor | None) -> None:
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
        heads = torch.arange(colours * net.head.width).view(colours, -1).to(zeros(0).device)
        self.first = [_Piece(net.horizontal, g, c * inputs // colours) for c, g in enumerate(groups)]
        seen = [span.stop for span in self.spans]
        self.gates = [[_Piece(b.horizontal, g, s) for b in self.blocks] for g, s in zip(both, seen, strict=True)]
        self.outs = [[_Piece(b.out, g, s) for b in self.blocks] for g, s in zip(groups, seen, strict=True)]
        self.mixes = [_Piece(net.mix, g, s) for g, s in zip(groups, seen, strict=True)]
        self.lasts = [_Piece(net.last, h, s) for h, s in zip(heads, seen, strict=True)]
        self.both = both

    def start_row(self) -> None:
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

    def params(self, column: int, colour: int) -> Tensor:
        """Parameters `(n, width)` of one dimension of this row, those before it having been added."""
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

    def add(self, column: int, colour: int, features: Tensor) -> None:
        """The embedding `(n, E)` of the value that was drawn."""
        span = slice(colour * features.shape[1], (colour + 1) * features.shape[1])
        self.pixels[0][:, column + self.first[0].left, span] = features
        self.rows[0][:, span, -1, column] = features


class _Piece:
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
