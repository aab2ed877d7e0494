"""Stochastic layers: both directions draw, and the term makes a lower bound (survey 6.4, Eq. 39; Nielsen et al., 2020).

With z ~ q(z | x) drawn, the term is ln p(x | z) / q(z | x), so that E p(z) exp(term) = p(x) exactly, and ln p(z) + term
lies below ln p(x) in expectation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Bijection, Chain, Exactness, Layer, sum_dims
from fivefold.bijections.laws import Law
from fivefold.bijections.surjections import Slice, augment

Energy = Callable[[Tensor, Tensor | None], Tensor]  # of points `(B, ...)` and their condition, in nats `(B,)`


class StochasticLayer(Layer):
    """Both directions at random; a bound."""

    @property
    def exactness(self) -> Exactness:
        return Exactness(forward="drawn", inverse="drawn")


def continuously_indexed(channels: int, posterior: Law, coupling: Bijection, prior: Law) -> Layer:
    """z = F(x; u), a bijection of x for every u: infinitely many, mixed by p(u | z) (Cornish et al., 2020: CIF).

    u ~ q(u | x) is drawn beside x, the bijection indexed by it is applied, and u leaves: the term is
    ln |det dF/dx| + ln p(u | z) - ln q(u | x).

    Args:
        channels: of x.
        posterior: q(u | x).
        coupling: of [x, u] along the channels; changes x alone.
        prior: p(u | z).
    """
    return Chain(augment(channels, posterior), coupling, Slice(channels, prior))


class Mixture(StochasticLayer):
    """One of several bijections, taken at random with the same chances both ways: E p(z) exp(term) = p(x).

    That is a weak bound. Who knows p(z) has the exact ln p(x) from `branches`, all of them at once (Pires and
    Figueiredo, 2020): the logarithm of the sum of p(z_k) exp(term_k).

    Args:
        flows: the bijections.
        weights: of `(x, condition)`, to log-odds `(B, K)` that depend on the condition alone.
    """

    def __init__(self, flows: Sequence[Layer], weights: nn.Module) -> None:
        super().__init__()
        self.flows, self.weights = nn.ModuleList(flows), weights

    def branches(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Every z_k, `(K, B, ...)`, and its term ln p(k) + ln |det|, `(K, B)`."""
        images, log_dets = zip(*(flow(x, condition) for flow in self.flows), strict=True)
        return torch.stack(images), torch.stack(log_dets) + self.log_weights(x, condition).T

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        images, log_dets = zip(*(flow(x, condition) for flow in self.flows), strict=True)
        return _choose(torch.stack(images), torch.stack(log_dets), self._draw(x, condition))

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inverse_of(y, self._draw(y, condition), condition)

    def inverse_of(self, y: Tensor, which: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Through the bijections `which` `(B,)`."""
        images, log_dets = zip(*(flow.inverse(y, condition) for flow in self.flows), strict=True)  # type: ignore[operator]
        return _choose(torch.stack(images), torch.stack(log_dets), which)

    def log_weights(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """ln p(k), `(B, K)`."""
        return self.weights(x.flatten(1), condition).log_softmax(1)

    def _draw(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.log_weights(x, condition).exp().multinomial(1)[:, 0]


def _choose(images: Tensor, log_dets: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.arange(len(which), device=which.device)
    return images[which, rows], log_dets[which, rows]


Kernel = Literal["langevin", "metropolis"]


class MarkovChain(StochasticLayer):
    """Steps of a Markov chain towards a law exp(-u) of its own: a part of a stochastic flow (Wu et al., 2020).

    The same kernels go both ways, and each step's term is the logarithm of the ratio of the path's probabilities,
    K(z to x) / K(x to z). Of Langevin steps without correction it is of two Gaussians, and all of it can be
    differentiated; of Metropolis steps, which leave exp(-u) as it is, u(z) - u(x) by detailed balance. The gradient
    of the choices to accept is left out, so that Metropolis steps learn by a biased one.

    A step of size h towards pi, from data of the law rho to a model of the law mu, makes the bound better by
    -h E_rho[grad ln(rho / pi) . grad ln(mu / pi)], to first order: by h t (1 - t) E_rho |grad ln(rho / mu)|^2 if pi is
    between, ln pi = t ln rho + (1 - t) ln mu, and by nothing if it is one of the two. So `interpolated` steps go from
    exp(-u) to standard normal noise by equal parts. Sizes are not learned: while energies know nothing, steps cost
    a little, and an optimiser's steps, large or small as the gradient may be, would take the sizes to 0.

    Args:
        energy: u.
        kernel: langevin or metropolis.
        steps: how many.
        step_size: of the drift, half of the variance of the noise.
        interpolated: whether step i of n has the energy w u(x) + (1 - w) |x|^2 / 2, w = (n - i + 1/2) / n.
    """

    def __init__(
        self,
        energy: nn.Module,
        kernel: Kernel = "langevin",
        steps: int = 1,
        step_size: float = 0.1,
        interpolated: bool = False,
    ) -> None:
        super().__init__()
        self.energy, self.kernel, self.step_size = energy, KERNELS[kernel], step_size
        self.weights = [(steps - i - 0.5) / steps if interpolated else 1.0 for i in range(steps)]

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._walk(x, condition, self.weights)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._walk(y, condition, self.weights[::-1])  # the ratio is upside down, and minus the term turns it

    def _walk(self, x: Tensor, condition: Tensor | None, weights: list[float]) -> tuple[Tensor, Tensor]:
        term = x.new_zeros(len(x))
        for weight in weights:
            x, log_ratio = self.kernel(_interpolated(self.energy, weight), x, condition, self.step_size)
            term = term + log_ratio
        return x, term


def _interpolated(energy: Energy, weight: float) -> Energy:
    """Between the energy, at weight 1, and that of standard normal noise."""

    def between(x: Tensor, condition: Tensor | None) -> Tensor:
        return weight * energy(x, condition) + (1 - weight) * sum_dims(0.5 * x**2)

    return energy if weight == 1 else between


def _langevin(energy: Energy, x: Tensor, condition: Tensor | None, step: float) -> tuple[Tensor, Tensor]:
    """One step x -> y ~ N(x - step du/dx, 2 step), and ln K(y to x) / K(x to y)."""
    noise = torch.randn_like(x)
    y = x - step * _gradient(energy, x, condition) + math.sqrt(2 * step) * noise
    back = x - y + step * _gradient(energy, y, condition)
    return y, sum_dims(0.5 * noise**2 - back**2 / (4 * step))


def _metropolis(energy: Energy, x: Tensor, condition: Tensor | None, step: float) -> tuple[Tensor, Tensor]:
    """One proposal y ~ N(x, 2 step), accepted with min(1, exp(u(x) - u(y))), and ln K(y to x) / K(x to y)."""
    proposal = x + math.sqrt(2 * step) * torch.randn_like(x)
    change = energy(proposal, condition) - energy(x, condition)
    accept = torch.rand_like(change) < torch.exp(-change)
    return torch.where(accept.view(-1, *[1] * (x.dim() - 1)), proposal, x), torch.where(accept, change, 0.0)


KERNELS = {"langevin": _langevin, "metropolis": _metropolis}


def _gradient(energy: Energy, x: Tensor, condition: Tensor | None) -> Tensor:
    """du/dx, itself to be differentiated where gradients are on."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if keep and x.requires_grad else x.detach().requires_grad_()
        gradient = torch.autograd.grad(energy(x, condition).sum(), x, create_graph=keep)[0]
    return gradient
