"""What all tests share: a seed, and the tests of one system alone."""

from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--system", help="only this system's tests: those in its file, or with its id as a parameter")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    name = config.getoption("--system")
    if not name:
        return
    from fivefold import catalog
    from fivefold.errors import FivefoldError

    try:
        catalog.find(name)
    except FivefoldError as error:
        raise pytest.UsageError(str(error)) from None
    module = f"test_{name.replace('-', '_')}.py"
    chosen = [item for item in items if item.path.name == module or name in _parameters(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


def _parameters(item: pytest.Item) -> list[str]:
    call = getattr(item, "callspec", None)
    return [value for value in call.params.values() if isinstance(value, str)] if call else []


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same numbers whatever ran before in this process."""
    torch.manual_seed(0)
