"""Volume-preserving proposals that learn from a discriminator of pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.coupling import Coupling
from fivefold.bijections.transforms import Additive
from fivefold.nets.mlp import MLP
from fivefold.nets.norm import frozen
from fivefold.tools.diffusion import rows
from fivefold.tools.games import GAMES, gradient_penalty
from fivefold.tools.mcmc import FIRST, Chains, Energy, Move, hamiltonian
from fivefold.tools.proposals import Learned, Seen, metropolis

GAME = GAMES["wasserstein-gp"]
PENALTY = 10.0
CRITIC_STEPS = 5  # for one of the proposal
FROM_NOISE, FROM_DATA = 8, 2  # the most applications of f to states of the start, and of the law
ROUND = 100  # steps of the proposal between two rounds of the chains ...
CHAIN = 100  # ... and how far these go then
POOL = 20_000  # states that stand for the law


def volume_preserving(dims: int, extra: int, hidden: int) -> Layer:
    """f of (x, v) `(B, dims + extra)`: v is shifted given x, x given v, v given x; volumes stay as they are."""
    moves_v = torch.arange(dims + extra) >= dims
    masks = (moves_v, ~moves_v, moves_v)
    return Chain(*(Coupling(mask, Additive(), _Shift(int((~mask).sum()), int(mask.sum()), hidden)) for mask in masks))


class _Shift(nn.Module):
    """An MLP that takes no condition."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.net = MLP(inputs, outputs, hidden, 1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.net(x)


def nice_metropolis(energy: Energy, x: Tensor, steps: int, move: Move, *, layer: Layer, extra: int) -> Chains:
    """f or its inverse, by the toss of a coin, on x and a fresh velocity v ~ N(0, I), as Metropolis says.

    Going there by f and back by its inverse are equally likely and volumes stay, so a proposal is accepted with the
    chance min(1, p(x') p(v') / p(x) p(v)): the law tends to exp(-E / T) for any volume-preserving f. No gradient of
    the energy is taken.

    Args:
        energy: E in nats `(B,)` of states `(B, ...)`.
        x: where the chains start.
        steps: after the warm-up.
        move: temperature, bounds, warm-up.
        layer: f, on vectors of x and v.
        extra: length of v.
    """
    dims = x[0].numel()

    def look(x: Tensor) -> Seen:
        return (energy(x) / move.temperature,)

    def propose(x: Tensor, seen: Seen) -> tuple[Tensor, Seen, Tensor]:
        v = torch.randn(len(x), extra, dtype=x.dtype, device=x.device)
        both = torch.cat([x.flatten(1), v], 1)
        ahead = torch.rand(len(x), device=x.device) < 0.5
        moved = torch.where(rows(ahead, both), layer(both)[0], layer.inverse(both)[0])
        y, w = moved[:, :dims].reshape(x.shape), moved[:, dims:]
        at_y = look(y)
        return y, at_y, seen[0] - at_y[0] + 0.5 * (v.square() - w.square()).sum(1)

    with frozen(layer):
        return metropolis(look, propose, x, steps, move, 1)


def fit_a_nice_mc(
    energy: Energy, start: Tensor, steps: int = 600, batch: int = 64, hidden: int = 64, lr: float = 5e-4
) -> Learned:
    """A-NICE-MC (survey 2.2, [201]; Song, Zhao and Ermon, 2017): a proposal that an adversary teaches where the law is.

    T applies f to x and a fresh velocity. A critic tells pairs of independent states of the law from pairs (x, T^m x),
    x of the law, and (T^b z, T^(b+m) z), z of the start, by Wasserstein's distance with a gradient penalty: f learns to
    come to the law from afar, to stay there, and to forget where it was. Its velocities learn to have the law that
    they started with, or nothing would be accepted. States of the law come from the sampler itself, by turns with
    learning (the bootstrap), at first from Hamiltonian Monte Carlo.

    What is returned takes from a `Move` temperature, bounds and warm-up.

    Args:
        energy: E in nats `(B,)` of states `(B, ...)`.
        start: where chains start, `(n, ...)`.
        steps: of the proposal.
        batch: pairs of each kind.
        hidden: units of a layer.
        lr: of Adam.
    """
    x, dims = start.flatten(1), start[0].numel()
    extra = max(dims, 2)
    layer = volume_preserving(dims, extra, hidden).to(start)
    critic = MLP(2 * dims, 1, 2 * hidden, 2, nn.LeakyReLU).to(start)
    teach, judge = (torch.optim.Adam(net.parameters(), lr, (0.5, 0.9)) for net in (layer, critic))

    def sample(energy: Energy, x: Tensor, steps: int, move: Move) -> Chains:
        return nice_metropolis(energy, x, steps, move, layer=layer, extra=extra)

    chains = hamiltonian(energy, start, CHAIN, Move(FIRST, warm_up=CHAIN, keep=len(x)))
    evaluations, pool, losses = chains.evaluations, _thinned(chains), []
    for step in range(steps):
        if step and step % ROUND == 0:
            chains = sample(energy, chains.state, CHAIN, Move(1.0, keep=len(x)))
            evaluations += chains.evaluations
            pool = torch.cat([_some(pool, len(pool) // 2), _some(_thinned(chains), (len(pool) + 1) // 2)])
        for _ in range(CRITIC_STEPS):
            with torch.no_grad():
                made, _ = made_pairs(layer, extra, _some(x, batch), _some(pool, batch))
            real = _some(pool, 4 * batch).view(2 * batch, -1)
            loss = GAME.discriminator(critic(real), critic(made)) + PENALTY * gradient_penalty(critic, real, made)
            judge.zero_grad()
            loss.backward()
            judge.step()
        made, velocity = made_pairs(layer, extra, _some(x, batch), _some(pool, batch))
        score = critic(made)
        loss = GAME.generator(score, score) + 0.5 * velocity.square().mean()
        teach.zero_grad()
        loss.backward(inputs=list(layer.parameters()))
        teach.step()
        losses.append(loss.detach())
    return Learned(sample, evaluations * len(x), torch.stack(losses))


def made_pairs(layer: Layer, extra: int, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs (x, T^m x) and (T^b z, T^(b+m) z), `(2 B, 2 D)`, and the last velocities.

    Args:
        layer: f.
        extra: length of a velocity.
        z: states of the start, `(B, D)`.
        x: states of the law, `(B, D)`.
    """
    far, near = int(torch.randint(1, FROM_NOISE + 1, ())), int(torch.randint(1, FROM_DATA + 1, ()))
    y, v = applied(layer, extra, z, far)
    after, w = applied(layer, extra, torch.cat([x, y.detach()]), near)
    return torch.cat([torch.cat([x, y]), after], 1), torch.cat([v, w])


def applied(layer: Layer, extra: int, x: Tensor, times: int) -> tuple[Tensor, Tensor]:
    """T^times x, and the last velocity."""
    v = x
    for _ in range(times):
        both = torch.cat([x, torch.randn(len(x), extra, dtype=x.dtype, device=x.device)], 1)
        x, v = layer(both)[0].split([x.shape[1], extra], 1)
    return x, v


def _some(x: Tensor, n: int) -> Tensor:
    return x[torch.randint(len(x), (n,), device=x.device)]


def _thinned(found: Chains) -> Tensor:
    """At most `POOL` of the states of all chains, as vectors."""
    assert found.trace is not None
    states = found.trace.flatten(0, 1).flatten(1)
    return states[torch.randperm(len(states), device=states.device)[:POOL]]
