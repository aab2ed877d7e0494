"""Dates and times as whole steps since 1970, and back to how they were written."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta, timezone
from typing import TYPE_CHECKING, Any

import numpy as np

from fivefold.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

DAYS = (
    "%Y-%m-%d", "%d.%m.%Y", "%Y/%m/%d", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y.%m.%d", "%d %b %Y",
    "%b %d, %Y", "%d %B %Y", "%B %d, %Y", "%d-%b-%Y", "%d.%m.%y", "%d/%m/%y", "%m/%d/%y",
)  # fmt: skip
TIMES = ("", "{}%H:%M", "{}%H:%M:%S", "{}%H:%M:%S.%f", "{}%I:%M %p", "{}%I:%M:%S %p")
TRIED = 300  # values that a format is tried on first
STEPS = {86400.0: "day", 3600.0: "hour", 60.0: "minute", 1.0: "second", 1e-3: "millisecond", 1e-6: "microsecond"}
_ZONE = re.compile(r"\s?(?:Z|UTC|[+-]\d{2}:?\d{2})$")
_MONTHS = re.compile(r"[A-Za-z]{3,9}")


@dataclass(frozen=True)
class Dates:
    """How a column of dates is written.

    Args:
        step: seconds; all dates are whole steps since 1970.
        format: of text, as `strptime` reads it; none where they are no text but datetimes.
        written: as `strftime` writes it, where that differs (days without zeros).
        digits: of the fraction of a second.
        zone: what stands at the end of text for the time zone, none without one.
        seconds: that zone's distance from UTC.
    """

    step: float = 86400.0
    format: str = ""
    written: str = ""
    digits: int = 6
    zone: str = ""
    seconds: int = 0

    def numbers(self, values: Any) -> np.ndarray:
        """Steps since 1970, in UTC where there are zones, `(N,)` float64; NaN where none is given."""
        import pandas as pd

        given = pd.Series(values)
        if self.format:
            text = given.astype(object).where(given.notna(), None).astype("str").str.strip()
            found = _parsed(text, self.format, bool(self.zone))
        else:
            found = pd.to_datetime(given, utc=True, errors="coerce")
        wrong = given.notna() & found.isna()
        if wrong.any():
            raise DataError(f"expected dates such as {self.write(np.zeros(1))[0]}, got {given[wrong].iloc[0]!r}")
        since = (found - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=self.step)
        return since.to_numpy(np.float64)

    def values(self, numbers: np.ndarray, dtype: str) -> pd.Series:
        """Back to text or datetimes of that dtype."""
        import pandas as pd

        if self.format:
            return pd.Series(self.write(numbers), dtype=dtype)
        return self._stamps(numbers).astype(dtype) if "," in dtype else self._stamps(numbers).dt.tz_localize(None)

    def write(self, numbers: np.ndarray) -> list[str]:
        """Dates as text, in the zone that most are given in."""
        stamps = self._stamps(numbers).dt.tz_convert(timezone(timedelta(seconds=self.seconds)))
        form = (self.written or self.format or "%Y-%m-%d %H:%M:%S").split("%f")
        parts = [stamps.dt.strftime(part) for part in form]
        fraction = stamps.dt.strftime("%f").str[: self.digits] if len(form) > 1 else ""
        return (parts[0] + fraction + parts[1] + self.zone if len(form) > 1 else parts[0] + self.zone).tolist()

    def describe(self, low: float, high: float) -> str:
        """From when to when, and in what steps."""
        first, last = self.write(np.array([low, high]))
        return f"dates, {first} to {last}, by the {STEPS.get(self.step, f'{self.step:g} s')}"

    def _stamps(self, numbers: np.ndarray) -> pd.Series:
        import pandas as pd

        given = ~np.isnan(numbers)
        nanoseconds = np.full(len(numbers), np.iinfo(np.int64).min)  # NaT
        nanoseconds[given] = np.rint(numbers[given]).astype(np.int64) * round(self.step * 1e9)
        return pd.Series(pd.to_datetime(nanoseconds, utc=True)).dt.as_unit("us")


def dates_of(values: pd.Series, told: str = "") -> tuple[Dates, bool] | None:
    """How dates are written, and whether day and month could be exchanged; None where they are none.

    Args:
        values: text or datetimes, some perhaps missing.
        told: the format, where the user names it.
    """
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(values):
        return Dates(_step(pd.to_datetime(values.dropna(), utc=True))), False
    text = values.dropna().astype(object)
    if not len(text) or not text.map(lambda value: isinstance(value, str)).all():
        return None
    text = text.str.strip()
    sample = text.iloc[np.unique(np.linspace(0, len(text) - 1, TRIED).astype(int))]
    zones = sample.str.extract(f"({_ZONE.pattern})", expand=False)
    zoned = bool(zones.notna().all()) and bool(sample.str.contains(":").all())
    formats = [told] if told else _formats(sample.iloc[0])
    fits = [form for form in formats if _parsed(sample, form, zoned).notna().all()]
    fits = [form for form in fits if _parsed(text, form, zoned).notna().all()]
    if not fits:
        return None
    form, stamps = fits[0], _parsed(text, fits[0], zoned)
    zone = Counter(zones.dropna()).most_common(1)[0][0] if zoned else ""
    seconds = _seconds(zone.strip())
    fractions = text.str.extract(r"\.(\d{1,6})(?!.*\d\.)", expand=False) if "%f" in form else None
    digits = int(fractions.str.len().max()) if fractions is not None else 6
    dates = Dates(_step(stamps), form, digits=digits, zone=zone, seconds=seconds)
    short = form.replace("%d", "%-d").replace("%m", "%-m").replace("%H", "%-H").replace("%I", "%-I")
    for written in (form, short, form.replace("%d", "%-d"), form.replace("%H", "%-H")):
        one = Dates(dates.step, form, "" if written == form else written, digits, zone, seconds)
        if one.write(one.numbers(sample)) == sample.tolist():
            return one, len(fits) > 1
    return dates, len(fits) > 1


def _formats(example: str) -> list[str]:
    """Formats that may fit by what an example looks like."""
    if not re.search(r"\d", example) or not (re.search(r"\d[-/. ]", example) or _MONTHS.search(example)):
        return []
    between = "T" if re.search(r"\dT\d", example) else " "
    return [
        day + time.format(between) for day in DAYS for time in TIMES if (":" in time.format("")) == (":" in example)
    ]


def _parsed(text: pd.Series, form: str, zoned: bool) -> pd.Series:
    """In UTC; NaT for what the format does not fit."""
    import pandas as pd

    if not zoned:
        return pd.to_datetime(text, format=form, errors="coerce", utc=True)
    ends = text.str.extract(f"({_ZONE.pattern})", expand=False)
    bare = text.str.replace(_ZONE, "", regex=True)
    shift = pd.to_timedelta(ends.fillna("Z").str.strip().map(_seconds), unit="s")
    return pd.to_datetime(bare, format=form, errors="coerce", utc=True) - shift


def _seconds(zone: str) -> int:
    """Of a zone's distance from UTC, as text ends with it."""
    if zone in ("", "Z", "UTC"):
        return 0
    hours, minutes = zone[1:3], zone[-2:]
    return (-1 if zone[0] == "-" else 1) * (3600 * int(hours) + 60 * int(minutes))


def _step(stamps: pd.Series) -> float:
    """The longest of `STEPS`, in seconds, of which all are whole multiples since 1970."""
    microseconds = stamps.dt.as_unit("us").astype("int64").to_numpy()
    return next((step for step in STEPS if not (microseconds % round(step * 1e6)).any()), 1e-6)
