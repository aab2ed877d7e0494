"""The files that docs/contract.md shows, a system of every family, run through the contract as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs" / "contract.md"
LONGEST = 40  # lines of a file


def shown() -> dict[str, str]:
    """Each file by the name of its system in lower case."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    files = [block for block in blocks if block.startswith('"""')]
    return {re.findall(r"^class (\w+)\(\w*System\):", file, re.M)[-1].lower(): file for file in files}


def test_every_family_has_one_and_none_is_long():
    bases = {re.findall(r"\((\w*System)\):", file)[-1] for file in shown().values()}
    assert bases == {
        "System", "ChainSystem", "DiffusionSystem", "VAESystem", "GANSystem", "AutoregressiveSystem",
        "CouplingFlowSystem",
    }  # fmt: skip
    assert {name: len(file.splitlines()) for name, file in shown().items() if len(file.splitlines()) > LONGEST} == {}


@pytest.fixture(scope="module")
def contract(tmp_path_factory) -> str:
    """What pytest says of the contract test over all of them."""
    place = tmp_path_factory.mktemp("shown")
    (place / "mymodels").mkdir()
    (place / "mymodels" / "__init__.py").write_text("")
    for name, file in shown().items():
        (place / "mymodels" / f"{name}.py").write_text(file)
    words = [sys.executable, "-m", "pytest", str(Path(__file__).with_name("test_contract.py")), "-m", "not slow", "-rA"]
    words += ["-q", "-k", "mymodels", "-p", "no:cacheprovider", "-p", "no:xdist"]
    path = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
    own = {**os.environ, "FIVEFOLD_SYSTEMS": "mymodels", "PYTHONPATH": path}
    return subprocess.run(words, env=own, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", shown())
def test_what_is_shown_keeps_the_contract(contract, name):
    kept = re.findall(rf"^(PASSED|FAILED|ERROR) \S+\[mymodels\.{name}\b", contract, re.M)
    assert set(kept) == {"PASSED"}, contract
    assert len(kept) >= 8
