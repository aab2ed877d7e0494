"""Activation checkpointing: layers keep their inputs alone, and are computed again in the backward pass."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fivefold.errors import Unfit
from fivefold.system import System

SHARE = 1 / 4  # of the parameters: layers with more are taken apart


def layers_of(system: System) -> list[nn.Module]:
    """The layers that are computed again: elements of the lists that networks are made of, where they have parts.

    Those with more than `SHARE` of all parameters are taken apart where they have such lists themselves: what is kept
    at the same time is then the inputs of all layers and the inside of one.

    Only within networks that are called through `forward` and not differentiated twice: `networks`, and lists of layers
    beside them.
    """
    most, networks = SHARE * _size(system), system.networks()
    lists = [child for child in system.children() if isinstance(child, nn.ModuleList)] if networks else []
    return list(dict.fromkeys(layer for root in (*networks, *lists) for layer in _layers(root, most)))


def _layers(module: nn.Module, most: float) -> list[nn.Module]:
    found = []
    for child in module.children():
        listed = isinstance(module, nn.ModuleList | nn.Sequential)
        whole = listed and any(True for _ in child.children()) and not isinstance(child, nn.ModuleList)
        inner = _layers(child, most) if not whole or _size(child) > most else []
        found += inner or ([child] if whole and _size(child) else [])
    return found


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def recompute_layers(system: System) -> None:
    """From now on, in training; Unfit where a system has no such layers."""
    layers = layers_of(system)
    if not layers:
        raise Unfit(f"{type(system).__name__} has no layers that could be computed again: leave out --recompute")
    for layer in layers:
        layer.forward = partial(_forward, layer)


def _forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    plain = partial(type(layer).forward, layer)
    if not (layer.training and torch.is_grad_enabled()):
        return plain(*args, **kwargs)
    kept = layer.state_dict().keys()
    state = [(buffer, buffer.clone()) for name, buffer in layer.named_buffers() if name in kept]
    contexts = (contextlib.nullcontext(), _AsAtFirst(state))
    return checkpoint(plain, *args, use_reentrant=False, context_fn=lambda: contexts, **kwargs)


class _AsAtFirst:
    """While this is open buffers are what they were at first, so that statistics and power iterations move once."""

    def __init__(self, state: list[tuple[Tensor, Tensor]]) -> None:
        self.state = state

    def __enter__(self) -> None:
        self.now = [buffer.data for buffer, _ in self.state]
        for buffer, first in self.state:
            buffer.data = first.clone()

    def __exit__(self, *error: object) -> None:
        for (buffer, _), value in zip(self.state, self.now, strict=True):
            buffer.data = value
