"""Sums of many terms of which few are drawn: which ones, and what each then stands for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fivefold.tools.diffusion import quantile, spread

BINS = 100  # terms next to one another share what is remembered of their losses
ENOUGH = 10  # losses of every bin, before which terms are drawn alike
MEMORY = 0.99  # of a squared loss, another of its bin later
UNIFORM = 0.001  # the share of draws that is uniform whatever the losses are


class LossAware(nn.Module):
    """Terms 0, ..., T - 1 of a sum, drawn in training in proportion to the root mean square of their losses.

    p_t = sqrt(E[L_t^2]) / Z has the least variance of the sum's estimate L_t / p_t (Nichol and Dhariwal 2021, Eq. 18).
    Uniform until every bin has been seen enough.

    Args:
        terms: T.
    """

    squares: Tensor
    seen: Tensor
    place: Tensor

    def __init__(self, terms: int) -> None:
        super().__init__()
        bins = min(terms, BINS)
        self.register_buffer("place", torch.arange(terms, device="cpu") * bins // terms, persistent=False)
        self.register_buffer("squares", torch.zeros(bins))  # sums in which what was before fades, and their weights
        self.register_buffer("seen", torch.zeros(bins))

    def chances(self, uniform: bool = False) -> Tensor:
        """p `(T,)` float64, of sum 1."""
        if uniform or (self.seen < ENOUGH).any():
            return torch.full(self.place.shape, 1 / len(self.place), dtype=torch.float64, device=self.place.device)
        sizes = (self.squares.double() / self.seen.double()).sqrt()[self.place]
        sizes = sizes / sizes.sum().clamp(min=1e-30)
        return (1 - UNIFORM) * sizes + UNIFORM / len(sizes)

    def draw(self, n: int, uniform: bool = False) -> tuple[Tensor, Tensor]:
        """Terms `(n,)`, evenly spread, and weights with which their mean loss is unbiased for that of all terms."""
        chances = self.chances(uniform)
        terms = quantile(chances.cumsum(0), spread(n, chances.device).double())
        return terms, 1 / (chances[terms] * len(chances))

    def record(self, terms: Tensor, losses: Tensor) -> dict[str, Tensor]:
        """Of losses `(n,)` what is summed over micro-batches and processes for `remember`."""
        place, zeros = self.place[terms], torch.zeros_like(self.squares)
        squares = losses.detach().to(zeros).square()
        return {
            "squared_losses": zeros.index_add(0, place, squares),
            "terms_drawn": zeros.index_add(0, place, torch.ones_like(squares)),
        }

    def remember(self, found: dict[str, Tensor]) -> None:
        """Follow the losses that a step has met, as `record` gives them."""
        kept = MEMORY ** found["terms_drawn"]
        self.squares.mul_(kept).add_(found["squared_losses"])
        self.seen.mul_(kept).add_(found["terms_drawn"])


def paired_sum(terms: Callable[[Tensor], Tensor], weight: Tensor, pairs: int, examples: int) -> tuple[Tensor, Tensor]:
    """The sum of N terms of each example, `(B,)` float64, by two draws in each of equal shares; and its standard error.

    The mean of each two is unbiased whatever the terms are, and their difference tells its error.

    Args:
        terms: of indices `(2 pairs, B)` the terms in nats, of that shape.
        weight: positive, `(N,)`: how large each is expected to be.
        pairs: shares of the weights.
        examples: B.
    """
    share = torch.arange(pairs, device=weight.device).view(-1, 1, 1)
    drawn = (share + torch.rand(pairs, 2, examples, device=weight.device)) / pairs
    index = quantile(weight.cumsum(0), drawn.to(weight))
    draws = terms(index.flatten(0, 1)).view(index.shape) * (weight.sum() / weight[index] / pairs)
    return draws.mean(1).sum(0), ((draws[:, 0] - draws[:, 1]).square().sum(0) / 4).sqrt()
