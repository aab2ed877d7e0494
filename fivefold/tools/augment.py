"""Random changes of images that do not leak into samples (Karras et al., 2020a, appendix B; survey 4.1.3).

Both the data and the samples that a critic sees are changed, each change with a probability below 1, so that the
generator can only win by the data's own law. Pixel blits, geometry and colour, in that order, become one affine map
of positions and one of colours for each example; both are differentiable in the image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

HUE_CHANNELS = 3


def augment(x: Tensor, probability: Tensor | float) -> Tensor:
    """Images `(B, C, H, W)` in [-1, 1], each change made with this probability and independently."""
    return recolour(move(x, positions(x, probability)), colours(x, probability))


def move(x: Tensor, matrices: Tensor) -> Tensor:
    """The value at each pixel p (from the centre, in pixels: across, down) is the old one at `matrices` `(B, 3, 3)` p.

    Bilinear between pixels; the image goes on mirrored beyond its borders.
    """
    height, width = x.shape[2:]
    half = torch.tensor([width / 2, height / 2, 1.0], device=x.device)
    theta = (matrices * half / half[:, None])[:, :2].to(x.dtype)  # in halves of the image, as affine_grid has them
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def recolour(x: Tensor, matrices: Tensor) -> Tensor:
    """Colours of every pixel through the affine maps `matrices` `(B, C, C + 1)`, the last column added."""
    linear, shift = matrices[:, :, :-1].to(x.dtype), matrices[:, :, -1:].to(x.dtype)
    return (linear @ x.flatten(2) + shift).view_as(x)


def positions(x: Tensor, probability: Tensor | float) -> Tensor:
    """Random maps `(B, 3, 3)` of target to source positions: blits (flip, quarter turns, whole shifts), geometry.

    Geometry is isotropic scaling by 2^(0.2 n), rotation, anisotropic scaling and shifts of n / 8 of the side, n
    standard normal. Rotation comes before and after the anisotropic scaling, in all with the given probability.
    """
    n, sides = len(x), torch.tensor([x.shape[3], x.shape[2]], device=x.device, dtype=torch.float32)
    chance = _Chance(n, probability, x.device)
    turn = 1 - (1 - torch.as_tensor(probability, device=x.device).clamp(0, 1)).sqrt()
    rotate = _Chance(n, turn, x.device)
    steps = [
        _scale(chance(1 - 2 * torch.randint(2, (n,), device=x.device), 1.0), torch.ones(n, device=x.device)),
        _rotate(chance(torch.randint(4, (n,), device=x.device) * (math.pi / 2), 0.0)),
        _shift(chance(((2 * torch.rand(n, 2, device=x.device) - 1) * sides / 8).round(), 0.0)),
        _isotropic(chance(0.2 * chance.normal(), 0.0)),
        _rotate(rotate(2 * math.pi * torch.rand(n, device=x.device), 0.0)),
        _anisotropic(chance(0.2 * chance.normal(), 0.0)),
        _rotate(rotate(2 * math.pi * torch.rand(n, device=x.device), 0.0)),
        _shift(chance(chance.normal(2) * sides / 8, 0.0)),
    ]
    return _product(steps)


def colours(x: Tensor, probability: Tensor | float) -> Tensor:
    """Random maps `(B, C, C + 1)` of colours: brightness, contrast, luma flip, hue rotation, saturation.

    The luma axis is the grey one. Fewer than two channels have no saturation, and only three a hue.
    """
    n, channels = x.shape[:2]
    chance = _Chance(n, probability, x.device)
    eye = torch.eye(channels, device=x.device)
    luma = torch.full_like(eye, 1 / channels)  # the projection on the grey axis
    brightness, contrast = chance(0.2 * chance.normal(), 0.0), chance((0.5 * chance.normal()).exp2(), 1.0)
    flip = chance(torch.randint(2, (n,), device=x.device).float(), 0.0)[:, None, None]
    saturation = chance(chance.normal().exp2(), 1.0)[:, None, None]
    linear = contrast[:, None, None] * (eye - 2 * flip * luma)
    if channels == HUE_CHANNELS:
        linear = _about_grey(chance(2 * math.pi * torch.rand(n, device=x.device) - math.pi, 0.0)) @ linear
    linear = (luma + saturation * (eye - luma)) @ linear
    shift = linear @ brightness[:, None, None].expand(n, channels, 1)
    return torch.cat([linear, shift], 2)


class _Chance:
    """Draws for `n` examples, each kept with a probability and else replaced by what changes nothing."""

    def __init__(self, n: int, probability: Tensor | float, device: torch.device) -> None:
        self.n, self.probability, self.device = n, probability, device

    def __call__(self, drawn: Tensor, neutral: float) -> Tensor:
        kept = torch.rand(self.n, *[1] * (drawn.dim() - 1), device=self.device) < self.probability
        return torch.where(kept, drawn.float(), neutral)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.n, *shape, device=self.device)


def _matrix(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _scale(across: Tensor, down: Tensor) -> Tensor:
    zero, one = torch.zeros_like(down), torch.ones_like(down)
    return _matrix([[across, zero, zero], [zero, down, zero], [zero, zero, one]])


def _isotropic(octaves: Tensor) -> Tensor:
    return _scale(octaves.exp2(), octaves.exp2())


def _anisotropic(octaves: Tensor) -> Tensor:
    return _scale(octaves.exp2(), (-octaves).exp2())


def _rotate(angle: Tensor) -> Tensor:
    zero, one, cos, sin = torch.zeros_like(angle), torch.ones_like(angle), angle.cos(), angle.sin()
    return _matrix([[cos, -sin, zero], [sin, cos, zero], [zero, zero, one]])


def _shift(by: Tensor) -> Tensor:
    zero, one = torch.zeros(len(by), device=by.device), torch.ones(len(by), device=by.device)
    return _matrix([[one, zero, by[:, 0]], [zero, one, by[:, 1]], [zero, zero, one]])


def _product(matrices: list[Tensor]) -> Tensor:
    result = matrices[0]
    for matrix in matrices[1:]:
        result = result @ matrix
    return result


def _about_grey(angle: Tensor) -> Tensor:
    """Rotations `(B, 3, 3)` about the axis (1, 1, 1), by Rodrigues' formula."""
    axis = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=angle.device) / math.sqrt(3)
    angle = angle[:, None, None]
    return torch.eye(3, device=angle.device) + angle.sin() * axis + (1 - angle.cos()) * (axis @ axis)
