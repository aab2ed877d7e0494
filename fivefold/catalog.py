"""Which systems there are: the family folders are the registry; and the one place that turns a name into a class.

A public file in a family folder with one public `System` subclass is in the catalogue. What
`fivefold list` prints is read from the source, so nothing is imported (and torch is not started).

A name outside the catalogue would import, and so run, what it names: it is looked up only where it is trusted
(`trusting`), which is what a user typed, never what a file says.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fivefold.errors import Unfit, UnknownSystem, Untrusted

if TYPE_CHECKING:
    from fivefold.space import Space
    from fivefold.system import System

FAMILIES = {
    "energy": "energy-based",
    "diffusion": "diffusion",
    "vae": "variational autoencoder",
    "gan": "generative adversarial",
    "autoregressive": "autoregressive",
    "flow": "normalizing flow",
}


@dataclass(frozen=True)
class Entry:
    """One row of the catalogue.

    `densities` maps each kind of space that fits to the kind of density there.
    """

    id: str
    family: str
    title: str
    section: str
    reference: str
    summary: str
    densities: dict[str, str]
    sampling: str
    free_form: bool
    presets: tuple[str, ...]
    module: str
    class_name: str

    def load(self) -> type[System]:
        """The class; imports its module."""
        return getattr(importlib.import_module(self.module), self.class_name)

    def to_json(self) -> dict[str, Any]:
        kinds = sorted(set(self.densities.values()))
        return {
            "id": self.id,
            "family": self.family,
            "section": self.section,
            "reference": self.reference,
            "density": self.densities if len(kinds) > 1 else kinds[0],
            "spaces": list(self.densities),
            "summary": self.summary,
        }


OWN = "FIVEFOLD_SYSTEMS"  # names of modules or packages, separated by commas, that belong to the catalogue too


@cache
def entries() -> dict[str, Entry]:
    """Every system of the package, by id, then those of the modules and packages named in `FIVEFOLD_SYSTEMS`."""
    root = Path(__file__).parent
    found = {}
    for family in FAMILIES:
        for path in sorted((root / family).glob("[!_]*.py")):
            entry = _read(path, family, f"fivefold.{family}.{path.stem}", path.stem.replace("_", "-"))
            found[entry.id] = entry
    return found | {entry.id: entry for name in os.environ.get(OWN, "").split(",") if name for entry in _own(name)}


def _own(name: str) -> list[Entry]:
    """The systems of a user's module, or of every public module of a package."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise UnknownSystem(f"{OWN} names {name!r}, but there is no such module or package on the Python path")
    if spec.submodule_search_locations is None:
        return [_read(Path(str(spec.origin)), name.split(".")[0], name, name)]
    files = sorted(file for place in spec.submodule_search_locations for file in Path(place).glob("[!_]*.py"))
    return [_read(file, name, f"{name}.{file.stem}", f"{name}.{file.stem}") for file in files]


# --- from a name to a class -------------------------------------------------------------------------

_TRUSTED: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


@contextmanager
def trusting(*names: object) -> Iterator[None]:
    """While this is open, the modules of these names (`mypackage.mymodel`, `module:Class`) may be imported.

    For what the user typed or named as trusted; what is not a string is passed over. The working directory is on the
    path for them alone.
    """
    typed = [part for name in names if isinstance(name, str) for part in name.split(",")]
    modules = {name.partition(":")[0] for name in typed if name not in entries()}
    if modules and os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # last, so that only what is not found elsewhere is found there
    token = _TRUSTED.set(_TRUSTED.get() | modules)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def check_trusted(name: str) -> None:
    """`Untrusted` unless `name` is in the catalogue or its module is trusted."""
    module = name.partition(":")[0]
    if name not in entries() and module not in _TRUSTED.get():
        raise Untrusted(
            f"the module {module!r} would be imported and run; name it as trusted (--trust {module}) if it is yours"
        )


def find(name: str) -> Entry:
    """The entry of an id, or of the name of a trusted module on the Python path (`mypackage.mymodel`)."""
    if name in entries():
        return entries()[name]
    try:
        spec = importlib.util.find_spec(name) if name in _TRUSTED.get() else None
    except (ModuleNotFoundError, ValueError):
        spec = None
    if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
        return _read(Path(spec.origin), name.split(".")[0], name, name)
    near = difflib.get_close_matches(name, entries(), 1, 0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownSystem(f"no system {name!r} in the catalogue, nor a module{hint} (fivefold list shows all)")


def class_of(name: str) -> type[System]:
    """The class of an id; of a trusted module's name, or `module:Class`. Imports it.

    Raises Untrusted for a module that is neither in the catalogue nor trusted, UnknownSystem for what is no module.
    """
    if name in entries():
        return entries()[name].load()
    module, colon, attribute = name.partition(":")
    if colon or "." in name:
        check_trusted(name)
    return getattr(importlib.import_module(module), attribute) if colon else find(name).load()


@lru_cache(1)
def classes() -> dict[str, type[System]]:
    """Every class of the catalogue by id; imports them all."""
    return {name: entry.load() for name, entry in entries().items()}


def name_of(cls: type[System]) -> str:
    """The id of a system of the catalogue; `module:Class` of another, by which `class_of` finds it again."""
    ids = [entry.id for entry in entries().values() if entry.module == cls.__module__]
    return ids[0] if ids else f"{cls.__module__}:{cls.__qualname__}"


def fitting(space_kind: str) -> list[str]:
    """Ids of the systems that model this kind of space."""
    return [entry.id for entry in entries().values() if space_kind in entry.densities]


def build(system: str | type[System], space: Space, **arguments: Any) -> System:
    """The system of that name (or class) on `space`; where it does not fit, `Unfit` with the list of those that do."""
    cls = class_of(system) if isinstance(system, str) else system
    try:
        return cls(space, **arguments)
    except Unfit as error:
        others = [other for other in fitting(space.kind) if other != name_of(cls)]
        raise Unfit(f"{error}. Systems for {space.kind} data: {', '.join(others)}") from error


# --- read from the source ---------------------------------------------------------------------------


def _read(path: Path, family: str, module: str, name: str) -> Entry:
    """The entry of one file, from its syntax tree and those of its class's bases."""
    classes = [
        node
        for node in _tree(path).body
        if isinstance(node, ast.ClassDef)
        and not node.name.startswith("_")
        and any("System" in base for base in _bases(path, node.name))
    ]
    if len(classes) != 1:
        raise UnknownSystem(f"{path}: expected one public System subclass, found {len(classes)}")
    facts = _facts(path, classes[0].name)
    lines = (ast.get_docstring(classes[0]) or "").split("\n\n")
    title, _, source = lines[0].strip().rstrip(".").partition(" (")
    section, _, reference = source.rstrip(")").partition("; ")
    if not isinstance(facts.get("densities"), dict):
        raise UnknownSystem(f"{path}: densities must be a literal dictionary, here or in a base")
    return Entry(
        id=name,
        family=family,
        title=title,
        section=section.removeprefix("survey "),
        reference=reference,
        summary=" ".join(lines[1].split()) if len(lines) > 1 else "",
        densities=facts["densities"],
        sampling=facts.get("sampling", "direct"),
        free_form=facts.get("free_form", True),
        presets=tuple(facts.get("presets", {})),
        module=module,
        class_name=classes[0].name,
    )


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _class(path: Path, name: str) -> ast.ClassDef | None:
    found = [node for node in _tree(path).body if isinstance(node, ast.ClassDef) and node.name == name]
    return found[0] if found else None


def _sources(path: Path, name: str) -> list[tuple[Path, str]]:
    """File and name of each base of a class, where it is in this file or imported from one of ours."""
    node, root = _class(path, name), Path(__file__).parent.parent
    found = []
    for base in [ast.unparse(base) for base in node.bases] if node else []:
        imported = [
            (root / statement.module.replace(".", "/")).with_suffix(".py")
            for statement in _tree(path).body
            if isinstance(statement, ast.ImportFrom) and statement.module and statement.module.startswith("fivefold.")
            for alias in statement.names
            if (alias.asname or alias.name) == base
        ]
        found += [(place, base) for place in (imported or [path]) if place.exists()]
    return found


def _bases(path: Path, name: str) -> set[str]:
    """The names of all bases of a class that can be read."""
    node = _class(path, name)
    direct = {ast.unparse(base).split(".")[-1] for base in node.bases} if node else set()
    return direct.union(*(_bases(place, base) for place, base in _sources(path, name)))


def _facts(path: Path, name: str) -> dict[str, Any]:
    """The literal class attributes that an entry shows, inherited; presets are gathered."""
    facts: dict[str, Any] = {}
    for place, base in reversed(_sources(path, name)):
        theirs = _facts(place, base)
        facts |= theirs | {"presets": facts.get("presets", {}) | theirs.get("presets", {})}
    node = _class(path, name)
    for statement in node.body if node else []:
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            continue
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        if not isinstance(target, ast.Name):
            continue
        key, value = target.id, statement.value
        if key in ("sampling", "free_form"):
            facts[key] = ast.literal_eval(value)
        elif key == "presets" and isinstance(value, ast.Dict):
            facts[key] = facts.get(key, {}) | {ast.literal_eval(k): None for k in value.keys if k is not None}
        elif key == "densities" and isinstance(value, ast.Dict):
            pairs = zip(value.keys, value.values, strict=True)
            facts[key] = {
                ast.literal_eval(k): v.attr.lower().replace("_", " ")
                for k, v in pairs
                if k is not None and isinstance(v, ast.Attribute)
            }
    return facts
