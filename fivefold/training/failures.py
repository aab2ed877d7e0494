"""What goes wrong with a training, in a word for tables and a sentence for people."""

from __future__ import annotations

import torch

from fivefold.errors import Diverged, OptionError, RunError, Unfit

_OUT_OF_MEMORY = "out of memory"
_STATUS: tuple[tuple[type[BaseException], str], ...] = (
    (Unfit, "unfit"),
    (Diverged, "diverged"),
    (MemoryError, _OUT_OF_MEMORY),
    (torch.OutOfMemoryError, _OUT_OF_MEMORY),
)


def status(error: BaseException) -> str:
    """The table's word for an exception."""
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # torch has no class of its own
        return _OUT_OF_MEMORY
    return next((word for kind, word in _STATUS if isinstance(error, kind)), "failed")


def reason(error: BaseException) -> str:
    """What a person needs: the message, with the kind of error where it was not written for people."""
    text = " ".join(str(error).split())[:600] or "no message"
    return text if isinstance(error, Unfit | Diverged | RunError | OptionError) else f"{type(error).__name__}: {text}"
