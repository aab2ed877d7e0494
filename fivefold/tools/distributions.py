"""Densities and samplers of the outputs of networks; all in nats, elementwise, parameters in the last dimension.

Samplers invert the distribution function of given uniform noise, so that two ways of computing the
same parameters (cached and full) give the same sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """ln P of x in {0, 1}; `logits` and `x` of the same shape."""
    return -F.binary_cross_entropy_with_logits(logits, x.to(logits.dtype), reduction="none")


def categorical_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """ln P of integer `x` `(...)` under `logits` `(..., L)`."""
    return logits.log_softmax(-1).gather(-1, x.long().unsqueeze(-1)).squeeze(-1)


def categorical_sample(logits: Tensor, uniform: Tensor) -> Tensor:
    """Integers `(...)` by inverting the distribution function of `logits` `(..., L)` at `uniform` `(...)`."""
    cdf = logits.double().softmax(-1).cumsum(-1)
    return (uniform.double().unsqueeze(-1) * cdf[..., -1:] >= cdf).sum(-1).clamp(max=logits.shape[-1] - 1)


def gaussian_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """ln N(x; mean, exp(log_scale)^2)."""
    return -0.5 * ((x - mean) * torch.exp(-log_scale)) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """ln N(z; 0, I) summed over all but the first dimension: `(B,)`."""
    z = z.flatten(1)
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))


def logistic_mixture_log_prob(params: Tensor, x: Tensor) -> Tensor:
    """ln density of real `x` `(...)` under a mixture of logistics.

    `params` `(..., 3K)`: K mixture logits, K means, K log-scales (clamped below at -7).
    """
    weights, means, log_scales = _mixture(params)
    return (weights.log_softmax(-1) + logistic_log_prob(x.unsqueeze(-1), means, log_scales)).logsumexp(-1)


def discretised_logistic_mixture_log_prob(params: Tensor, x: Tensor, levels: int) -> Tensor:
    """ln P of integer `x` in {0..levels-1} under a mixture of logistics on [-1, 1] (PixelCNN++; survey 5.2).

    `params` as in `logistic_mixture_log_prob`, in units where the levels span [-1, 1].
    """
    weights, means, log_scales = params.chunk(3, -1)
    log_mass = discretised_logistic_log_prob(x.unsqueeze(-1), means, log_scales, levels)
    return (weights.log_softmax(-1) + log_mass).logsumexp(-1)


def discretised_logistic_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """ln P of integer `x` in {0..levels-1} under a logistic on [-1, 1], elementwise with broadcasting.

    Each level has the mass of its cell; the first and last take the tails, so the levels sum to 1. The log-scale
    is clamped below at `narrowest`.
    """
    half = 1 / (levels - 1)
    inverse = torch.exp(-log_scale.clamp(min=narrowest(levels)))
    centred = 2 * half * x.to(mean.dtype) - 1
    upper, lower = (centred - mean + half) * inverse, (centred - mean - half) * inverse
    interior = log_between(lower, upper, 2 * half * inverse)
    return torch.where(x == 0, F.logsigmoid(upper), torch.where(x == levels - 1, F.logsigmoid(-lower), interior))


def log_between(lower: Tensor, upper: Tensor, gap: Tensor) -> Tensor:
    """ln(sigmoid(upper) - sigmoid(lower)), given `gap` = upper - lower without the digits that subtracting costs."""
    return F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-gap))


def logistic_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """ln density of real `x` under a logistic, elementwise with broadcasting."""
    z = (x - mean) * torch.exp(-log_scale)
    return -z - log_scale - 2 * F.softplus(-z)


def logistic_mixture_sample(params: Tensor, uniform: Tensor, least: float = -7.0) -> Tensor:
    """Real samples `(...)`; `uniform` `(..., 2)` chooses the component and the point in it."""
    mean, log_scale = _component(params, uniform[..., 0], least)
    return mean + torch.exp(log_scale) * torch.logit(uniform[..., 1], eps=1e-6)


def gaussian_mixture_log_prob(params: Tensor, x: Tensor) -> Tensor:
    """ln density of real `x` `(...)` under a mixture of Gaussians; `params` as in `logistic_mixture_log_prob`."""
    weights, means, log_scales = _mixture(params)
    return (weights.log_softmax(-1) + gaussian_log_prob(x.unsqueeze(-1), means, log_scales)).logsumexp(-1)


def gaussian_mixture_sample(params: Tensor, uniform: Tensor) -> Tensor:
    """Real samples `(...)`; `uniform` `(..., 2)` chooses the component and the point in it."""
    mean, log_scale = _component(params, uniform[..., 0])
    return mean + torch.exp(log_scale) * torch.special.ndtri(uniform[..., 1].clamp(1e-6, 1 - 1e-6))


def discretised_logistic_mixture_sample(params: Tensor, uniform: Tensor, levels: int) -> Tensor:
    """Integers `(...)` in {0..levels-1}: the cell that a sample of the mixture falls in."""
    x = logistic_mixture_sample(params, uniform, narrowest(levels))
    return ((x + 1) * (levels - 1) / 2).round().clamp(0, levels - 1).long()


def _component(params: Tensor, uniform: Tensor, least: float = -7.0) -> tuple[Tensor, Tensor]:
    """Mean and log-scale of the component that `uniform` `(...)` chooses."""
    weights, means, log_scales = _mixture(params, least)
    component = categorical_sample(weights, uniform).unsqueeze(-1)
    return means.gather(-1, component).squeeze(-1), log_scales.gather(-1, component).squeeze(-1)


def _mixture(params: Tensor, least: float = -7.0) -> tuple[Tensor, Tensor, Tensor]:
    weights, means, log_scales = params.chunk(3, -1)
    return weights, means, log_scales.clamp(min=least)


def narrowest(levels: int) -> float:
    """The least log-scale: a component well inside one cell, but no finer than float32 can place it."""
    return max(-math.log(levels - 1) - 3.0, -12.0)


def truncated_normal(shape: tuple[int, ...], bound: float, device: torch.device) -> Tensor:
    """Standard normal values; those whose size is above `bound` are drawn again, from what lies within it.

    This is the truncation trick (Brock et al., 2019, section 3.1). Values within the bound are those that a seed gives
    without one, and new ones come from quantiles of uniform draws, so that no bound takes longer than another.
    """
    z, within = torch.randn(shape, device=device), math.erf(bound / math.sqrt(2))
    if math.isinf(bound):
        return z
    far = z.abs() > bound
    u = torch.rand(int(far.sum()), device=device, dtype=torch.float64)
    z[far] = torch.special.ndtri(0.5 + within * (u - 0.5)).float()
    return z
