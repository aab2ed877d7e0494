"""Text files of rows as people write them: encoding, separators, lines of names and numbers found out, and read."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fivefold.data.encodings import LOOKED_AT, encoding_of
from fivefold.errors import DataError, OptionError
from fivefold.space.written import SEPARATORS, Dialect, Numbers

SAMPLE = 500  # records from which the separator, the header and the numbers' form are told
MISSING = {"", "?", "-", "--", ".", "na", "n/a", "#n/a", "nan", "null", "none", "nil", "<na>"}
_NAMED = {"tab": "\t", "\\t": "\t", "pipe": "|", "comma": ",", "semicolon": ";", "space": " "}
UNIT = r"(?:[$€£¥₹%]|[A-Z]{3})"  # currency signs, per cent, EUR


def given(text: str) -> dict[str, Any]:
    """What a user says of a dialect, `sep=;,decimal=,`; OptionError for what is not one of its fields."""
    found: dict[str, Any] = {}
    known = ["sep", "decimal", "thousands", "encoding", "comment", "header"]
    for part in re.split(r",(?=\w+=)", text):
        name, equals, value = part.partition("=")
        if not equals or name not in known:
            raise OptionError(f"--read takes {', '.join(f'{one}=...' for one in known)}; got {part!r}")
        found[name] = _NAMED.get(value, value)
    if not str(found.get("header", 0)).isdecimal():
        raise OptionError(f"--read header= takes a number of lines, got {found['header']!r}")
    if "header" in found:
        found["header"] = int(found["header"])
    for name in ("sep", "decimal"):
        if len(found.get(name, " ")) != 1:
            raise OptionError(f"--read {name}= takes one character (or {', '.join(_NAMED)}), got {found[name]!r}")
    return found


# --- finding out ------------------------------------------------------------------------------------


def find(path: Path, raw: bytes, given: dict[str, Any]) -> tuple[Dialect, str]:
    """The dialect of a file's bytes, what is `given` taken as it is, and their text; DataError where it has none."""
    encoding = given.get("encoding") or encoding_of(raw)
    try:
        text = raw.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise DataError(f"{path} is not {encoding} text: {error}; name another with --read encoding=...") from error
    if "\0" in text[:LOOKED_AT]:
        raise DataError(f"{path} holds zero bytes: no text, or in an encoding that --read encoding=... has to name")
    comment = given["comment"] if "comment" in given else "#" if _is_commented(text) else ""
    dialect = Dialect(encoding=encoding, comment=comment)
    head = without_comments(text[:LOOKED_AT], comment)
    seps = [given["sep"]] if "sep" in given else list(SEPARATORS)
    sep, decimal, thousands = max(((sep, *_marks(sep, head)) for sep in seps), key=lambda one: _fit(head, *one))
    dialect = replace(
        dialect, sep=sep, decimal=given.get("decimal", decimal), thousands=given.get("thousands", thousands)
    )
    rows = records(head, sep)
    header = given["header"] if "header" in given else _header(rows, dialect)
    lines = tuple(map(tuple, rows[:header])) if header > 1 else ()
    second = head.split("\n")[1:2] or [head]
    quoted = all(re.fullmatch(r'\s*".*"\s*', field) for field in second[0].split(sep)) and bool(second[0].strip())
    newline = "\r\n" if head.count("\r\n") > head.count("\n") / 2 else "\n"
    return replace(dialect, header=header, lines=lines, quoted=quoted, newline=newline), text


def _is_commented(text: str) -> bool:
    """Whether the first line starts with #, which then starts comments."""
    return text.lstrip("\ufeff").lstrip().startswith("#")


def without_comments(text: str, comment: str) -> str:
    """The text less the lines that start with `comment`; the last of those before the data stays if it names them."""
    text = text.removeprefix("\ufeff")
    if not comment:
        return text
    lines = text.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if not line.lstrip().startswith(comment) and line.strip()), None)
    kept = [line for line in lines if not line.lstrip().startswith(comment)]
    if first is not None and first > 0:
        above, sep = lines[first - 1].lstrip().removeprefix(comment).strip(), _likely_separator(lines[first])
        if sep and above.count(sep) == lines[first].count(sep):  # "# a, b, c" over "1, 2, 3"
            kept.insert(0, above + "\n")
    return "".join(kept)


def _likely_separator(line: str) -> str:
    counts = Counter({sep: line.count(sep) for sep in SEPARATORS})
    return next((sep for sep, count in counts.most_common(1) if count), "")


def records(text: str, sep: str) -> list[list[str]]:
    """The first `SAMPLE` records that are not blank, each a list of stripped fields."""
    found: list[list[str]] = []
    with contextlib.suppress(csv.Error):  # a field without end, where `sep` or the quotes are others
        for row in csv.reader(io.StringIO(text), delimiter=sep, skipinitialspace=True):
            if any(field.strip() for field in row):
                found.append([field.strip() for field in row])
            if len(found) == SAMPLE:
                break
    return found


def _fit(text: str, sep: str, decimal: str, thousands: str) -> tuple[float, float, int]:
    """How well a separator explains the text: records of one length, fields that are numbers, how many fields."""
    rows = records(text, sep)
    rows = rows[:-1] if len(rows) > 2 else rows  # the last may be cut
    width, count = Counter(map(len, rows)).most_common(1)[0] if rows else (0, 0)
    if width < 2:
        return (0.0, 0.0, 0)
    fields_ = [field for row in rows for field in row if field]
    numbers = pattern(decimal, thousands)
    typed = sum(bool(numbers.fullmatch(field)) for field in fields_) / max(len(fields_), 1)
    clean = sum(
        not any(other in field for other in SEPARATORS if other not in (decimal, thousands)) for field in fields_
    )
    return (round(count / len(rows), 2) * round(clean / max(len(fields_), 1), 1), typed, width)


def _marks(sep: str, text: str) -> tuple[str, str]:
    """The marks of fractions and of thousands in the fields between `sep`."""
    votes: Counter[str] = Counter()
    for field in (field for row in records(text, sep) for field in row):
        body = re.sub(rf"^[-+(]?\s*{UNIT}?\s*[-+]?|\s*{UNIT}?\)?$", "", field)
        if not re.fullmatch(r"\d[\d.,' \u00a0\u202f]*|[.,]\d+", body):
            continue
        points, commas = body.count("."), body.count(",")
        if points and commas:
            last = max(body.rfind("."), body.rfind(","))
            votes["decimal" + body[last]] += 1
            votes["thousands" + ("," if body[last] == "." else ".")] += 1
        elif points > 1 or commas > 1:
            mark = "." if points else ","
            if re.fullmatch(rf"\d{{1,3}}(?:{re.escape(mark)}\d{{3}})+", body):
                votes["thousands" + mark] += 1
        elif points or commas:
            mark = "." if points else ","
            groups = re.fullmatch(rf"[1-9]\d{{0,2}}{re.escape(mark)}\d{{3}}", body)
            votes[("either" if groups else "decimal") + mark] += 1
        elif re.fullmatch(r"\d{1,3}(?:[' \u00a0\u202f]\d{3})+", body):
            votes["thousands" + next(c for c in body if not c.isdigit())] += 1
    comma = votes["decimal,"] + votes["thousands."] > votes["decimal."] + votes["thousands,"]
    if not (votes["decimal,"] or votes["decimal."] or votes["thousands,"] or votes["thousands."]):
        comma = False  # 1.234 has three decimals, and 1,234 is a whole number, where nothing says otherwise
    decimal, other = (",", ".") if comma else (".", ",")
    spaced = [mark for mark in "' \u00a0\u202f" if votes["thousands" + mark]]
    grouped = votes["thousands" + other] or (votes["either" + other] and not votes["decimal" + other])
    return decimal, other if grouped else spaced[0] if spaced else ""


def _header(rows: Sequence[Sequence[str]], dialect: Dialect) -> int:
    """How many records are names: those above the first that holds numbers where most of the column does."""
    if len(rows) < 2:
        return 1
    width = Counter(map(len, rows)).most_common(1)[0][0]
    number, body = pattern(dialect.decimal, dialect.thousands), [row for row in rows[1:] if len(row) == width]
    numeric = [
        i for i in range(width)
        if (given := [row[i] for row in body if row[i].lower() not in MISSING])
        and sum(bool(number.fullmatch(field)) for field in given) > 0.8 * len(given)
    ]  # fmt: skip
    if not numeric:
        return 1
    for count, row in enumerate(rows[:4]):
        fields_ = [row[i] for i in numeric if i < len(row)]
        if any(number.fullmatch(field) for field in fields_) or (count and all(f.lower() in MISSING for f in fields_)):
            return 1 if not count and _are_years(fields_) else count
    return 1


def _are_years(first: Sequence[str]) -> bool:
    """Whether these are names after all: whole numbers that rise by one, such as years over their columns."""
    if len(first) < 3 or not all(re.fullmatch(r"\d{4}", field) for field in first):
        return False
    return bool((np.diff([int(field) for field in first]) == 1).all())


# --- numbers ----------------------------------------------------------------------------------------


def pattern(decimal: str, thousands: str) -> re.Pattern[str]:
    """Of a number so written, with a currency or per cent before or after it, and a minus or accounting brackets."""
    groups = rf"\d{{1,3}}(?:{re.escape(thousands)}\d{{3}})+|" if thousands else ""
    point = re.escape(decimal)
    return re.compile(
        rf"(?P<minus>[-+\u2212(]?)\s*(?P<before>{UNIT}?\s?)(?P<minus2>[-+\u2212]?)"
        rf"(?P<number>(?:{groups}\d+)(?:{point}\d*)?(?:[eE][-+]?\d+)?|{point}\d+)(?P<after>\s?{UNIT}?)\)?"
    )


MOST_DECIMALS = 10  # more, or powers of ten, are a computer's full precision: no resolution of the data


def numbers_of(strings: pd.Series, dialect: Dialect) -> tuple[pd.Series, Numbers | None] | None:
    """Strings as numbers, missing ones NaN, and how they are written; None where one is no number of one form."""
    stripped = strings.str.strip()
    given = stripped.notna() & ~stripped.str.lower().isin(MISSING)
    texts = stripped[given]
    read = _plain_numbers(texts, dialect) or _formed_numbers(texts, dialect)
    if read is None:
        return None
    values, digits, before, after = read
    if digits.str.match(r"0\d+$").any() and not (before or after):
        return None  # a code that keeps its zeros
    column = values if given.all() else values.astype(float).reindex(strings.index)
    point = digits.str.find(dialect.decimal)
    decimals = (digits.str.len() - point - 1).where(point >= 0, 0)
    if decimals.max() > MOST_DECIMALS or digits.str.contains("e", case=False, regex=False).any():
        return column, None
    grouped = bool(dialect.thousands) and bool(
        digits.str.contains(dialect.thousands, regex=False).any() or (values.abs() < 1000).all()  # then as others are
    )
    return column, Numbers(before, after, int(decimals.max()), int(decimals.min()), grouped)


Read = tuple[pd.Series, pd.Series, str, str]  # values, their digits as text, what stands before and after them


def _plain_numbers(texts: pd.Series, dialect: Dialect) -> Read | None:
    """Of a column of bare numbers with decimal points, ten times as fast."""
    if not len(texts) or dialect.decimal != "." or dialect.thousands:
        return None
    values = pd.to_numeric(texts, errors="coerce")
    return None if values.isna().any() else (values, texts.str.lstrip("+-"), "", "")


def _formed_numbers(texts: pd.Series, dialect: Dialect) -> Read | None:
    parts = texts.str.extract(f"^{pattern(dialect.decimal, dialect.thousands).pattern}$")
    if not len(parts) or parts["number"].isna().any():
        return None
    before, after, digits = parts["before"].unique(), parts["after"].unique(), parts["number"]
    if len(before) > 1 or len(after) > 1:
        return None
    plain = digits.str.replace(dialect.thousands, "", regex=False) if dialect.thousands else digits
    minus = parts["minus"].isin(["-", "\u2212", "("]) | parts["minus2"].isin(["-", "\u2212"])
    values = pd.to_numeric(plain.str.replace(dialect.decimal, ".", regex=False)) * np.where(minus, -1, 1)
    return values, digits, str(before[0]), str(after[0])


# --- reading ----------------------------------------------------------------------------------------


def read(path: Path, said: dict[str, Any]) -> tuple[pd.DataFrame, Dialect, dict[str, Numbers]]:
    """The rows of a file, its dialect (what is `said` of it taken as it is), and the form of the columns of numbers.

    Columns of numbers and of True and False have such types, others are text, missing values NaN.
    Raises DataError with the line where it is no such file.
    """
    strings, dialect = fields(path, path.read_bytes(), said)
    columns: dict[int, pd.Series] = {}
    forms: dict[str, Numbers] = {}
    for i, name in enumerate(strings.columns):
        columns[i], form = typed(strings.iloc[:, i], dialect)
        if form is not None:
            forms[name] = form
    whole = pd.concat(columns, axis=1)
    whole.columns = strings.columns
    return whole, dialect, forms


def fields(path: Path, raw: bytes, said: dict[str, Any]) -> tuple[pd.DataFrame, Dialect]:
    """The fields of a file's bytes as strings under their columns' names, and its dialect; errors as of `read`."""
    dialect, text = find(path, raw, said)
    with readable(path, dialect):
        frame = pd.read_csv(
            io.StringIO(without_comments(text, dialect.comment)),
            sep=dialect.sep, header=None, dtype=str, keep_default_na=False, skipinitialspace=True,
        )  # fmt: skip
    names = [_name(column, i) for i, column in enumerate(frame.iloc[: dialect.header].T.to_numpy())]
    frame = frame.iloc[dialect.header :].reset_index(drop=True)
    frame.columns = pd.Index(names if dialect.header else [f"x{i}" for i in range(len(names))])
    signs = Counter({sign: int(frame.eq(sign).to_numpy().sum()) for sign in _signs(frame, dialect)})
    return frame, replace(dialect, missing=signs.most_common(1)[0][0] if signs else "")


@contextlib.contextmanager
def readable(path: Path, dialect: Dialect) -> Iterator[None]:
    """What the parser says of a file is a DataError that names it and the way out."""
    try:
        yield
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        hint = (
            f"{path} cannot be read as CSV with {dialect.describe() or 'fields between commas'}: {str(error).strip()}"
        )
        raise DataError(f"{hint}; --read says how it is written: --read 'sep=;,decimal=,'") from error


def typed(strings: pd.Series, dialect: Dialect) -> tuple[pd.Series, Numbers | None]:
    """A column as numbers, with their form where they have one, as truth values, or as text."""
    return numbers_of(strings, dialect) or (words_of(strings), None)


def _signs(frame: pd.DataFrame, dialect: Dialect) -> set[str]:
    """What stands for missing values in a sample of the rows; a dash or a point only among numbers."""
    rows = frame.iloc[np.unique(np.linspace(0, len(frame) - 1, 20 * SAMPLE).astype(int))] if len(frame) else frame
    found: set[str] = set()
    for _, values in rows.items():
        words = {value for value in values.astype(str).unique() if value.strip().lower() in MISSING}
        doubtful = {word for word in words if word.strip() in ("-", ".")}
        found |= words if doubtful and numbers_of(values, dialect) is not None else words - doubtful
    return found


def _name(lines: Sequence[str], i: int) -> str:
    """The name of column `i` from its lines of names; pandas' own where there is none."""
    return " ".join(dict.fromkeys(word for line in lines if (word := str(line).strip()))) or f"Unnamed: {i}"


def is_given(strings: pd.Series) -> pd.Series:
    """Which texts are no sign of a missing value."""
    return ~strings.str.strip().str.lower().isin(MISSING - {"-", "."})


def words_of(strings: pd.Series) -> pd.Series:
    """Text, or True and False, missing where nothing is given."""
    known = is_given(strings)
    if known.all() and set(strings.unique()) == {"True", "False"}:
        return strings == "True"
    return strings.where(known)
