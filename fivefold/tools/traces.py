"""How well chains mix, by their traces `(steps, chains, D)`: effective samples, and whether chains agree."""

from __future__ import annotations

import torch
from torch import Tensor


def split(trace: Tensor) -> Tensor:
    """The halves of chains as chains of their own, `(steps // 2, 2 chains, D)`: then a drift is a disagreement."""
    half = len(trace) // 2
    return torch.cat([trace[:half], trace[len(trace) - half :]], 1)


def _spreads(trace: Tensor) -> tuple[Tensor, Tensor]:
    """The mean variance within chains and the variance that all together estimate, `(D,)` (Gelman and Rubin, 1992)."""
    steps = len(trace)
    within = trace.var(0).mean(0)
    return within, within * (steps - 1) / steps + trace.mean(0).var(0)


def r_hat(trace: Tensor) -> Tensor:
    """Split R-hat `(D,)` (Vehtari et al., 2021): about 1 where chains follow one law, above where they disagree."""
    within, total = _spreads(split(trace.double()))
    return torch.where(total > 0, total / within, 1.0).sqrt()


def effective_sample_size(trace: Tensor) -> Tensor:
    """How many independent draws the mean over all states is worth, `(D,)` (Vehtari et al., 2021, Eq. 10 to 12).

    Autocorrelations hold the disagreement between chains, and are summed in pairs as long as these are positive and
    falling (Geyer, 1992). Chains that alternate are worth more than their number of states. A number that never moved
    is worth nothing.
    """
    trace = split(trace.double())
    steps, chains = trace.shape[:2]
    within, total = _spreads(trace)
    centred = trace - trace.mean(0)
    power = torch.fft.rfft(centred, n=2 * steps, dim=0).abs().square()
    covariance = torch.fft.irfft(power, n=2 * steps, dim=0)[:steps].mean(1) / steps
    correlation = 1 - (within * (steps - 1) / steps - covariance) / total
    correlation[0] = 1
    pairs = correlation[: steps // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    pairs = torch.where((pairs <= 0).cumsum(0) > 0, 0.0, pairs).cummin(0).values
    time = (2 * pairs.sum(0) - 1).clamp(min=1 / torch.tensor(steps * chains).log10())
    return torch.where(total > 0, steps * chains / time, 0.0)
