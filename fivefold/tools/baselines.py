"""What every model should beat: each dimension by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from fivefold.space import Space
from fivefold.tools.distributions import gaussian_log_prob


class IndependentDims:
    """Every dimension drawn from its own training marginal, independently of the others.

    Discrete dimensions have the frequencies of the training data with `prior` added to every count, so
    that no value is impossible; real ones are Gaussian.

    Args:
        space: of the examples.
        x: encoded training examples `(N, *shape)`.
        prior: what is added to each count.
    """

    def __init__(self, space: Space, x: Tensor, prior: float = 1.0) -> None:
        flat = x.flatten(1).double().cpu()
        levels = torch.tensor([count or 0 for count in space.dim_levels])
        self.space = space
        self.discrete = levels > 0
        self.mean = flat.mean(0)
        self.log_scale = flat.std(0).clamp(min=1e-6).log()
        hits = torch.zeros(len(levels), max(int(levels.max()), 1), dtype=torch.float64)
        codes = torch.where(self.discrete, flat, 0.0).long()
        hits.scatter_add_(1, codes.T, torch.ones_like(flat.T))
        possible = torch.arange(hits.shape[1]) < levels[:, None].clamp(min=1)
        self.probabilities = torch.where(possible, hits + prior, 0.0)
        self.probabilities /= self.probabilities.sum(1, keepdim=True)

    def log_prob(self, x: Tensor) -> Tensor:
        """Nats `(B,)`, exact, of encoded examples `(B, *shape)` in the user's units."""
        flat = x.flatten(1).double().cpu()
        codes = torch.where(self.discrete, flat, 0.0).long()
        log_mass = self.probabilities.gather(1, codes.T).T.log()
        log_density = gaussian_log_prob(flat, self.mean, self.log_scale)
        return torch.where(self.discrete, log_mass, log_density).sum(1) + self.space.log_det(x).cpu()

    def sample(self, n: int, seed: int | None = None) -> Tensor:
        """`n` encoded examples `(n, *shape)`, in the dtype of the space's encoding."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        dims = len(self.mean)
        codes = torch.multinomial(self.probabilities, n, replacement=True, generator=generator).T
        noise = torch.randn(n, dims, dtype=torch.float64, generator=generator)
        values = torch.where(self.discrete, codes.double(), self.mean + self.log_scale.exp() * noise)
        whole = self.space.levels is not None and not self.space.columns
        return values.to(torch.long if whole else torch.float32).view(n, *self.space.shape)
