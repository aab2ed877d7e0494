"""Proposals by a network that are as spread out as their acceptance allows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fivefold.bijections.transforms import soft_clamp
from fivefold.nets.coders import zero
from fivefold.nets.mlp import MLP
from fivefold.nets.norm import frozen
from fivefold.tools.distributions import standard_normal_log_prob
from fivefold.tools.mcmc import Chains, Energy, Move
from fivefold.tools.proposals import Learned, Seen, metropolis

FIRST = 0.1  # size of the first proposals
TARGET = 0.7  # share of proposals that shall be accepted
WEIGHT_RATE = 0.02  # of the entropy's weight
STEEPEST = 10.0  # bound of a component of the gradient, in units of a proposal's size
SCALE = 3.0  # bound of the logarithm of a scale

Slope = Callable[[Tensor], Tensor]  # dE/dx of vectors `(B, D)`


class GradientProposal(nn.Module):
    """q(y | x): y = x + s z_N, z_0 ~ N(0, I), by couplings that know x and the gradient of the energy.

    z_n keeps half of its numbers; the others become z exp(S) - 1/2 s dE/dx(x + s kept) exp(Q) + T with S, Q and T
    networks of x and of the kept ones. At first S = Q = T = 0 and this is nearly a Langevin step of size s.

    Args:
        dims: D.
        couplings: N; each takes one gradient.
        hidden: units of a layer of the networks.
    """

    def __init__(self, dims: int, couplings: int, hidden: int) -> None:
        super().__init__()
        self.log_size = nn.Parameter(torch.full((dims,), math.log(FIRST)))
        nets = [MLP(2 * dims, 3 * dims, hidden) for _ in range(couplings)]
        for net in nets:
            zero(net.net[-1])
        self.nets = nn.ModuleList(nets)
        odd = torch.arange(dims) % 2 == 1
        masks = [odd if n % 2 else ~odd for n in range(couplings)] if dims > 1 else [odd < 1] * couplings
        self.register_buffer("moved", torch.stack(masks))
        self.moved: Tensor

    def forward(self, x: Tensor, z: Tensor, slope: Slope) -> tuple[Tensor, Tensor]:
        """y - x of z, `(B, D)`, and ln |det dy/dz| `(B,)`."""
        log_det = self.log_size.sum()
        for n in range(len(self.nets)):
            log_scale, shift = self._coupling(n, x, z, slope)
            z, log_det = z * log_scale.exp() + shift, log_det + log_scale.sum(1)
        return self.log_size.exp() * z, log_det

    def inverse(self, x: Tensor, offset: Tensor, slope: Slope) -> tuple[Tensor, Tensor]:
        """z of y - x, and ln |det dz/dy|."""
        z, log_det = offset * torch.exp(-self.log_size), -self.log_size.sum()
        for n in reversed(range(len(self.nets))):
            log_scale, shift = self._coupling(n, x, z, slope)
            z, log_det = (z - shift) * torch.exp(-log_scale), log_det - log_scale.sum(1)
        return z, log_det

    def _coupling(self, n: int, x: Tensor, z: Tensor, slope: Slope) -> tuple[Tensor, Tensor]:
        """ln of the scale and the shift, `(B, D)`, both 0 of what is kept, which is all of z that they depend on."""
        size, moved = self.log_size.exp(), self.moved[n]
        kept = torch.where(moved, 0.0, z)
        steep = soft_clamp(size * slope(x + size * kept), STEEPEST)
        log_scale, log_gain, shift = self.nets[n](torch.cat([x, kept], 1)).chunk(3, 1)
        shift = shift - 0.5 * steep * soft_clamp(log_gain, SCALE).exp()
        return torch.where(moved, soft_clamp(log_scale, SCALE), 0.0), torch.where(moved, shift, 0.0)


def log_ratio(net: GradientProposal, x: Tensor, z: Tensor, slope: Slope) -> tuple[Tensor, Tensor, Tensor]:
    """y of x and z, ln q(x | y) - ln q(y | x) `(B,)`, and ln |det dy/dz|, of which q's entropy is the mean and more."""
    offset, log_det = net(x, z, slope)
    y = x + offset
    back, back_log_det = net.inverse(y, -offset, slope)
    return y, standard_normal_log_prob(back) + back_log_det - standard_normal_log_prob(z) + log_det, log_det


def gradient_metropolis(energy: Energy, x: Tensor, steps: int, move: Move, *, net: GradientProposal) -> Chains:
    """Proposals of a `GradientProposal` that Metropolis and Hastings accept or not: its law tends to exp(-E / T).

    Args:
        energy: E in nats `(B,)` of states `(B, ...)`, differentiable.
        x: where the chains start.
        steps: after the warm-up.
        move: temperature, bounds, warm-up.
        net: makes the proposals.
    """

    def flat(u: Tensor) -> Tensor:
        return energy(u.view(len(u), *x.shape[1:])) / move.temperature

    def propose(x: Tensor, seen: Seen) -> tuple[Tensor, Seen, Tensor]:
        u = x.flatten(1)
        y, gain, _ = log_ratio(net, u, torch.randn_like(u), slope_of(flat))
        value = flat(y)
        return y.view_as(x), (value,), seen[0] - value + gain

    with frozen(net):
        return metropolis(lambda x: (flat(x.flatten(1)),), propose, x, steps, move, 2 * len(net.nets) + 1)


def slope_of(energy: Energy, graph: bool = False) -> Slope:
    """dE/dx of vectors, with a graph through it or without."""

    def slope(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if graph else x.detach().requires_grad_()
            return torch.autograd.grad(energy(x).sum(), x, create_graph=graph)[0]

    return slope


def fit_entropy_mcmc(
    energy: Energy, start: Tensor, steps: int = 500, couplings: int = 2, hidden: int = 32, lr: float = 5e-3
) -> Learned:
    """The sampler of maximal proposal entropy (survey 2.2, [135]; Li, Chen and Sommer, 2020).

    As in `tools.adaptive`, E min(0, ln ratio) + weight entropy is maximised while chains run, the weight rising where
    more than `TARGET` of the proposals are accepted; but proposals are a network's, of any shape, whose entropy is
    tractable: E ln |det dy/dz| up to a constant. The gradient goes through that of the energy.

    What is returned takes from a `Move` temperature, bounds and warm-up.

    Args:
        energy: E in nats `(B,)` of states `(B, ...)`, twice differentiable.
        start: where the chains start; how many there are is the batch.
        steps: of the chains, each with one of the networks.
        couplings: of a proposal; one takes 2 gradients for each, and one energy.
        hidden: units of a layer of the networks.
        lr: of Adam at first, falling along a cosine.
    """
    x = start.flatten(1)
    net = GradientProposal(x.shape[1], couplings, hidden).to(start)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def flat(u: Tensor) -> Tensor:
        return energy(u.view(len(u), *start.shape[1:]))

    weight, losses = 1.0, []
    for _ in range(steps):
        x = x.detach().requires_grad_()
        y, gain, log_det = log_ratio(net, x, torch.randn_like(x), slope_of(flat, graph=True))
        ratio = flat(x).detach() - flat(y) + gain
        bound = torch.where(ratio.isfinite(), ratio.clamp(max=0), 0.0).mean()
        loss = -bound - weight * log_det.mean()
        optimizer.zero_grad()
        loss.backward(inputs=list(net.parameters()))
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        chance = ratio.detach().nan_to_num(-math.inf).clamp(max=0).exp()
        weight *= 1 + WEIGHT_RATE * (chance.mean().item() - TARGET)
        x = torch.where((torch.rand_like(chance) < chance)[:, None], y, x)
        losses.append(loss.detach())

    def sample(energy: Energy, x: Tensor, steps: int, move: Move) -> Chains:
        return gradient_metropolis(energy, x, steps, move, net=net)

    return Learned(sample, steps * len(start) * (2 * couplings + 2), torch.stack(losses))
