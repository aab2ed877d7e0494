"""Operations that ONNX lacks, by ones that it has; each takes what the operation of the same name takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Any, stride: list[int], padding: list[int], dilation: list[int],
    transposed: bool, output_padding: list[int], groups: int, wanted: list[bool],
) -> Any:  # fmt: skip
    """The gradient in the input alone: a transposed convolution."""
    if transposed or wanted != [True, False, False]:
        return NotImplemented
    ends = [
        size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
        for size, out, k, s, p, d in zip(
            x.shape[2:], gradient.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
        )
    ]
    back = torch.ops.aten.convolution(gradient, weight, None, stride, padding, dilation, True, ends, groups)
    return back, None, None


def linalg_solve_triangular(
    a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    """a = D (1 + N) with N^n = 0, so that 1 / (1 + N) is the product of 1 + M, 1 + M^2, 1 + M^4, ... where M = -N."""
    if not left:
        return linalg_solve_triangular(a.mT, b.mT, upper=not upper, unitriangular=unitriangular).mT
    diagonal = torch.ones_like(a[..., 0]) if unitriangular else a.diagonal(dim1=-2, dim2=-1)
    power = -(a.triu(1) if upper else a.tril(-1)) / diagonal.unsqueeze(-1)
    solved = b / diagonal.unsqueeze(-1)
    for _ in range(max(a.shape[-1] - 1, 1).bit_length()):
        solved, power = solved + power @ solved, power @ power
    return solved


def special_ndtri(p: Tensor) -> Tensor:
    """The standard normal quantile, to seven digits (Wichura, 1988, algorithm AS 241, PPND7)."""
    return _quantile(p - 0.5, torch.minimum(p, 1 - p))


def erfinv(x: Tensor) -> Tensor:
    return _quantile(0.5 * x, 0.5 - 0.5 * x.abs()) / math.sqrt(2)


def _quantile(q: Tensor, tail: Tensor) -> Tensor:
    """Of the probability 1/2 + `q`, which is `tail` from 0 or 1."""
    near = 0.180625 - q.square()
    middle = q * _ratio(near, (3.3871327179, 50.434271938, 159.29113202, 59.109374720),
                        (1.0, 17.895169469, 78.757757664, 67.187563600))  # fmt: skip
    root = (-tail.log()).sqrt()
    far = _ratio(root - 1.6, (1.4234372777, 2.7568153900, 1.3067284816, 0.17023821103),
                 (1.0, 0.73700164250, 0.12021132975))  # fmt: skip
    farthest = _ratio(root - 5, (6.6579051150, 3.0812263860, 0.42868294337, 0.017337203997),
                      (1.0, 0.24197894225, 0.012258202635))  # fmt: skip
    return torch.where(q.abs() <= 0.425, middle, q.sign() * torch.where(root <= 5, far, farthest))


def _ratio(x: Tensor, above: tuple[float, ...], below: tuple[float, ...]) -> Tensor:
    """Of two polynomials, coefficients from the constant on."""
    value = [x * 0 + part[-1] for part in (above, below)]
    for i, part in enumerate((above, below)):
        for coefficient in part[-2::-1]:
            value[i] = value[i] * x + coefficient
    return value[0] / value[1]


GRADIENTS: dict[Any, Callable[..., Any]] = {torch.ops.aten.convolution_backward.default: convolution_backward}
LACKING: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.linalg_solve_triangular.default: linalg_solve_triangular,
    torch.ops.aten.special_ndtri.default: special_ndtri,
    torch.ops.aten.erfinv.default: erfinv,
}
