"""Flags from declared options, those of what fills a slot included."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from fivefold import catalog
from fivefold.errors import OptionError
from fivefold.options import Option, Slot, class_in, options_of, preset_of, slot_of

DOT = "__"  # in the names that click gives to Python, for the dot before an option of a slot's part


class Value(click.ParamType):  # type: ignore[type-arg]
    """A value of an option, from text, checked as everywhere."""

    def __init__(self, option: Option) -> None:
        self.option, self.name = option, option.describe_type()

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        usual = {"str": "TEXT", "int": "INTEGER", "float": "FLOAT"}
        return usual.get(self.name, f"[{self.name}]" if "|" in self.name else self.name)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.option.check(self._parse(value))
        except (OptionError, ValueError) as error:
            text = str(error) if isinstance(error, OptionError) else f"expected {self.name}, got {value!r}"
            self.fail(text.removeprefix(f"option {self.option.name!r} "), param, ctx)

    def _parse(self, value: Any) -> Any:
        kinds = [k for k in (typing.get_args(self.option.type) or (self.option.type,)) if k is not type(None)]
        if not isinstance(value, str) or self.option.needs is not None or self.option.choices:
            return value
        if typing.get_origin(self.option.type) is tuple:
            return tuple(kinds[0](part) for part in value.split(","))
        return kinds[0](value) if kinds[0] in (int, float) else value


def flag_of(option: Option, default: Any, prefix: str = "") -> click.Option:
    """A flag; unset it stays None, so that presets show through."""
    name = f"--{prefix}{option.name}".replace("_", "-")
    parameter = (prefix + option.name).replace(".", DOT)
    text = ",".join(map(str, default)) if isinstance(default, tuple) else default
    help_text = f"{option.help}  [default: {text}]"
    if option.needs is not None:
        fits = ", ".join(option.needs.parts)
        fits += (" or a system with " if fits else "a system with ") + option.needs.what if option.needs.systems else ""
        help_text = f"{option.help}: {fits}  [default: {text}]"
    if option.type is bool:
        return click.Option([f"{name}/--no-{name[2:]}", parameter], default=None, help=help_text)
    return click.Option([name, parameter], type=Value(option), default=None, help=help_text)


def slot_flags(
    known: Mapping[str, Option], defaults: Mapping[str, Any], words: Sequence[str], prefix: str = ""
) -> Iterator[tuple[str, click.Option]]:
    """The flags of the parts that fill the slots, as `words` or the defaults say, each with its section's title."""
    for name, option in known.items():
        if option.needs is None:
            continue
        typed = _typed(f"--{prefix}{name}".replace("_", "-"), words)
        content: Slot = slot_of(typed if typed is not None else defaults.get(name, option.default))
        with catalog.trusting(*([content.name] if typed is not None else [])):
            part = class_in(content, option.needs)
        inner, inside = options_of(part), f"{prefix}{name}."
        values = preset_of(part, content.preset) | dict(content.options)
        for one in inner.values():
            yield f"In the slot {prefix}{name}: {content}", flag_of(one, values.get(one.name, one.default), inside)
        yield from slot_flags(inner, values, words, inside)


def _typed(flag: str, words: Sequence[str]) -> str | None:
    """The last value that the words give a flag."""
    found = None
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == flag:
            found = following
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found


def given_options(values: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """What was typed, by the names of options."""
    named = {name.replace(DOT, "."): value for name, value in values.items() if value is not None}
    return {name: value for name, value in named.items() if name.partition(".")[0] in known}
