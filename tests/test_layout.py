"""Imports go one way, read from the sources: a room may use those before it, itself and the free ones."""

from __future__ import annotations

import ast
from pathlib import Path

import fivefold
from fivefold import catalog

ROOT = Path(fivefold.__file__).parent
FAMILIES = set(catalog.FAMILIES)
MODELS = {"space", "system", "catalog", "tools", "nets", "bijections"} | FAMILIES
ALLOWED = {
    "space": set(),
    "allocator": set(),
    "system": {"space"},
    "data": {"space", "files"},
    "tools": {"space", "system"},
    "nets": {"space", "system", "tools"},
    "bijections": {"space", "system", "tools", "nets"},
    **dict.fromkeys(FAMILIES, MODELS),
    "trainer": {
        "space",
        "system",
        "data",
        "tools",
        "allocator",
        "batches",
        "budget",
        "log",
        "ranks",
        "run",
        "threads",
        "validation",
    },
    "evaluate": {"space", "system", "catalog", "data", "tools", "features", "run"},
}


def _rooms_used(path: Path) -> set[str]:
    """The rooms of the package that a file imports when it is imported."""
    tree = ast.parse(path.read_text())
    nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) and n.module for a in n.names]
    names += [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    rooms = {name.split(".")[1] for name in names if name.startswith("fivefold.")}
    return {room for room in rooms if (ROOT / room).is_dir() or (ROOT / f"{room}.py").exists()}


def test_imports_go_one_way():
    for room, allowed in ALLOWED.items():
        files = sorted((ROOT / room).glob("*.py")) if (ROOT / room).is_dir() else [ROOT / f"{room}.py"]
        for path in files:
            wrong = _rooms_used(path) - allowed - {room}
            assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"
