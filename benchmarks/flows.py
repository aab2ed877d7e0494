"""Flows beside zuko, nflows and normflows: the same sizes, batches and machine, alternating in one process.

    pip install -c constraints.txt -e ".[peers]"
    python -m benchmarks.flows [CASE ...] [--threads 2] [--rounds 15]

A ratio is our seconds over those of the fastest peer: the median over rounds. What is compiled is our flow, by
`flow.compile()`; the peers run as their users write them, with torch's default Adam. Writes `results/flows.json`
and `.md`, in which cases that are not named keep their figures.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import nflows
import nflows.distributions
import nflows.flows
import nflows.nn.nets
import nflows.transforms
import normflows
import torch
import zuko
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import RESULTS, machine, number, write_result
from fivefold import catalog
from fivefold.bijections.autoregressive import MaskedAutoregressive, masked_autoregressive_flow
from fivefold.bijections.base import Bijection, Chain
from fivefold.bijections.coupling import alternate_channels, in_a_row
from fivefold.bijections.ode import ContinuousFlow
from fivefold.bijections.splines import Spline
from fivefold.bijections.transforms import Affine, Transform
from fivefold.nets.units import UnitsFirst
from fivefold.space import Space
from fivefold.system import seeded
from fivefold.tools.distributions import standard_normal_log_prob

BATCH, LAYERS, HIDDEN, BINS, BOUND = 256, 5, 128, 8, 3.0
EXACT, TOLERANCES = 1e-9, [10 ** (-step / 8) for step in range(16, 57)]  # of solvers, the latter from 1e-2 to 1e-7
SECONDS = 0.15  # how long a contestant runs in a round, about
MOST_SECONDS = 90  # that all rounds of a race take, about; there are three at least
HERE, COMPILED = "here", "here, compiled"

Run = Callable[[], object]  # what is timed, once


class Model(NamedTuple):
    """A contestant: its parameters, ln p of a batch, and whether its optimiser is fused."""

    net: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    fused: bool = False


class Race(NamedTuple):
    """What runs beside each other, and the largest ratio that is asked of ours, plain and compiled.

    Args:
        what: in words.
        ours: to time, by name.
        peers: to time, by name.
        asked: largest ratio of each of ours.
        facts: what else is kept.
    """

    what: str
    ours: dict[str, Run]
    peers: dict[str, Run]
    asked: dict[str, float]
    facts: dict[str, Any] = {}


# --- models of vectors ------------------------------------------------------------------------------


class Unconditioned(nn.Module):
    """A coupling's network that takes no condition: two hidden layers on all sides."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.net(x)


class OurNet(nn.Module):
    """The same for ours."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = UnitsFirst(inputs, HIDDEN), UnitsFirst(HIDDEN, HIDDEN)
        self.last = UnitsFirst(HIDDEN, outputs)

    def by_units(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.last(F.relu_(self.second(F.relu_(self.first(x)))))


def ours(flow: Bijection) -> Model:
    return Model(flow, lambda x: _log_prob(flow, x), fused=True)


def _log_prob(flow: nn.Module, x: Tensor) -> Tensor:
    z, log_det = flow(x)
    return standard_normal_log_prob(z) + log_det


def coupling(dims: int, transform: Transform) -> Model:
    layers = [alternate_channels(i, (dims,), transform, lambda *sizes: OurNet(*sizes[:2])) for i in range(LAYERS)]
    return ours(in_a_row(layers))


def of_zuko(flow: nn.Module) -> Model:
    return Model(flow, lambda x: flow().log_prob(x))


def of_nflows(dims: int, layers: list[nn.Module]) -> Model:
    flow = nflows.flows.Flow(nflows.transforms.CompositeTransform(layers), nflows.distributions.StandardNormal([dims]))
    return Model(flow, flow.log_prob)


def of_normflows(dims: int, layers: list[nn.Module]) -> Model:
    flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(dims, trainable=False), layers)
    return Model(flow, flow.log_prob)


def nflows_net(inputs: int, outputs: int) -> nn.Module:
    return Unconditioned(nflows.nn.nets.MLP([inputs], [outputs], [HIDDEN, HIDDEN]))


def normflows_net(inputs: int, outputs: int) -> nn.Module:
    return Unconditioned(normflows.nets.MLP([inputs, HIDDEN, HIDDEN, outputs]))


def alternating(dims: int) -> list[Tensor]:
    """Masks of the peers' couplings: every other dimension, in turn."""
    return [2 * ((torch.arange(dims) + layer) % 2) - 1 for layer in range(LAYERS)]


def affine(dims: int) -> dict[str, Model]:
    """Affine couplings."""
    make = nflows.transforms.AffineCouplingTransform
    blocks: list[nn.Module] = []
    for _ in range(LAYERS):
        net = normflows_net(dims // 2, dims)
        blocks += [normflows.flows.AffineCouplingBlock(net), normflows.flows.Permute(dims, mode="swap")]
    return {
        HERE: coupling(dims, Affine()),
        "zuko": of_zuko(zuko.flows.NICE(dims, transforms=LAYERS, hidden_features=(HIDDEN, HIDDEN))),
        "nflows": of_nflows(dims, [make(mask, nflows_net) for mask in alternating(dims)]),
        "normflows": of_normflows(dims, blocks),
    }


def maf(dims: int) -> dict[str, Model]:
    """Masked autoregressive flows, affine."""
    sizes = {"features": dims, "hidden_features": HIDDEN, "num_blocks": 1, "use_residual_blocks": False}
    layers: list[nn.Module] = []
    blocks: list[nn.Module] = []
    for _ in range(LAYERS):
        reverse = nflows.transforms.ReversePermutation(dims)
        layers += [reverse, nflows.transforms.MaskedAffineAutoregressiveTransform(**sizes)]
        made = normflows.flows.MaskedAffineAutoregressive(**sizes)
        blocks += [normflows.flows.Reverse(made), normflows.flows.Permute(dims, mode="swap")]  # fast for densities
    return {
        HERE: ours(masked_autoregressive_flow(dims, LAYERS, Affine(), HIDDEN)),
        "zuko": of_zuko(zuko.flows.MAF(dims, transforms=LAYERS, hidden_features=(HIDDEN, HIDDEN))),
        "nflows": of_nflows(dims, layers),
        "normflows": of_normflows(dims, blocks),
    }


def rational_quadratic(dims: int) -> dict[str, Model]:
    """Couplings of rational-quadratic splines with linear tails (zuko's reach to 5)."""
    options = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    theirs = nflows.transforms.PiecewiseRationalQuadraticCouplingTransform
    same = normflows.flows.neural_spline.coupling.PiecewiseRationalQuadraticCoupling
    univariate = {"univariate": zuko.transforms.MonotonicRQSTransform, "shapes": [(BINS,), (BINS,), (BINS - 1,)]}
    flow = zuko.flows.NICE(dims, transforms=LAYERS, hidden_features=(HIDDEN, HIDDEN), **univariate)
    return {
        HERE: coupling(dims, Spline("rational-quadratic", BINS, BOUND)),
        "zuko": of_zuko(flow),
        "nflows": of_nflows(dims, [theirs(mask, nflows_net, **options) for mask in alternating(dims)]),
        "normflows": of_normflows(dims, [same(mask, normflows_net, **options) for mask in alternating(dims)]),
    }


# --- what is timed ----------------------------------------------------------------------------------


def training_step(model: Model, x: Tensor) -> Run:
    """zero_grad, forward, backward and a step of Adam."""
    optimizer = torch.optim.Adam(model.net.parameters(), 1e-3, **({"fused": True} if model.fused else {}))

    def step() -> None:
        optimizer.zero_grad()
        (-model.log_prob(x).mean()).backward()
        optimizer.step()

    return step


def scoring(model: Model, x: Tensor) -> Run:
    """ln p without gradients."""

    @torch.no_grad()
    def run() -> Tensor:
        return model.log_prob(x)

    return run


def compiled(model: Model) -> Model:
    """A copy of one of ours, its flow compiled in place."""
    net = copy.deepcopy(model.net)
    net.compile()
    return Model(net, lambda x: _log_prob(net, x), fused=True)


def densities(
    what: str, models: dict[str, Model], x: Tensor, make: Callable[[Model, Tensor], Run], asked: tuple[float, float]
) -> Race:
    """Ours, plain and compiled, and the peers."""
    counts = {name: sum(p.numel() for p in model.net.parameters()) for name, model in models.items()}
    largest = max(abs(count / counts[HERE] - 1) for count in counts.values())
    assert largest < 0.05, f"{what}: numbers of parameters differ: {counts}"
    runs = {name: make(model, x) for name, model in models.items()}
    ready = make(compiled(models[HERE]), x)
    started = time.perf_counter()
    ready()
    facts = {"parameters": counts, "compile_seconds": time.perf_counter() - started}
    mine = {HERE: runs.pop(HERE), COMPILED: ready}
    return Race(what, mine, runs, dict(zip((HERE, COMPILED), asked, strict=True)), facts)


def vectors(name: str, dims: int, how: str) -> Race:
    make, step, score = FAMILIES[name]
    phrase = f"{make.__doc__[:-1].lower() if make.__doc__ else name}, D = {dims}"
    x = torch.randn(BATCH, dims)
    if how == "train":
        return densities(f"training step, {phrase}", make(dims), x, training_step, step[dims])
    return densities(f"log-density, {phrase}", make(dims), x, scoring, score[dims])


Asked = dict[int, tuple[float, float]]  # by D: plain, compiled
FAMILIES: dict[str, tuple[Callable[[int], dict[str, Model]], Asked, Asked]] = {
    "affine": (affine, dict.fromkeys((8, 64), (0.78, 0.65)), dict.fromkeys((8, 64), (0.82, 0.65))),
    "maf": (maf, dict.fromkeys((8, 64), (0.78, 0.65)), dict.fromkeys((8, 64), (0.82, 0.65))),
    "rational-quadratic": (
        rational_quadratic,
        {8: (0.65, 0.45), 64: (0.55, 0.45)},
        {8: (0.50, 0.40), 64: (0.40, 0.30)},
    ),
}


# --- images, equations, sampling --------------------------------------------------------------------


def glow(batch: int = 16, layers: int = 8, scales: int = 3) -> Race:
    """Actnorm, LU-decomposed 1x1 convolutions and affine couplings; here the laws of what leaves are learnt too."""
    space = Space("image", (3, 32, 32), scale=1.0, dtype="float32")
    system: Any = catalog.build("glow", space, layers=layers, scales=scales, hidden=HIDDEN)
    flows: list[list[nn.Module]] = []
    laws: list[nn.Module] = []
    merges: list[nn.Module] = []
    for level in range(scales):
        channels, side = 3 * 2 ** (scales + 1 - level), 32 // 2 ** (scales - level)
        block = partial(normflows.flows.GlowBlock, channels, HIDDEN, net_actnorm=True)
        flows.append([*[block() for _ in range(layers)], normflows.flows.Squeeze()])
        merges += [normflows.flows.Merge()] if level else []
        laws.append(normflows.distributions.DiagGaussian((channels // (2 if level else 1), side, side)))
    theirs = normflows.MultiscaleFlow(laws, flows, merges, class_cond=False)
    models = {HERE: ours(system.flow), "normflows": Model(theirs, lambda x: theirs.log_prob(x, None))}
    x = torch.randn(batch, 3, 32, 32)
    for model in models.values():  # actnorm starts by the data
        model.log_prob(x)
    what = f"training step, Glow, 32x32x3, K = {layers}, L = {scales}, {HIDDEN} wide, batch {batch}"
    return densities(what, models, x, training_step, (0.80, 0.70))


class OfTransform(nn.Module):
    """The velocity of zuko's continuous transform, as ours takes it."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, time: float, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.transform.f(torch.tensor(time, dtype=x.dtype), x)  # type: ignore[operator]


def ffjord(dims: int = 64) -> Race:
    """zuko's CNF with its default tolerances, and the same velocity solved here with an error no larger."""
    peer: Any = zuko.flows.CNF(dims, hidden_features=(HIDDEN, HIDDEN), exact=False)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.mul_(2)  # as after some training: at first hardly anything moves
    x = torch.randn(BATCH, dims)
    flow = ContinuousFlow(OfTransform(copy.deepcopy(peer.transform)), trace="hutchinson")
    some = x[:32].double()  # errors are measured on a few, in double precision
    atol, rtol = peer.transform.atol, peer.transform.rtol
    found = _log_prob_of(of_zuko(peer), some)
    peer.transform.atol = peer.transform.rtol = EXACT
    theirs = _error(found, _log_prob_of(of_zuko(peer), some))
    peer.transform.atol, peer.transform.rtol = atol, rtol
    flow.tolerance = EXACT
    truth = _log_prob_of(ours(flow), some)
    for tolerance in TOLERANCES:
        flow.tolerance = tolerance
        error = _error(_log_prob_of(ours(flow), some), truth)
        if error <= theirs:
            break
    facts = {"solver_error": {HERE: error, "zuko": theirs}, "tolerance": flow.tolerance}
    return Race(
        f"training step, continuous flow, D = {dims}, the same velocity, probes and achieved error",
        {HERE: training_step(ours(flow), x)},
        {"zuko": training_step(of_zuko(peer), x)},
        {HERE: 0.70},
        facts,
    )


def _log_prob_of(model: Model, x: Tensor) -> Tensor:
    """ln p in double precision, always with the same probes."""
    model.net.double()
    with seeded(0, x.device), torch.no_grad():
        values = model.log_prob(x)
    model.net.float()
    return values


def _error(values: Tensor, truth: Tensor) -> float:
    """Root mean square difference, in nats."""
    return (values - truth).square().mean().sqrt().item()


def sampling(dims: int, layers: int, hidden: int, batch: int, times: float) -> Race:
    """From noise to data by masked autoregressive flows."""
    flow = masked_autoregressive_flow(dims, layers, Affine(), hidden)
    parts = [part for part in flow.modules() if isinstance(part, MaskedAutoregressive)]
    for part in parts:
        *_, last = part.net.weights.detach().split(part.net.sizes)
        last.normal_(std=0.5 / math.sqrt(hidden))  # the identity at first
    theirs = zuko.flows.MAF(dims, transforms=layers, hidden_features=(hidden, hidden))
    sizes = {"features": dims, "hidden_features": hidden, "num_blocks": 1, "use_residual_blocks": False}
    of_nflows = nflows.transforms.CompositeTransform(
        [nflows.transforms.MaskedAffineAutoregressiveTransform(**sizes) for _ in range(layers)]
    )
    of_normflows = [normflows.flows.MaskedAffineAutoregressive(**sizes) for _ in range(layers)]
    z = torch.randn(batch, dims)

    def run_normflows() -> None:
        x = z
        for layer in of_normflows:
            x, _ = layer.inverse(x)

    runs: dict[str, Run] = {
        HERE: lambda: flow.inverse(z)[0],
        "zuko": lambda: theirs().transform.inv(z),
        "nflows": lambda: of_nflows.inverse(z)[0],
        "normflows": run_normflows,
    }
    runs = {name: torch.no_grad()(run) for name, run in runs.items()}
    with torch.no_grad():
        distance = (flow.inverse(z)[0] - _one_by_one(flow, z)).abs().max().item()
    assert distance <= 1e-5, f"samples differ from those taken one dimension at a time by {distance:.2g}"
    what = f"samples, MAF, D = {dims}, layers {layers}, 2x{hidden} hidden, batch {batch}"
    facts = {"largest_difference_from_one_by_one": distance}
    return Race(what, {HERE: runs.pop(HERE)}, runs, {HERE: 1 / times}, facts)


def _one_by_one(flow: Bijection, z: Tensor) -> Tensor:
    """The inverse of a chain, each dimension after a whole evaluation of the network."""
    assert isinstance(flow, Chain)
    for part in reversed(list(flow.parts)):
        if not isinstance(part, MaskedAutoregressive):
            z, _ = part.inverse(z)  # type: ignore[operator]
            continue
        x = torch.zeros_like(z)
        dims = range(z.shape[1])
        for dim in reversed(dims) if part.backwards else dims:
            x[:, dim] = part.transform.inverse(z.T, part.net(x.T))[0][dim]
        z = x
    return z


CASES: dict[str, Callable[[], Race]] = {
    **{
        f"{name}-{dims}-{how}": partial(vectors, name, dims, how)
        for name in FAMILIES
        for dims in (8, 64)
        for how in ("train", "score")
    },
    "glow": glow,
    "ffjord": ffjord,
    "sampling-64": partial(sampling, 64, 5, 128, 256, 7),
    "sampling-784": partial(sampling, 784, 1, 1024, 64, 50),
}


# --- measuring and writing --------------------------------------------------------------------------


def measure(race: Race, rounds: int) -> list[dict[str, Any]]:
    """A row for each of ours; in each round all run in turn, each as often as fits into about `SECONDS`."""
    runs = {**race.ours, **race.peers}
    once = {name: _seconds(run, 1) for name, run in runs.items()}
    repeats = {name: max(1, round(SECONDS / seconds)) for name, seconds in once.items()}
    rounds = min(rounds, max(3, round(MOST_SECONDS / sum(once[name] * repeats[name] for name in runs))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(_seconds(run, repeats[name]))
    medians = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    fastest = min(race.peers, key=lambda name: medians[name])
    rows = []
    for name in race.ours:
        ratios = sorted(mine / peer for mine, peer in zip(times[name], times[fastest], strict=True))
        rows.append({
            "what": race.what + name.removeprefix(HERE), "ours_ms": medians[name],
            "peers_ms": {peer: medians[peer] for peer in race.peers}, "fastest": fastest,
            "ratio": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1],
            "asked": race.asked[name], **race.facts,
        })  # fmt: skip
    return rows


def _seconds(run: Run, repeats: int) -> float:
    """Of one run, after one that is not counted where it is short."""
    before = time.perf_counter()
    if repeats < 3:
        run()
    if repeats == 1 and time.perf_counter() - before > 1:
        return time.perf_counter() - before
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats


def page(rows: dict[str, list[dict[str, Any]]], machines: dict[str, str]) -> str:
    """The tables, in Markdown: one for each machine that measured."""
    head = [
        "| what | ms | zuko's ms | nflows' | normflows' | ratio to the fastest (rounds) | asked, at most |",
        "|---|---|---|---|---|---|---|",
    ]
    lines = ["# Flows beside peers"]
    for name in dict.fromkeys(machines.values()):
        lines += ["", f"On {name}.", "", *head]
        lines += [line(row) for case, found in rows.items() if machines[case] == name for row in found]
    compiling = [row["compile_seconds"] for found in rows.values() for row in found if "compile_seconds" in row]
    if compiling:
        lines += ["", f"Compiling takes {min(compiling):.0f} to {max(compiling):.0f} seconds."]
    return "\n".join(lines) + "\n"


def line(row: dict[str, Any]) -> str:
    peers = " | ".join(number(row["peers_ms"].get(name), ".3g") for name in ("zuko", "nflows", "normflows"))
    span = f"{row['lowest']:.2g} to {row['highest']:.2g}"
    return f"| {row['what']} | {row['ours_ms']:.3g} | {peers} | {row['ratio']:.2g} ({span}) | {row['asked']:.2g} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}, or how some begin; all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore", "Inputs to the softmax")  # the peers', of any network but their own
    path = RESULTS / "flows.json"
    kept = json.loads(path.read_text()) if path.exists() and given.cases else {"rows": {}, "machines": {}}
    rows, machines = kept["rows"], kept["machines"]
    for name in CASES:
        if given.cases and not any(name.startswith(case) for case in given.cases):
            continue
        torch.manual_seed(0)
        torch.compiler.reset()
        rows[name], machines[name] = measure(CASES[name](), given.rounds), machine()
        for row in rows[name]:
            print(f"{row['what']}: {row['ratio']:.3g} of {row['fastest']}'s time, asked {row['asked']:.3g}", flush=True)
        keep({name: rows[name] for name in CASES if name in rows}, machines)


def keep(rows: dict[str, list[dict[str, Any]]], machines: dict[str, str]) -> None:
    """Write what is measured so far."""
    everything = [row for found in rows.values() for row in found]
    met = sum(row["ratio"] <= row["asked"] for row in everything)
    write_result("flows", f"{met} of {len(everything)} ratios as asked", {"machines": machines, "rows": rows})
    (RESULTS / "flows.md").write_text(page(rows, machines))


if __name__ == "__main__":
    main()
