"""Which systems there are: the family folders are the registry.

A public file in a family folder with one public `System` subclass is in the catalogue. What
`fivefold list` prints is read from the source, so nothing is imported (and torch is not started).
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


class UnknownSystem(ValueError):
    """No system of that name: names the nearest."""


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


def find(name: str) -> Entry:
    """The entry of an id, or of the name of a module on the Python path (`mypackage.mymodel`)."""
    if name in entries():
        return entries()[name]
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        spec = None
    if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
        return _read(Path(spec.origin), name.split(".")[0], name, name)
    near = difflib.get_close_matches(name, entries(), 1, 0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownSystem(f"no system {name!r} in the catalogue, nor a module{hint} (fivefold list shows all)")


def class_of(name: str) -> type[System]:
    """The class of an id, a module name, or `module:Class`; imports it."""
    module, colon, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute) if colon else find(name).load()


def name_of(cls: type[System]) -> str:
    """The id of a system of the catalogue; `module:Class` of another, by which `class_of` finds it again."""
    ids = [entry.id for entry in entries().values() if entry.module == cls.__module__]
    return ids[0] if ids else f"{cls.__module__}:{cls.__qualname__}"


def fitting(space_kind: str) -> list[str]:
    """Ids of the systems that model this kind of space."""
    return [entry.id for entry in entries().values() if space_kind in entry.densities]


def build(system: str | type[System], space: Space, **arguments: Any) -> System:
    """The system of that name (or class) on `space`; where it does not fit, `Unfit` with the list of those that do."""
    from fivefold.system import Unfit

    cls = class_of(system) if isinstance(system, str) else system
    try:
        return cls(space, **arguments)
    except Unfit as error:
        others = [other for other in fitting(space.kind) if other != name_of(cls)]
        raise Unfit(f"{error}. Systems for {space.kind} data: {', '.join(others)}") from error


def _read(path: Path, family: str, module: str, name: str) -> Entry:
    """The entry of one file, from its syntax tree."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and not node.name.startswith("_")
        and any("System" in ast.unparse(base) for base in node.bases)
    ]
    if len(classes) != 1:
        raise UnknownSystem(f"{path}: expected one public System subclass, found {len(classes)}")
    facts = {
        target.id: node.value
        for node in classes[0].body
        for target in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and isinstance(target, ast.Name)
    }
    lines = (ast.get_docstring(classes[0]) or "").split("\n\n")
    title, _, source = lines[0].strip().rstrip(".").partition(" (")
    section, _, reference = source.rstrip(")").partition("; ")
    densities = facts["densities"]
    if not isinstance(densities, ast.Dict):
        raise UnknownSystem(f"{path}: densities must be a literal dictionary")
    presets = facts.get("presets")
    return Entry(
        id=name,
        family=family,
        title=title,
        section=section.removeprefix("survey "),
        reference=reference,
        summary=" ".join(lines[1].split()) if len(lines) > 1 else "",
        densities={
            ast.literal_eval(key): value.attr.lower().replace("_", " ")
            for key, value in zip(densities.keys, densities.values, strict=True)
            if key is not None and isinstance(value, ast.Attribute)
        },
        sampling=ast.literal_eval(facts["sampling"]) if "sampling" in facts else "direct",
        free_form=ast.literal_eval(facts["free_form"]) if "free_form" in facts else True,
        presets=tuple(ast.literal_eval(key) for key in presets.keys if key) if isinstance(presets, ast.Dict) else (),
        module=module,
        class_name=classes[0].name,
    )
