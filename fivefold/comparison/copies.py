"""Working copies of a comparison's folder, for machines that do not see it, and how what they give comes back.

Only the standard library is needed: this is sent along with `node`.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

COMMON = ("comparison.json", "data.pt", "features.safetensors")  # what every job needs of the comparison's folder
PIECE = 8 << 20  # bytes of a file that are sent at a time

Event = dict[str, Any]


def pack(directory: Path, names: tuple[str, ...]) -> bytes:
    """Files and folders beneath a directory as one archive; those that are there."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in names:
            if (directory / name).exists():
                archive.add(directory / name, name)
    return packed.getvalue()


def unpack(packed: bytes, directory: Path) -> None:
    """What `pack` packed."""
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(directory, filter="data")


def kept_here() -> Path:
    """Where this machine keeps what it was sent."""
    place = Path(tempfile.gettempdir()) / f"fivefold-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    return place


@contextlib.contextmanager
def copied(content: str, sent: Callable[[], bytes], files: bytes) -> Iterator[Path]:
    """A folder for a job, with what it needs.

    Args:
        content: the name of what all jobs need, which comes to a machine once, and is linked.
        sent: fetches it, packed.
        files: what this one needs beside it, packed.
    """
    kept = kept_here() / content
    with (kept_here() / f"{content}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            arriving = kept.with_suffix(".arriving")
            unpack(sent(), arriving)
            arriving.rename(kept)
    with tempfile.TemporaryDirectory(prefix="job-", dir=kept_here()) as name:
        place = Path(name)
        for part in ("rows", "runs"):
            (place / part).mkdir()
        for file in kept.iterdir():
            (place / file.name).symlink_to(file)
        unpack(files, place)
        yield place


def pieces(place: Path, name: str) -> Iterator[Event]:
    """A file, or all of a folder, in pieces; an empty one is one of them."""
    for file in [place / name] if (place / name).is_file() else sorted((place / name).rglob("*")):
        if file.is_file():
            with file.open("rb") as opened:
                piece = opened.read(PIECE)
                while True:
                    yield {"file": str(file.relative_to(place)), "bytes": piece}
                    if not (piece := opened.read(PIECE)):
                        break


class Arrivals:
    """Files of working copies on their way into a folder, where they appear when all of a job's are there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def take(self, name: str, piece: Event) -> None:
        """A piece of a file of a job."""
        path = self._of(name) / piece["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(piece["bytes"])

    def settle(self, name: str, last: str) -> None:
        """Put all that came of a job where it belongs, `last` last."""
        here = self._of(name)
        files = [str(file.relative_to(here)) for file in here.rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda file: (file == last, file)):
            (self.directory / file).parent.mkdir(parents=True, exist_ok=True)
            (here / file).replace(self.directory / file)
        self.drop(name)

    def drop(self, name: str) -> None:
        """Forget what came of a job."""
        shutil.rmtree(self._of(name), ignore_errors=True)

    def _of(self, name: str) -> Path:
        return self.directory / ".arriving" / name
