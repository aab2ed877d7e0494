"""Train a system from data to a run folder, and go on with one that stopped."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fivefold import catalog
from fivefold.data import Data, load_data
from fivefold.errors import OptionError, RunError
from fivefold.files import is_temporary, read_json
from fivefold.machine import choose_device
from fivefold.options import plain
from fivefold.run import Run
from fivefold.system import System
from fivefold.training import ranks, shard_files, sizing
from fivefold.training.budget import Budget
from fivefold.training.log import Event, Log
from fivefold.training.options import arguments, typed_names
from fivefold.training.sizing import Sizes
from fivefold.training.trainer import Trainer


def fit(
    system: str | type[System],
    data: Data | Any,
    *,
    out: str | Path | None = None,
    preset: str | None = None,
    device: str = "auto",
    watch: Callable[[Event], None] = lambda event: None,
    **options: Any,
) -> System:
    """Train a system on data and return it with its best weights by validation, in eval mode.

    Args:
        system: an id of the catalogue, a dotted module name, or a System class.
        data: from `load_data`, or whatever that takes: a name or path, an array, a DataFrame.
        out: a new folder for the run, or one where this same training was stopped, which goes on; None keeps nothing.
        preset: a name of the system's presets.
        device: "auto", "cpu", "cuda" or "cuda:1".
        watch: called with each log line.
        options: of the system's constructor, of its `optimizers`, and of `Trainer` (budget, seed, batch_size, ...).

    Raises:
        Unfit: the system does not fit the data's space; names those that do.
        OptionError: an option does not exist; names the nearest.
        Diverged: training was not finite more often than `retries`.
    """
    data = data if isinstance(data, Data) else load_data(data)
    with catalog.trusting(system):
        cls = catalog.class_of(system) if isinstance(system, str) else system
    name = system if isinstance(system, str) else catalog.name_of(cls)
    with catalog.trusting(system, *typed_names(cls, options)):
        given = arguments(cls, preset, options)
        place = choose_device(device)
        ranks.start(place)
        if given["fit"].get("shard") and ranks.world() == 1:
            raise OptionError(
                "--shard cuts a model into a part for each of several processes, and there is one: start it as "
                "torchrun --nproc-per-node 2 --no-python fivefold train ..."
            )
        sizes = _begun_sizes(out) or sizing.choose(cls, given, data, place)
        trainer = _trainer(cls, sizing.apply(cls, given, sizes), data, place, watch)
        trainer.seconds = sizes.seconds
        trainer.sizes = str(sizes)
        if out is not None:
            record = {"system": name, "preset": preset, "device": device, "sizes": asdict(sizes)}
            record |= _describe(data, trainer, given)
            _keep_in(_begin(out, record), trainer, watch)
    return trainer.train()


def _begin(out: str | Path, record: dict[str, Any]) -> Run:
    """The run's folder, which rank 0 makes and the others open."""
    run = Run.begin(out, record) if ranks.rank() == 0 else None
    ranks.from_first([0.0])  # it is there
    return run or Run.open(out, trust=record["system"])


def _keep_in(run: Run, trainer: Trainer, watch: Callable[[Event], None]) -> None:
    """Let the trainer write the run, and go on from the run's last checkpoint, where it has one."""
    if ranks.rank() == 0 or trainer.sharded:
        trainer.run = run
        trainer.log = Log(run, trainer.settings, watch)
    shards = shard_files.load(run, trainer.device, trainer.spread.empty)
    state = shards or run.load_training(torch.device("cpu") if trainer.sharded else trainer.device)
    if state is not None:
        size = state.pop("log_bytes")
        if ranks.rank() == 0:
            run.truncate_log(size)
        trainer.load_state(state)
        trainer.progress = trainer._progress()


def _begun_sizes(out: str | Path | None) -> Sizes | None:
    """What the rule chose when this training was begun, where it was: its clock would say something else today."""
    if out is None or not (Path(out) / "run.json").exists():
        return None
    with contextlib.suppress(RunError, KeyError, TypeError):  # damaged, or of another version: `begin` says so
        return Sizes(**read_json(Path(out) / "run.json")["sizes"])
    return None


def begun(directory: Path, system: str, data: Data, *, preset: str | None = None, **options: Any) -> bool:
    """Whether `fit` with the same arguments was begun in this folder and has not finished."""
    if not (directory / "run.json").exists():
        return directory.is_dir() and all(map(is_temporary, directory.iterdir()))
    try:
        record = Run.open(directory, trust=system).record
        with catalog.trusting(system):
            given = json.loads(json.dumps(plain(arguments(catalog.class_of(system), preset, options))))
    except RunError:
        return False
    ours = (system, preset, data.fingerprint, given)
    theirs = (record["system"], record["preset"], record["data"]["fingerprint"], record["given"])
    return record["status"] != "finished" and theirs == ours


def resume(
    directory: str | Path,
    *,
    budget: str | None = None,
    data: Data | None = None,
    trust: str | None = None,
    device: str | None = None,
    shard: bool | None = None,
    watch: Callable[[Event], None] = lambda event: None,
) -> System:
    """Finish a run that was stopped or killed, or train a finished one further.

    Args:
        directory: the run's folder.
        budget: the new total budget; None keeps the old.
        data: what to train on; None loads what the run names. Other content than before is refused.
        trust: the module name of a system outside the package, to allow importing it.
        device: where to go on; None takes the run's own.
        shard: whether in shards, under several processes; None as the run was begun.
        watch: called with each log line.
    """
    run = Run.open(directory, trust=trust)
    data = data or run.load_data()
    if data.fingerprint != run.record["data"]["fingerprint"]:
        raise RunError(f"{run.directory} was trained on other data: fingerprint {run.record['data']['fingerprint']}")
    split: dict[str, dict[str, Any]] = run.record["arguments"]
    if budget is not None:
        changed = {"budget": str(Budget.parse(budget))}
        split["fit"]["budget"] = budget
        if ranks.is_first():
            run.update(arguments=split, **changed)
    if shard is not None:
        split["fit"]["shard"] = shard
        if ranks.is_first():
            run.update(arguments=split)
    place = choose_device(device or run.record["device"])
    ranks.start(place)
    with run.trusting():
        trainer = _trainer(run.record["system"], split, data, place, watch)
    _keep_in(run, trainer, watch)
    return trainer.train()


def _trainer(
    system: str | type[System],
    split: dict[str, dict[str, Any]],
    data: Data,
    place: torch.device,
    watch: Callable[[Event], None],
) -> Trainer:
    torch.manual_seed(split["fit"].get("seed", 0))
    model = catalog.build(system, data.space, **split["system"]).to(place)
    return Trainer(model, data, None, watch, **split["fit"])


def _describe(data: Data, trainer: Trainer, split: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "given": plain(split),
        "arguments": {"system": plain(trainer.system.arguments), "fit": plain(trainer.settings.arguments)},
        "space": data.space.to_json(),
        "data": {name: getattr(data, name) for name in ("name", "source", "fingerprint", "arguments")},
        "budget": str(trainer.budget),
        "precision": trainer.precision,
        "parameters": sum(p.numel() for p in trainer.system.parameters()),
    }
