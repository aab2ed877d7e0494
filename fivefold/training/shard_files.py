"""Checkpoints of a model in shards: each process writes its own, and any number of processes reads them.

By `torch.distributed.checkpoint`, in its safetensors form, since its usual one runs what it reads. A checkpoint is a
folder `shards-N` of the run, complete once it has its name; N grows, and only the newest is kept.

| file          | content                                                                       |
|---------------|-------------------------------------------------------------------------------|
| *.safetensors | what is in shards: parameters, average, best weights, moments of optimisers   |
| rest.pt       | the rest of the state, whose sharded tensors are None; their paths; the files  |
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as read_shards
from torch.distributed.checkpoint.state_dict_saver import save as write_shards
from torch.distributed.tensor import DTensor

from fivefold.errors import RunError
from fivefold.run import Run, read_state
from fivefold.training import ranks

Place = tuple[str | int, ...]  # of a tensor in nested dictionaries


def save(run: Run, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write the best weights (whole on rank 0) and a state whose tensors may be in shards; every rank calls it.

    RunError where it cannot be written; the last checkpoint stays.
    """
    places = [place for place, value in _leaves(state) if isinstance(value, DTensor)]
    [number] = ranks.from_first([1.0 + max(map(_number, _folders(run.directory)), default=0)])
    folder = run.directory / f"shards-{number:.0f}"
    writing = folder.with_name(f".{folder.name}.writing")
    if ranks.rank() == 0:
        shutil.rmtree(writing, ignore_errors=True)  # of a process that was killed
    shards = {str(i): _at(state, place) for i, place in enumerate(places)}
    with run.writing("the checkpoint"):
        try:
            write_shards(shards, storage_writer=HuggingFaceStorageWriter(str(writing), save_distributed=True))
        except CheckpointException as error:
            raise OSError(str(error.failures)) from error
        if ranks.rank() == 0:
            digests = {path.name: _digest(path) for path in writing.iterdir()}
            torch.save({"state": _without(state), "places": places, "files": digests}, writing / "rest.pt")
            run.save(weights)
            writing.rename(folder)
            (run.directory / "training.pt").unlink(missing_ok=True)
            remove(run.directory, but=folder)


def load(run: Run, device: torch.device, empty: Callable[[torch.Size], Tensor]) -> dict[str, Any] | None:
    """The state to resume from, sharded tensors read into what `empty` makes; None where there is none in shards."""
    folder = max(_folders(run.directory), key=_number, default=None)
    if folder is None:
        return None
    rest = read_state(folder / "rest.pt", device)
    try:
        damaged = [name for name, digest in rest["files"].items() if _digest(folder / name) != digest]
        if damaged:
            raise RunError(f"{folder} is damaged (in {', '.join(damaged)}): it cannot be resumed")
        reader = HuggingFaceStorageReader(str(folder))
        kept = reader.read_metadata().state_dict_metadata.items()
        shards = {name: empty(one.size) for name, one in kept if isinstance(one, TensorStorageMetadata)}
        read_shards(shards, storage_reader=reader, no_dist=ranks.world() == 1)
        for i, place in enumerate(rest["places"]):
            _at(rest["state"], place[:-1])[place[-1]] = shards[str(i)]
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"{folder} is truncated, damaged or not fivefold's: it cannot be resumed ({error})") from error
    return rest["state"]


def remove(directory: Path, but: Path | None = None) -> None:
    """Checkpoints in shards that are not needed any more."""
    for folder in _folders(directory):
        if folder != but:
            shutil.rmtree(folder, ignore_errors=True)


def _folders(directory: Path) -> list[Path]:
    return [path for path in directory.glob("shards-*") if path.name.removeprefix("shards-").isdigit()]


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("shards-"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _leaves(state: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    if isinstance(state, dict):
        for key, value in state.items():
            yield from _leaves(value, (*place, key))
    else:
        yield place, state


def _at(state: Any, place: Place) -> Any:
    for key in place:
        state = state[key]
    return state


def _without(state: Any) -> Any:
    """A state with None in place of what is in shards."""
    if isinstance(state, dict):
        return {key: _without(value) for key, value in state.items()}
    return None if isinstance(state, DTensor) else state
