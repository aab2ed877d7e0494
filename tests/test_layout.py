"""Imports go one way, read from the sources: a room uses those before it in the order, and itself."""

from __future__ import annotations

import ast
from pathlib import Path

import fivefold
from fivefold import catalog

ROOT = Path(fivefold.__file__).parent
FAMILIES = set(catalog.FAMILIES)
ORDER: list[set[str]] = [  # a room may use all that stand before it; those in one set do not see each other
    {"errors"},
    {"files", "machine", "options"},
    {"space"},
    {"system", "data"},
    {"tools"},
    {"nets"},
    {"bijections"},
    FAMILIES,
    {"catalog"},
    {"run"},
    {"evaluation"},
    {"training"},
    {"report"},
    {"comparison", "apps"},
    {"cli"},
]
MODELS = {"tools", "nets", "bijections"} | FAMILIES


def _rooms() -> set[str]:
    return {path.stem for path in ROOT.glob("[!_]*") if path.suffix == ".py" or (path / "__init__.py").exists()}


def _used(path: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in it; those for types alone left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fivefold":
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if _is_module(name) else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("fivefold.")}
    return found


def _is_module(name: str) -> bool:
    place = ROOT.parent / name.replace(".", "/")
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_the_order_names_every_room():
    assert set().union(*ORDER) == _rooms()


def test_few_modules_lie_at_the_top():
    assert len([path for path in ROOT.glob("*.py") if path.stem != "__init__"]) <= 8


def test_imports_go_one_way():
    before: set[str] = set()
    for step in ORDER:
        for room in step:
            files = sorted((ROOT / room).rglob("*.py")) if (ROOT / room).is_dir() else [ROOT / f"{room}.py"]
            # A hybrid is a composition: systems of one family import those of another.
            allowed = before | {room} | (FAMILIES if room in FAMILIES else set())
            if room in MODELS:
                allowed -= {"data", "files", "machine"}
            if room == "data":
                allowed -= {"machine", "options"}
            for path in files:
                if path.stem == "distilled_flow":
                    continue  # until it has slots
                wrong = {_room(module) for module in _used(path)} - allowed - {""}
                assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"
        before |= step


def test_no_circle_of_modules():
    """Among all modules, imports within functions included."""
    graph = {".".join(("fivefold", *path.relative_to(ROOT).with_suffix("").parts)): _used(path)
             for path in ROOT.rglob("*.py")}  # fmt: skip
    graph = {name.removesuffix(".__init__"): used - {"fivefold"} for name, used in graph.items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for used in sorted(graph.get(module, ())):
                if used != module:
                    visit(used, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())
