"""How a race divides its time: successive halving (Jamieson and Talwalkar, 2016) in turns that take equally long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fivefold.comparison.plan import MEASURING_SECONDS
from fivefold.errors import OptionError

KEPT = 3  # one of so many goes on
FINALISTS, MEASURED = 3, 0.2  # at most that many are measured on the test split, in such a share of the time
MOST = 16  # configurations of a system
FEWEST_SECONDS, SHARE = 8.0, 0.01  # the first turn takes at least so many seconds, and such a share of the time
STARTING = 15.0  # seconds until a process has the data and the features


@dataclass(frozen=True)
class Plan:
    """How many configurations of each system are tried, how many take each turn, and the seconds of it."""

    each: int
    counts: tuple[int, ...]
    seconds: tuple[float, ...]
    measuring: float

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Plan:
        """As `dataclasses.asdict` and JSON leave it."""
        return cls(kept["each"], tuple(kept["counts"]), tuple(kept["seconds"]), kept["measuring"])


def plan(systems: int, within: float, jobs: int) -> Plan:
    """As many configurations as leave the first turn long enough; all turns together take the same time.

    OptionError where not even one of each system can be tried within so many seconds.
    """
    first = max(FEWEST_SECONDS, SHARE * within)
    for each in range(MOST, 0, -1):
        finalists = int(MEASURED * within * jobs / MEASURING_SECONDS)
        counts = _counts(systems * each, min(max(finalists, 1), FINALISTS))
        measuring = MEASURING_SECONDS * math.ceil(counts[-1] / jobs)
        turn = (within - STARTING - measuring) / len(counts)
        seconds = tuple(turn / math.ceil(count / jobs) for count in counts)
        if seconds[0] >= first:
            return Plan(each, counts, seconds, measuring)
    needed = STARTING + measuring + FEWEST_SECONDS * math.ceil(systems / jobs) * len(counts)
    raise OptionError(
        f"{systems} systems within {within:.0f} s: trying and measuring them takes {math.ceil(needed)} s at least; "
        f"name fewer systems, or more time"
    )


def _counts(first: int, last: int) -> tuple[int, ...]:
    counts = [first]
    while counts[-1] > last:
        counts.append(max(math.ceil(counts[-1] / KEPT), 1))
    return tuple(counts)
