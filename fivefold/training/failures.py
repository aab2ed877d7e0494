"""What goes wrong with a training, in a word for tables and a sentence for people."""

from __future__ import annotations

import errno
import os

import torch

from fivefold.errors import Diverged, OptionError, RunError, Unfit

_OUT_OF_MEMORY, _DISK_FULL, KILLED = "out of memory", "disk full", "killed"
FROM_OUTSIDE = (_OUT_OF_MEMORY, _DISK_FULL, KILLED)  # what is no fault of the system: the same command tries again
_STATUS: tuple[tuple[type[BaseException], str], ...] = (
    (Unfit, "unfit"),
    (Diverged, "diverged"),
    (MemoryError, _OUT_OF_MEMORY),
    (torch.OutOfMemoryError, _OUT_OF_MEMORY),
)
_TEXTS = (("can't allocate memory", _OUT_OF_MEMORY), (os.strerror(errno.ENOSPC), _DISK_FULL))  # of libraries' errors


def status(error: BaseException) -> str:
    """The table's word for an exception, or for what it was raised from."""
    known = next((word for kind, word in _STATUS if isinstance(error, kind)), None)
    known = known or next((word for words, word in _TEXTS if words in str(error)), None)
    if known is None and isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        known = _DISK_FULL
    return known or (status(error.__cause__) if error.__cause__ else "failed")


def reason(error: BaseException) -> str:
    """What a person needs: the message, with the kind of error where it was not written for people."""
    text = " ".join(str(error).split())[:600] or "no message"
    return text if isinstance(error, Unfit | Diverged | RunError | OptionError) else f"{type(error).__name__}: {text}"
