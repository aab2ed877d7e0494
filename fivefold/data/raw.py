"""What the readers hand on: examples as the user has them, in the parts the user made, before any fitting."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from fivefold.errors import DataError

PARTS = ("train", "valid", "test")
PART_NAMES = {  # the names people give to the three parts
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
SHARES = {"train": 0.75, "valid": 0.10, "test": 0.15}


class Rows(Protocol):
    """Examples by position, perhaps on disk: `rows[index]` is what `Space.encode` takes. Arrays are Rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Any: ...


@dataclass(frozen=True)
class Subset:
    """Some of the rows, by position; still on disk where they were."""

    rows: Rows
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[self.index[index]]


@dataclass(frozen=True)
class Part:
    """Rows and, where there are, their labels (one of each)."""

    rows: Rows
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: np.ndarray) -> Part:
        """The examples at `index`, in that order."""
        return Part(Subset(self.rows, index), None if self.labels is None else self.labels[index])


@dataclass
class Raw:
    """A data set as it was found.

    `parts` has "train" and perhaps "valid" and "test": those missing are taken from "train". The
    parts of `ordered` data (text, sound) are cut in blocks, of others at random. `facts` is what the
    reader knows and the fit of this kind needs (a rate, a layout); `notes` are lines for people.
    """

    kind: str
    parts: dict[str, Part]
    ordered: bool = False
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    entropy: float | None = None  # of the density that generated the examples, in nats


@dataclass(frozen=True)
class Options:
    """The arguments of `load_data` that readers and fits look at (described there)."""

    condition: str | None = None
    size: int | tuple[int, int] | None = None
    length: int | None = None
    missing: str = "refuse"
    split_seed: int = 0


def with_test(raw: Raw, test: Raw) -> Raw:
    """`raw` with all of `test` as its test part; raises DataError where the two are of different kinds."""
    if raw.kind != test.kind:
        raise DataError(f"the test data are {test.kind} data, but the training data are {raw.kind} data")
    facts = [key for key in raw.facts if raw.facts[key] != test.facts.get(key)]
    if facts:
        differ = "; ".join(f"{key} {raw.facts[key]} and {test.facts.get(key)}" for key in facts)
        raise DataError(f"the test data differ from the training data: {differ}")
    whole = test.parts.get("test") or test.parts["train"]
    parts = {name: part for name, part in raw.parts.items() if name != "test"}
    return replace(raw, parts={**parts, "test": whole})


def partition(raw: Raw, seed: int) -> Raw:
    """All three parts: what the user did not split off is taken from "train", always in the same way.

    Raises DataError where that leaves a part empty.
    """
    missing = [name for name in PARTS if name not in raw.parts]
    whole = raw.parts.get("train")
    if whole is None:
        raise DataError(f"there is no training part among: {', '.join(raw.parts)}")
    if len(whole) <= len(missing):
        n = len(whole)
        raise DataError(
            f"the data hold {n} sample{'' if n == 1 else 's'} (n_samples={n}); "
            f"splitting off {' and '.join(missing) or 'nothing'} needs at least {len(missing) + 1}"
        )
    if not missing:
        return raw
    order = np.arange(len(whole)) if raw.ordered else np.random.default_rng(seed).permutation(len(whole))
    share = {name: SHARES[name] for name in PARTS if name == "train" or name in missing}
    parts = {**raw.parts, **dict(zip(share, _cut(whole, order, share), strict=True))}
    how = "in contiguous blocks" if raw.ordered else f"at random (seed {seed})"
    return replace(raw, parts=parts, notes=[*raw.notes, f"{' and '.join(missing)} taken from the examples {how}"])


def _cut(whole: Part, order: np.ndarray, share: dict[str, float]) -> list[Part]:
    """Consecutive pieces of `order` in proportion to `share`, none empty."""
    total = sum(share.values())
    sizes = [max(1, round(len(order) * share[name] / total)) for name in list(share)[1:]]
    ends = np.cumsum([max(1, len(order) - sum(sizes)), *sizes])
    return [whole.take(np.sort(index)) for index in np.split(order, ends[:-1])]


def part_of(name: str) -> str | None:
    """ "train", "valid" or "test" for what people call it, None for another name."""
    return PART_NAMES.get(str(name).strip().lower())
