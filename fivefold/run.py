"""The run folder: what a training leaves behind, whole at every instant.

| file                | content                                                              |
|---------------------|----------------------------------------------------------------------|
| run.json            | system, arguments, space, data fingerprint, versions, status, metrics |
| weights.safetensors | the best weights so far                                              |
| training.pt         | what resuming needs: system, optimisers, average, counters, best     |
| log.jsonl           | a line a log point or validation                                     |

Each file is replaced by rename and carries a checksum, so a kill leaves the last good one and a
truncated or edited one is named. Nothing that is read can run code.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

import fivefold
from fivefold import catalog
from fivefold.errors import OptionError, RunError
from fivefold.files import is_temporary, replacing, write_json
from fivefold.machine import versions
from fivefold.options import names_in
from fivefold.space import Space
from fivefold.system import System

if TYPE_CHECKING:
    from fivefold.data import Data


class Run:
    """A run folder; `record` is the content of run.json."""

    def __init__(self, directory: Path, record: dict[str, Any], trust: str | None = None) -> None:
        self.directory, self.record, self.trust = directory, record, trust

    def trusting(self) -> AbstractContextManager[None]:
        """While this is open, what the user trusted may be imported; see `catalog.trusting`."""
        return catalog.trusting(self.trust)

    @classmethod
    def begin(cls, directory: str | Path, record: dict[str, Any]) -> Self:
        """A new folder, or one where the same training was begun and is not finished; any other is refused."""
        path = Path(directory)
        if (path / "run.json").exists():
            run = cls.open(path, trust=record["system"])
            asked = json.loads(json.dumps(record))
            if run.record["status"] != "finished" and all(run.record[key] == asked[key] for key in _SAME):
                return run
            raise RunError(
                f"{path} holds a run already: fivefold resume goes on with it; choose another --out for a new run"
            )
        if path.exists() and not (path.is_dir() and all(map(is_temporary, path.iterdir()))):
            raise RunError(f"{path} exists; choose another --out for a new run")
        run = cls(path, {**record, "versions": versions(), "status": "running"})
        try:
            path.mkdir(parents=True, exist_ok=True)
            run.update()
        except OSError as error:
            raise RunError(f"cannot write to {path}: {error.strerror or error}") from error
        return run

    @classmethod
    def open(cls, directory: str | Path, *, trust: str | None = None) -> Self:
        """An existing run. A system outside the package loads only when `trust` names its module."""
        path = Path(directory) / "run.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            checksum = record.pop("checksum")
        except FileNotFoundError:
            raise RunError(f"{directory} is not a run: it has no run.json") from None
        except (ValueError, KeyError, AttributeError):
            raise RunError(f"{path} is truncated or not fivefold's; the run cannot be used without it") from None
        if checksum != _digest(record):
            raise RunError(f"{path} was changed since it was written; put it back or train again")
        _check_record(path, record)
        run = cls(Path(directory), record, trust)
        with run.trusting():
            for name in _names(record["system"], record["arguments"]):
                if name == record["system"] or set(".:") & set(name):  # else the slot's own part, or in the catalogue
                    catalog.check_trusted(name)
        return run

    # --- writing --------------------------------------------------------------------------------

    def update(self, **changes: Any) -> None:
        """Change fields of run.json."""
        self.record.update(changes)
        with self.writing("run.json"):
            write_json(self.directory / "run.json", {**self.record, "checksum": _digest(self.record)})

    def save(self, weights: dict[str, Tensor], training: dict[str, Any] | None = None) -> None:
        """Write the checkpoint (None: the weights alone); where that fails the last one stays whole."""
        from safetensors.torch import save_file

        weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
        metadata = {"sha256": _weights_digest(weights), "system": self.record["system"]}
        with self.writing("the checkpoint"):
            if training is not None:
                with replacing(self.directory / "training.pt") as path:
                    torch.save(training, path)
            with replacing(self.directory / "weights.safetensors") as path:
                save_file(weights, path, metadata)

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Whatever a writer raises as a sentence; what was there before stays whole."""
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            raise RunError(
                f"cannot save {what} to {self.directory}: {error}; what was saved before is whole: "
                f"make room, then fivefold resume {self.directory}"
            ) from error

    def append_log(self, event: dict[str, Any]) -> None:
        with self.writing("the log"), (self.directory / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def log_bytes(self) -> int:
        path = self.directory / "log.jsonl"
        return path.stat().st_size if path.exists() else 0

    def truncate_log(self, size: int) -> None:
        """Drop what was logged after the checkpoint that training resumes from."""
        path = self.directory / "log.jsonl"
        if path.exists() and self.log_bytes() > size:
            with path.open("r+b") as file:
                file.truncate(size)

    # --- reading --------------------------------------------------------------------------------

    def log(self) -> list[dict[str, Any]]:
        """The lines of log.jsonl that can be read; it is for people, and nothing depends on it."""
        path, events = self.directory / "log.jsonl", []
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
            with suppress(ValueError):
                events.append(json.loads(line))
        return [event for event in events if isinstance(event, dict)]

    def load_training(self, device: torch.device) -> dict[str, Any] | None:
        """The state to resume from; None where nothing was saved yet."""
        path = self.directory / "training.pt"
        return read_state(path, device) if path.exists() else None

    def load_weights(self) -> dict[str, Tensor]:
        """The best weights, checked against their checksum."""
        from safetensors import SafetensorError, safe_open

        path = self.directory / "weights.safetensors"
        try:
            with safe_open(path, "pt") as file:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        except FileNotFoundError:
            raise RunError(f"{path} is missing: the run has not saved yet, or the file was moved") from None
        except SafetensorError as error:
            raise RunError(f"{path} is truncated, damaged or not fivefold's ({error})") from error
        if metadata.get("sha256") != _weights_digest(weights):
            raise RunError(f"{path} was changed since it was written, or is not fivefold's")
        return weights

    def load_data(self) -> Data:
        """The data that the run was trained on, from where the user named it."""
        from fivefold.data import load_data

        data = self.record["data"]
        if not data["source"]:
            raise RunError(f"{self.directory} was trained on data in memory: give the data again")
        return load_data(data["source"], **data["arguments"])

    def load_system(self) -> System:
        """The system with its best weights, in eval mode, on the CPU."""
        space = Space.from_json(self.record["space"])
        with self.trusting():
            try:
                system = catalog.build(self.record["system"], space, **self.record["arguments"]["system"])
            except OptionError as error:
                raise RunError(f"{self.directory} {_other_version(self.record)}: {error}") from error
        weights = self.load_weights()
        try:
            system.load_state_dict(weights)
        except RuntimeError as error:
            raise RunError(f"{self.directory}: weights.safetensors is of another system or version: {error}") from error
        return system.eval()


def load(directory: str | Path, *, trust: str | None = None) -> System:
    """The trained system of a run folder, with its best weights, in eval mode.

    Raises RunError where a file is missing, truncated, edited or of something else, and where the
    system lives outside the package and `trust` does not name its module.
    """
    return Run.open(directory, trust=trust).load_system()


def read_state(path: Path, device: torch.device) -> dict[str, Any]:
    """What was saved by `torch.save`, running no code; RunError where it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise RunError(f"{path} is damaged (in {damaged}): it cannot be resumed")
        return torch.load(path, map_location=device, weights_only=True)
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"{path} is truncated, damaged or not fivefold's: it cannot be resumed ({error})") from error


_SAME = ("system", "preset", "arguments", "budget", "data")  # what makes two trainings the same
_KINDS: dict[str, type | tuple[type, ...]] = {
    "system": str, "preset": (str, type(None)), "device": str, "arguments": dict, "given": dict, "space": dict,
    "data": dict, "budget": str, "versions": dict, "status": str,
}  # fmt: skip


def _other_version(record: dict[str, Any]) -> str:
    versions = record.get("versions")
    theirs = versions.get("fivefold", "an unknown version") if isinstance(versions, dict) else "an unknown version"
    return f"was made by fivefold {theirs}, and this is {fivefold.__version__}"


def _check_record(path: Path, record: dict[str, Any]) -> None:
    """RunError where a field is missing or not of its kind, as in a record of another version."""
    wrong = [name for name, kind in _KINDS.items() if not isinstance(record.get(name, ...), kind)]
    wrong += [f"arguments.{part}" for part in ("system", "fit")
              if "arguments" not in wrong and not isinstance(record["arguments"].get(part), dict)]  # fmt: skip
    wrong += [f"data.{part}" for part in ("name", "source", "fingerprint", "arguments")
              if "data" not in wrong and part not in record["data"]]  # fmt: skip
    if wrong:
        raise RunError(
            f"{path} {_other_version(record)}: {', '.join(wrong)} missing or of another kind; "
            "use the version that made it, or train again"
        )


def _names(system: str, arguments: Any) -> Iterator[str]:
    """The names of all systems that a record would have built: its own and those in slots, at any depth."""
    yield system
    for value in arguments.values() if isinstance(arguments, dict) else ():
        if isinstance(value, dict) and "slot" in value:
            yield from names_in(value)
        else:
            yield from _names(system, value)


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _weights_digest(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name}:{tuple(weights[name].shape)}:{weights[name].dtype};".encode())
        digest.update(weights[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
