"""Linear maps of images that mix neighbours as well as channels: invertible convolutions (survey 6.2, Table 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.base import Bijection, Chain, Exactness, Layer
from fivefold.nets.masked import degree_mask


class Turned(Bijection):
    """A bijection of images that sees them in another order, and gives its result in the old one.

    Args:
        part: the bijection, of `(B, C, H, W)`, or of `(B, C, W, H)` with `transpose`.
        flip: dimensions that are reversed: 1 for channels, 2 for rows, 3 for columns (of what `part` sees).
        transpose: whether rows and columns are exchanged, before that.
    """

    def __init__(self, part: Layer, flip: tuple[int, ...] = (), transpose: bool = False) -> None:
        super().__init__()
        self.part, self.flip, self.transpose = part, flip, transpose

    @property
    def exactness(self) -> Exactness:
        return self.part.exactness

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_det = self.part(self._there(x), condition)
        return self._back(y), log_det

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = self.part.inverse(self._there(y), condition)
        return self._back(x), log_det

    def _there(self, x: Tensor) -> Tensor:
        return (x.transpose(2, 3) if self.transpose else x).flip(self.flip)

    def _back(self, y: Tensor) -> Tensor:
        y = y.flip(self.flip)
        return y.transpose(2, 3) if self.transpose else y


def causal_mask(inputs: Tensor, outputs: Tensor, size: int, right: int) -> Tensor:
    """Where a kernel `(outputs, inputs, size, size + right)` sees what comes before its own pixel in raster order.

    The pixel itself is in the last row, with `right` columns to its right; of it an output sees the inputs of lower
    degree.

    Args:
        inputs: degree of every input channel.
        outputs: the same of the outputs.
        size: rows, and columns up to the pixel.
        right: columns beyond it.
    """
    mask = torch.ones(len(outputs), len(inputs), size, size + right, device="cpu")
    mask[:, :, -1, size:] = 0
    mask[:, :, -1, size - 1] = degree_mask(inputs, outputs, strict=True)
    return mask


def causal_pad(x: Tensor, size: int, right: int) -> Tensor:
    """Zeros round images, for the kernels of `causal_mask`."""
    return F.pad(x, (size - 1, right, size - 1, 0))


class AutoregressiveConv(Bijection):
    """A convolution whose matrix is triangular: each number sees itself and those before it in raster order.

    Pixels come in rows, the channels of each in turn (Hoogeboom et al., 2019; survey Table 3). ln |det| is H W
    times the sum of the logarithms of the diagonal. The inverse substitutes, all pixels of a front at once: with
    `right` = 0 the anti-diagonals, H + W - 1 of them, otherwise (1 + right) (H - 1) + W skewed ones.
    The identity at first.

    Args:
        channels: of `(B, C, H, W)`.
        size: how many rows the kernel has, and columns up to its own.
        right: columns to the right of the pixel, in the rows above it.
    """

    mask: Tensor

    def __init__(self, channels: int, size: int = 2, right: int = 0) -> None:
        super().__init__()
        self.size, self.right = size, right
        order = torch.arange(channels, device="cpu")
        self.register_buffer("mask", causal_mask(order, order, size, right), persistent=False)
        self.weight = nn.Parameter(torch.zeros(channels, channels, size, size + right))
        self.log_diagonal = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.conv2d(causal_pad(x, self.size, self.right), self._kernel()), self._log_det(x)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kernel = self._kernel()
        own = kernel[:, :, -1, self.size - 1]  # of the pixel itself: lower triangular
        seen = self.mask[0, 0].bool().nonzero()  # (K, 2), what a pixel sees besides
        others = kernel[:, :, seen[:, 0], seen[:, 1]].flatten(1)
        # The triangle is solved once, for all pixels and for the kernel: fronts then only subtract.
        solved = torch.linalg.solve_triangular(own, torch.cat([others, y.transpose(0, 1).flatten(1)], 1), upper=False)
        others, rest = solved[:, : others.shape[1]], solved[:, others.shape[1] :]
        rest = rest.unflatten(1, (len(y), *y.shape[2:])).transpose(0, 1)
        return _substitute(rest, others, seen, self.size, self.right), -self._log_det(y)

    def _kernel(self) -> Tensor:
        own = self.log_diagonal.exp().diag()[:, :, None, None]
        return self.weight * self.mask + causal_pad(own, self.size, self.right)

    def _log_det(self, x: Tensor) -> Tensor:
        return (x.shape[2] * x.shape[3] * self.log_diagonal.sum()).expand(len(x))


def fronts(height: int, width: int, right: int) -> list[tuple[Tensor, Tensor]]:
    """Rows and columns of pixels in groups, each of which needs only those before it.

    A pixel needs others to its left, and in the rows above up to `right` columns to its right. So all of a line
    (1 + right) row + column = constant can be done at once.
    """
    slope, groups = 1 + right, []
    for t in range(slope * (height - 1) + width):
        rows = torch.arange(max(0, -((width - 1 - t) // slope)), min(height - 1, t // slope) + 1)
        groups.append((rows, t - slope * rows))
    return groups


def _substitute(y: Tensor, others: Tensor, seen: Tensor, size: int, right: int) -> Tensor:
    """x `(B, C, H, W)` with x_p + sum over seen pixels q of others_q x_q = y_p, front by front.

    Args:
        y: `(B, C, H, W)`.
        others: `(C, C K)`, the weights of all channels of K pixels.
        seen: where those are in the kernel `(K, 2)`.
        size: of the kernel, see `causal_mask`.
        right: the same.
    """
    (height, width), wide = y.shape[2:], y.shape[3] + size - 1 + right  # with zeros all round, as `causal_pad`
    x = y.new_zeros(*y.shape[:2], (height + size - 1) * wide)
    seen, own = seen[:, :1] * wide + seen[:, 1:], (size - 1) * (wide + 1)
    for rows, columns in fronts(height, width, right):
        corner = (rows * wide + columns).to(y.device)  # of the kernel
        values = y[:, :, rows, columns] - _seen(x, seen + corner, others)
        x[:, :, corner + own] = values
    return x.unflatten(2, (-1, wide))[:, :, size - 1 :, size - 1 : size - 1 + width]


def _seen(x: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """What the K places `(K, n)` of x `(B, C, ...)` give to n pixels, `(B, C, n)`."""
    return weights @ x[:, :, places].flatten(1, 2)


def emerging(channels: int, size: int = 3) -> Layer:
    """Two autoregressive convolutions in opposite orders, rows, columns and channels (Hoogeboom et al., 2019).

    Each sees a corner of (size + 1) / 2 squared, so together as much as a `size` x `size` convolution: all of it.

    Args:
        channels: of `(B, C, H, W)`.
        size: odd.
    """
    corner = (size + 1) // 2
    return Chain(AutoregressiveConv(channels, corner), Turned(AutoregressiveConv(channels, corner), flip=(1, 2, 3)))


class PeriodicConv(Bijection):
    """A convolution on a torus: images go on at the opposite side (Hoogeboom et al., 2019; Finzi et al., 2019).

    Fourier's transform makes of it one C x C matrix at each frequency. ln |det| is the sum of theirs, the inverse
    solves with each.

    Args:
        channels: of `(B, C, H, W)`.
        size: of the kernel; it may exceed the image, and then goes round.
        rotation: whether the map is a random rotation of the channels at first, else the identity.
    """

    def __init__(self, channels: int, size: int = 3, rotation: bool = False) -> None:
        super().__init__()
        self.size = size
        weight = torch.zeros(channels, channels, size, size, device="cpu")
        random = torch.randn(channels, channels, device="cpu")
        start = torch.linalg.qr(random)[0] if rotation else torch.eye(channels, device="cpu")
        weight[:, :, size // 2, size // 2] = start
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        matrices = self._matrices(x)
        return _from_frequencies(matrices @ _frequencies(x.to(self.weight.dtype)), x), self._log_det(x, matrices)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        matrices = self._matrices(y)
        x = torch.linalg.solve(matrices, _frequencies(y.to(self.weight.dtype)))
        return _from_frequencies(x, y), -self._log_det(y, matrices)

    def _matrices(self, x: Tensor) -> Tensor:
        """`(H, W // 2 + 1, C, C)`; those of the other frequencies are the complex conjugates of some of them."""
        height, width = x.shape[2:]
        towards = self.size // 2 - torch.arange(self.size, device=x.device)  # of a pixel from its neighbour
        rows = self.weight.new_zeros(*self.weight.shape[:2], height, self.size)
        rows = rows.index_add(2, towards % height, self.weight)
        whole = rows.new_zeros(*rows.shape[:3], width).index_add(3, towards % width, rows)
        return torch.fft.rfft2(whole).permute(2, 3, 0, 1)

    def _log_det(self, x: Tensor, matrices: Tensor) -> Tensor:
        width = x.shape[3]
        column = torch.arange(width // 2 + 1, device=x.device)
        count = 2 - ((2 * column) % width == 0).to(self.weight.dtype)  # 0 and the highest are their own conjugates
        return (count * torch.linalg.slogdet(matrices).logabsdet).sum().expand(len(x))


def _frequencies(x: Tensor) -> Tensor:
    """`(B, C, H, W)` to `(H, W // 2 + 1, C, B)`."""
    return torch.fft.rfft2(x).permute(2, 3, 1, 0)


def _from_frequencies(y: Tensor, like: Tensor) -> Tensor:
    return torch.fft.irfft2(y.permute(3, 2, 0, 1), s=like.shape[2:])


class ConvExp(Bijection):
    """y = exp(M) x, M a convolution with zeros all round (Hoogeboom et al., 2020).

    ln |det| is the trace of M, H W times that of the kernel's centre, and the inverse exp(-M): any kernel is
    invertible. The series has as many terms as the precision needs for the norm of M, which is bounded by `limit`.
    The bound is Schur's, |M|^2 <= largest row sum x largest column sum of absolute values, for images of every size.
    The identity at first.

    Args:
        channels: of `(B, C, H, W)`.
        size: of the kernel, odd.
        limit: of the norm of M; a kernel above it is scaled down.
    """

    def __init__(self, channels: int, size: int = 3, limit: float = 2.0) -> None:
        super().__init__()
        self.limit = limit
        self.weight = nn.Parameter(torch.zeros(channels, channels, size, size))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._exp(x, 1)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._exp(y, -1)

    def _exp(self, x: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        kernel, norm = self.bounded()
        term = total = x
        for k in range(1, exponential_terms(norm, torch.finfo(x.dtype).eps) + 1):
            term = F.conv2d(term, sign * kernel, padding="same") / k
            total = total + term
        middle = kernel.shape[2] // 2
        trace = kernel[:, :, middle, middle].trace()
        return total, (sign * x.shape[2] * x.shape[3] * trace).expand(len(x))

    def bounded(self) -> tuple[Tensor, float]:
        """The kernel as it is used, and a bound on the norm of M."""
        size = self.weight.abs()
        square = size.sum((1, 2, 3)).max() * size.sum((0, 2, 3)).max()
        excess = (square / self.limit**2).clamp(min=1).sqrt()
        return self.weight / excess, min(math.sqrt(square.item()), self.limit)


def exponential_terms(norm: float, precision: float) -> int:
    """After how many terms exp(M) of a matrix of that norm is known, relative to what it leaves of any vector.

    What is left out is at most exp(norm) norm^(n + 1) / (n + 1)! of |x|, and |exp(M) x| at least exp(-norm) |x|.
    """
    n, left_out = 0, norm * math.exp(2 * norm)
    while left_out > precision:
        n += 1
        left_out *= norm / (n + 1)
    return n
