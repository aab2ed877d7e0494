"""fivefold: every family of deep generative model under one contract.

The names below are loaded when they are first used, so that `fivefold list` need not start torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "load_data": "fivefold.data",
    "Data": "fivefold.data",
    "fit": "fivefold.train",
    "resume": "fivefold.train",
    "load": "fivefold.run",
    "evaluate": "fivefold.evaluate",
    "compare": "fivefold.compare",
    "compress": "fivefold.compress",
    "decompress": "fivefold.compress",
    "Estimator": "fivefold.estimator",
    "System": "fivefold.system",
    "LatentSystem": "fivefold.system",
    "Update": "fivefold.system",
    "Density": "fivefold.system",
    "Batch": "fivefold.space",
    "Space": "fivefold.space",
}
__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from fivefold.compare import compare as compare
    from fivefold.compress import compress as compress
    from fivefold.compress import decompress as decompress
    from fivefold.data import Data as Data
    from fivefold.data import load_data as load_data
    from fivefold.estimator import Estimator as Estimator
    from fivefold.evaluate import evaluate as evaluate
    from fivefold.run import load as load
    from fivefold.space import Batch as Batch
    from fivefold.space import Space as Space
    from fivefold.system import Density as Density
    from fivefold.system import LatentSystem as LatentSystem
    from fivefold.system import System as System
    from fivefold.system import Update as Update
    from fivefold.train import fit as fit
    from fivefold.train import resume as resume


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fivefold' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


class _Package(ModuleType):
    """Keeps `fivefold.compare` the function: importing the module of that name would put itself in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
