"""One row of the table: a system's density, sample quality and cost, each value with its error.

A row is a dictionary that JSON can hold:

| field     | content                                                                               |
|-----------|---------------------------------------------------------------------------------------|
| system, title, family, label, seed, command | what the row is and how to repeat it                |
| preset    | in a comparison: which of the system's presets its options are; None for its default   |
| status, error, note | "ok" or the word for what went wrong; what to know when reading the row     |
| density   | `kind`, `nats` and `standard_error` an example of the test split, `examples`, `note`;   |
|           | `bits_per_dim` and `bits_error` where all dimensions are discrete, per `unit`: that of  |
|           | text is a character, whatever its symbols are                                          |
| quality   | `features`, `frechet_name`, `samples`, `reference`; of each of `tools.metrics.MEASURES` |
|           | `value`, `error`, `floor`, `floor_error` and `excess_error`, that of value - floor;     |
|           | `own_error`, the samples' part of the error; `note` where they cannot be had             |
| cost      | speeds in examples a second, seconds, parameters, bytes; None where not known          |
| threads   | by work how many were the fastest (`training`, `sampling`), and the machine's `load`;     |
|           | in a comparison those `given` to each process                                            |
| machine   | where it was measured: `fivefold.machine.describe`; in a comparison also its `node` in a    |
|           | cluster, and how many `jobs` it does at a time                                           |
| sizes     | what the rule of sizes chose: `fivefold.training.sizing.Sizes`                          |
| stars     | Table 2's 1 to 5, None where its rule does not apply                                   |
| facts     | Table 1's two columns of ticks                                                         |
| resolution | of images in a comparison: the largest `side` that fits the stated `limits`, `why` no larger |
| diagnostics | in a comparison: `fivefold.evaluation.diagnostics`                                                |
| monitor, curves | the last signs of collapse; `loss` as [seconds, value], and of validation data `density` (mean |
|           | nats) and `distance` (Fréchet's) as [seconds, value, standard error]                   |

What rows share is kept beside them, so that they can be compared example by example:

| array                     | content                                                              |
|---------------------------|----------------------------------------------------------------------|
| log_prob, log_prob_index  | nats of each test example scored `(n,)`, and which it is              |
| log_prob_bits             | how each moves the bits, where it is not by its nats alone `(n,)`     |
| features                  | of the samples `(samples, D)`                                         |
| reference, reference_index | features of the test examples beside them `(m, D)`, and which these are |
| reference.MEASURE         | how each of these moves that measure, to first order `(m,)`           |
"""

from __future__ import annotations

import contextlib
import inspect
import math
import resource
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fivefold import catalog
from fivefold.data import Data, load_data
from fivefold.errors import DataError, TooFew, UnknownSystem
from fivefold.evaluation.bits import bits
from fivefold.evaluation.features import Features, fit_features, gaps_shown
from fivefold.machine import describe, fastest_threads, load, using
from fivefold.options import Slot, flags, label
from fivefold.run import Run
from fivefold.space import Batch, Space
from fivefold.system import Density, System
from fivefold.tools.metrics import MEASURES, frechet, score, spread
from fivefold.tools.resampling import Score, difference_error
from fivefold.tools.table_metrics import Columns

SAMPLES = 500  # the same for all, since some measures depend on it
DENSITY_EXAMPLES = 2000  # of the test split, at most
TRAINING_EXAMPLES = 50_000  # that samples are compared with, at most
DENSITY_SECONDS = 8.0
SAMPLE_SECONDS = 60.0
RATE_SECONDS = 1.0  # spent on timing samples, at each batch size
BEST_WITHIN = 0.01  # a run has reached its best when this share of the way from its first value is left
CURVE_POINTS = 200

Row = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


def evaluate(
    model: System | str | Path,
    data: Data | None = None,
    *,
    samples: int = SAMPLES,
    features: Features | None = None,
    seed: int = 0,
    sample_seconds: float = SAMPLE_SECONDS,
    trust: str | None = None,
    device: torch.device | str = "cpu",
    keep: Arrays | None = None,
) -> Row:
    """Measure a trained system on the test split.

    Args:
        model: a system, or the folder of a run.
        data: what to measure on; None takes the run's own.
        samples: how many to draw for sample quality; only rows of the same number are comparable.
        features: what samples are compared in; None fits those of `fit_features`.
        seed: of samples and of sampled densities.
        sample_seconds: sample quality is left out, and the row says so, where drawing would take longer.
        trust: the module name of a system outside the package, to allow importing it.
        device: where a run is measured; a system is measured where it is.
        keep: takes the row's arrays, as the module describes them.

    Returns:
        The row, as the module describes it.
    """
    run = None if isinstance(model, System) else Run.open(model, trust=trust)
    system = run.load_system().to(device) if run is not None else model
    assert isinstance(system, System)
    if data is None:
        if run is None:
            raise ValueError("evaluate needs data: a system alone does not know where its data are")
        data = run.load_data()
    history = _history(run)
    cost = {
        **history.pop("cost"),
        **sampling_cost(system, data),
        "parameters": sum(p.numel() for p in system.parameters()),
        "peak_memory_bytes": _peak_memory(system.device),
    }
    seconds = _sampling_seconds(cost, samples)
    if seconds > sample_seconds:
        quality: Row = {"note": f"{samples} samples would take {seconds:.0f} s, more than {sample_seconds:.0f} s"}
    else:
        n = _sample_count(samples, data)
        with using(cost["sample_threads"]):
            x = system.sample_encoded(n, conditions(system, data, n), seed=seed).cpu()
        quality = sample_quality(recoded(x, system.data_space, data.space), data, features, keep)
    return {
        **_identity(type(system), run, seed),
        "status": "ok",
        "error": None,
        "note": _note(run, data),
        "density": density(system, data, seed, keep=keep),
        "quality": quality,
        "cost": cost,
        "stars": stars(system, cost),
        "threads": {**history.pop("threads"), "sampling": cost["sample_threads"], "load": load()},
        "machine": describe(system.device),
        "facts": {"free_form_jacobian": system.free_form, "exact_density": _EXACT[system.density]},
        **history,
    }


def evaluate_samples(
    label: str,
    samples: Any,
    data: Data,
    *,
    count: int = SAMPLES,
    features: Features | None = None,
    keep: Arrays | None = None,
) -> Row:
    """The row of somebody else's samples, in the user's own form: sample quality alone.

    Args:
        label: the row's name.
        samples: as the data are; at most `count` are used, evenly spread.
        data: what to compare with.
        count: as many as the other rows' samples.
        features: what samples are compared in; None fits those of `fit_features`.
        keep: takes the row's arrays, as the module describes them.
    """
    x = data.space.encode(samples)
    wanted = _sample_count(count, data)
    few = f"only {len(x)} samples; the other rows have {wanted}" if len(x) < wanted else ""
    return {
        "system": None, "title": label, "family": "samples", "label": label, "seed": None, "command": "",
        "status": "ok", "error": None, "note": few,
        "density": {"kind": Density.NONE.value},
        "quality": sample_quality(spread(x, wanted), data, features, keep),
        "cost": {}, "stars": {}, "facts": {}, "monitor": {}, "curves": {},
    }  # fmt: skip


# --- density ----------------------------------------------------------------------------------------

_EXACT = {  # Table 1's "exact density": a tick, a tick in brackets, or none
    Density.EXACT: "yes",
    Density.LOWER_BOUND: "approximate",
    Density.ESTIMATE: "approximate",
    Density.UNNORMALISED: "no",
    Density.NONE: "no",
}


def density(
    system: System, data: Data, seed: int = 0, seconds: float = DENSITY_SECONDS, keep: Arrays | None = None
) -> Row:
    """Mean ln p of the test split in nats and, where it is discrete, -log2 p a dimension in bits.

    The standard error is that of a mean over examples. An estimate's own error counts in full beside
    it: what is estimated (log Z) is mostly common to all examples and does not average out.
    """
    kind = system.density.value
    if not system.density.comparable:
        return {"kind": kind}

    def scored(n: int) -> tuple[Tensor, Tensor]:
        x = recoded(data.test.spread(n).x, data.space, system.data_space)
        return system.score_encoded(Batch(x, conditions(system, data, n)), seed=seed)

    total = min(len(data.test), DENSITY_EXAMPLES)
    with using(fastest_threads(lambda: scored(min(8, total)))[0]):
        n = affordable(scored, total, seconds)
        values, errors = scored(n)
    if keep is not None:
        keep |= {"log_prob": _small(values), "log_prob_index": _index(len(data.test), n)}
    notes = [system.density_note, f"{n} of {len(data.test)} test examples" if n < len(data.test) else ""]
    row: Row = {"kind": kind, "examples": n, "nats": None, "standard_error": None, "own_error": None}
    row |= {"bits_per_dim": None, "bits_error": None, "note": ", ".join(note for note in notes if note)}
    if not values.isfinite().all():
        impossible = int((~values.isfinite()).sum())
        return {**row, "note": f"{impossible} of {n} test examples have no finite log-probability"}
    common = float(errors.mean()) if system.density is Density.ESTIMATE else 0.0
    error = math.sqrt(float(values.var()) / n + common**2) if n > 1 else None
    row |= {"nats": float(values.mean()), "standard_error": error, "own_error": common}
    if data.space.discrete:
        found = bits(values, data.space.units(data.test.spread(n).x), common)
        row |= {"bits_per_dim": found.value, "bits_error": found.error, "unit": data.space.unit}
        if keep is not None and data.space.vocabulary is not None:
            keep["log_prob_bits"] = _small(found.terms)
    return row


def _small(x: Tensor) -> NDArray[Any]:
    """As it is kept."""
    return x.float().cpu().numpy()


def _index(size: int, n: int) -> NDArray[Any]:
    """Which examples of a split `Split.spread(n)` takes."""
    return spread(torch.arange(size), n).int().numpy()


def affordable(work: Callable[[int], Any], total: int, seconds: float) -> int:
    """The largest n up to `total` that `work(n)` does in about `seconds`, by timing it on 8 and 32."""
    if total <= 32:
        return total
    times = [_seconds(work, n) for n in (8, 8, 32)]  # the first warms up
    each = max(times[2] - times[1], 1e-9) / 24
    fixed = max(times[1] - 8 * each, 0.0)
    return max(min(total, int((seconds - fixed) / each)), 32)


def _seconds(work: Callable[[int], Any], n: int) -> float:
    started = time.perf_counter()
    work(n)
    return time.perf_counter() - started


# --- sample quality ---------------------------------------------------------------------------------


def sample_quality(x: Tensor, data: Data, features: Features | None = None, keep: Arrays | None = None) -> Row:
    """Every measure of encoded samples `x` `(n, *shape)` against the test split, beside its floor.

    The floor is the same measure of as many training examples: what a perfect model would come to,
    were the features not fitted on those. Where a measure cannot be had, `note` says why.
    """
    features = features or fit_features(data)
    reference = data.test.spread(max(len(x), SAMPLES))
    row: Row = {"features": features.name, "frechet_name": features.distance}
    row |= {"samples": len(x), "reference": len(reference.x)}
    if not gaps_shown(x, data.space).isfinite().all():
        return {**row, "note": "samples are not finite"}
    with using(fastest_threads(lambda: features(x[:64]))[0]):
        training, real, mine = features.of(data.train, TRAINING_EXAMPLES), features(reference.x), features(x)
    columns, of_floor = (columns_beside(z, reference.x, data.space) for z in (x, data.train.spread(len(x)).x))
    try:
        with using(fastest_threads(lambda: frechet(mine, real))[0]):
            values = score(mine, real, training, columns=columns)
            floors = score(spread(training, len(x)), real, training, of_training=True, columns=of_floor)
    except TooFew as error:
        return {**row, "note": str(error)}
    notes = []
    if "frechet" not in values:
        notes += [f"the Fréchet distance of {real.shape[1]} features needs more samples and test examples than that"]
    if len(training) < len(data.train):
        notes += [f"memorisation and copies of {len(training):,} of {len(data.train):,} training examples"]
    row["note"] = "; ".join(notes)
    found = [name for name in MEASURES if name in values and name in floors]
    if keep is not None:
        keep |= {"features": _small(mine), "reference": _small(real)}
        keep["reference_index"] = _index(len(data.test), len(real))
        keep |= {f"reference.{name}": _small(values[name].reference) for name in found}
    return row | {name: _beside_floor(values[name], floors[name]) for name in found}


def _beside_floor(value: Score, floor: Score) -> Row:
    """The floor has the same test examples: what both owe to them is no part of the error of the excess."""
    (_, floor_error), error = floor.estimate, difference_error(value, floor)
    found = {**value.estimate._asdict(), "floor": float(floor.value), "floor_error": floor_error}
    return {**found, "excess_error": error, "own_error": value.own_error}


def columns_beside(x: Tensor, y: Tensor, space: Space) -> Columns | None:
    """What per-column measures see; None where the data are no table."""
    if space.kind != "table":
        return None
    levels = [c.levels if c.kind == "categorical" else None for c in space.columns]
    levels += [2 for column in space.columns if column.missing]
    return Columns(gaps_shown(x, space), gaps_shown(y, space), tuple(levels))


def _sample_count(samples: int, data: Data) -> int:
    """No more than training examples, so that the floor has as many."""
    return min(samples, len(data.train))


def conditions(system: System, data: Data, n: int) -> Tensor | None:
    """Conditions of `data.test.spread(n)`, repeated up to `n` where the split is smaller."""
    if system.data_space.condition is None:
        return None
    condition = data.test.spread(n).condition
    if condition is None or data.space.condition is None:
        raise DataError(
            f"this model needs a condition, and the data have none: {system.data_space.condition.describe()}"
        )
    condition = recoded(condition, data.space.condition, system.data_space.condition)
    return condition[torch.arange(n) % len(condition)].to(system.device)


def recoded(x: Tensor, source: Space, target: Space) -> Tensor:
    """Encoded examples of one space in another's encoding; they differ where a model meets other data."""
    return x if source == target else target.encode(source.decode(x))


# --- cost -------------------------------------------------------------------------------------------


def sampling_cost(system: System, data: Data) -> Row:
    """Examples a second drawn one at a time and 64 at a time; network evaluations one sample takes."""

    def rate(n: int) -> tuple[int, float]:
        condition = conditions(system, data, n)
        threads, seconds = fastest_threads(lambda: system.sample_encoded(n, condition, seed=0).cpu(), RATE_SECONDS / 4)
        return threads, n / seconds

    (_, one), (threads, many) = rate(1), rate(64)
    return {
        "sample_per_second_1": one,
        "sample_per_second_64": many,
        "sample_evaluations": system.sample_evaluations,
        "sample_threads": threads,
    }


def _sampling_seconds(cost: Row, n: int) -> float:
    """What `n` samples will take, were time linear in their number."""
    one, many = 1 / cost["sample_per_second_1"], 64 / cost["sample_per_second_64"]
    return one + (n - 1) * max(many - one, 0.0) / 63


def _peak_memory(device: torch.device) -> int:
    """Of this process so far (training too, where it trained here): the accelerator's where it is used."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def stars(system: System, cost: Row) -> Row:
    """Table 2's stars, 1 (worst) to 5, by its rules for parameters and sampling (see `resolution_stars`).

    Its training rule counts days on CIFAR-10. Here it is the share of the budget until validation had come 99 %
    of the way to its best, in the same proportions (half, 1, 2 and 5 days are 10, 20, 40 and 100 % of the budget,
    each with half of a tenth of slack since validation looks ten times); one star: it still got better.
    """
    share = cost.get("seconds_to_best") and cost["seconds_to_best"] / cost["budget_seconds"]
    evaluations = cost["sample_evaluations"]
    by_steps = 5 if evaluations <= 1 else 4 if evaluations <= 20 else 3
    return {
        "training": None if share is None else 5 - sum(share > bound for bound in (0.15, 0.25, 0.45, 0.95)),
        "sampling": {"autoregressive": 1, "mcmc": 2}.get(system.sampling, by_steps),
        "parameters": 5 - sum(cost["parameters"] > bound for bound in (10e6, 30e6, 60e6, 120e6)),
    }


def resolution_stars(side: int | None) -> int:
    """Table 2's stars of the largest resolution, 1 to 5."""
    return 1 + sum((side or 0) >= bound for bound in (32, 64, 256, 1024))


# --- the run ----------------------------------------------------------------------------------------


def _identity(cls: type[System], run: Run | None, seed: int) -> Row:
    """What the row is. A system that is not in a file of its own is known by its class's name."""
    try:
        with run.trusting() if run else contextlib.nullcontext():
            entry = catalog.find(run.record["system"] if run else catalog.name_of(cls))
        names = {"system": entry.id, "title": entry.title, "family": entry.family}
    except UnknownSystem:
        names = {"system": cls.__name__, "title": cls.__name__, "family": "own"}
    if run is None:
        return {**names, "label": names["system"], "seed": seed, "command": ""}
    filled = {name: value for name, value in run.record["given"]["system"].items() if isinstance(value, dict)}
    called = label(Slot(names["system"], None, filled))
    return {**names, "label": called, "seed": run.record["arguments"]["fit"]["seed"], "command": command(run.record)}


def command(record: Row) -> str:
    """The command line that trains the run again."""
    defaults = inspect.signature(load_data).parameters
    given = {name: value for name, value in record["data"]["arguments"].items() if value != defaults[name].default}
    for part in record["given"].values():
        given |= part
    words = ["fivefold", "train", record["system"], "--data", record["data"]["source"] or "DATA"]
    return shlex.join([*words, *flags(given | {"budget": record["budget"]})])


def _note(run: Run | None, data: Data) -> str:
    if run is None or run.record["data"]["fingerprint"] == data.fingerprint:
        return ""
    return f"trained on {run.record['data']['name']}, measured on other data ({data.name})"


def _history(run: Run | None) -> Row:
    """Training cost, curves and the last monitor from the run's log; a system alone has none."""
    log = run.log() if run else []
    record = run.record if run else {}
    marks = [event for event in log if "validation" in event]
    seconds = record.get("seconds") or None
    cost = {
        "train_examples_per_second": record["examples"] / seconds if seconds else None,
        "seconds_to_best": seconds_to_best([[event["seconds"], event["validation"]] for event in marks]),
        "budget_seconds": seconds,
        "validation_seconds": record.get("validation_seconds"),
        "wall_seconds": record.get("wall_seconds"),
    }
    return {
        "cost": cost, "monitor": marks[-1]["monitor"] if marks else {}, "curves": curves(log),
        "threads": {"training": record.get("threads")}, "sizes": record.get("sizes"),
    }  # fmt: skip


def curves(log: list[Row]) -> Row:
    """The curves of a row, from the lines of its run's log so far."""
    marks = [event for event in log if "validation" in event]
    loss = [[event["seconds"], sum(event["loss"].values())] for event in log if "loss" in event]
    validation = [[event["seconds"], event["validation"]] for event in marks]
    return {"loss": _thin(loss), "validation": _thin(validation)} | {
        name: [[event["seconds"], *event[name]] for event in marks if event.get(name)]
        for name in ("density", "distance")
    }


def seconds_to_best(validation: list[list[float]]) -> float | None:
    """When (seconds, value) had come 99 % of the way from its first to its lowest value; None without a finite one.

    A share of the way does not depend on the value's unit or origin.
    """
    finite = [(seconds, value) for seconds, value in validation if math.isfinite(value)]
    if not finite:
        return None
    first, best = finite[0][1], min(value for _, value in finite)
    return next(seconds for seconds, value in finite if value <= best + BEST_WITHIN * (first - best))


def _thin(points: list[list[float]]) -> list[list[float]]:
    """Finite points, at most about `CURVE_POINTS` and always the last."""
    finite = [point for point in points if math.isfinite(point[1])]
    step = -(-len(finite) // CURVE_POINTS) or 1
    return finite[::-1][::step][::-1]
