"""Invertible residual blocks (survey 6.3; Behrmann et al., 2019; Chen et al., 2019)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Bijection, Exactness
from fivefold.nets.norm import frozen
from fivefold.tools.divergence import rademacher
from fivefold.tools.roulette import exact_log_det, fixed_point, log_det_series, roulette_weights

MOST_STEPS = 2000  # to an inverse; a Lipschitz constant of 0.98 needs about 700 for 1e-6


@dataclass(frozen=True)
class SeriesOptions:
    """How a block finds its log-determinant and inverse.

    Args:
        exact: in evaluation by the whole Jacobian, in place of the series.
        terms: of the series that always count in training.
        score_terms: the same in evaluation.
        stop: probability of the roulette's stopping after each further term.
        tolerance: of a step of the inverse's fixed-point iteration, relative to 1 + |x|.
    """

    exact: bool = False
    terms: int = 2
    score_terms: int = 10
    stop: float = 0.5
    tolerance: float = 1e-6


class Residual(Bijection):
    """y = x + g(x), invertible because g, given the condition, is a contraction in x.

    The log-determinant is a series that a roulette ends, without bias: one end for all of a batch in training, one
    for each example in evaluation. `inverse` iterates x = y - g(x), warns where that does not converge, and keeps the
    size of the last step (`error`) and the number of steps (`steps`); it cannot be differentiated.

    Args:
        net: g, of `(x, condition)`, with a Lipschitz constant below 1 in x.
        options: of the series and the inverse.
    """

    def __init__(self, net: nn.Module, options: SeriesOptions) -> None:
        super().__init__()
        self.net, self.options = net, options
        self.error, self.steps = 0.0, 0  # of the last inverse

    @property
    def exactness(self) -> Exactness:
        exact = self.options.exact and not self.training
        return Exactness(inverse="iterative", log_det="exact" if exact else "estimated")

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if keep and x.requires_grad else x.detach().requires_grad_()
            g = self.net(x, condition)
        log_det = self._log_det(g, x)
        return (x + g, log_det) if keep else (x.detach() + g.detach(), log_det)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with frozen(self.net):
            x, self.error, self.steps = fixed_point(
                lambda x: y - self.net(x, condition), y, self.options.tolerance, MOST_STEPS
            )
        if not self.error <= self.options.tolerance:
            warnings.warn(
                f"the inverse of a residual block did not converge: after {self.steps} steps the last was "
                f"{self.error:.1e}, the tolerance is {self.options.tolerance:.1e}; raise the tolerance",
                RuntimeWarning,
                stacklevel=2,
            )
        return x, -self.forward(x, condition)[1]

    def _log_det(self, g: Tensor, x: Tensor) -> Tensor:
        options = self.options
        if not self.training and options.exact:
            return exact_log_det(g, x)
        terms, draws = (options.terms, 1) if self.training else (options.score_terms, len(x))
        return log_det_series(g, x, rademacher(x), roulette_weights(terms, options.stop, draws))
