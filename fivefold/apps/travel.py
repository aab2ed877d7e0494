"""Runs that travel: to a folder, an object store or the Hugging Face hub, and back.

What travels is data: run.json, the weights, samples and a card, and what resuming needs where that is asked for. Where
files are put one by one, run.json is the last, so that what was broken off is no run; the hub takes them as one commit.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from fivefold.apps.card import write_card, write_samples
from fivefold.errors import RunError
from fivefold.run import Run

HUB = "hf:"
RUN = "run.json"
TRAINING = ("training.pt", "log.jsonl")
OURS = re.compile(rf"{re.escape(RUN)}|weights\.safetensors|README\.md|samples(-\d+)?\.(png|csv|txt|wav)")


def push(
    directory: str | Path,
    target: str | Path,
    *,
    with_training_state: bool = False,
    public: bool = False,
    force: bool = False,
    trust: str | None = None,
) -> str:
    """Copy a run to where others can pull it; says what was put where.

    Args:
        directory: of the run.
        target: `hf:NAME` (a model of the hub, made where there is none), a folder, or a URL that fsspec can write.
        with_training_state: also what resuming needs.
        public: whether a model that is made on the hub can be seen by all.
        force: whether files of a run that is there may be replaced.
        trust: module of a system outside the package that may be imported.

    Raises:
        RunError: the run cannot be read, there is one already, or the place cannot be written.
    """
    run = Run.open(directory, trust=trust)
    system = run.load_system()
    place = _place(target)
    _check_apart(place, run.directory)
    there = _known(place.names(), with_training_state=True)
    if there and not force:
        raise RunError(f"{target} holds {', '.join(there)} already: --force replaces it")
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        wanted = [RUN, "weights.safetensors", *(TRAINING if with_training_state else ())]
        for name in wanted:
            if not (run.directory / name).exists():
                raise RunError(f"{run.directory / name} is missing: it cannot be pushed")
            os.symlink((run.directory / name).resolve(), staged / name)
        samples = write_samples(run, system, staged)
        write_card(run, system, staged, samples)
        names = sorted((path.name for path in staged.iterdir()), key=lambda name: (name == RUN, name))
        place.put(staged, names, there, public)
        size = sum((staged / name).stat().st_size for name in names)
    return f"put {', '.join(names)} ({size / 1e6:,.1f} MB) to {target}; fivefold pull {target}"


def pull(
    source: str | Path,
    out: str | Path | None = None,
    *,
    with_training_state: bool = False,
    force: bool = False,
    trust: str | None = None,
) -> Path:
    """Fetch a run that was pushed, check it, and give its folder.

    Args:
        source: `hf:NAME`, `hf:NAME@REVISION`, a folder, or a URL that fsspec can read.
        out: the new folder; None takes `runs/NAME`.
        with_training_state: also what resuming needs.
        force: whether a run that is there may be replaced.
        trust: module of a system outside the package that the run may name; nothing is imported here.

    Raises:
        RunError: there is no run, it is damaged, or the folder exists.
    """
    place = _place(source)
    path = Path(out) if out else Path("runs") / place.short
    _check_apart(place, path)
    is_run = (path / RUN).exists()
    if path.is_file() or (path.exists() and any(path.iterdir()) and not (force and is_run)):
        raise RunError(f"{path} exists; choose another --out{', or --force to replace it' if is_run else ''}")
    names = _known(place.names(), with_training_state)
    missing = [name for name in (RUN, "weights.safetensors", *(TRAINING if with_training_state else ()))
               if name not in names]  # fmt: skip
    if missing:
        raise RunError(f"{source} holds no {' and no '.join(missing)}: it is not what fivefold push put there")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
        fetched, old = Path(temporary) / "new", Path(temporary) / "old"
        fetched.mkdir()
        place.get(names, fetched)
        run = Run.open(fetched, trust=trust)
        run.load_weights()
        if with_training_state:
            run.load_training(torch.device("cpu"))
        if path.exists():
            path.rename(old)
        try:
            fetched.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
    return path


def _check_apart(place: Place, path: Path) -> None:
    """A run is not copied onto itself, which would remove what does not travel."""
    root = Path(place.root) if isinstance(place, Store) else None
    if root is not None and root.exists() and path.exists() and root.samefile(path):
        raise RunError(f"{path} is where the run is already")


def _known(names: Iterable[str], with_training_state: bool) -> list[str]:
    """Of names those that a run has: nothing else is fetched or replaced."""
    return sorted(name for name in names if OURS.fullmatch(name) or (with_training_state and name in TRAINING))


# --- places -----------------------------------------------------------------------------------------


class Place(Protocol):
    """Where runs are put and fetched; its methods raise RunError."""

    short: str  # a name for what is there

    def names(self) -> list[str]:
        """Of the files there; none where there is no such place."""

    def put(self, folder: Path, names: list[str], old: list[str], public: bool) -> None:
        """Put files of a folder, the last one last, in place of the `old`."""

    def get(self, names: list[str], folder: Path) -> None:
        """Fetch files into a folder."""


def _place(target: str | Path) -> Place:
    name = str(target)
    return Hub(name.removeprefix(HUB)) if name.startswith(HUB) else Store(name)


class Store:
    """A folder, or a URL of any file system that fsspec knows."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url, self.short = url, url.rstrip("/").rsplit("/", 1)[-1]
        with self._doing("reach"):
            self.files, self.root = fsspec.core.url_to_fs(url)

    def names(self) -> list[str]:
        with self._doing("read"):
            try:
                found = self.files.ls(self.root, detail=False, refresh=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return [str(path).rstrip("/").rsplit("/", 1)[-1] for path in found]

    def put(self, folder: Path, names: list[str], old: list[str], public: bool) -> None:
        with self._doing("write to"):
            for name in sorted(old, key=lambda name: name != RUN):  # from then on it is no run
                self.files.rm_file(self._path(name))
            self.files.makedirs(self.root, exist_ok=True)
            begun: list[str] = []
            try:
                for name in names:
                    begun.append(name)
                    self.files.put_file(str(folder / name), self._path(name))
            except BaseException:
                for name in begun:
                    with contextlib.suppress(Exception):
                        self.files.rm_file(self._path(name))
                raise

    def get(self, names: list[str], folder: Path) -> None:
        with self._doing("read"):
            for name in names:
                self.files.get_file(self._path(name), str(folder / name))

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # file systems have no common base for theirs
            raise RunError(f"cannot {what} {self.url}: {_said(error)}") from error


class Hub:
    """A model of the Hugging Face hub, `NAME` or `NAME@REVISION`."""

    def __init__(self, name: str) -> None:
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise RunError("the hub needs the library huggingface_hub: pip install 'fivefold[hub]'") from error
        self.name, _, revision = name.partition("@")
        self.short, self.revision = self.name.rsplit("/", 1)[-1], revision or None
        self.api: Any = HfApi()

    def names(self) -> list[str]:
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._doing("read"):
            try:
                return list(self.api.list_repo_files(self.name, revision=self.revision))
            except RepositoryNotFoundError:
                return []

    def put(self, folder: Path, names: list[str], old: list[str], public: bool) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        gone = [CommitOperationDelete(name) for name in old if name not in names]
        new = [CommitOperationAdd(name, str(folder / name)) for name in names]
        with self._doing("write to"):
            self.api.create_repo(self.name, exist_ok=True, private=not public)
            self.api.create_commit(self.name, [*gone, *new], commit_message="A run of fivefold", revision=self.revision)

    def get(self, names: list[str], folder: Path) -> None:
        with self._doing("read"):
            revision = self.api.model_info(self.name, revision=self.revision).sha  # all files of one commit
            for name in names:
                self.api.hf_hub_download(self.name, name, revision=revision, local_dir=folder)
        shutil.rmtree(folder / ".cache", ignore_errors=True)

    @contextlib.contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the library has no common base for its errors
            raise RunError(f"cannot {what} {HUB}{self.name}: {_said(error)}") from error


def _said(error: Exception) -> str:
    """An error's first line, or its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
