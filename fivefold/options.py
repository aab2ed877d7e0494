"""Options are declared once, in the class where they act, and inherited; a leaf states what it adds and changes.

    class Rows(Flow):
        '''A flow of rows.'''

        layers = 3  # another default of what a base declares
        units: int = option(4, "of a layer of the monotone networks", least=1, tune=(2, 16))

From the declarations come the checks of values, the command line's flags, the estimator's arguments, what a run
stores and what may be tuned. An option whose default is a `slot` takes a part or a whole system:

    prior: System = option(slot("spline-flow", layers=4), "of the latents", needs=Need("a density of real vectors"))
"""

from __future__ import annotations

import difflib
import math
import sys
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from fivefold.errors import OptionError

Section = Literal["system", "optimizers", "fit"]
Scales = Literal["", "width", "depth", "extra", "passes"]


catalogue: Any = None  # what knows the systems (`class_of`, `name_of`, `classes`), handed over by the package


# --- what is declared -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """What fills a slot: the name (or class) of a part or system, one of its presets, and its options."""

    name: str | type
    preset: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        name = self.name if isinstance(self.name, str) else catalogue.name_of(self.name)
        inside = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return name + (f":{self.preset}" if self.preset else "") + (f"({inside})" if inside else "")

    def to_json(self) -> dict[str, Any]:
        """As run.json keeps it; `slot_of` reads it again."""
        name = self.name if isinstance(self.name, str) else catalogue.name_of(self.name)
        return {"slot": name, "preset": self.preset, "options": plain(dict(self.options))}


def slot(name: str | type, preset: str | None = None, /, **options: Any) -> Slot:
    """What fills a slot: `slot("spline-flow", layers=4)`, `slot("transformer:small")`, `slot(MyPrior)`."""
    if isinstance(name, str) and preset is None:
        head, colon, tail = name.rpartition(":")
        if colon and not tail[:1].isupper():  # `module:Class` names a class
            name, preset = head, tail
    return Slot(name, preset, options)


def slot_of(value: Any) -> Slot:
    """A slot's content from whatever names it: a `Slot`, a name, a class, or what run.json keeps."""
    if isinstance(value, Slot):
        return value
    if isinstance(value, Mapping) and "slot" in value:
        return Slot(value["slot"], value.get("preset"), dict(value.get("options", {})))
    if isinstance(value, str | type):
        return slot(value)
    raise OptionError(f"expected the name of a system or part (spline-flow, transformer:small), got {value!r}")


@dataclass(frozen=True)
class Need:
    """What a slot asks of its part.

    Args:
        what: for people: "an exact density of codes".
        methods: that the part must have.
        densities: names of the kinds of density (`Density`) that will do on the slot's space; empty for any.
        sampling: the kind of sampling that it must have; None for any.
        without: facts of its class that must not hold.
        parts: by name, those of the library that are no systems.
        systems: whether systems of the catalogue fit too.
    """

    what: str
    methods: tuple[str, ...] = ()
    densities: tuple[str, ...] = ()
    sampling: str | None = None
    without: tuple[str, ...] = ()
    parts: Mapping[str, type] = field(default_factory=dict)
    systems: bool = True


@dataclass(frozen=True)
class Option:
    """One option: what may be given, what it means, and over which range it may be tuned.

    `least` and `most` are bounds that may be reached, `above` and `below` ones that may not; of an option with several
    values they bound each.
    """

    default: Any
    help: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    tune: tuple[Any, ...] = ()
    log: bool = False
    section: Section = "system"
    needs: Need | None = None
    scales: Scales = ""
    name: str = ""
    type: Any = None

    def check(self, value: Any) -> Any:
        """`value` as the option takes it (whole numbers pass as floats); OptionError where it does not."""
        if self.needs is not None:
            content = slot_of(value)
            if isinstance(content.name, str) and not self.needs.systems:
                self._among(content.name, tuple(self.needs.parts))
            return content
        kinds = typing.get_args(self.type) or (self.type,)
        if self.choices or typing.get_origin(self.type) is Literal:
            return self._among(value, self.choices or kinds)
        if typing.get_origin(self.type) is tuple:
            if not isinstance(value, tuple | list):
                raise self._wrong(value)
            return tuple(self._number(part, (kinds[0],)) for part in value)
        return self._number(value, kinds)

    def _among(self, value: Any, choices: tuple[Any, ...]) -> Any:
        if value not in choices:
            near = difflib.get_close_matches(str(value), list(map(str, choices)), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise OptionError(f"option {self.name!r} takes {'|'.join(map(str, choices))}, got {value!r}{hint}")
        return value

    def _number(self, value: Any, kinds: tuple[Any, ...]) -> Any:
        """One value of one of the kinds, within the bounds."""
        if isinstance(value, bool) and bool not in kinds:
            raise self._wrong(value)
        if float in kinds and isinstance(value, int) and not isinstance(value, bool) and int not in kinds:
            value = float(value)
        if not isinstance(value, tuple(kind for kind in kinds if isinstance(kind, type))):
            raise self._wrong(value)
        if isinstance(value, float) and math.isnan(value):
            raise OptionError(f"option {self.name!r} needs a number{self._range()}, got nan")
        if isinstance(value, int | float) and not self._within(value):
            raise OptionError(f"option {self.name!r} needs a number{self._range()}, got {value:g}")
        return value

    def _within(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def _range(self) -> str:
        """` of at least 1 and below 2`, for people."""
        words = (("of at least", self.least), ("above", self.above), ("of at most", self.most), ("below", self.below))
        said = [f"{word} {bound:g}" for word, bound in words if bound is not None]
        return " " + " and ".join(said) if said else ""

    def _wrong(self, value: Any) -> OptionError:
        return OptionError(f"option {self.name!r} expects {self.describe_type()}, got {value!r}")

    def describe_type(self) -> str:
        """A type as people write it: `int`, `a|b|c`, `int,int,...`, `SYSTEM`."""
        if self.needs is not None:
            return "SYSTEM" if self.needs.systems else "|".join(self.needs.parts)
        kinds: tuple[Any, ...] = typing.get_args(self.type) or (self.type,)
        if self.choices or typing.get_origin(self.type) is Literal:
            return "|".join(map(str, self.choices or kinds))
        if typing.get_origin(self.type) is tuple:
            return f"{kinds[0].__name__},..."
        return "|".join(str(kind.__name__) for kind in kinds if kind is not type(None))


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Collection[str] = (),
    tune: tuple[Any, ...] = (),
    log: bool = False,
    section: Section = "system",
    needs: Need | None = None,
    scales: Scales = "",
) -> Any:
    """Declare an option as an annotated class attribute.

    Args:
        default: what it is unless given. A `slot` makes the option one that a part or system fills.
        help: one line for people, with the unit.
        least: the smallest value.
        most: the largest value.
        above: a value that must be exceeded.
        below: a value that must not be reached.
        choices: the names it takes, as the one table of functions lists them.
        tune: the range (two numbers) or the values over which it may be tuned; none where it may not.
        log: whether that range is on a logarithmic scale.
        section: of the command line's help: the model's, its optimisers' or the training's.
        needs: of a slot, what it asks of its part.
        scales: how the rule of sizes (`training.sizing`) changes it unless it is given: the network's "width" or
            "depth", an "extra" that small networks go without, or by the "passes" through the data.
    """
    default = slot_of(default) if needs is not None else default
    return Option(default, help, least, most, above, below, tuple(choices), tune, log, section, needs, scales)


def width_option(default: int, help: str, *, tune: tuple[int, int], **more: Any) -> Any:
    """An option that makes a network wide; fewer where data or budget are small, unless it is given."""
    return option(default, help, tune=tune, **{"least": 1, "log": True, "scales": "width", **more})


def depth_option(default: int, help: str, *, tune: tuple[int, int], **more: Any) -> Any:
    """An option that makes a network deep; fewer where data or budget are small, unless it is given."""
    return option(default, help, tune=tune, **{"least": 1, "scales": "depth", **more})


def dropout_option(default: float, help: str, *, tune: tuple[float, float] = (0.0, 0.5)) -> Any:
    """What share is dropped in training; none where the data are hardly seen twice, unless it is given."""
    return option(default, help, least=0, below=1, tune=tune, scales="passes")


@dataclass(frozen=True)
class Fixed:
    """The value of an option that a leaf no longer leaves open."""

    value: Any


def fixed(value: Any) -> Any:
    """Fix what a base declares as an option: `steps = fixed(0)`. It stays an attribute and cannot be given any more."""
    return Fixed(value)


# --- what declares ----------------------------------------------------------------------------------


class Configured:
    """Base of classes with options: they become attributes of the instance, set and checked by `configure`.

    Declarations leave the class when it is made (they would hide a module of the same name) and are found again by
    `options_of`.
    """

    _declared: dict[str, Any] = {}

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        inherited = {name for base in cls.__mro__[1:] for name in vars(base).get("_declared", {})}
        own = {
            name: value
            for name, value in vars(cls).items()
            if isinstance(value, Option) or (name in inherited and not hasattr(value, "__get__"))
        }
        for name, value in own.items():
            delattr(cls, name)
            if isinstance(value, Fixed):
                setattr(cls, name, value.value)
        cls._declared = own

    def configure(self, given: Mapping[str, Any]) -> None:
        """Set every option, from `given` or its default; OptionError for one that does not exist or does not fit."""
        cls: type = type(self)
        known = options_of(cls)
        for name in given:
            if name not in known:
                raise unknown(type(self).__name__, name, known)
        self.arguments = {n: o.check(given[n]) if n in given else o.default for n, o in known.items()}
        for name, value in self.arguments.items():
            setattr(self, name, value)


@cache
def options_of(cls: Any) -> dict[str, Option]:
    """The options of a class by name, its bases' first."""
    found: dict[str, Option] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).get("_declared", {}).items():
            if isinstance(value, Option):
                kind = _annotation(base, name) or type(value.default)
                found[name] = replace(value, name=name, type=kind)
            elif isinstance(value, Fixed):
                del found[name]
            else:
                changed = slot_of(value) if found[name].needs is not None else value
                found[name] = replace(found[name], default=changed)
    return found


def _annotation(cls: type, name: str) -> Any:
    text = vars(cls).get("__annotations__", {}).get(name)
    return eval(text, dict(vars(sys.modules[cls.__module__]))) if isinstance(text, str) else text


def presets_of(cls: type) -> dict[str, dict[str, Any]]:
    """The presets of a class, each with what its bases say under the same name."""
    found: dict[str, dict[str, Any]] = {}
    for base in reversed(cls.__mro__):
        for name, values in vars(base).get("presets", {}).items():
            found[name] = found.get(name, {}) | values
    return found


def preset_of(cls: type, name: str | None) -> dict[str, Any]:
    """The values of one preset over those of "default"; OptionError where there is none of that name."""
    presets = presets_of(cls)
    if name is not None and name not in presets:
        has = ", ".join(preset for preset in presets if preset != "default") or "none"
        raise OptionError(f"no preset {name!r}; {cls.__name__} has {has}")
    return presets.get("default", {}) | presets.get(name or "default", {})


def reach_into_slots(values: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """`{"prior": "made", "prior.hidden": 64}` as `{"prior": slot("made", hidden=64)}`.

    What is said of a slot's part alone is said of its default. OptionError where the name before the dot is no slot.
    """
    whole = {name: value for name, value in values.items() if "." not in name}
    for name, value in values.items():
        head, dot, rest = name.partition(".")
        if not dot:
            continue
        if head not in known or known[head].needs is None:
            slots = ", ".join(n for n, o in known.items() if o.needs is not None) or "none"
            raise OptionError(f"{name!r}: {head!r} is no slot; the slots here: {slots}")
        content = slot_of(whole.get(head, known[head].default))
        inner = dict(content.options)
        if "." in rest:  # a slot within the slot
            inner_known = options_of(class_in(content, known[head].needs))
            inner = reach_into_slots({**inner, rest: value}, inner_known)
        else:
            inner[rest] = value
        whole[head] = replace(content, options=inner)
    return whole


def plain(value: Any) -> Any:
    """Options as JSON keeps them: slots as dictionaries, at any depth."""
    if isinstance(value, Slot):
        return value.to_json()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return value


def flags(values: Mapping[str, Any]) -> list[str]:
    """The words of a command line that give these options; slots' parts have theirs after a dot."""
    words: list[str] = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, Slot) or (isinstance(value, Mapping) and "slot" in value):
            content = slot_of(plain(slot_of(value)))
            words += [flag, f"{content.name}{f':{content.preset}' if content.preset else ''}"]
            words += flags({f"{name}.{inner}": part for inner, part in content.options.items()})
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)]
    return words


def label(content: Slot) -> str:
    """What a table calls a system with its options: `vae, prior spline-flow`."""
    name = content.name if isinstance(content.name, str) else catalogue.name_of(content.name)
    said = [
        f"{key} {slot_of(value) if isinstance(value, Slot | Mapping) else value}"
        for key, value in content.options.items()
    ]
    return ", ".join([name + (f":{content.preset}" if content.preset else ""), *said])


def names_in(value: Any) -> Iterator[str]:
    """The names of systems in what fills a slot, at any depth."""
    content = value if isinstance(value, type) else slot_of(value)
    if isinstance(content, Slot):
        if isinstance(content.name, str):
            yield content.name
        for inner in content.options.values():
            if isinstance(inner, Slot) or (isinstance(inner, Mapping) and "slot" in inner):
                yield from names_in(inner)


def class_in(content: Slot, needs: Need | None) -> type:
    """The class of what fills a slot: one of the slot's own parts, or a system by the catalogue."""
    if isinstance(content.name, type):
        return content.name
    if needs is not None and content.name in needs.parts:
        return needs.parts[content.name]
    return catalogue.class_of(content.name)


def unknown(owner: str, name: str, known: Iterable[str]) -> OptionError:
    """The error for an option that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(name, list(known), 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
    return OptionError(f"{owner} has no option {name!r}{hint}")
