"""fivefold: every family of deep generative model under one contract.

The names below are loaded when they are first used, so that `fivefold list` need not start torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fivefold import catalog, options

__version__ = "0.1.0"

options.catalogue = catalog  # what looks systems up, handed to slots

_HOME = {
    "load_data": "fivefold.data",
    "Data": "fivefold.data",
    "fit": "fivefold.training.fit",
    "resume": "fivefold.training.fit",
    "tune": "fivefold.comparison.tuning",
    "load": "fivefold.run",
    "evaluate": "fivefold.evaluation.evaluate",
    "compare": "fivefold.comparison.compare",
    "compress": "fivefold.apps.compress",
    "decompress": "fivefold.apps.compress",
    "Estimator": "fivefold.apps.estimator",
    "System": "fivefold.system",
    "LatentSystem": "fivefold.system",
    "Update": "fivefold.system",
    "Density": "fivefold.system",
    "option": "fivefold.options",
    "slot": "fivefold.options",
    "Batch": "fivefold.space",
    "Space": "fivefold.space",
}
__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from fivefold.apps.compress import compress as compress
    from fivefold.apps.compress import decompress as decompress
    from fivefold.apps.estimator import Estimator as Estimator
    from fivefold.comparison.compare import compare as compare
    from fivefold.comparison.tuning import tune as tune
    from fivefold.data import Data as Data
    from fivefold.data import load_data as load_data
    from fivefold.evaluation.evaluate import evaluate as evaluate
    from fivefold.options import option as option
    from fivefold.options import slot as slot
    from fivefold.run import load as load
    from fivefold.space import Batch as Batch
    from fivefold.space import Space as Space
    from fivefold.system import Density as Density
    from fivefold.system import LatentSystem as LatentSystem
    from fivefold.system import System as System
    from fivefold.system import Update as Update
    from fivefold.training.fit import fit as fit
    from fivefold.training.fit import resume as resume


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fivefold' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
