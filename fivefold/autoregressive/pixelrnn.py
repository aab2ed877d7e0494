"""PixelRNN: long short-term memory over the rows or diagonals of an image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.autoregressive._system import AutoregressiveSystem
from fivefold.errors import Unfit
from fivefold.nets.condition import ConditionEmbedding
from fivefold.nets.embedding import DimEmbedding
from fivefold.nets.masked import CausalConv2d, ConvPiece, degree_mask, spread_degrees
from fivefold.nets.pixelcnn import raster
from fivefold.nets.states import States
from fivefold.options import depth_option, dropout_option, option, width_option
from fivefold.system import Density


class Kind(NamedTuple):
    """How the state passes over an image.

    `reach`: where the previous states lie that a state sees, as places in its row or diagonal. `skewed`: the rows
    are shifted so that a diagonal becomes a column, and the columns are what is passed over. `both`: a second
    state passes from right to left.
    """

    reach: tuple[int, ...]
    skewed: bool
    both: bool


KINDS = {"row": Kind((-1, 0, 1), False, False), "diagonal": Kind((-1, 0), True, True)}
CLOSED = -1e4  # before the gates' sigmoids: the state outside the image is zero


class Pixelrnn(AutoregressiveSystem):
    """PixelRNN, Row LSTM and Diagonal BiLSTM (survey 5.1.2; van den Oord et al., 2016).

    Layers of long short-term memory with residual connections pass over the image: `row` a row at once, each pixel
    from three of the row above, which sees a triangle; `diagonal` a diagonal at once, each pixel from those to the
    left and above, in both directions, which sees everything (but the end of the row above, where the first convolution
    does not reach it). What enters the gates is masked: the first layer sees only what was before (mask A), later
    ones also the features of the pixel's earlier colours and of its own (mask B).
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.EXACT}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"precision": "auto", "ema": 0.99},
        # Table 1 and section 5.3 of the paper.
        "mnist": {
            "channels": 16, "layers": 7, "hidden": 32, "embedding": 1, "dropout": 0.0,
            "batch_size": 16, "lr": 1e-3, "weight_decay": 0.0, "precision": "32",
        },
        "cifar10": {
            "channels": 128, "layers": 12, "hidden": 1024, "embedding": 1, "dropout": 0.0,
            "batch_size": 16, "lr": 1e-3, "weight_decay": 0.0, "precision": "32",
        },
        "imagenet32": {
            "channels": 384, "layers": 12, "hidden": 1024, "embedding": 1, "dropout": 0.0,
            "batch_size": 16, "lr": 1e-3, "weight_decay": 0.0, "precision": "32",
        },
        "imagenet64": {
            "kind": "row", "channels": 512, "layers": 4, "hidden": 1024, "embedding": 1,
            "dropout": 0.0, "batch_size": 16, "lr": 1e-3, "weight_decay": 0.0, "precision": "32",
        },
    }  # fmt: skip

    lr = 3e-3
    kind: Literal["row", "diagonal"] = option("diagonal", "row | diagonal")
    channels: int = width_option(
        32, "features of each state; those between the layers are twice as many", tune=(8, 128)
    )
    layers: int = depth_option(3, "of long short-term memory", tune=(1, 16))
    kernel: int = option(3, "width of what enters a row's gates, odd; it reaches half of it to the left", least=1)
    first_kernel: int = option(
        7, "width of the first convolution, odd; it reaches half of it up and to the left", least=0
    )
    hidden: int = width_option(64, "features of the last layer but one", tune=(16, 512))
    embedding: int = option(16, "features of each input value", least=1, tune=(2, 64), log=True)
    dropout: float = dropout_option(0.3, "share of each layer's states that is dropped in training, for what follows")

    def build(self) -> None:
        super().build()
        colours = self.space.shape[0]
        if min(self.channels, self.hidden) < colours:
            raise Unfit(
                f"{colours} colours need as many features, got channels={self.channels} and hidden={self.hidden}"
            )
        if self.kernel % 2 == 0 or self.first_kernel % 2 == 0 or self.first_kernel < 3:
            raise ValueError(f"kernels must be odd and the first at least 3; got {self.kernel} and {self.first_kernel}")
        self.way = KINDS[self.kind]
        colour = torch.arange(colours)
        inputs, outputs = (colour.repeat_interleave(width) for width in (self.embedding, self.head.width))
        wide, last = spread_degrees(2 * self.channels, colours), spread_degrees(self.hidden, colours)
        reach, size = self.first_kernel // 2, self.embedding * colours
        self.values = DimEmbedding(self.space, self.embedding)
        self.condition = ConditionEmbedding(self.space.condition, self.channels)
        # The two halves of a square kernel under mask A: the rows above, and what is to the left.
        self.above = CausalConv2d(size, 2 * self.channels, (reach, self.first_kernel), above=True)
        self.left = CausalConv2d(size, 2 * self.channels, (1, reach + 1), mask=degree_mask(inputs, wide, strict=True))
        self.stack = nn.ModuleList(
            _Layer(self.way, self.channels, colours, self.kernel, self.condition.width, self.dropout)
            for _ in range(self.layers)
        )
        self.mix = CausalConv2d(2 * self.channels, self.hidden, (1, 1), mask=degree_mask(wide, last))
        self.last = CausalConv2d(self.hidden, len(outputs), (1, 1), mask=degree_mask(last, outputs))

    def conditionals(self, x: Tensor, condition: Tensor | None) -> Tensor:
        maps = self.values(x).unflatten(1, self.space.shape).movedim(-1, 2).flatten(1, 2)
        context = self.condition(condition)
        h = self.above(maps) + self.left(maps)
        for layer in self.stack:
            h = layer(h, context)
        return self.head.from_maps(self.last(F.relu(self.mix(F.relu(h)))))

    def _order(self) -> Iterable[int]:
        return raster(self.space)

    def states(self, n: int, condition: Tensor | None) -> States:
        return _States(self, n, condition)


class _Layer(nn.Module):
    """A layer of `(B, 2 channels, H, W)` to the same: what enters all gates at once, then states one after another."""

    def __init__(self, kind: Kind, channels: int, colours: int, kernel: int, context: int, dropout: float) -> None:
        super().__init__()
        self.kind, self.directions = kind, 1 + kind.both
        wide, narrow = spread_degrees(2 * channels, colours), spread_degrees(channels, colours)
        gates = narrow.repeat(4 * self.directions)
        size = 1 if kind.skewed else kernel // 2 + 1
        self.enter = CausalConv2d(2 * channels, len(gates), (1, size), mask=degree_mask(wide, gates))
        # All that a state sees of previous ones is of earlier pixels, so that this needs no mask.
        fan = len(kind.reach) * channels
        self.state = nn.Parameter((2 * torch.rand(self.directions, fan, 4 * channels) - 1) * fan**-0.5)
        self.out = CausalConv2d(channels, 2 * channels, (1, 1), mask=degree_mask(narrow, wide))
        self.context = nn.Linear(context, len(gates), bias=False) if context else None
        self.dropout = nn.Dropout(dropout)
        assert self.enter.bias is not None
        nn.init.ones_(self.enter.bias.view(self.directions, 4, -1)[:, 1])  # at first nothing is forgotten

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        width = x.shape[3]
        gates = self.enter(x)
        if self.context is not None and context is not None:
            gates = gates + self.context(context)[:, :, None, None]
        steps = gates.unflatten(1, (self.directions, -1)).permute(4, 1, 0, 3, 2)  # (W, directions, B, H, 4 channels)
        if self.kind.both:
            steps = torch.stack([steps[:, 0], steps[:, 1].flip(0)], 1)
        steps = skew(steps) if self.kind.skewed else steps.transpose(0, 3)
        states = self.scan(steps)
        states = unskew(states, width) if self.kind.skewed else states.transpose(0, 3)
        h = states[:, 0]
        if self.kind.both:
            # From the right a state sees what is to come in its row: it serves the row below.
            h = h + F.pad(states[:, 1].flip(0)[:, :, :-1], (0, 0, 1, 0))
        return x + self.out(self.dropout(h).permute(1, 3, 2, 0))

    def enter_bias(self, context: Tensor | None) -> Tensor:
        """What enters all gates of every pixel, `(B or 1, gates)`."""
        assert self.enter.bias is not None
        bias = self.enter.bias[None]
        return bias if self.context is None or context is None else bias + self.context(context)

    def scan(self, steps: Tensor) -> Tensor:
        """States `(T, directions, B, L, channels)` from what enters the gates, `(T, directions, B, L, 4 channels)`."""
        h = c = self.state.new_zeros(*steps.shape[1:-1], steps.shape[-1] // 4)
        states = []
        for step in steps.unbind(0):
            seen = torch.cat([_shifted(h, offset) for offset in self.kind.reach], -1)
            h, c = cell(step + (seen.flatten(1, 2) @ self.state).view_as(step), c)
            states.append(h)
        return torch.stack(states)


def cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The next state and memory `(..., n)` from what enters `(..., 4 n)` and the memory (the paper's Eq. 3)."""
    size = c.shape[-1]
    output, forget, write = gates[..., : 3 * size].sigmoid().chunk(3, -1)
    c = forget * c + write * gates[..., 3 * size :].tanh()
    return output * c.tanh(), c


def _shifted(x: Tensor, offset: int) -> Tensor:
    """`(..., L, n)` with what lies `offset` further at each place, zero outside."""
    return F.pad(x, (0, 0, -offset, offset))


def skew(x: Tensor) -> Tensor:
    """`(W, directions, B, H, n)`, row i shifted by i places: `(W + H - 1, ...)`, closed where no pixel is."""
    rows = x.shape[3]
    wide = F.pad(x, (0, 0, 0, 0, 0, 0, 0, 0, 0, rows), value=CLOSED)  # (W + H, ...)
    # In memory of rows first, one place less a row shifts each row one further.
    flat = wide.movedim(3, 0).flatten(0, 1)[: -rows if rows else None]
    return flat.unflatten(0, (rows, -1)).movedim(0, 3)


def unskew(x: Tensor, width: int) -> Tensor:
    """Inverse of `skew`: `(W + H - 1, directions, B, H, n)` to `(W, ...)`."""
    rows = x.shape[3]
    flat = x.movedim(3, 0).flatten(0, 1)
    flat = torch.cat([flat, torch.zeros_like(flat[:rows])])
    return flat.unflatten(0, (rows, -1))[:, :width].movedim(0, 3)


class _States:
    """All that sampling keeps: the states of the row above and of this row, and the pixels still in reach.

    What precedes a colour lies in one piece of memory, so that a layer is one matrix product. A state from the
    right needs a whole row: it passes over the row above when that is complete. The states of all layers that do
    not depend on this pixel's colours are computed at once.
    """

    def __init__(self, net: Pixelrnn, n: int, condition: Tensor | None) -> None:
        colours, _, width = net.space.shape
        self.net, self.both = net, net.way.both
        self.layers: list[_Layer] = list(net.stack)  # type: ignore[arg-type]
        deep, inputs, wide = len(self.layers), net.left.in_channels, net.left.out_channels
        zeros, channels = net.last.weight.new_zeros, net.left.out_channels // 2
        self.rows = zeros(n, inputs, net.above.rows, width)
        self.pixels = zeros(n, net.left.kernel_size[1] - 1 + width, inputs)
        side = self.layers[0].enter.kernel_size[1] - 1
        self.streams = zeros(deep, n, side + width, wide)
        # Of each place: from the row above until this row's is written over it.
        self.h, self.c = zeros(2, deep, 1 + self.both, n, width, channels)
        self.state = torch.stack([layer.state for layer in self.layers])  # (layers, directions, fan, gates)
        told = torch.stack([layer.enter_bias(net.condition(condition)) for layer in self.layers])
        self.told = told.unflatten(-1, (1 + self.both, -1)).expand(-1, n, -1, -1)
        self.sums, self.top, self.mixed = zeros(deep, n, channels), zeros(n, wide), zeros(n, net.mix.out_channels)
        self._cut(colours, inputs, wide)

    def _cut(self, colours: int, inputs: int, wide: int) -> None:
        """Every convolution's rows for one colour at one pixel."""
        net, device = self.net, self.rows.device
        whole, half, last = (
            [(spread_degrees(size, colours) == colour).nonzero()[:, 0].to(device) for colour in range(colours)]
            for size in (wide, wide // 2, net.mix.out_channels)
        )
        heads = torch.arange(colours * net.head.width, device=device).view(colours, -1)
        self.spans, self.narrow, self.deep = (_spans(groups) for groups in (whole, half, last))
        self.gates = [torch.cat([group + gate * wide // 2 for gate in range(4)]) for group in half]
        self.first = [ConvPiece(net.left, g, c * inputs // colours) for c, g in enumerate(whole)]
        self.enters = [
            [ConvPiece(layer.enter, g, s.stop) for layer in self.layers]
            for g, s in zip(self.gates, self.spans, strict=True)
        ]
        self.outs = [
            [ConvPiece(layer.out, g, s.stop) for layer in self.layers] for g, s in zip(whole, self.narrow, strict=True)
        ]
        self.mixes = [ConvPiece(net.mix, g, s.stop) for g, s in zip(last, self.spans, strict=True)]
        self.lasts = [ConvPiece(net.last, g, s.stop) for g, s in zip(heads, self.deep, strict=True)]
        if self.both:
            backward = [layer.enter.masked_weight[2 * wide :, :, 0, 0].T for layer in self.layers]
            self.backward = torch.stack(backward)  # (layers, 2 channels, 4 channels)

    def _start_row(self, row: int) -> None:
        """What the rows above give to each of this row's pixels."""
        self.above = self.net.above.row(self.rows)[:, :, 0].permute(2, 0, 1)  # (W, n, 2 channels)
        self.rows = torch.cat([self.rows[:, :, 1:], torch.zeros_like(self.rows[:, :, :1])], 2)
        if self.both and row:
            self._from_the_right()
        if not self.both:
            seen = torch.cat([_shifted(self.h[:, 0], offset) for offset in self.net.way.reach], -1)
            self.base = (seen.flatten(1, 2) @ self.state[:, 0]).view(*seen.shape[:3], -1) + self.told[:, :, :1]

    def _from_the_right(self) -> None:
        enter = self.streams @ self.backward[:, None] + self.told[:, :, 1:]
        h = c = torch.zeros_like(self.h[:, 1, :, 0])
        for column in reversed(range(self.streams.shape[2])):
            seen = torch.cat([self.h[:, 1, :, column], h], -1)
            h, c = cell(torch.baddbmm(enter[:, :, column], seen, self.state[:, 1]), c)
            self.h[:, 1, :, column] = h

    def _start_pixel(self, column: int) -> None:
        """What this pixel's gates and memory are given by earlier pixels, in all layers."""
        if not self.both:
            self.given, self.memory = self.base[:, :, column], self.c[:, 0, :, column]
            return
        zero = torch.zeros_like(self.h[:, 0, :, 0])
        left, self.memory = (state[:, 0, :, column - 1] if column else zero for state in (self.h, self.c))
        seen = torch.cat([self.h[:, 0, :, column], left], -1)
        self.given = torch.baddbmm(self.told[:, :, 0], seen, self.state[:, 0])

    def params(self, dim: int) -> Tensor:
        colour, row, column = self._place(dim)
        if column == colour == 0:
            self._start_row(row)
        if colour == 0:
            self._start_pixel(column)
        span, narrow, gates = self.spans[colour], self.narrow[colour], self.gates[colour]
        x = self.first[colour](self.pixels, column) + self.above[column][:, span]
        given, memory = self.given[..., gates], self.memory[..., narrow]
        for i, (enter, out) in enumerate(zip(self.enters[colour], self.outs[colour], strict=True)):
            self.streams[i, :, column + enter.left, span] = x
            h, c = cell(enter(self.streams[i], column, given[i]), memory[i])
            self.sums[i, :, narrow] = h + self.h[i, 1, :, column, narrow] if self.both else h
            self.h[i, 0, :, column, narrow], self.c[i, 0, :, column, narrow] = h, c
            x = x + out(self.sums[i])
        self.top[:, span] = F.relu(x)
        self.mixed[:, self.deep[colour]] = F.relu(self.mixes[colour](self.top))
        return self.lasts[colour](self.mixed)

    def add(self, dim: int, value: Tensor) -> None:
        colour, _, column = self._place(dim)
        features = self.net.values.of(slice(dim, dim + 1), value[:, None])[:, 0]
        span = slice(colour * features.shape[1], (colour + 1) * features.shape[1])
        self.pixels[:, column + self.first[0].left, span] = features
        self.rows[:, span, -1, column] = features

    def _place(self, dim: int) -> tuple[int, int, int]:
        """Colour, row and column."""
        _, height, width = self.net.space.shape
        return dim // (height * width), dim // width % height, dim % width


def _spans(groups: list[Tensor]) -> list[slice]:
    """Where each group of ascending, neighbouring indices lies."""
    return [slice(int(group[0]), int(group[-1]) + 1) for group in groups]
