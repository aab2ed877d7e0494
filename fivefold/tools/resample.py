"""Low-pass filters before and after a change of resolution, so that networks do not alias (Zhang, 2019).

Images are `(B, C, H, W)`. The filter is the separable binomial one of StyleGAN2, [1, 3, 3, 1] / 8 along each side,
in plain convolutions that can be differentiated twice.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

TAPS = (1.0, 3.0, 3.0, 1.0)
DENSE = 100  # pixels up to which a filter is one product with its matrix, several times faster than a convolution


def _filter(x: Tensor, gain: float) -> Tensor:
    """The filter as a kernel `(C, 1, 4, 4)` whose elements sum to `gain`, one for each channel of `x`."""
    taps = torch.tensor(TAPS, device=x.device, dtype=x.dtype)
    kernel = torch.outer(taps, taps) * (gain / sum(TAPS) ** 2)
    return kernel.expand(x.shape[1], 1, len(TAPS), len(TAPS))


def _filtered(x: Tensor, gain: float, padding: int, stride: int = 1, up: bool = False) -> Tensor:
    """The filter and a stride, or (`up`) zeros between pixels and the filter."""
    if x.shape[2] * x.shape[3] > DENSE:
        return _convolved(x, gain, padding, stride, up)
    matrix = _matrix(x.shape[2:], gain, padding, stride, up, x.device, x.dtype)
    return (x.flatten(2) @ matrix.flatten(1)).unflatten(2, matrix.shape[1:])


def _convolved(x: Tensor, gain: float, padding: int, stride: int, up: bool) -> Tensor:
    convolve = F.conv_transpose2d if up else F.conv2d
    return convolve(x, _filter(x, gain), stride=stride, padding=padding, groups=x.shape[1])


@lru_cache(maxsize=64)
def _matrix(
    sides: torch.Size, gain: float, padding: int, stride: int, up: bool, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """What becomes of every pixel alone: `(H W, H', W')`."""
    # It is kept, so it must be good for every later call: neither of a lower precision nor closed to gradients.
    with torch.autocast(device.type, enabled=False), torch.inference_mode(False):
        pixels = torch.eye(sides.numel(), device=device, dtype=dtype).view(-1, 1, *sides)
        return _convolved(pixels, gain, padding, stride, up)[:, 0]


def blur(x: Tensor, padding: int, gain: float = 1.0) -> Tensor:
    """Filtered, with zeros around: `(B, C, H + 2 padding - 3, W + 2 padding - 3)`."""
    return _filtered(x, gain, padding)


def upsample(x: Tensor) -> Tensor:
    """Twice the sides: zeros between the pixels, then the filter with gain 4, which keeps the mean."""
    return _filtered(x, 4.0, padding=1, stride=2, up=True)


def downsample(x: Tensor) -> Tensor:
    """Half the sides, rounded down: the filter, then every second pixel."""
    return _filtered(x, 1.0, padding=1, stride=2)


def conv_up(x: Tensor, weight: Tensor) -> Tensor:
    """A 3x3 convolution with `weight` `(out, in, 3, 3)` that doubles the sides, and the filter after it."""
    return blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), padding=1, gain=4.0)


def conv_down(x: Tensor, weight: Tensor) -> Tensor:
    """The filter, and after it a 3x3 convolution with `weight` `(out, in, 3, 3)` that halves the sides."""
    return F.conv2d(blur(x, padding=2), weight, stride=2)
