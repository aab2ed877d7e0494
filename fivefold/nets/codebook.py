"""Vector quantisation with a codebook of running means."""

from __future__ import annotations

import torch
from torch import Tensor, nn

UNEVEN = 60.0  # exp of this times a uniform number is the weight of a candidate: the largest all but decides


class Codebook(nn.Module):
    """`codes` vectors, each the running mean of the features nearest to it (van den Oord et al. 2017, appendix A.1).

    Not trained by gradients: `statistics` of every micro-batch, summed, go to `move` once a step. The first
    `move` puts every code on a feature of that step (until then `initialised` is False and codes mean
    nothing); later ones do so with codes that are hardly used.

    Args:
        codes: how many, K.
        width: of the vectors, D.
        decay: of the running means, per step.
        revive: a code is moved to a random feature when its use falls below this share of the mean use.
    """

    vectors: Tensor
    counts: Tensor
    sums: Tensor
    initialised: Tensor

    def __init__(self, codes: int, width: int, decay: float = 0.99, revive: float = 0.05) -> None:
        super().__init__()
        self.decay, self.revive = decay, revive
        self.register_buffer("vectors", torch.randn(codes, width))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, width))
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, codes: Tensor) -> Tensor:
        """The vectors `(..., D)` of codes `(...)`."""
        return self.vectors[codes]

    def nearest(self, features: Tensor) -> Tensor:
        """The codes `(...)` nearest to features `(..., D)`."""
        flat = features.detach().float().flatten(0, -2)
        return torch.cdist(flat, self.vectors).argmin(1).view(features.shape[:-1])

    @torch.no_grad()
    def statistics(self, features: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """What `move` needs of features `(..., D)` and their codes `(...)`, in a form that can be summed.

        Besides how often each code was used and the sum of its features there is one random feature for each
        code, as a weighted sum and its weight; the weights are so uneven that of several micro-batches'
        candidates one wins.
        """
        flat, index = features.detach().float().flatten(0, -2), codes.flatten()
        counts = torch.zeros_like(self.counts).index_add_(0, index, torch.ones_like(index, dtype=torch.float32))
        sums = torch.zeros_like(self.sums).index_add_(0, index, flat)
        candidates = flat[torch.randint(len(flat), self.counts.shape, device=flat.device)]
        weights = (UNEVEN * torch.rand_like(self.counts)).exp()
        weighted = candidates * weights.unsqueeze(1)
        return {"counts": counts, "sums": sums, "candidates": weighted, "candidate_weights": weights}

    @torch.no_grad()
    def move(self, total: dict[str, Tensor]) -> None:
        """Move the running means by one step's statistics, and codes hardly used to features of this step."""
        self.counts.lerp_(total["counts"], 1 - self.decay)
        self.sums.lerp_(total["sums"], 1 - self.decay)
        mean = self.counts.mean()
        dead = (self.counts <= self.revive * mean) | ~self.initialised  # a count may underflow to 0
        candidates = total["candidates"] / total["candidate_weights"].unsqueeze(1)
        self.counts.copy_(torch.where(dead, mean, self.counts))
        self.sums.copy_(torch.where(dead.unsqueeze(1), mean * candidates, self.sums))
        self.vectors.copy_(self.sums / self.counts.unsqueeze(1))
        self.initialised.fill_(True)


def straight_through(features: Tensor, vectors: Tensor) -> Tensor:
    """The value of `vectors` with the gradient of `features` (survey 3.2; Bengio et al., 2013)."""
    return features + (vectors - features).detach()
