"""From its default start and after a short training, the mechanism that names a system is in use, and it has learnt.

Every system is trained once. What it then knows must lie beyond the trivial models of the same data, and each claim
about its mechanism is a number that would be about 0 if the mechanism slept. Most of them undo a part: nobody would
miss one that costs nothing as it started, or at zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import fivefold
from fivefold import Data, System, catalog
from fivefold.autoregressive.pixelrnn import _Layer as RecurrentLayer
from fivefold.bijections.autoregressive import MaskedAutoregressive
from fivefold.bijections.block import BlockAutoregressive
from fivefold.bijections.convolution import AutoregressiveConv, ConvExp, PeriodicConv
from fivefold.bijections.coupling import Coupling
from fivefold.bijections.discrete import Translation
from fivefold.bijections.linear import LULinear
from fivefold.bijections.masked_convolution import MaskedConv, MintLayer
from fivefold.bijections.ode import ContinuousFlow
from fivefold.bijections.residual import Residual
from fivefold.bijections.surjections import Abs, Piecewise
from fivefold.gan.biggan import SelfAttention
from fivefold.nets.attention import CausalBlock, TransformerBlock
from fivefold.nets.attentive import _GatedAttention as GatedAttention
from fivefold.nets.pixelcnn import _Block as GatedBlock
from fivefold.nets.stylegan import StyledLayer
from fivefold.space import Batch
from fivefold.system import seeded
from fivefold.tools.baselines import IndependentDims
from fivefold.tools.roc import roc_area


class Trained:
    """A system after its training, what it started from, and the examples that it is tested on."""

    def __init__(self, name: str, steps: int, source: str, condition: str | None, **options: Any) -> None:
        self.data: Data = fivefold.load_data(source, condition=condition)
        self.events: list[dict[str, Any]] = []
        arguments = {"budget": f"{steps}steps", "evaluations": 1, "watch": self.events.append, **options}
        self.system: Any = fivefold.fit(name, self.data, **arguments).eval()
        torch.manual_seed(0)  # as `fit` does
        self.start: Any = catalog.build(name, self.data.space).eval()
        self.batch: Batch = self.data.test.spread(100)

    @property
    def x(self) -> Tensor:
        return self.batch.x

    def nats(self, system: System | None = None) -> float:
        """Of an example of the test split; where there is no density the loss."""
        system = system or self.system
        if system.density.comparable:
            system.score_samples = 2  # the same draws for all: differences are exact enough
            return -system.score_encoded(self.batch, seed=0).log_prob.mean().item()
        with torch.no_grad(), seeded(0):
            return system.loss(self.batch).item()

    @cached_property
    def own(self) -> float:
        return self.nats()

    @cached_property
    def baseline(self) -> float:
        """Nats of the better of independent dimensions and, on real columns, one Gaussian."""
        space, x = self.data.space, self.data.train.batch(slice(None)).x
        found = [IndependentDims(space, x).log_prob(self.x)]
        if not any(space.dim_levels):
            gaussian = MultivariateNormal(x.double().mean(0), x.double().T.cov())
            found.append(gaussian.log_prob(self.x.double()) + space.log_det(self.x))
        return min(-value.mean().item() for value in found)

    def figures(self, key: str) -> list[float]:
        """Of one name in the log, step by step."""
        return [float(event["stats"][key]) for event in self.events if key in event.get("stats", {})]

    def parts(self, kind: type[nn.Module]) -> dict[str, Any]:
        found = {name: part for name, part in self.system.named_modules() if isinstance(part, kind)}
        assert found, kind
        return found

    def watched(self, kind: type[nn.Module]) -> list[tuple[Any, Tensor, Any]]:
        """Each of these parts, what entered it on the way of the test examples and what left."""
        seen: list[tuple[Any, Tensor, Any]] = []
        hooks = [
            part.register_forward_hook(lambda part, given, found: seen.append((part, given[0], found)))
            for part in self.parts(kind).values()
        ]
        self.nats()
        for hook in hooks:
            hook.remove()
        return seen


Figure = Callable[[Trained], Any]  # a number


def without(*names: str, to: float | None = None) -> Figure:
    """What an example costs more, in nats, with the parameters of these names as they started, or constant."""

    def cost(t: Trained) -> float:
        changed, starts = copy.deepcopy(t.system), dict(t.start.named_parameters())
        with torch.no_grad():
            for name, parameter in changed.named_parameters():
                if any(f".{part}." in f".{name}." for part in names):
                    parameter.copy_(starts[name] if to is None else torch.full_like(parameter, to))
        return t.nats(changed) - t.own

    return cost


def without_each(kind: type[nn.Module], path: str = "", to: float | None = None) -> Figure:
    """The same of each of these parts by itself, or of what is at `path` in it: the least."""
    of = lambda name: f"{name}.{path}" if path else name  # noqa: E731
    return lambda t: min(without(of(name), to=to)(t) for name in t.parts(kind))


def without_all(kind: type[nn.Module], path: str = "", to: float | None = None) -> Figure:
    """The same of all of them together."""
    of = lambda name: f"{name}.{path}" if path else name  # noqa: E731
    return lambda t: without(*map(of, t.parts(kind)), to=to)(t)


def differ(a: Tensor, b: Tensor) -> float:
    """The root mean square of a - b as a share of a's deviation."""
    return ((a - b).square().mean().sqrt() / a.std()).item()


@torch.no_grad()
def unexplained(x: Tensor, y: Tensor) -> float:
    """The share of the variance of y `(B, ...)` that no affine map of x `(B, ...)` explains."""
    inputs = torch.cat([x.flatten(1), torch.ones(len(x), 1)], 1).double()
    targets = y.flatten(1).double()
    rest = targets - inputs @ torch.linalg.lstsq(inputs, targets).solution
    return (rest.square().sum() / (targets - targets.mean(0)).square().sum()).item()


def bent(kind: type[nn.Module]) -> Figure:
    """How far each of these layers of columns is from affine along that column where it bends most; the least."""

    def bend(part: nn.Module, x: Tensor, dim: int) -> float:
        points = x.mean(0).repeat(len(x), 1)
        points[:, dim] = x[:, dim]
        return unexplained(points[:, [dim]], part(points)[0][:, [dim]])

    return lambda t: min(max(bend(part, x, d) for d in range(x.shape[1])) for part, x, _ in t.watched(kind))


# --- autoregressive ---------------------------------------------------------------------------------


def others_above(t: Trained, rows: int = 3) -> Tensor:
    """The test images with the first rows of one another."""
    x = t.x.clone()
    x[:, :, :rows] = t.x.roll(1, 0)[:, :, :rows]
    return x


@torch.no_grad()
def far(t: Trained) -> float:
    """What the last rows cost more, in nats, given the first rows of another image."""
    log_prob = lambda x: t.system.head.log_prob(t.system.conditionals(x, None), t.x).view(t.x.shape)  # noqa: E731
    return (log_prob(t.x) - log_prob(others_above(t)))[:, :, 6:].sum((1, 2, 3)).mean().item()


@torch.no_grad()
def told(t: Trained) -> float:
    """What rearranged images cost less, in nats, where the transformer is told how they are."""
    kinds = torch.arange(len(t.x)) % len(t.system.arrangements)
    rearranged = t.x.flatten(1).gather(1, t.system.arrangements[kinds]).view_as(t.x)
    right, silent = t.system.augmented_log_prob(t.x, None, kinds), t.system._log_prob(rearranged, None)
    return (right - silent)[kinds > 0].mean().item()


@torch.no_grad()
def quantiles(t: Trained, x: Tensor | None = None) -> Tensor:
    tau = torch.linspace(0.05, 0.95, 10).expand(len(t.x), t.x[0].numel(), 10)
    return t.system.head(t.system.conditionals(t.x if x is None else x, None), tau)


# --- codes ------------------------------------------------------------------------------------------


@torch.no_grad()
def decoded(t: Trained) -> float:
    """How much better an image is decoded from its own code than from another's: a share of the squared error."""
    z = t.system._encode(t.x, None)
    own, other = ((t.system._decode(code, None) - t.x).double().square().mean() for code in (z, z.roll(1, 0)))
    return 1 - (own / other).item()


@torch.no_grad()
def level_costs(t: Trained) -> Tensor:
    """Nats of each level's code, and the image with those after it drawn must get nearer with each level."""
    found = t.system.rate_distortion(t.x)
    errors = [(y - t.x).double().square().mean().item() for _, y in found]
    assert errors == sorted(errors, reverse=True)
    return torch.stack([nats.mean() for nats, _ in found])


def monitored(key: str) -> Figure:
    """A figure of the system's monitor."""
    return lambda t: t.system.monitor(t.batch)[key]


@torch.no_grad()
def prior_gain(t: Trained) -> float:
    """Nats that the priors know of the codes, beyond that all are alike."""
    places = sum(codes[0].numel() for codes in t.system._codes(t.x))
    return places * math.log(t.system.codes) - level_costs(t).sum().item()


# --- games ------------------------------------------------------------------------------------------


@torch.no_grad()
def made(t: Trained, condition: Tensor | None) -> Tensor:
    with seeded(0):
        return t.system.made(100, condition)


def varied(t: Trained) -> float:
    """The deviation of a pixel over samples as a share of that over data."""
    return (made(t, t.batch.condition).std(0).mean() / t.system.seen(t.x).std(0).mean()).item()


def moved(player: str) -> Figure:
    """How far its parameters have gone, as a share of where they were."""

    def distance(t: Trained) -> float:
        before, after = (
            torch.cat([p.detach().flatten() for p in attrgetter(player)(s).parameters()]) for s in (t.start, t.system)
        )
        return ((after - before).norm() / before.norm()).item()

    return distance


def by_class(t: Trained) -> float:
    """How much of the difference between the classes' mean images samples of these classes show (a correlation)."""
    labels, seen = t.data.train.batch(slice(None)), []
    condition = torch.arange(10.0).repeat_interleave(10)[:, None]
    fakes, real = made(t, condition), t.system.seen(labels.x)
    for x, label in ((fakes, condition), (real, labels.condition.float())):
        means = torch.stack([x[label[:, 0] == c].mean(0).flatten() for c in range(10)])
        seen.append((means - means.mean(0)).flatten())
    return torch.corrcoef(torch.stack(seen))[0, 1].item()


@torch.no_grad()
def sees_batch(t: Trained) -> float:
    """How much the critic's output on an image changes with the other images of its group."""
    x = t.system.seen(t.x)
    return differ(t.system.judge(x, None), t.system.judge(x[:1].repeat(len(x), 1, 1, 1), None)[:1].expand(len(x)))


@torch.no_grad()
def mixed_styles(t: Trained) -> float:
    """How much images change where the second half of the layers takes another code's style."""
    w = t.system._w(50, None)
    styles = t.system.generator.every_layer(w)
    mixed = torch.where(torch.arange(styles.shape[1])[:, None] < styles.shape[1] // 2, styles, styles.roll(1, 0))
    with seeded(0):
        one = t.system.generator.synthesis(styles)
    with seeded(0):
        return differ(one, t.system.generator.synthesis(mixed))


# --- energies and noise -----------------------------------------------------------------------------


def gone(t: Trained) -> float:
    """How far chains go from where they start."""
    with seeded(0):
        start = t.system.fresh(50)
        return differ(start, t.system.run(start, None, t.system.sample_steps))


def lower(t: Trained) -> float:
    """How much further down chains are, in nats, than where they start."""
    with seeded(0):
        start = t.system.fresh(50)
        end = t.system.run(start, None, t.system.sample_steps)
    with torch.no_grad():
        energies = [t.system.energies(t.system.examples(y, None), None).mean().item() for y in (start, end)]
    return (energies[0] - energies[1]) / t.system.temperature


def told_apart(t: Trained) -> float:
    """The area under the curve of the energy, of uniform noise against data; 1/2 is a guess."""
    with torch.no_grad(), seeded(0):
        noise = torch.randint(17, t.x.shape)
        found = [t.system.score_encoded(Batch(x), seed=0).log_prob.numpy() for x in (noise, t.x)]
    return roc_area(*found).value


def chosen(t: Trained) -> float:
    """How much further down samples are, in nats, than the noise that they were chosen among."""
    with torch.no_grad(), seeded(0):
        noise = t.system.learner.moments.draw(t.system.fresh(200))
        start = t.system.sample_start(200, None)
        return (t.system.nats(noise, None).mean() - t.system.nats(start, None).mean()).item()


def revised(t: Trained) -> float:
    """How far chains go from what the generator proposes."""
    with seeded(0):
        start = t.system.propose(50, None).detach()
        return differ(start, t.system.run(start, None, t.system.chain_steps))


def varied_proposals(t: Trained) -> float:
    """As `varied`, of a generator beside an energy."""
    with torch.no_grad(), seeded(0):
        return (t.system.sample_start(100, None).std(0).mean() / t.system.enter(t.x).std(0).mean()).item()


def denoised(t: Trained) -> float:
    """The share of the noise that a jump takes away."""
    with seeded(0):
        y = t.system.enter(t.x)
        noisy = y + t.system.learner.deviation * torch.randn_like(y)
    return 1 - ((t.system.jump(noisy, None) - y).square().mean() / (noisy - y).square().mean()).item()


def reconstructed(t: Trained) -> float:
    """The share of the examples' variance that reconstruction, x and the variance times the score, explains."""
    x = t.system.enter(t.x).flatten(1)
    score, _ = t.system.energy.score(x, None)
    return unexplained_by(x, x + t.system.energy.log_variance.exp() * score)


def unexplained_by(x: Tensor, y: Tensor) -> float:
    return 1 - ((x - y).square().mean() / (x - x.mean(0)).square().mean()).item()


def by_step(t: Trained) -> float:
    """How differently the energies of the first and the last step rank the same examples."""
    y = t.system.enter(t.x)
    with torch.no_grad():
        first, last = (t.system.energy_at(y, torch.full((len(y),), step), None) for step in (0, t.system.steps - 1))
    return differ(first - first.mean(), last - last.mean())


def changed(t: Trained) -> float:
    """The share of the numbers that chains of discrete states change."""
    with seeded(0):
        start = t.system.fresh(50)
        return (start != t.system.run(start, None, t.system.sample_steps)).float().mean().item()


@torch.no_grad()
def below(t: Trained) -> float:
    """What the first rows cost more, in nats, given the rows below them of another image."""
    x, hidden = t.x.flatten(1), (torch.arange(64) < 24).expand(len(t.x), -1)
    log_prob = lambda seen: t.system.head.log_prob(t.system.conditionals(seen, hidden, None), x)[:, :24]  # noqa: E731
    return (log_prob(x) - log_prob(x.roll(1, 0))).sum(1).mean().item()


@torch.no_grad()
def by_time(t: Trained) -> float:
    """How much the network's output at the same points changes between an early and a late time."""
    y = t.system.enter(t.x).float()
    early, late = (t.system.net(y, torch.full((len(y),), time), None) for time in (0.2, 0.8))
    return differ(early, late)


@torch.no_grad()
def variance_gain(t: Trained) -> float:
    """What an example costs more, in nats, where all variances are half-way between their limits."""
    half = copy.deepcopy(t.system)
    for parameter in half.net.last[-1].parameters():
        parameter[len(parameter) // 2 :].zero_()
    return t.nats(half) - t.own


def chosen_times(t: Trained) -> float:
    """How much more often the time of the largest losses is trained than that of the least."""
    chances = t.system.aware.chances()
    return (chances.max() / chances.min()).item()


@torch.no_grad()
def guess_by_time(t: Trained) -> float:
    """How much the guess of the same noisy values changes between an early and a late time."""
    x = t.x.flatten(1)
    early, late = (t.system.guess(x, torch.full((len(x),), time), None).exp() for time in (100, 900))
    return differ(early, late)


def corrected(t: Trained) -> float:
    """How much samples change without the corrector."""
    samples = []
    for corrections in (1, 0):
        t.system.corrections = corrections
        samples.append(t.system.sample_encoded(20, seed=0).double())
    return differ(*samples)


# --- flows ------------------------------------------------------------------------------------------


@torch.no_grad()
def velocities(t: Trained) -> tuple[Tensor, list[Tensor]]:
    """Points on the ways of test examples, and their velocities at three times."""
    part, x, _ = next(found for found in t.watched(ContinuousFlow))
    return x, [part.velocity(time, x) for time in (0.1, 0.5, 0.9)]


def in_time(t: Trained) -> float:
    early, _, late = velocities(t)[1]
    return differ(early, late)


def in_space(t: Trained) -> float:
    """How far the velocity is from affine: that of a quadratic potential would be."""
    x, found = velocities(t)
    return unexplained(x, found[1])


@torch.no_grad()
def of_extra(t: Trained) -> float:
    """How much the velocity of the data's dimensions depends on the added ones."""
    part, x, _ = next(found for found in t.watched(ContinuousFlow))
    dims = x.shape[1] - t.system.extra
    other = torch.cat([x[:, :dims], x[:, dims:].roll(1, 0)], 1)
    return differ(*(part.velocity(0.5, points)[:, :dims] for points in (x, other)))


def rarest_piece(t: Trained) -> float:
    """The least share of points in a piece, of any dimension."""
    part, x, _ = t.watched(Piecewise)[0]
    piece = (x > part._cuts(x)[0]).sum(0)
    return min((piece == k).float().mean(0).min().item() for k in range(part.pieces))


def translated(t: Trained) -> float:
    """The least share of translations, of any coupling, that are not 0 and not those of the next example."""
    shares = []
    for _, _, found in t.watched(Translation):
        whole = found.round()
        shares.append(((whole != 0) & (whole != whole.roll(1, 0))).float().mean().item())
    return min(shares)


# --- the table --------------------------------------------------------------------------------------


class Case(NamedTuple):
    """How a system is trained, and what holds then: figures and what they are more than."""

    steps: int
    claims: dict[str, tuple[Figure, float]]
    source: str = "digits"
    condition: str | None = None
    options: dict[str, Any] = {}
    learns: bool = True  # whether these steps take its density beyond the trivial models'


COUPLED = {"every coupling": (without_each(Coupling), 0.01)}
COUPLINGS = {"couplings": (without_all(Coupling), 0.3)}
CONTEXT = {"every network of what comes before": (without_each(MaskedAutoregressive), 0.02)}
MONOTONE = CONTEXT | {"maps are not affine": (bent(MaskedAutoregressive), 5e-4)}
FIELD = {"velocity in time": (in_time, 0.05), "velocity not affine": (in_space, 0.02)}
POTENTIAL = {"potential not quadratic": (in_space, 0.02)}
MIXES = COUPLINGS | {"1x1 convolutions": (without_all(LULinear), 0.5)}
FAR = {"rows far above": (far, 0.01)}
ATTENDS = FAR | {"every attention": (without_each(CausalBlock, "merge", 0.0), 0.05)}
CODES = {"nats of z": (monitored("kl"), 1.0), "units in use": (monitored("active_units"), 1.0)}
DECODED = {"decoded from the code": (decoded, 0.3)}
BOOK = DECODED | {"priors know the codes": (prior_gain, 1.0)}
NOISE = {"time": (by_time, 0.1), "noise is told": (lambda t: 1 - monitored("error_half_way")(t), 0.5)}
DOWN = {"chains move": (gone, 0.05), "and down": (lower, 0.5)}
AGES = {"chains go on": (lambda t: t.system.learner.buffer.ages.max(), 1)}
CHAINS = DOWN | AGES
PAIRS = {
    "pairs of visible units": (without("visible_pairs", to=0.0), 1.0),
    "pairs of hidden units": (without("hidden_pairs", to=0.0), 0.1),
}
DISCRETE = {"numbers change": (changed, 0.05), "and down": (lower, 0.5), "accepted": (monitored("accepted"), 0.02)}
PLAYERS = {"samples vary": (varied, 0.3), "generator": (moved("generator"), 1e-3), "critic": (moved("critic"), 0.01)}

# fmt: off
FAST: dict[str, Case] = {
    "realnvp": Case(200, COUPLED, "moons"),
    "nice": Case(200, COUPLED, "moons"),
    "spline-flow": Case(200, COUPLED | {"splines bend": (bent(Coupling), 5e-4)}, "moons"),
    "maf-flow": Case(200, CONTEXT, "moons"),
    "iaf-flow": Case(200, CONTEXT, "moons"),
    "umnn": Case(200, MONOTONE, "moons"),
    "sos-flow": Case(300, MONOTONE, "moons"),
    "anf": Case(200, {"couplings with the additions": (without_all(Coupling), 0.3)}, "moons"),
    "surjective-flow": Case(200, COUPLED | {"law of signs": (without_all(Abs), 0.05)}, "moons"),
}

SLOW: dict[str, Case] = {
    "naf": Case(600, MONOTONE, "moons"),
    "bnaf": Case(600, {
        "every network": (without_each(BlockAutoregressive), 0.05), "not affine": (bent(BlockAutoregressive), 5e-4),
    }, "moons"),
    "rad": Case(300, COUPLINGS | {"pieces": (rarest_piece, 0.05), "folds": (without_all(Piecewise), 0.01)}, "moons"),
    "i-resnet": Case(300, {"residual branches": (without_all(Residual), 0.05)}, "moons"),
    "neural-ode": Case(100, FIELD, "moons"),
    "monge-ampere": Case(400, POTENTIAL, "moons"),
    "potential-flow": Case(300, POTENTIAL | {"in time": (in_time, 0.01)}, "moons"),
    "ffjord": Case(200, FIELD, "moons"),
    "rnode": Case(200, FIELD | {
        cost: (lambda t, cost=cost: t.figures(cost)[-1], 1e-3) for cost in ("kinetic", "jacobian")
    }, "moons"),
    "anode": Case(300, FIELD | {"extra dimensions": (of_extra, 0.03)}, "moons"),
    "ot-flow": Case(100, POTENTIAL | {"in time": (in_time, 0.01)}, "moons"),
    "glow": Case(100, MIXES),
    "conv-exp-flow": Case(100, MIXES | {"exponentials": (without_all(ConvExp), 1.0)}),
    "emerging": Case(100, MIXES | {"emerging convolutions": (without_all(AutoregressiveConv), 1.0)}),
    "periodic-flow": Case(100, COUPLINGS | {"periodic convolutions": (without_all(PeriodicConv), 1.0)}),
    "macow": Case(60, MIXES | {"masked convolutions": (without_all(MaskedConv), 1.0)}),
    "mintnet": Case(60, {"masked convolutions": (without_all(MintLayer), 1.0)}),
    "flowpp": Case(60, COUPLINGS | {
        "attention": (without_all(GatedAttention, "narrow"), 0.1), "noise in the cells": (without("cells"), 0.1),
    }),
    "idf": Case(200, {"translations": (translated, 0.02), "networks": (without_all(Translation), 1.0)}),
    "made": Case(150, FAR | {
        "hidden layers": (without("first", "blocks"), 0.5), "direct connections": (without("shortcut"), 0.5),
    }),
    "gated-pixelcnn": Case(200, FAR | {
        "what the stacks tell one another": (without_all(GatedBlock, "link", 0.0), 0.5),
        "every block": (without_each(GatedBlock, "out", 0.0), 0.01),
    }),
    "pixelrnn": Case(150, FAR | {"every layer's states": (without_each(RecurrentLayer, "state", 0.0), 0.02)}),
    "pixeliqn": Case(250, {
        "quantiles rise": (lambda t: (quantiles(t).diff(dim=2) > 0).float().mean(), 0.9),
        "they are spread": (lambda t: (quantiles(t)[..., -1] - quantiles(t)[..., 0]).mean(), 0.1),
        "rows far above": (lambda t: (quantiles(t) - quantiles(t, others_above(t)))[:, 48:].abs().mean(), 0.003),
    }),
    "transformer": Case(200, ATTENDS | {"position": (without("position", to=0.0), 0.5)}),
    "sparse-transformer": Case(200, ATTENDS | {"told how images are rearranged": (told, 0.1)}),
    "vae": Case(300, CODES | DECODED),
    "vdvae": Case(500, DECODED | {"nats of codes on two grids": (lambda t: level_costs(t).sort().values[-2], 1.0)}),
    "vlae": Case(300, CODES | {"decoded from the code": (decoded, 0.05), "prior": (without("prior"), 0.02)}),
    "vq-vae": Case(1500, BOOK | {"codes in use": (monitored("code_perplexity"), 8.0)}),
    "vq-vae-2": Case(1000, BOOK | {
        f"{level} codes in use": (monitored(f"{level}_code_perplexity"), 8.0) for level in ("upper", "lower")
    }),
    "dcgan": Case(200, PLAYERS),
    "biggan": Case(400, PLAYERS | {
        "attention": (lambda t: min(part.weight.abs() for part in t.parts(SelfAttention).values()), 1e-3),
        "classes": (by_class, 0.2), "overlap of filters": (lambda t: max(t.figures("overlap")), 0.0),
    }, condition="label"),
    "progan": Case(100, PLAYERS | {
        "grown": (lambda t: t.system.level, 0.99), "faded in": (lambda t: len(set(t.figures("level"))), 2),
        "batch seen": (sees_batch, 0.01),
    }),
    "stylegan2-ada": Case(200, PLAYERS | {
        "noise": (lambda t: min(part.strength.abs() for part in t.parts(StyledLayer).values()), 1e-4),
        "styles mixed": (mixed_styles, 0.05), "paths": (lambda t: t.system.path_mean, 0.0),
        "augmented": (lambda t: t.system.probability, 0.0),
    }),
    "ddpm": Case(300, NOISE),
    "improved-ddpm": Case(300, NOISE | {"learned variances": (variance_gain, 0.05), "times": (chosen_times, 1.5)}),
    "multinomial-diffusion": Case(300, {
        "noise is told": (lambda t: 1 - monitored("guess_half_way")(t), 0.2), "time": (guess_by_time, 0.02),
        "times": (chosen_times, 1.5),
    }),
    "argmax-flow": Case(400, COUPLINGS | {"law of the reals": (without("code"), 0.5)}),
    "score-sde": Case(150, NOISE | {"corrector": (corrected, 0.01)}, learns=False),
    "boltzmann-machine": Case(800, PAIRS | {"hidden units": (without("weight", to=0.0), 1.0)}),
    "dbn": Case(800, {
        "layers": (lambda t: t.system.started, 1), "the first": (without("rbms.0"), 1.0),
        "the second": (without("rbms.1"), 1.0),
    }),
    "discrete-ebm": Case(150, DISCRETE | {"chains go on": (lambda t: t.system.buffer.ages.max(), 1)}),
    "gsn": Case(600, {
        "what is seen": (without("see"), 1.0), "walks away": (monitored("moved_2"), 0.1),
        "finds back": (lambda t: 2 - monitored("nats_back_2")(t) / monitored("nats_back_1")(t), 0.5),
    }),
    "masked-lm": Case(400, {
        "every attention": (without_each(TransformerBlock, "merge", 0.0), 0.05), "rows below": (below, 0.5),
        "position": (without("position", to=0.0), 0.5),
    }),
    "igebm": Case(60, CHAINS),
    "vaebm": Case(100, CHAINS),
    "short-run-ebm": Case(60, DOWN),
    "generative-convnet": Case(60, DOWN),
    "coopnets": Case(150, {
        "generator": (moved("generator"), 0.01), "proposals vary": (varied_proposals, 0.3), "revised": (revised, 0.02),
    }),
    "entropy-ebm": Case(300, {
        "generator": (moved("generator"), 0.01), "samples vary": (varied_proposals, 0.3),
        "entropy": (lambda t: monitored("entropy")(t) + 64 * 0.9, 0.0),  # the noise alone has -0.88 nats a pixel
        "data below noise": (told_apart, 0.9),
    }),
    "gebm": Case(200, {
        "chains move": (gone, 0.05), "generator": (moved("generator"), 0.01), "divergence": (monitored("kale"), 0.02),
    }),
    "nt-ebm": Case(150, COUPLINGS | AGES | {"energy": (moved("energy"), 0.01)}),
    "nce": Case(200, {
        "samples chosen among the noise": (chosen, 0.5),
        "normaliser": (lambda t: monitored("log_z")(t) ** 2, 0.01), "data below noise": (told_apart, 0.9),
    }),
    "f-ebm": Case(60, CHAINS | {"critic": (moved("learner.critic"), 0.01)}),
    "stein-ebm": Case(200, DOWN | {"critic": (moved("learner.critic"), 0.01), "data below noise": (told_apart, 0.9)}),
    "diffusion-recovery": Case(100, {"every step its own": (by_step, 0.1), "data below noise": (told_apart, 0.9)}),
    "deen": Case(200, {"noise taken away": (denoised, 0.2), "data below noise": (told_apart, 0.9)}),
    "autoencoder-energy": Case(300, {"reconstructed": (reconstructed, 0.3), "data below noise": (told_apart, 0.9)}),
    "jem": Case(300, DOWN | AGES | {"accuracy": (monitored("accuracy"), 0.7)}, condition="label"),
    "flow-contrastive": Case(150, COUPLINGS | {
        "energy": (moved("energy"), 0.01), "its normaliser": (lambda t: float(t.system.started), 0.0),
    }),
}
# fmt: on
LEARNT = {name for name, case in (FAST | SLOW).items() if case.source == "digits" and case.learns}


def asleep(name: str, case: Case) -> dict[str, tuple[float, float]]:
    """The claims that do not hold after the case's training, with what was found and what was to be exceeded."""
    trained = Trained(name, case.steps, case.source, case.condition, **case.options)
    figures = {
        claim: (float(torch.as_tensor(figure(trained)).detach()), least)
        for claim, (figure, least) in case.claims.items()
    }
    if trained.system.density.comparable and case.learns:
        figures["better than the trivial models"] = trained.baseline - trained.own, 0.0
    return {claim: (value, least) for claim, (value, least) in figures.items() if not value > least}


@pytest.mark.parametrize("name", FAST)
def test_awake(name):
    assert not asleep(name, FAST[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_awake_after_longer(name):
    assert not asleep(name, SLOW[name])
