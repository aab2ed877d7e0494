"""Conditional laws: what surjective and stochastic layers draw, with the density of what was drawn."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.coupling import Coupling, MakeNet, in_a_row, parity_mask
from fivefold.bijections.transforms import Transform
from fivefold.tools.distributions import standard_normal_log_prob


@contextlib.contextmanager
def still(flow: nn.Module) -> Iterator[None]:
    """With all laws in `flow` drawing from zeros, then from noise again."""
    laws = [part for part in flow.modules() if isinstance(part, Law)]
    try:
        for law in laws:
            law.still = True
        yield
    finally:
        for law in laws:
            law.still = False


class Law(nn.Module, ABC):
    """p(y | given), possibly given a condition too; gradients pass through what is drawn."""

    still = False  # or draws are made from zeros in place of noise

    @abstractmethod
    def sample(self, given: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A draw for each `given` `(B, ...)`, and its ln p in nats `(B,)`."""

    @abstractmethod
    def log_prob(self, y: Tensor, given: Tensor, condition: Tensor | None = None) -> Tensor:
        """Nats `(B,)` of `y`."""


class FlowLaw(Law):
    """A flow from y to standard normal noise, given channels that it leaves as they are.

    Args:
        channels: of y; the other sizes are those of `given`.
        flow: of `given` and then y along the channels; it changes y alone (see `conditional_flow`). None: y is noise.
    """

    def __init__(self, channels: int, flow: Layer | None = None) -> None:
        super().__init__()
        self.channels, self.flow = channels, Chain() if flow is None else flow

    def sample(self, given: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        draw = torch.zeros_like if self.still else torch.randn_like
        noise = draw(given.new_empty(len(given), self.channels, *given.shape[2:]))
        both, log_det = self.flow.inverse(torch.cat([given, noise], 1), condition)
        return both[:, given.shape[1] :], standard_normal_log_prob(noise) - log_det

    def log_prob(self, y: Tensor, given: Tensor, condition: Tensor | None = None) -> Tensor:
        both, log_det = self.flow(torch.cat([given, y], 1), condition)
        return standard_normal_log_prob(both[:, given.shape[1] :]) + log_det


class ContextLaw(Law):
    """A flow from y to standard normal noise whose layers are given what a network says of `given` (Ho et al., 2019).

    Args:
        channels: of y; the other sizes are those of `given`.
        flow: of y, on the condition that `context` gives.
        context: of `(given, condition)`.
    """

    def __init__(self, channels: int, flow: Layer, context: nn.Module) -> None:
        super().__init__()
        self.channels, self.flow, self.context = channels, flow, context

    def sample(self, given: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        noise = torch.randn(len(given), self.channels, *given.shape[2:], dtype=given.dtype, device=given.device)
        y, log_det = self.flow.inverse(noise, self.context(given, condition))
        return y, standard_normal_log_prob(noise) - log_det

    def log_prob(self, y: Tensor, given: Tensor, condition: Tensor | None = None) -> Tensor:
        noise, log_det = self.flow(y, self.context(given, condition))
        return standard_normal_log_prob(noise) + log_det


def conditional_flow(
    given: int, drawn: int, spatial: tuple[int, ...], layers: int, transform: Transform, make_net: MakeNet
) -> Layer:
    """Couplings of the last `drawn` channels: all of them given the first, then parts of them given all others.

    With an affine transform the first coupling alone makes a Gaussian of independent channels.

    Args:
        given: channels that stay as they are.
        drawn: channels that are transformed.
        spatial: (H, W) of images, () of vectors.
        layers: couplings.
        transform: the h of each element.
        make_net: makes the networks.
    """
    patterns = (1 << max(1, (drawn - 1).bit_length())) - 1
    everything, kept = torch.ones(drawn, dtype=torch.bool, device="cpu"), torch.zeros(given, device="cpu").bool()
    parts: list[Layer] = []
    for layer in range(layers):
        part = parity_mask(drawn, patterns - (layer - 1) // 2 % patterns) if layer and drawn > 1 else everything
        mask = torch.cat([kept, ~part if layer and layer % 2 == 0 and drawn > 1 else part])
        changed = int(mask.sum())
        net = make_net(given + drawn - changed, changed * transform.size, spatial)
        parts.append(Coupling(mask, transform, net))
    return in_a_row(parts)
