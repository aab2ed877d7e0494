"""Hamiltonian Monte Carlo in a space that a flow warps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fivefold import options
from fivefold.bijections.base import Layer
from fivefold.errors import Unfit
from fivefold.nets.norm import frozen
from fivefold.options import Need, slot_of
from fivefold.space import Column, Space
from fivefold.system import fitting, part_options, suits
from fivefold.tools.mcmc import Chains, Energy, Move, hamiltonian
from fivefold.tools.proposals import Learned, within

NEEDS = Need(
    "a flow of real vectors with as much noise as there are numbers",
    methods=("noise", "body"),
    densities=("EXACT",),
    without=("draws", "chooses"),
)


def fit_neutra(
    energy: Energy, start: Tensor, flow: Any = "iaf-flow", steps: int = 1000, batch: int = 256, lr: float = 1e-2
) -> Learned:
    """Neural transport (survey 2.2, [89]; Hoffman et al., 2019): a flow x = f(z), then Hamiltonian Monte Carlo in z.

    The flow minimises the reverse divergence, E of E(f(z)) - ln |det df/dz| over noise z. Where it fits, z's law, of
    energy E(f(z)) - ln |det df/dz|, is nearly that of noise, in which steps of one size go everywhere; where it does
    not, the law of x is still the energy's.

    What is returned takes from a `Move` the first step size (in the space of z), leapfrog steps, temperature, bounds
    (of x) and warm-up.

    Args:
        energy: E in nats `(B,)` of states `(B, ...)`, differentiable.
        start: states `(n, ...)` that say where and how large the flow starts.
        flow: a flow system of the catalogue by name or as `slot(...)`, or a layer from vectors to normal noise.
        steps: of Adam, its rate falling along a cosine.
        batch: draws of noise for each.
        lr: learning rate at first.
    """
    shape, points = start.shape[1:], start.flatten(1)
    layer, noise = (flow, partial(_normal, points)) if isinstance(flow, Layer) else _built(flow, points.shape[1])
    layer = layer.to(start)
    parameters = list(layer.parameters())
    with torch.no_grad():
        layer.train()(points)  # layers that the first batch sets see the start
    optimizer = torch.optim.Adam(parameters, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        z = noise(batch).to(start)
        loss = pulled_back(energy, layer, shape)(z).mean()
        optimizer.zero_grad()
        loss.backward(inputs=parameters)
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    layer.eval()

    def sample(energy: Energy, x: Tensor, steps: int, move: Move) -> Chains:
        return warped_hamiltonian(energy, x, steps, move, layer=layer)

    return Learned(sample, steps * batch, torch.stack(losses))


def pulled_back(energy: Energy, layer: Layer, shape: torch.Size) -> Energy:
    """Of z, E(f(z)) - ln |det df/dz| `(B,)`; f, the inverse of `layer`, leads to states of that shape."""

    def warped(z: Tensor) -> Tensor:
        y, log_det = layer.inverse(z)
        return energy(y.view(len(y), *shape)) - log_det

    return warped


def warped_hamiltonian(energy: Energy, x: Tensor, steps: int, move: Move, *, layer: Layer) -> Chains:
    """Hamiltonian Monte Carlo of z, x = f(z): its law tends to exp(-E / T) in x, for any f.

    Args:
        energy: E in nats `(B,)` of states `(B, ...)`.
        x: where the chains start.
        steps: after the warm-up.
        move: see `fit_neutra`.
        layer: from x as vectors to z; f is its inverse.
    """
    shape = x.shape[1:]

    def confined(y: Tensor) -> Tensor:
        return torch.where(within(y, move), energy(y) / move.temperature, math.inf)

    def push(z: Tensor) -> Tensor:
        return layer.inverse(z)[0].view(len(z), *shape)

    with frozen(layer), torch.no_grad():
        z, free = layer(x.flatten(1))[0], move._replace(noise=None, bounds=(-math.inf, math.inf))
        found = hamiltonian(pulled_back(confined, layer, shape), z, steps, free)
        trace = found.trace
        if trace is not None:
            trace = push(trace.flatten(0, 1)).unflatten(0, trace.shape[:2])
        return found._replace(state=push(found.state), trace=trace)


def _normal(points: Tensor, n: int) -> Tensor:
    return torch.randn(n, points.shape[1], device=points.device)


def _built(flow: Any, dims: int) -> tuple[Layer, Callable[[int], Tensor]]:
    """The layer of the flow system that `flow` names, on vectors of real numbers, and what draws its noise."""
    content = slot_of(flow)
    space = Space("table", (dims,), columns=tuple(Column(f"x{i}") for i in range(dims)))
    cls = content.name if isinstance(content.name, type) else options.catalogue.class_of(content.name)
    if not suits(cls, NEEDS, space):
        raise Unfit(f"{content} cannot warp: it takes {NEEDS.what}. These fit: {', '.join(fitting(NEEDS, space))}")
    system = cls(space, **part_options(cls, content))
    return system.flow, system.noise
