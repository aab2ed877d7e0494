"""Three signatures are the configuration: a system's constructor, its `optimizers`, and `Trainer`.

From them come the command line's flags, the checks of `fit`'s options and what a run stores.
"""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fivefold.system import System


class OptionError(ValueError):
    """An option does not exist or its value is not of its type: names it and the nearest."""


@dataclass(frozen=True)
class Option:
    """One option of a system: `home` is "system", "optimizers" or "fit", by the signature it comes from."""

    name: str
    type: Any
    default: Any
    help: str
    home: str


def options(cls: type[System]) -> dict[str, Option]:
    """All options of a system by name."""
    from fivefold.trainer import Trainer

    found: dict[str, Option] = {}
    for home, function, owner in (
        ("system", cls.__init__, cls),
        ("optimizers", cls.optimizers, cls.optimizers),
        ("fit", Trainer.__init__, Trainer),
    ):
        for option in _options(function, owner, home):
            if option.name in found:
                raise TypeError(f"{cls.__name__}: option {option.name!r} is in two signatures")
            found[option.name] = option
    return found


def arguments(cls: type[System], preset: str | None, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The arguments of the three signatures, by home: presets ("default", then `preset`) under `given`.

    Raises OptionError for an unknown preset, option or a value of the wrong type.
    """
    known = options(cls)
    if preset is not None and preset not in cls.presets:
        raise OptionError(f"no preset {preset!r}; {cls.__name__} has {', '.join(cls.presets) or 'none'}")
    chosen = {**cls.presets.get("default", {}), **cls.presets.get(preset or "default", {}), **given}
    split: dict[str, dict[str, Any]] = {"system": {}, "optimizers": {}, "fit": {}}
    for name, value in chosen.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise OptionError(f"{cls.__name__} has no option {name!r}{hint}")
        split[known[name].home][name] = _checked(known[name], value)
    return split


def _options(function: Callable[..., Any], owner: Any, home: str) -> list[Option]:
    import docstring_parser

    documents = (inspect.getdoc(owner) or "", inspect.getdoc(function) or "")
    params = [p for document in documents for p in docstring_parser.parse(document).params]
    helps = {p.arg_name: " ".join((p.description or "").split()) for p in params}
    types = typing.get_type_hints(function)
    return [
        Option(p.name, types.get(p.name, str), p.default, helps.get(p.name, ""), home)
        for p in inspect.signature(function).parameters.values()
        if p.default is not inspect.Parameter.empty and p.kind is not inspect.Parameter.VAR_KEYWORD
    ]


def _checked(option: Option, value: Any) -> Any:
    """`value` if it is of the option's type (whole numbers pass as floats)."""
    allowed = typing.get_args(option.type) or (option.type,)
    if typing.get_origin(option.type) is typing.Literal:
        fits = value in allowed
    elif typing.get_origin(option.type) is tuple:
        fits = isinstance(value, tuple | list)
        value = tuple(value) if fits else value
    elif float in allowed and isinstance(value, int) and not isinstance(value, bool):
        fits, value = True, float(value)
    else:
        fits = any(isinstance(kind, type) and isinstance(value, kind) for kind in allowed)
        fits = fits and not (isinstance(value, bool) and bool not in allowed)
    if not fits:
        raise OptionError(f"option {option.name!r} expects {describe_type(option.type)}, got {value!r}")
    return value


def describe_type(kind: Any) -> str:
    """A type as people write it: `int`, `a|b|c`, `int,int,...`."""
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return f"{typing.get_args(kind)[0].__name__},..."
    names = [k.__name__ for k in (typing.get_args(kind) or (kind,)) if k is not type(None)]
    return "|".join(names)
