"""Between encoded examples and the real numbers that networks like; real dimensions pass unchanged."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fivefold.space import Space
from fivefold.system import log_mean_exp
from fivefold.tools.boxes import Box

MOST_NUMBERS = 2**21  # of examples that are scored at once


def _affine(space: Space, device: torch.device, offset: int) -> tuple[Tensor | float, Tensor | float]:
    """Scale and shift that take 0..levels-1+`offset`... of each dimension to [-1, 1]; identity where real."""
    if space.levels is not None:
        return 2 / max(space.levels - offset, 1), -1.0
    if not space.columns or all(levels is None for levels in space.dim_levels):
        return 1.0, 0.0
    scale = [1.0 if levels is None else 2 / max(levels - offset, 1) for levels in space.dim_levels]
    shift = [0.0 if levels is None else -1.0 for levels in space.dim_levels]
    return torch.tensor(scale, device=device), torch.tensor(shift, device=device)


def centre(x: Tensor, space: Space) -> Tensor:
    """Levels 0..L-1 to [-1, 1], both ends included; float32 of the same shape."""
    scale, shift = _affine(space, x.device, 1)
    return x.float() * scale + shift


def uncentre(y: Tensor, space: Space) -> Tensor:
    """The encoded examples nearest to `y`: inverse of `centre`, rounded and clamped where discrete."""
    scale, shift = _affine(space, y.device, 1)
    return _to_levels(((y - shift) / scale), space, torch.round)


def dequantise(x: Tensor, space: Space) -> Tensor:
    """Uniform noise in each unit cell, scaled to [-1, 1): 2 (x + u) / L - 1 (survey 6; [86] for why it is a bound)."""
    scale, shift = _affine(space, x.device, 0)
    return (x.float() + torch.rand(x.shape, device=x.device) * _is_discrete(space, x.device)) * scale + shift


def midpoint(x: Tensor, space: Space) -> Tensor:
    """The middle of each unit cell, scaled as `dequantise` does it but without noise."""
    scale, shift = _affine(space, x.device, 0)
    return (x.float() + 0.5 * _is_discrete(space, x.device)) * scale + shift


def cell(x: Tensor, space: Space) -> Box:
    """The unit cell of every discrete number, scaled as `dequantise` does it; the whole line where real."""
    scale, shift = _affine(space, x.device, 0)
    line = torch.full(x.shape, math.inf, device=x.device) * (1 - _is_discrete(space, x.device))
    line = line.nan_to_num(0.0, posinf=math.inf)
    low = x.float() * scale + shift
    return Box(low - line, low + scale + line)


def quantise(y: Tensor, space: Space) -> Tensor:
    """Inverse of `dequantise`: the cell that `y` lies in."""
    scale, shift = _affine(space, y.device, 0)
    return _to_levels((y - shift) / scale, space, torch.floor)


def dequantise_log_det(space: Space) -> float:
    """ln |dy/dx| of `dequantise` in nats: the sum of ln(2/L) over the discrete dimensions."""
    return sum(math.log(2 / levels) for levels in space.dim_levels if levels is not None)


def dequantised_log_prob(
    log_prob: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, condition: Tensor | None, space: Space, samples: int
) -> tuple[Tensor, Tensor]:
    """ln P(x) of a continuous density: exact where all dimensions are real, else a lower bound in expectation.

    P(x) is the integral of the density over the cell of x, here the mean over `samples` points in it
    (importance-weighted, so the bound tightens with `samples`).

    Args:
        log_prob: nats `(B,)` of continuous points `(B, *shape)` given a condition.
        x: encoded examples `(B, *shape)`.
        condition: encoded, or None.
        space: of the examples.
        samples: points in each cell.

    Returns:
        Nats `(B,)` and their standard errors (by the delta method; 0 where nothing is sampled).
    """
    if all(levels is None for levels in space.dim_levels):
        value = log_prob(x, condition)
        return value, torch.zeros_like(value)
    return importance_log_prob(
        lambda x, given: log_prob(dequantise(x, space), given) + dequantise_log_det(space), x, condition, samples
    )


def importance_log_prob(
    draw: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, condition: Tensor | None, samples: int
) -> tuple[Tensor, Tensor]:
    """ln of the mean of `samples` unbiased estimates of p(x): a lower bound in expectation, tighter with each.

    Args:
        draw: ln of one estimate for each example, nats `(B,)`, given a condition.
        x: examples `(B, *shape)`.
        condition: encoded, or None.
        samples: estimates for each example; so many at once as `MOST_NUMBERS` of x allow.

    Returns:
        Nats `(B,)` and their standard errors (by the delta method).
    """

    def draws(count: int) -> Tensor:
        given = None if condition is None else condition.repeat(count, *[1] * (condition.dim() - 1))
        return draw(x.repeat(count, *[1] * (x.dim() - 1)), given).view(count, -1)

    part = at_once(samples, x.numel(), MOST_NUMBERS)
    return log_mean_exp(torch.cat([draws(min(part, samples - i)) for i in range(0, samples, part)]))


def at_once(samples: int, numbers: int, most: int) -> int:
    """How many of `samples` draws, of so many `numbers` each, are at most `most` numbers: all, or fewer but one."""
    return samples if samples * numbers <= most else max(most // numbers, 1)


def averaged_log_prob(
    log_prob: Callable[[Tensor, Tensor | None], Tensor],
    x: Tensor,
    condition: Tensor | None,
    space: Space,
    samples: int,
    most: int,
) -> tuple[Tensor, Tensor]:
    """The mean over draws of the logarithm of a noisy density, nats `(B,)`, and its standard error.

    For densities of which ln p is unbiased: the mean of exponentials, as of `dequantised_log_prob`, would be high.
    Where a dimension is discrete each draw has its own noise in the cell, and the mean is a bound in expectation.

    Args:
        log_prob: nats `(B,)` of continuous points `(B, *shape)` given a condition, itself a draw.
        x: encoded examples `(B, *shape)`.
        condition: encoded, or None.
        space: of the examples.
        samples: draws for each example.
        most: how many numbers `log_prob` takes at once, unless the examples themselves are more.
    """

    def draw(count: int) -> Tensor:
        y = dequantise(x.repeat(count, *[1] * (x.dim() - 1)), space)
        given = None if condition is None else condition.repeat(count, *[1] * (condition.dim() - 1))
        return log_prob(y, given).view(count, -1) + dequantise_log_det(space)

    part = at_once(samples, x.numel(), most)
    values = torch.cat([draw(min(part, samples - i)) for i in range(0, samples, part)]).double()
    error = values.std(0) / math.sqrt(samples) if samples > 1 else torch.zeros_like(values[0])
    return values.mean(0), error


def _is_discrete(space: Space, device: torch.device) -> Tensor | float:
    if space.levels is not None:
        return 1.0
    if not space.columns:
        return 0.0
    return torch.tensor([float(levels is not None) for levels in space.dim_levels], device=device)


def _to_levels(x: Tensor, space: Space, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    if space.levels is not None:
        x = rounding(x).clamp(0, space.levels - 1)
        return x if space.columns else x.long()
    if not space.columns:
        return x
    top = torch.tensor([math.inf if levels is None else levels - 1.0 for levels in space.dim_levels], device=x.device)
    return torch.where(top.isinf(), x, torch.minimum(rounding(x).clamp(min=0), top))
