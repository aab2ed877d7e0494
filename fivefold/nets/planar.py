"""A velocity that is a sum of planar ones, its parameters a function of the time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fivefold.nets.coders import zero
from fivefold.nets.velocity import Rates


class PlanarSum(nn.Module):
    """dx/dt = sum_n g_n(t) u_n(t) tanh(w_n(t) x + b_n(t)), with a trace in closed form; 0 at first.

    A hypernetwork of the time gives the vectors u and w, the offsets b and the gates g in (0, 1) (Chen et al. 2018,
    4 and 5.1). With h' = 1 - tanh^2, the Jacobian is sum_n g_n h'_n u_n w_n^T, so its trace takes O(D units) work.

    Args:
        dims: D, of a point.
        units: how many planar velocities are added.
        hidden: width of the hypernetwork.
        condition: width of the condition, which the hypernetwork takes beside the time; 0 for none.
    """

    def __init__(self, dims: int, units: int = 32, hidden: int = 32, condition: int = 0) -> None:
        super().__init__()
        self.shape = (units, dims)
        self.body = nn.Sequential(nn.Linear(1 + condition, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.inwards = nn.Linear(hidden, units * dims)
        self.outwards = zero(nn.Linear(hidden, units * dims))
        self.offset_and_gate = nn.Linear(hidden, 2 * units)
        nn.init.normal_(self.inwards.bias, std=1 / math.sqrt(dims))

    def forward(self, time: float, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.rates(time, x, condition).velocity

    def rates(self, time: float, x: Tensor, condition: Tensor | None = None) -> Rates:
        """At a time and points `(B, D)`: velocity, divergence, and as costs |dx/dt|^2 and |Jacobian|^2 (Frobenius)."""
        inwards, outwards, offset, gate = self.planes(time, x, condition)
        height = torch.tanh(torch.einsum("bmd,bd->bm", inwards, x) + offset)
        velocity = torch.einsum("bmd,bm->bd", outwards, gate * height)
        slope = gate * (1 - height.square())
        divergence = (slope * (inwards * outwards).sum(2)).sum(1)
        gram = (inwards @ inwards.mT) * (outwards @ outwards.mT)
        norm = torch.einsum("bm,bn,bmn->b", slope, slope, gram.expand(len(x), -1, -1))
        return Rates(velocity, divergence, torch.stack([velocity.square().sum(1), norm], 1))

    def planes(self, time: float, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """w and u `(B or 1, units, D)`, b and g `(B or 1, units)`; one row for all where there is no condition."""
        context = x.new_full((1, 1), time)
        if condition is not None:
            context = torch.cat([context.expand(len(x), 1), condition.to(x.dtype)], 1)
        h = self.body(context)
        offset, gate = self.offset_and_gate(h).chunk(2, 1)
        inwards, outwards = (layer(h).unflatten(1, self.shape) for layer in (self.inwards, self.outwards))
        return inwards, outwards, offset, gate.sigmoid()
