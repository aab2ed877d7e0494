"""Scalar potentials with gradient and Laplacian in closed form, and the velocities that are their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.nets.velocity import Rates

Activation = Literal["log-cosh", "softplus", "tanh"]


class Derivatives(NamedTuple):
    """Of a potential at a time: its gradient `(B, D)` and Laplacian `(B,)` in x, and its derivative in t, `(B,)`."""

    gradient: Tensor
    laplacian: Tensor
    slope: Tensor


class Potential(nn.Module):
    """Phi(s) = w N(s) + |A s|^2 / 2 + b s, s = (x, t), N a residual network (Onken et al. 2021).

    N has a first layer sigma(K s + k) of `hidden` units and `layers - 1` residual ones, each a step of size
    1 / (layers - 1). (The paper's constant c, which nothing depends on, is left out.) A condition is a further shift
    inside the first layer. w is 0 at first.

    Args:
        dims: D, of x.
        hidden: width of the network.
        layers: of the network, at least 1.
        rank: rows of A; 0 for no quadratic part.
        timed: whether the potential depends on the time; else s = x.
        activation: sigma: log-cosh (whose derivative is tanh), softplus or tanh.
        condition: width of the condition, 0 for none.
    """

    def __init__(
        self,
        dims: int,
        hidden: int = 32,
        layers: int = 2,
        rank: int = 0,
        timed: bool = True,
        activation: Activation = "log-cosh",
        condition: int = 0,
    ) -> None:
        super().__init__()
        self.dims, self.timed, self.activation = dims, timed, ACTIVATIONS[activation]
        width = dims + timed
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise([width, *[hidden] * layers]))
        self.weight = nn.Parameter(torch.zeros(hidden))
        self.linear = nn.Parameter(torch.zeros(width))
        self.root = nn.Parameter(torch.randn(rank, width) * 0.1 / math.sqrt(width)) if rank else None
        self.shift = nn.Linear(condition, hidden, bias=False) if condition else None
        self.step = 1 / max(layers - 1, 1)

    def forward(self, time: float, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Phi `(B,)` at a time and points `(B, D)`."""
        s = self._with_time(time, x)
        h = self.activation(self._first(s, condition))[0]
        for layer in self.residual_layers:
            h = h + self.step * self.activation(layer(h))[0]
        quadratic = 0.0 if self.root is None else 0.5 * F.linear(s, self.root).square().sum(1)
        return h @ self.weight + quadratic + s @ self.linear

    def derivatives(self, time: float, x: Tensor, condition: Tensor | None = None) -> Derivatives:
        """At a time and points `(B, D)`, by formulas and not by autograd: O(layers hidden^2 D) work an example.

        With u the features after each layer and z = d(w N)/du, each layer adds to the Laplacian
        sum_j sigma''_j z_j |row j of K du/dx|^2 (Onken et al. 2021).
        """
        s = self._with_time(time, x)
        weights: list[Tensor] = [layer.weight for layer in self.residual_layers]
        h, slope, curvature = self.activation(self._first(s, condition))
        slopes, curvatures = [slope], [curvature]
        for layer in self.residual_layers:
            value, slope, curvature = self.activation(layer(h))
            h = h + self.step * value
            slopes, curvatures = [*slopes, slope], [*curvatures, curvature]

        z = [self.weight.expand(len(s), -1)]  # from the last layer to the first
        for weight, slope in zip(reversed(weights), reversed(slopes[1:]), strict=True):
            z.append(z[-1] + self.step * (slope * z[-1]) @ weight)
        z.reverse()

        into: Tensor = self.layers[0].weight  # type: ignore[assignment]
        gradient = (slopes[0] * z[0]) @ into + self.linear
        laplacian = (curvatures[0] * z[0]) @ into[:, : self.dims].square().sum(1)
        if weights:
            jacobian = slopes[0][:, :, None] * into[:, : self.dims]  # du/dx, (B, hidden, D)
        for weight, slope, curvature, after in zip(weights, slopes[1:], curvatures[1:], z[1:], strict=True):
            rows = weight @ jacobian
            laplacian = laplacian + self.step * (curvature * after * rows.square().sum(2)).sum(1)
            if after is not z[-1]:  # another layer follows
                jacobian = jacobian + self.step * slope[:, :, None] * rows
        if self.root is not None:
            gradient = gradient + F.linear(s, self.root) @ self.root
            laplacian = laplacian + self.root[:, : self.dims].square().sum()
        in_time = gradient[:, self.dims] if self.timed else torch.zeros_like(laplacian)
        return Derivatives(gradient[:, : self.dims], laplacian, in_time)

    @property
    def residual_layers(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)][1:]

    def _with_time(self, time: float, x: Tensor) -> Tensor:
        return torch.cat([x, x.new_full((len(x), 1), time)], 1) if self.timed else x

    def _first(self, s: Tensor, condition: Tensor | None) -> Tensor:
        given = self.layers[0](s)
        return given if self.shift is None or condition is None else given + self.shift(condition.to(s.dtype))


class PotentialVelocity(nn.Module):
    """dx/dt = sign grad Phi, with its divergence and the Hamilton-Jacobi residual in closed form.

    Along straight ways of constant speed phi = sign Phi obeys d phi/dt + |grad phi|^2 / 2 = 0. How far it does not is
    the second cost: that residual's absolute value, or its square.

    Args:
        potential: Phi.
        sign: 1 to go up the potential, -1 to go down.
        squared: whether the residual is squared.
    """

    def __init__(self, potential: Potential, sign: int = 1, squared: bool = False) -> None:
        super().__init__()
        self.potential, self.sign, self.squared = potential, sign, squared

    def forward(self, time: float, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.rates(time, x, condition).velocity

    def rates(self, time: float, x: Tensor, condition: Tensor | None = None) -> Rates:
        """At a time and points `(B, D)`: velocity, divergence, and as costs |dx/dt|^2 and the residual."""
        gradient, laplacian, slope = self.potential.derivatives(time, x, condition)
        speed = gradient.square().sum(1)
        residual = self.sign * slope + 0.5 * speed
        residual = residual.square() if self.squared else residual.abs()
        return Rates(self.sign * gradient, self.sign * laplacian, torch.stack([speed, residual], 1))


def _log_cosh(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ln(e^x + e^-x), finite however large x is."""
    slope = torch.tanh(x)
    return x.abs() + F.softplus(-2 * x.abs()), slope, 1 - slope.square()


def _softplus(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    slope = torch.sigmoid(x)
    return F.softplus(x), slope, slope * (1 - slope)


def _tanh(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value = torch.tanh(x)
    slope = 1 - value.square()
    return value, slope, -2 * value * slope


ACTIVATIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]] = {  # with first and second derivative
    "log-cosh": _log_cosh,
    "softplus": _softplus,
    "tanh": _tanh,
}
