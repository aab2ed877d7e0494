"""Tune a system's options on the validation split: the same number of trials, of the same budget, for any system."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fivefold import catalog
from fivefold.data import Data, load_data
from fivefold.errors import RunError, Stopped
from fivefold.evaluation.evaluate import command
from fivefold.files import write_json
from fivefold.machine import choose_device
from fivefold.options import plain
from fivefold.training import sizing
from fivefold.training.budget import Budget
from fivefold.training.failures import reason, status
from fivefold.training.fit import fit
from fivefold.training.log import Event
from fivefold.training.options import arguments, typed_names
from fivefold.training.trials import FINISHED, HOPELESS, Trial, Trials, alone

if TYPE_CHECKING:
    from optuna.trial import Trial as Asked

    from fivefold.system import System

SETTINGS = "tuning.json"
BUDGET = "60s"  # of the command line that trains with what was found
Tell = Callable[[int, Event], None]
Attempts = Callable[[Trials, int, Data, dict[str, Any], Callable[[Trial], None]], None]


class Hopeless(Exception):
    """A trial is stopped: it does worse than the others did at this mark."""


@dataclass(frozen=True)
class Tuned:
    """What came of tuning.

    `options` are the best trial's beside those that were given; `importances` which of all options mattered, the
    largest first.
    """

    directory: Path
    trials: list[Trial]
    best: Trial
    options: dict[str, Any]
    command: str
    importances: dict[str, float]


def tune(
    system: str | type[System],
    data: Data | Any,
    *,
    trials: int = 10,
    budget: str = "20s",
    by: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    preset: str | None = None,
    device: str = "auto",
    watch: Tell = lambda number, event: None,
    told: Callable[[Trial], None] = lambda trial: None,
    attempts: Attempts | None = None,
    **options: Any,
) -> Tuned:
    """Try values of a system's options, over the ranges that they declare, and find the best on the validation split.

    The first trial is the system as it is. One that diverges, does not build or runs out of memory is a failed trial;
    one that is hopeless beside the others is stopped early. The test split is not looked at.

    Args:
        system: an id of the catalogue, a dotted module name, or a System class.
        data: from `load_data`, or whatever that takes.
        trials: how many, those counted that an earlier call left in the folder.
        budget: of each trial.
        by: what decides: "density", "distance" (of samples), or "auto": the density where there is one.
        seed: of the draws, and of every training.
        out: the folder; one where the same tuning was begun is gone on with. None takes `tuning/SYSTEM-DATA`.
        preset: a name of the system's presets, whose values the trials start from.
        device: "auto", "cpu", "cuda" or "cuda:1".
        watch: called with the number of the trial, from 1, and each log line of its training.
        told: called with each trial when it is over.
        attempts: makes the trials elsewhere (`fivefold.comparison.tuning`), where `watch` is not called; None makes one
            after another here.
        options: of the system or of `fit`, which stay as they are.

    Raises:
        Unfit: the system does not fit the data's space.
        OptionError: an option does not exist, or none is left to tune.
        RunError: the folder holds another tuning; or no trial could be finished, and why.
        Stopped: interrupted; the same call goes on.
    """
    data = data if isinstance(data, Data) else load_data(data)
    with catalog.trusting(system):
        cls = catalog.class_of(system) if isinstance(system, str) else system
    name = system if isinstance(system, str) else catalog.name_of(cls)
    directory = Path(out or Path("tuning") / f"{name}-{data.name}")
    fixed = {"budget": str(Budget.parse(budget)), "by": by, "seed": seed}
    with catalog.trusting(system, *typed_names(cls, options)), alone(directory):
        arguments(cls, preset, {**options, **fixed})
        record = {"system": name, "preset": preset, "given": plain(options), **fixed}
        record |= {"data": {"name": data.name, "fingerprint": data.fingerprint}}
        sized = settle(directory, record, lambda: usual_sizes(cls, preset, {**options, **fixed}, data, device))
        found = Trials(directory, cls, data.space, preset, {**options, **fixed}, sized, seed)
        if attempts is None:
            _one_by_one(found, trials, cls, data, {**options, **fixed}, preset, device, watch, told)
        else:
            about = {"system": name, "preset": preset, "device": device, "options": plain({**options, **fixed})}
            attempts(found, trials, data, about, told)
        if (best := found.best) is None:
            raise RunError(f"none of {trials} trials of {name} could be finished; the last: {found.done[-1].error}")
        found.write(importances := found.importances())
        chosen = options | best.options | ({} if by == "auto" else {"by": by})
        about = {"system": name, "budget": BUDGET, "data": {"source": data.source, "arguments": data.arguments}}
        line = command(about | {"given": plain(arguments(cls, preset, chosen))})
        return Tuned(directory, found.done, best, chosen, line, importances)


def usual_sizes(
    cls: type[System], preset: str | None, given: dict[str, Any], data: Data, device: str
) -> dict[str, Any]:
    """The options of a training as the rule of sizes (`fivefold.training.sizing`) has them, those given included."""
    split = arguments(cls, preset, given)
    sized = sizing.apply(cls, split, sizing.choose(cls, split, data, choose_device(device)))
    return plain({**sized["system"], "batch_size": sized["fit"]["batch_size"]})


def settle(directory: Path, record: dict[str, Any], sized: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Begin the folder, or see that it holds this tuning; what `sized` says, or said when it was begun."""
    path, record = directory / SETTINGS, json.loads(json.dumps(record))
    if not path.exists():
        found = sized()
        write_json(path, {**record, "sized": found})
        return found
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is truncated or was changed ({error}): name another --out") from error
    for name, value in record.items():
        if old.get(name) != value:
            raise RunError(f"{directory} holds a tuning with {name} {old.get(name)}, not {value}: name another --out")
    return old.get("sized", {})


def _one_by_one(
    found: Trials, count: int, cls: type[System], data: Data, fixed: dict[str, Any], preset: str | None, device: str,
    watch: Tell, told: Callable[[Trial], None],
) -> None:  # fmt: skip
    """Make trials here until there are `count`."""
    while (number := len(found.done) + 1) <= count:
        asked, changed = found.ask()

        def look(event: Event, number: int = number, asked: Asked = asked) -> None:
            watch(number, event)
            if math.isfinite(event.get("validation", math.nan)):
                report(asked, event)

        try:
            trial = attempt(cls, data, asked.number, changed, fixed, preset, device, look)
        except (Stopped, KeyboardInterrupt):
            found.give_back(asked)
            raise Stopped(f"stopped after {number - 1} of {count} trials; the same command goes on") from None
        found.tell(asked, trial)
        told(trial)


def attempt(
    cls: type[System],
    data: Data,
    number: int,
    changed: dict[str, Any],
    fixed: dict[str, Any],
    preset: str | None,
    device: str,
    watch: Callable[[Event], None],
) -> Trial:
    """Train with the options `fixed` and `changed`, and what became of it; `watch` may say that it is Hopeless."""
    curve: list[list[float]] = []
    started = time.monotonic()

    def look(event: Event) -> None:
        if math.isfinite(event.get("validation", math.nan)):
            curve.append([event["seconds"], event["validation"]])
        watch(event)

    state, error = FINISHED, None
    try:
        fit(cls, data, preset=preset, device=device, watch=look, **{**fixed, **changed})
    except Hopeless:
        state = HOPELESS
    except Exception as wrong:
        state, error = status(wrong), reason(wrong)
    if state == FINISHED and not curve:
        state, error = "failed", "no validation value was finite"
    value = min((value for _, value in curve), default=None)
    return Trial(number, state, changed, value, time.monotonic() - started, curve, error)


def report(asked: Asked, event: Event) -> None:
    """Tell the pruner the value at a tenth of the budget; Hopeless where it says so."""
    tenth = int(event["progress"] * 10 + 1e-9)
    if tenth not in asked.study.trials[asked.number].intermediate_values:
        asked.report(event["validation"], tenth)
        if event["progress"] < 1 and asked.should_prune():
            raise Hopeless
