"""Invertible residual blocks (survey 6.3; Behrmann et al., 2019; Chen et al., 2019), and implicit (Lu et al., 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Bijection, Chain, Exactness, Inverse
from fivefold.nets.lipschitz import linearised
from fivefold.nets.norm import held
from fivefold.tools.divergence import rademacher
from fivefold.tools.fixed_point import anderson, solved_for
from fivefold.tools.roulette import differentiated_now, exact_log_det, log_det_series, roulette_weights

MOST_STEPS = 2000  # to an inverse; a Lipschitz constant of 0.98 needs about 700 plain ones for 1e-6


@dataclass(frozen=True)
class SeriesOptions:
    """How a block finds its log-determinant and inverse.

    Args:
        exact: in evaluation by the whole Jacobian, in place of the series.
        terms: of the series that always count in training.
        score_terms: the same in evaluation.
        stop: probability of the roulette's stopping after each further term in training; None to cut the series there,
            as an i-ResNet does (Behrmann et al., 2019), which is off by at most `roulette.truncation_bound`.
        score_stop: the same in evaluation.
        tolerance: of the last step of the inverse's search, relative to 1 + |x|; not below what the precision allows.
        training_tolerance: the same in training; None for the same value.
        early: the gradient of the log-determinant is taken in the forward pass, which saves the memory of its graph;
            all examples of a batch must then weigh alike in the loss.
    """

    exact: bool = False
    terms: int = 2
    score_terms: int = 10
    stop: float | None = 0.5
    score_stop: float | None = 0.5
    tolerance: float = 1e-6
    training_tolerance: float | None = None
    early: bool = False


class Residual(Bijection):
    """y = x + g(x), invertible because g, given the condition, is a contraction in x (survey Eq. 36).

    The log-determinant is a series that a roulette ends, without bias, or that is cut: in training with one end for all
    of a batch, in evaluation with one for each example. `inverse` finds the x at which x = y - g(x) in fewer steps than
    iteration (`fixed_point.anderson`), warns where that does not converge, and keeps the size of the last step
    (`error`) and the evaluations of g (`steps`). It is differentiated by the implicit function theorem.

    Args:
        net: g, of `(x, condition)`, with a Lipschitz constant below 1 in x in some norm.
        options: of the series and the inverse.
    """

    def __init__(self, net: nn.Module, options: SeriesOptions) -> None:
        super().__init__()
        self.net, self.options = net, options
        self.error, self.steps = 0.0, 0  # of the last inverse

    @property
    def exactness(self) -> Exactness:
        options = self.options
        if options.exact and not self.training:
            return Exactness(inverse="iterative")
        cut = (options.stop if self.training else options.score_stop) is None
        return Exactness(inverse="iterative", log_det="truncated" if cut else "estimated")

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.options.early and torch.is_grad_enabled():
            return self._forward_early(x, condition)
        with held(self.net):
            g, log_det = self._with_log_det(x, condition)
        return x + g, log_det

    def _forward_early(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """The log-determinant is taken at copies, cut off from what x and the condition were made from."""
        given = [x] if condition is None else [x, condition]
        copies = [one.detach().requires_grad_() for one in given]
        parameters = [one for one in self.net.parameters() if one.requires_grad]
        with held(self.net):
            _, log_det = self._with_log_det(copies[0], copies[1] if condition is not None else None)
            log_det = differentiated_now(log_det, [*copies, *parameters], [*given, *parameters])
            return x + self.net(x, condition), log_det

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        loose = self.options.training_tolerance if self.training else None
        tolerance = max(loose or self.options.tolerance, 4 * torch.finfo(y.dtype).eps)

        def step(x: Tensor) -> Tensor:
            return y - self.net(x, condition)

        with held(self.net):
            found = anderson(step, y.detach(), tolerance, MOST_STEPS)
            self.error, self.steps = found.error, found.steps
            found.warn("the inverse of a residual block", tolerance)
            x = found.x
            if torch.is_grad_enabled():
                g, pull, _ = linearised(self.net, x, condition)
                x = solved_for(y - g, lambda v: -pull(v), tolerance, MOST_STEPS)
            return x, -self.forward(x, condition)[1]

    def _with_log_det(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """g(x) and ln det(I + dg/dx) `(B,)`."""
        options = self.options
        if not self.training and options.exact:
            return self._with_exact(x, condition)
        terms, stop, draws = options.score_terms, options.score_stop, len(x)
        if self.training:
            terms, stop, draws = options.terms, options.stop, 1
        weights = torch.ones(terms, 1) if stop is None else roulette_weights(terms, stop, draws)
        probe = rademacher(x)
        g, pull, pair = linearised(self.net, x, condition, probe)
        return g, log_det_series(pull, pair, probe, weights)

    def _with_exact(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if keep and x.requires_grad else x.detach().requires_grad_()
            g = self.net(x, condition)
        return g if keep else g.detach(), exact_log_det(g, x)


def implicit_block(net_x: nn.Module, net_z: nn.Module, options: SeriesOptions) -> Chain:
    """z from x by the roots of x + g_x(x) = z + g_z(z) (survey Eq. 38; Lu et al., 2021), and back.

    Both sides are residual blocks, so this is one and the inverse of another: both ways a fixed point is found, and
    ln |det| = ln det(I + dg_x/dx) - ln det(I + dg_z/dz). Unlike one residual block it can stretch and shrink without
    bound, as far as the constants of the contractions come to 1.

    Args:
        net_x: g_x, as the network of `Residual`.
        net_z: g_z.
        options: of the series and the fixed points.
    """
    return Chain(Residual(net_x, options), Inverse(Residual(net_z, options)))
