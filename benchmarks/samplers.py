"""Learned samplers beside Hamiltonian Monte Carlo and Langevin steps: effective samples for each evaluation.

    python -m benchmarks.samplers [--chains 50] [--steps 2000] [--seeds 3]

On laws whose moments are known, each sampler runs equally many chains, and the worst number (or its square, see
`laws.Law.watched`) says how many independent draws its states are worth, for each evaluation of the energy or its
gradient. What is left to choose, lengths of trajectories or sizes of steps, is the best of several. What learning took
is stated apart; seconds are of the processor. Writes `results/samplers.json`, `.md` and `.png`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch

from benchmarks.common import RESULTS, machine, number, write_markdown, write_result
from benchmarks.laws import HARD, LAWS, Law
from fivefold.energy._samplers import LEARNERS
from fivefold.system import seeded
from fivefold.tools.mcmc import KERNELS, Move, Sampler
from fivefold.tools.traces import effective_sample_size, r_hat

CHAINS, STEPS, WARM_UP = 50, 1000, 300
LEAPFROGS = (1, 2, 4, 8, 16, 32)  # the most steps of a trajectory
LANGEVIN = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # sizes of steps
LEARN_FROM = 200  # chains
AGREED = 1.1  # R-hat below which chains follow one law


class Efficiency(NamedTuple):
    """How good chains are.

    Args:
        each: effective samples for each evaluation of the energy or its gradient, after the warm-up.
        second: effective samples a second of the processor.
        accepted: mean chance of acceptance.
        r_hat: the worst number's.
    """

    each: float
    second: float
    accepted: float
    r_hat: float


def efficiency(law: Law, sampler: Sampler, move: Move, chains: int = CHAINS, steps: int = STEPS) -> Efficiency:
    """Of a sampler's chains on a law."""
    move = move._replace(keep=chains)
    start = time.process_time()
    found = sampler(law.energy, law.start(chains), steps, move)
    share = steps / (steps + move.warm_up)
    seconds = (time.process_time() - start) * share
    assert found.trace is not None
    watched = law.watched(found.trace)
    effective = effective_sample_size(watched).min().item()
    each = effective / (found.evaluations * share * chains)
    return Efficiency(each, effective / seconds, found.accepted.mean().item(), r_hat(watched).max().item())


def best_of(law: Law, sampler: Sampler, moves: list[Move], chains: int = CHAINS, steps: int = STEPS) -> Efficiency:
    """Of several moves that with which the most is got, of those by which chains agree if there is one.

    Chains that do not agree count as many effective samples as there are chains, wherever they stand.
    """
    tried = [efficiency(law, sampler, move, chains, steps) for move in moves]
    return max(tried, key=lambda found: (found.r_hat < AGREED, found.each))


TRAJECTORIES = [Move(0.04, warm_up=WARM_UP, leapfrog=n) for n in LEAPFROGS]
MOVES = {  # of samplers that read more than the warm-up, those to choose from
    "hamiltonian": TRAJECTORIES,
    "neutra": TRAJECTORIES[:4],
    "metropolis-langevin": [Move(size, warm_up=WARM_UP) for size in LANGEVIN],
}


# --- the table --------------------------------------------------------------------------------------


def measure(law: Law, chains: int, steps: int, seed: int) -> tuple[dict[str, dict[str, Any]], dict[str, Sampler]]:
    """By sampler its figures, and of a learned one what learning took; and the learned ones."""
    made: dict[str, Sampler] = {}
    with seeded(seed):
        rows: dict[str, dict[str, Any]] = {
            name: best_of(law, KERNELS[name], MOVES[name], chains, steps)._asdict()
            for name in ("hamiltonian", "metropolis-langevin")
        }
        for name, learn in LEARNERS.items():
            start = time.process_time()
            learned = learn(law.energy, law.start(LEARN_FROM))
            seconds = time.process_time() - start
            made[name] = learned.sample
            found = best_of(law, learned.sample, MOVES.get(name, [Move(1.0, warm_up=WARM_UP)]), chains, steps)
            rows[name] = found._asdict() | {"learning_evaluations": learned.evaluations, "learning_seconds": seconds}
    return rows, made


def together(runs: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Medians over seeds of every figure, and of `each` the least and most."""
    found: dict[str, dict[str, Any]] = {}
    for name, first in runs[0].items():
        found[name] = {key: float(np.median([run[name][key] for run in runs])) for key in first}
        each = [run[name]["each"] for run in runs]
        found[name]["least"], found[name]["most"] = min(each), max(each)
    return found


HEAD = ["sampler", "effective samples for 1,000 evaluations (least to most)", "beside Hamiltonian", "accepted", "R-hat",
        "effective samples a second", "evaluations of learning", "seconds of learning", "repaid after"]  # fmt: skip


def table(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row for each sampler; learning is repaid after as many effective samples as Hamiltonian would have by then."""
    plain, lines = rows["hamiltonian"]["each"], [HEAD]
    for name, row in rows.items():
        cost, gain = row.get("learning_evaluations"), 1 / plain - 1 / row["each"]
        repaid = None if cost is None else f"{cost / gain:,.0f}" if gain > 0 else "never"
        lines.append([
            f"`{name}`",
            f"{1000 * row['each']:.2f} ({1000 * row['least']:.2f} to {1000 * row['most']:.2f})",
            f"{row['each'] / plain:,.1f}",
            f"{row['accepted']:.2f}",
            f"{row['r_hat']:.3f}",
            f"{row['second']:,.0f}",
            number(cost, ",.0f"),
            number(row.get("learning_seconds")),
            repaid or "–",
        ])  # fmt: skip
    return lines


# --- the picture --------------------------------------------------------------------------------------

PICTURED = ("mixture", "ring", "banana", "funnel")
EVALUATIONS = 1500  # that one chain may take


def picture(path: Path, learned: dict[str, dict[str, Sampler]]) -> None:
    """A row for each law in the plane: one chain of every sampler for equally many evaluations.

    Args:
        path: of the file.
        learned: by law and name, the samplers that learned on it.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = ["hamiltonian", *LEARNERS]
    figure, axes = plt.subplots(len(PICTURED), len(names), figsize=(2.2 * len(names), 2.2 * len(PICTURED)))
    for row, what in zip(axes, PICTURED, strict=True):
        law = (LAWS | HARD)[what]
        for axis, name in zip(row, names, strict=True):
            sampler = learned[what].get(name) or KERNELS[name]
            with seeded(0):
                warm = sampler(law.energy, law.start(1), 10, Move(0.04, warm_up=WARM_UP))
                each = warm.evaluations / (10 + WARM_UP)
                move = Move(0.04, warm_up=WARM_UP, keep=1)
                trace = sampler(law.energy, warm.state, max(int(EVALUATIONS / each), 1), move).trace
            assert trace is not None
            axis.plot(*trace[:, 0].T.numpy(), lw=0.3, color="0.6")
            axis.plot(*trace[:, 0].T.numpy(), ".", ms=2, color="C0")
            _contours(axis, law)
            if axis is row[0]:
                axis.set_ylabel(what)
            if what == PICTURED[0]:
                axis.set_title(name, fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=110)
    plt.close(figure)


WINDOWS = {"banana": (-9, 9, -2, 14), "funnel": (-5, 5, -8, 8)}


def _contours(axis: Any, law: Law) -> None:
    left, right, low, high = next((WINDOWS[n] for n in WINDOWS if (LAWS | HARD)[n] is law), (-4, 4, -4, 4))
    x, y = torch.linspace(left, right, 200).double(), torch.linspace(low, high, 200).double()
    values = law.energy(torch.cartesian_prod(x, y)).view(200, 200).T
    axis.contour(x, y, values - values.min(), levels=[1, 3, 6], colors="C3", linewidths=0.5)
    axis.set_xlim(left, right)
    axis.set_ylim(low, high)


def keep(results: dict[str, Any], how: str, place: Path) -> None:
    """The headline and a table for each law."""
    better = {
        name: sum(rows[name]["r_hat"] < AGREED and rows[name]["each"] > 2 * rows["hamiltonian"]["each"]
                  for rows in results.values())
        for name in LEARNERS
    }  # fmt: skip
    said = ", ".join(f"{name} on {count}" for name, count in better.items())
    line = (
        f"over twice the effective samples of Hamiltonian Monte Carlo for each evaluation, of {len(results)} laws: "
        f"{said}; learning stated apart; where R-hat is above {AGREED} chains do not agree and count as many effective "
        f"samples as there are chains; {how}"
    )
    write_result("samplers", line, {"laws": results}, place)
    write_markdown("samplers", line, {what.capitalize(): table(rows) for what, rows in results.items()}, place)


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=CHAINS)
    parser.add_argument("--steps", type=int, default=2 * STEPS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    learned: dict[str, dict[str, Sampler]] = {}
    for what, law in (LAWS | HARD).items():
        runs = [measure(law, given.chains, given.steps, seed) for seed in range(given.seeds)]
        results[what], learned[what] = together([rows for rows, _ in runs]), runs[0][1]
        print(what, *map(" | ".join, table(results[what])), sep="\n", flush=True)
    seeds = "one seed" if given.seeds == 1 else f"medians of {given.seeds} seeds"
    keep(results, f"{given.chains} chains of {given.steps:,} steps, {seeds}, on {machine()}", given.out)
    picture(given.out / "samplers.png", learned)


if __name__ == "__main__":
    main()
