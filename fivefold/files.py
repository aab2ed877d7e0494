"""Files that are whole or not there: written beside their place, flushed, then renamed."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fivefold.errors import RunError

WRITING = ".writing"


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path (same suffix) to write; renamed to `path` at the end, removed on an error.

    It carries this process's name. What a process that was killed left of the same file is removed first.
    """
    path = Path(path)
    host = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())
    for left in path.parent.glob(f".{glob.escape(path.stem)}.*{WRITING}{glob.escape(path.suffix)}"):
        process, _, where = left.name.removeprefix(f".{path.stem}.").partition(WRITING)[0].partition("-")
        if where == host and not _is_alive(process):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{host}{WRITING}{path.suffix}")
    temporary.touch()
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether a file is one that `replacing` writes before it has its name."""
    return path.name.startswith(".") and WRITING in path.name


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file; RunError names one that is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except ValueError as error:
        raise RunError(f"{path} is truncated or was changed ({error}); remove it to make it again") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} is not fivefold's; remove it")
    return value


def write_text(path: Path | str, text: str) -> None:
    """`text` as the whole content of `path`, all of it or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """`value` as indented JSON, all of it or nothing."""
    write_text(path, json.dumps(value, indent=1, allow_nan=True) + "\n")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
