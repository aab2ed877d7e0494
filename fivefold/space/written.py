"""How a file of rows and the numbers of its columns are written, so that samples are written in the same way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}


@dataclass(frozen=True)
class Dialect:
    """How a file is written.

    Args:
        sep: what stands between fields.
        decimal: the mark before a number's fraction.
        thousands: the mark between groups of three digits; none where there is no such.
        encoding: of the file, as Python names it.
        comment: how lines start that are left out; none where there are no such.
        header: lines of names; the names of several are joined by a space.
        lines: those lines where they are several, as they are to be written back.
        missing: what stands where no value is given.
        quoted: whether every field is in quotes.
        newline: what ends a line.
    """

    sep: str = ","
    decimal: str = "."
    thousands: str = ""
    encoding: str = "utf-8"
    comment: str = ""
    header: int = 1
    lines: tuple[tuple[str, ...], ...] = ()
    missing: str = ""
    quoted: bool = False
    newline: str = "\n"

    def describe(self) -> str:
        """What differs from the usual, in words; nothing where nothing does."""
        words = []
        if self.sep != ",":
            words.append(f"fields between {SEPARATORS.get(self.sep, repr(self.sep))}")
        if self.decimal != ".":
            words.append(f"decimal mark {self.decimal!r}")
        if self.thousands:
            words.append(f"thousands mark {self.thousands!r}")
        if self.encoding != "utf-8":
            words.append(f"encoding {self.encoding}")
        if self.comment:
            words.append(f"comment lines ({self.comment}) left out")
        if self.header != 1:
            words.append(f"{self.header or 'no'} lines of names")
        return ", ".join(words)


@dataclass(frozen=True)
class Numbers:
    """How the numbers of a column are written.

    Args:
        before: what stands before each, a currency.
        after: what stands after each, a currency or per cent.
        decimals: how many there are at most.
        least: how many there are at least, be they zeros.
        grouped: whether thousands are marked.
    """

    before: str = ""
    after: str = ""
    decimals: int = 0
    least: int = 0
    grouped: bool = False

    def write(self, values: Iterable[float], dialect: Dialect) -> list[str]:
        """Each value as the column has it; missing ones as nothing."""
        form = f"{{:{',' if self.grouped else ''}.{self.decimals}f}}"
        marks = str.maketrans({",": dialect.thousands or ",", ".": dialect.decimal})

        def written(value: float) -> str:
            if value != value:
                return dialect.missing
            text = form.format(abs(value))
            whole, point, fraction = text.partition(".")
            fraction = fraction[: self.least] + fraction[self.least :].rstrip("0")
            text = (whole + (point + fraction if fraction else "")).translate(marks)
            negative = value < 0 and any(c in "123456789" for c in text)
            return f"{'-' if negative else ''}{self.before}{text}{self.after}"

        return [written(value) for value in values]
