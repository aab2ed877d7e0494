"""Priors, posteriors and decoders: parts that have the face of a system of codes, or give one theirs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fivefold.bijections.autoregressive import AutoregressiveMaps, in_alternating_order, masked_autoregressive_flow
from fivefold.bijections.transforms import Affine
from fivefold.nets.condition import ConditionEmbedding
from fivefold.nets.heads import Head
from fivefold.options import Configured, depth_option, width_option
from fivefold.space import Column, Space
from fivefold.tools.distributions import standard_normal_log_prob

CONDITION_WIDTH = 32
FEATURES = 32  # of a dimension that an autoregressive decoder holds at once, about


def vectors(size: int, condition: Space | None = None) -> Space:
    """The Space of real vectors `(B, size)`."""
    return Space("table", (size,), columns=tuple(Column(f"z{i}") for i in range(size)), condition=condition)


def nats(log_prob: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Of an exact density, which may come with a standard error of 0."""
    return log_prob[0] if isinstance(log_prob, tuple) else log_prob


class StandardNormal(nn.Module):
    """N(0, I) of codes: as a prior, or as the noise of a Gaussian posterior.

    Args:
        space: of the codes.
    """

    sample_evaluations = 0

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.shape = space.shape
        self.register_buffer("where", torch.zeros(()), persistent=False)
        self.where: Tensor

    def _log_prob(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return standard_normal_log_prob(z)

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return torch.randn(n, *self.shape, device=self.where.device)

    def draw(self, n: int, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes `(n, *shape)` and their log-densities in nats `(n,)`."""
        z = self._sample(n, condition)
        return z, standard_normal_log_prob(z)


class AutoregressivePrior(Configured, nn.Module):
    """An affine autoregressive flow of the codes, without actnorms: maps by gated PixelCNNs (Chen et al., 2017).

    Args:
        space: of the codes, vectors or maps.
    """

    sample_evaluations = 0

    layers: int = depth_option(
        2, "autoregressive maps, the order reversed in between; 0 is a standard normal", least=0, tune=(0, 4)
    )
    hidden: int = width_option(128, "units, of maps features, of the masked layers of each", tune=(32, 512))

    def __init__(self, space: Space, **options: Any) -> None:
        super().__init__()
        self.configure(options)
        self.noise = StandardNormal(space)
        self.embed = ConditionEmbedding(space.condition, CONDITION_WIDTH)
        if space.kind == "image":
            flows = [
                AutoregressiveMaps(space.shape, Affine(), self.hidden, self.embed.width) for _ in range(self.layers)
            ]
            self.flow = in_alternating_order(space.dims, flows)
        else:
            self.flow = masked_autoregressive_flow(space.dims, self.layers, Affine(), self.hidden, self.embed.width)

    def _log_prob(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """Of the flow's noise, and its log-determinant (survey Eq. 29)."""
        noise, log_det = self.flow(z.flatten(1), self.embed(condition))
        return standard_normal_log_prob(noise) + log_det

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        noise = self.noise._sample(n, condition)
        return self.flow.inverse(noise.flatten(1), self.embed(condition))[0].view_as(noise)


class NetworkDecoder(nn.Module):
    """p(x|z) whose dimensions are independent given z: a network gives the parameters of a head.

    Args:
        net: of z and the condition.
        head: of the examples.
    """

    evaluations = 1

    def __init__(self, net: nn.Module, head: Head) -> None:
        super().__init__()
        self.net, self.head = net, head
        self.numbers = head.space.dims * head.width

    def log_prob(self, x: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        """ln p(x|z) in nats `(B,)`."""
        return self.head.log_prob(self.net(z, condition), x).sum(1)

    def log_known(self, x: Tensor, known: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        """ln p of what is known of x given z, in nats `(B,)`."""
        return (self.head.log_prob(self.net(z, condition), x) * known.flatten(1)).sum(1)

    def sample(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """Encoded examples `(B, *shape)`."""
        return self._shaped(self.head.sample(self.net(z, condition), self.head.noise(len(z))))

    def complete(self, x: Tensor, known: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        """Encoded examples with what is not known drawn: of what is known it is independent given z."""
        return torch.where(known, x, self.sample(z, condition).to(x.dtype))

    def mode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """As `sample`, without noise."""
        return self._shaped(self.head.mode(self.net(z, condition)))

    def _shaped(self, x: Tensor) -> Tensor:
        return x.view(-1, *self.head.space.shape)


class SystemDecoder(nn.Module):
    """p(x|z) by an autoregressive system, conditioned on what a network makes of z and the user's condition.

    Args:
        net: of z and the condition, to what the system sees of both.
        system: of the examples, conditioned on that.
    """

    def __init__(self, net: nn.Module, system: Any) -> None:
        super().__init__()
        self.net, self.system = net, system
        self.numbers = system.space.dims * FEATURES

    @property
    def evaluations(self) -> int:
        return 1 + self.system.sample_evaluations

    def seen(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """What the system is conditioned on: of images maps of their size, else vectors."""
        return self.net(z, condition).view(len(z), *self.system.space.condition.shape)

    def log_prob(self, x: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        """ln p(x|z) in nats `(B,)`."""
        return nats(self.system._log_prob(x, self.seen(z, condition)))

    def sample(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """Encoded examples `(B, *shape)`."""
        return self.system._sample(len(z), self.seen(z, condition))

    def complete(self, x: Tensor, known: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        """Encoded examples with what is not known drawn given z and the rest."""
        return torch.where(known, x, self.system._fill(x, known, self.seen(z, condition)).to(x.dtype))

    def mode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """Dimension by dimension the median of its distribution, given those before it."""
        middle = torch.full_like(self.system.head.noise(len(z)), 0.5)
        return self.system._sample_from(middle, self.seen(z, condition)).view(-1, *self.system.space.shape)
