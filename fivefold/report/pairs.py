"""Two readings of the same test examples: the error of their difference.

What the examples do to both alike is no part of it. With several seeds the spread between them is: then systems are
compared, and with one seed these runs alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

Array = NDArray[Any]
LEVEL = 2.0  # standard errors of a difference below which two values are not told apart, were the errors known


class Shared(NamedTuple):
    """How test examples move a value, to compare it with another value of the same examples.

    `examples` `(m,)` says which they are; the value moves by the mean of `terms` `(m,)` over them; `own` is the
    standard error of what rows do not share: the samples drawn, an estimate's constant.
    """

    examples: Array
    terms: Array
    own: float = 0.0


class Seeds(NamedTuple):
    """The variance of a value between runs of one system, of how many."""

    variance: float
    runs: int


class Difference(NamedTuple):
    """The standard error of a difference and the degrees of freedom that it is known with."""

    error: float
    freedom: float = np.inf

    def level(self, times: int = 1) -> float:
        """Errors that a difference must exceed, for `times` comparisons together; 2 for one with known errors."""
        return float(_quantile(self.freedom, ndtr(-LEVEL) / times))

    def tells(self, difference: float, times: int = 1) -> bool:
        """Whether `difference` is more than its error explains."""
        return abs(difference) > self.level(times) * self.error


def _quantile(freedom: float, tail: float) -> float:
    return -float(stdtrit(freedom, tail) if np.isfinite(freedom) else ndtri(tail))


class Side(NamedTuple):
    """What is known of one value: the error of one evaluation, the examples behind it, its seeds (None: one run)."""

    error: float
    shared: Shared | None = None
    seeds: Seeds | None = None


def difference(a: Side, b: Side) -> Difference:
    """Of two values, paired where they have the same examples; with the spread between seeds where either has several.

    The degrees of freedom are then those of the seeds alone: Welch's, which count the better known parts too, call two
    of one system different in up to 7 % of pairs where there are two seeds. A value of one run beside one of several
    is granted the other's spread. What a single evaluation errs by counts where it is more than the seeds' spread,
    which what all seeds share does not show in.
    """
    terms = paired(a.shared, b.shared)
    variance, freedom = (0.0, np.inf) if terms is None else (float(terms.var(ddof=1)) / len(terms), len(terms) - 1)
    variance += sum(_alone(side, other.seeds, terms is not None) for side, other in ((a, b), (b, a)))
    seeds = sum(side.seeds.runs - 1 for side in (a, b) if side.seeds is not None)
    return Difference(variance**0.5, seeds or freedom)


def _alone(side: Side, borrowed: Seeds | None, alike: bool) -> float:
    """The variance that one side has for itself."""
    evaluation = side.shared.own if alike and side.shared is not None else side.error
    seeds, runs = (side.seeds, side.seeds.runs) if side.seeds else (borrowed, 1)
    return max(evaluation**2, seeds.variance / runs if seeds else 0.0)


def paired(a: Shared | None, b: Shared | None) -> Array | None:
    """The differences of the terms; None where they are not of the same two examples or more."""
    if a is None or b is None or len(a.examples) < 2 or not np.array_equal(a.examples, b.examples):
        return None
    return a.terms.astype(float) - b.terms


def mean(parts: list[Shared | None]) -> Shared | None:
    """Of a mean over runs; None where they have not all the same examples."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or any(paired(known[0], part) is None for part in known):
        return None
    own = float(np.sqrt(sum(part.own**2 for part in known)) / len(known))
    return Shared(known[0].examples, np.mean([part.terms for part in known], 0, dtype=float), own)


def of_row(row: dict[str, Any], arrays: dict[str, Array]) -> dict[str, Shared]:
    """By measure what a row shares with others; from its arrays (`evaluation.evaluate`).

    "log_prob" is the density in nats, "bits_per_dim" in bits where examples stand for unequally many characters.
    """
    found = {}
    if "log_prob" in arrays and (row.get("density") or {}).get("nats") is not None:
        terms = arrays["log_prob"]
        found["log_prob"] = Shared(arrays["log_prob_index"], terms, row["density"].get("own_error") or 0.0)
        if "log_prob_bits" in arrays:
            found["bits_per_dim"] = found["log_prob"]._replace(terms=arrays["log_prob_bits"])
    for name in (name.removeprefix("reference.") for name in arrays if name.startswith("reference.")):
        cell = (row.get("quality") or {}).get(name) or {}
        if cell.get("own_error") is not None:
            found[name] = Shared(arrays["reference_index"], arrays[f"reference.{name}"], cell["own_error"])
    return found
