"""Systems of a few lines that tests write into packages of their own, with whatever trouble they are to make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SYSTEM = '''
import os, signal, time, torch
from torch import nn
from fivefold import Density, System, option

class Toy(System):
    """Toy (survey 0; nobody, 2020)."""
    densities = {{"{kind}": Density.EXACT}}
    presets = {presets}
    trouble: str = option("{trouble}", "what its loss does")
    def build(self):
        self.mean, self.log_scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    def law(self):
        return torch.distributions.Normal(self.mean, self.log_scale.exp())
    def loss(self, batch):
        exec(self.trouble)
        return -self._log_prob(batch.x, None).mean()
    def _log_prob(self, x, condition):
        return self.law().log_prob(x).sum(1)
    def _sample(self, n, condition):
        return self.law().sample((n,))
'''


def source(trouble: str = "0", kind: str = "table", presets: Mapping[str, Any] = {}) -> str:
    """A module's text: a normal law, whose loss first executes `trouble`."""
    return SYSTEM.format(kind=kind, trouble=trouble, presets=dict(presets))


@contextmanager
def package(place: Path, name: str, modules: Mapping[str, str]) -> Iterator[pytest.MonkeyPatch]:
    """While this is open `place` is the working folder and on the path, with a package of these modules' texts."""
    (place / name).mkdir()
    for module, text in {"__init__": "", **modules}.items():
        (place / name / f"{module}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        patch.chdir(place)
        yield patch
