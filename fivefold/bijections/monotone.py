"""Monotone functions of one variable whose inverses have no closed form (survey 6.1.2, Eq. 33, Table 3).

Parameters come first, `(P, ...)`, as in `transforms.py`. All inverses are Newton's within a bracket.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.bijections.transforms import soft_clamp
from fivefold.tools.roots import invert_increasing

OUTER = 3.0  # the unit in which polynomials take their variable, in standard deviations


@dataclass(frozen=True)
class MixtureCDF:
    """y = exp(s) logit(F(x)) + t, F the distribution function of a mixture of logistics (Ho et al., 2019, Eq. 15).

    At parameters 0 the components lie apart, so that they learn to differ. The inverse is Newton's within a bracket.

    Args:
        components: of the mixture.
        bound: of the logarithms of all scales.
        tolerance: of the inverse.
    """

    iterative: ClassVar[bool] = True
    components: int = 8
    bound: float = 5.0
    tolerance: float = 1e-6

    @property
    def size(self) -> int:
        return 3 * self.components + 2

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(parameters)
        z, log_derivative = _mixture_logit(x, *self._mixture(parameters))
        return z * log_scale.exp() + shift, log_derivative + log_scale

    def inverse(self, y: Tensor, parameters: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(parameters)
        log_weights, means, log_scales = self._mixture(parameters)
        z = (y - shift) * torch.exp(-log_scale)
        # Where all components are below z, or above, so is the mixture.
        ends = means + log_scales.exp() * z
        f = partial(_mixture_logit, log_weights=log_weights, means=means, log_scales=log_scales)
        x, log_derivative = invert_increasing(f, z, ends.amin(0), ends.amax(0), self.tolerance, start)
        return x, log_derivative - log_scale

    def _affine(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return soft_clamp(parameters[0], self.bound), parameters[1]

    def _mixture(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and log-scales `(K, ...)`."""
        logits, means, log_scales = parameters[2:].tensor_split(3)
        apart = torch.linspace(-1.5, 1.5, self.components, dtype=means.dtype, device=means.device)
        means = means + apart.view(-1, *[1] * (means.dim() - 1))
        return logits.log_softmax(0), means, soft_clamp(log_scales, self.bound)


def _mixture_logit(x: Tensor, log_weights: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """ln F(x) - ln(1 - F(x)) of a mixture of logistics and ln of its derivative, from parameters `(K, *x.shape)`."""
    u = (x - means) * torch.exp(-log_scales)
    below, above = F.logsigmoid(u), F.logsigmoid(-u)
    log_cdf, log_rest = (log_weights + below).logsumexp(0), (log_weights + above).logsumexp(0)
    log_density = (log_weights + below + above - log_scales).logsumexp(0)
    return log_cdf - log_rest, log_density - log_cdf - log_rest


@dataclass(frozen=True)
class SumOfSquares:
    """y = t + exp(s) int_0^x 1 + sum_k (sum_l a_kl (u/3)^l)^2 du (Jaini et al., 2019, Eq. 8): they increase.

    Powers are of u/3, or those of standardised numbers far out would drown the others; beyond |u| = 3 the slope stays
    what it is there: so far out nothing learns the coefficients, and a power of 5 in each of several layers takes one
    example to nowhere. The 1 keeps them increasing everywhere. At parameters 0 the squares are constants a_k0 that
    differ, and s undoes them, so that it is the identity: were they 0, so would be the gradient of every coefficient,
    and none would learn. The inverse is Newton's.

    Args:
        squares: how many are summed.
        degree: of each polynomial that is squared; the result's is twice that, plus 1.
        bound: of the log-scale.
        tolerance: of the inverse.
    """

    iterative: ClassVar[bool] = True
    squares: int = 2
    degree: int = 2
    bound: float = 5.0
    tolerance: float = 1e-6

    @property
    def size(self) -> int:
        return 2 + self.squares * (self.degree + 1)

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(parameters)
        y, log_derivative = _integral(x, self._slope(parameters))
        return y * log_scale.exp() + shift, log_derivative + log_scale

    def inverse(self, y: Tensor, parameters: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(parameters)
        slope, y = self._slope(parameters), (y - shift) * torch.exp(-log_scale)
        reach = y.abs()  # the slope is at least 1
        x, log_derivative = invert_increasing(lambda x: _integral(x, slope), y, -reach, reach, self.tolerance, start)
        return x, log_derivative - log_scale

    @property
    def _constants(self) -> list[float]:
        """The a_k0 at parameters 0."""
        return [(k + 1) / self.squares for k in range(self.squares)]

    def _affine(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        undone = math.log(1 + sum(a**2 for a in self._constants))
        return soft_clamp(parameters[0], self.bound) - undone, parameters[1]

    def _slope(self, parameters: Tensor) -> Tensor:
        """Coefficients of 1 + sum of squares `(2 degree + 1, ...)`, the constant first."""
        a = parameters[2:].unflatten(0, (self.squares, self.degree + 1))
        constants = a.new_tensor(self._constants).view(-1, 1, *[1] * (a.dim() - 2))
        a = torch.cat([a[:, :1] + constants, a[:, 1:]], 1)
        powers = torch.arange(self.degree + 1, device=a.device, dtype=a.dtype)
        a = a * (OUTER**-powers).view(-1, *[1] * (a.dim() - 2))
        products = [
            torch.stack([a[:, i] * a[:, n - i] for i in range(max(0, n - self.degree), min(n, self.degree) + 1)])
            for n in range(2 * self.degree + 1)
        ]
        one, *rest = [product.sum((0, 1)) for product in products]
        return torch.stack([one + 1, *rest])


def _integral(x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """int_0^x of a slope and its logarithm at x, by Horner's rule.

    The slope is a polynomial with coefficients `(P, *x.shape)`, and beyond |x| = OUTER what it is there.
    """
    near = x.clamp(-OUTER, OUTER)
    y, value = torch.zeros_like(x), torch.zeros_like(x)
    for power in reversed(range(len(slope))):
        y = y * near + slope[power] / (power + 1)
        value = value * near + slope[power]
    value = value.clamp(min=1.0)  # as it is, but for rounding
    return y * near + value * (x - near), value.log()


@dataclass(frozen=True)
class DeepSigmoid:
    """A monotone network of one variable: deep dense sigmoidal flow (Huang et al., 2018, 3.2; survey 6.1.3).

    Every layer takes h to logit(W sigmoid(a U h + b)), a > 0 and the rows of U and W positive with sums of 1; the
    last one is affine. At parameters 0 the units of a layer differ, so that they learn to. The inverse is Newton's.

    Args:
        units: of a layer.
        layers: how many.
        bound: of the logarithms of all a.
        tolerance: of the inverse.
    """

    iterative: ClassVar[bool] = True
    units: int = 4
    layers: int = 2
    bound: float = 2.0
    tolerance: float = 1e-6

    @property
    def size(self) -> int:
        n = self.units
        return (2 * n + n * n) + (self.layers - 1) * (2 * n + 2 * n * n) + n + 2

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._network(x, self._unpacked(parameters))

    def inverse(self, y: Tensor, parameters: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        unpacked = self._unpacked(parameters)
        low, high = self._reach(y, unpacked)
        return invert_increasing(lambda x: self._network(x, unpacked), y, low, high, self.tolerance, start)

    def _unpacked(self, parameters: Tensor) -> list[tuple[Tensor, ...]]:
        """Of each layer ln a, b `(n, ...)`, ln U, ln W `(n, n, ...)` (the first layer's U `(n, 1, ...)`); at last those
        of the affine map."""
        n, start = self.units, 0
        layers: list[tuple[Tensor, ...]] = []
        apart = torch.linspace(-1.0, 1.0, n, dtype=parameters.dtype, device=parameters.device)
        own = 2 * torch.eye(n, dtype=parameters.dtype, device=parameters.device)
        view = [1] * (parameters.dim() - 1)

        def take(rows: int, columns: int) -> Tensor:
            nonlocal start
            part = parameters[start : start + rows * columns].unflatten(0, (rows, columns))
            start += rows * columns
            return part

        for layer in range(self.layers):
            log_a, b = soft_clamp(take(n, 1)[:, 0], self.bound), take(n, 1)[:, 0] + apart.view(-1, *view)
            log_u = (take(n, n) + own.view(n, n, *view)).log_softmax(1) if layer else torch.zeros_like(b).unsqueeze(1)
            log_w = (take(n, n) + own.view(n, n, *view)).log_softmax(1)
            layers.append((log_a, b, log_u, log_w))
        log_u = take(1, n)[0].log_softmax(0)
        layers.append((soft_clamp(take(1, 1)[0, 0], self.bound), take(1, 1)[0, 0], log_u))
        return layers

    def _network(self, x: Tensor, layers: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
        h, log_slope = x.unsqueeze(0), torch.zeros_like(x).unsqueeze(0)  # of every unit, in x
        for log_a, b, log_u, log_w in layers[:-1]:
            z = log_a.exp() * (log_u.exp() * h).sum(1) + b
            log_slope = log_a + (log_u + log_slope).logsumexp(1)
            below, above = F.logsigmoid(z), F.logsigmoid(-z)
            log_cdf, log_rest = (log_w + below).logsumexp(1), (log_w + above).logsumexp(1)
            h = log_cdf - log_rest
            log_slope = (log_w + below + above + log_slope).logsumexp(1) - log_cdf - log_rest
        log_a, b, log_u = layers[-1]
        return log_a.exp() * (log_u.exp() * h).sum(0) + b, log_a + (log_u + log_slope).logsumexp(0)

    def _reach(self, y: Tensor, layers: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
        """Points below and above the one that goes to y.

        A mixture of sigmoids lies between the least and the largest of them, so an h at which all units of a layer
        are below some value is found backwards, layer by layer.
        """
        log_a, b, _ = layers[-1]
        low = high = (y - b) * torch.exp(-log_a)
        for log_a, b, _, _ in reversed(layers[:-1]):
            low, high = (((end - b) * torch.exp(-log_a)) for end in (low, high))
            low, high = low.amin(0), high.amax(0)
        return low, high


class Integral(nn.Module):
    """y = t + int_0^x g(u; e) du, g a positive network of u and an embedding e (Wehenkel and Louppe, 2019; survey 33).

    UMNN: what an element's parameters are is e (and t), the network's weights are shared. The integral is Clenshaw
    and Curtis's rule, whose error falls exponentially with its nodes as g is smooth; so the derivative that is given,
    g(x), is that of y up to this error. The inverse is Newton's.

    Args:
        embedding: width of e.
        hidden: units of each of g's two hidden layers.
        nodes: of the rule.
        tolerance: of the inverse.
    """

    iterative: ClassVar[bool] = True
    LEAST = 1e-2  # of g, so that the inverse has an end
    cosines: Tensor
    weights: Tensor

    def __init__(self, embedding: int = 8, hidden: int = 32, nodes: int = 24, tolerance: float = 1e-6) -> None:
        super().__init__()
        self.size, self.tolerance = embedding + 1, tolerance
        self.from_point, self.from_embedding = nn.Linear(1, hidden, bias=False), nn.Linear(embedding, hidden)
        self.second, self.last = nn.Linear(hidden, hidden), nn.Linear(hidden, 1)
        cosines, weights = clenshaw_curtis(nodes)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._integral(x, parameters[0], self.from_embedding(parameters[1:].movedim(0, -1)))

    def inverse(self, y: Tensor, parameters: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        t, context = parameters[0], self.from_embedding(parameters[1:].movedim(0, -1))
        reach = (y - t).abs() / self.LEAST
        return invert_increasing(lambda x: self._integral(x, t, context), y, -reach, reach, self.tolerance, start)

    def _integral(self, x: Tensor, t: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        cosines, weights = self.cosines.to(x.dtype), self.weights.to(x.dtype)  # kept in float64
        nodes = x.unsqueeze(-1) * (1 + cosines) / 2  # from 0 to x; the first one is x
        log_g = self._log_g(nodes.unsqueeze(-1), context.unsqueeze(-2))
        return t + x / 2 * (log_g.exp() * weights).sum(-1), log_g[..., 0]

    def _log_g(self, u: Tensor, context: Tensor) -> Tensor:
        """ln g at points `(..., 1)` of an element with its context `(..., hidden)`."""
        h = F.silu(self.second(torch.tanh(self.from_point(u) + context)))
        return torch.log(self.LEAST + F.softplus(self.last(h).squeeze(-1) + math.log(math.e - 1)))


def clenshaw_curtis(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes cos(pi j / n) in [-1, 1], from 1 on, and weights of the rule with `nodes` + 1 points, each `(nodes + 1,)`.

    Exact for polynomials up to degree `nodes`: the weights are those of the cosine series' integral.
    """
    if nodes < 2 or nodes % 2:
        raise ValueError(f"Clenshaw and Curtis's rule needs an even number of nodes from 2 on, got {nodes}")
    j = torch.arange(nodes + 1, dtype=torch.float64, device="cpu")
    k = torch.arange(0, nodes + 1, 2, dtype=torch.float64, device="cpu")
    halved = torch.ones_like(k)
    halved[0] = halved[-1] = 0.5
    terms = halved * 2 / (1 - k**2) * torch.cos(math.pi * j[:, None] * k / nodes)
    weights = 2 / nodes * terms.sum(1)
    weights[0], weights[-1] = weights[0] / 2, weights[-1] / 2
    return torch.cos(math.pi * j / nodes), weights
