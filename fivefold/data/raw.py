"""What the readers hand on: examples as the user has them, in the parts the user made, before any fitting."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from fivefold.errors import DataError
from fivefold.space import Vocabulary
from fivefold.space.written import Dialect, Numbers

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
    dialect: Dialect | None = None  # of the text file that a table was read from, and how its columns' numbers stand
    written: dict[str, Numbers] = field(default_factory=dict)
    sound: str = ""  # what libsndfile calls the samples of most files


@dataclass(frozen=True)
class Options:
    """The arguments of `load_data` that readers and fits look at (described there)."""

    condition: str | None = None
    size: int | tuple[int, int] | None = None
    length: int | None = None
    missing: str = "model"
    split_seed: int = 0
    read: str = ""
    crop: int | None = None
    skip_bad: bool = False
    columns: str = ""
    keep: str = ""
    field: str | None = None
    rate: int | None = None
    trim: bool = False
    vocabulary: str | Vocabulary | None = None


@dataclass
class Skipped:
    """Files that cannot be read: refused by name, or left out, counted and named."""

    allowed: bool
    errors: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def unless_good(self) -> Iterator[None]:
        """A DataError within is kept where files may be left out; else it says how to leave them out."""
        try:
            yield
        except DataError as error:
            if not self.allowed:
                raise DataError(f"{error}; skip_bad (--skip-bad) leaves such files out") from error
            self.errors.append(str(error))

    def notes(self, files: Sequence[Any]) -> list[str]:
        """A line of what was left out, if anything was."""
        more = f" and {len(self.errors) - 5} more" if len(self.errors) > 5 else ""
        shown = "; ".join(self.errors[:5])
        return [f"{len(self.errors)} of {len(files)} files left out: {shown}{more}"] if self.errors else []


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


def read_parts(sources: Mapping[str, Any], read: Callable[[Any, Options], Raw], options: Options) -> Raw:
    """The user's own parts, by name; those beside "train" are read as it was: at its rate, in windows of its length."""
    raw = read(sources["train"], options)
    like_train = replace(options, **{key: raw.facts[key] for key in ("rate", "length") if key in raw.facts})
    for name in (name for name in sources if name != "train"):
        own = read(sources[name], like_train)
        raw.notes += [f"{name}: {note}" for note in own.notes if note not in raw.notes]
        raw.parts[name] = with_test(raw, own).parts["test"]
    return raw


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
    order = np.arange(len(whole), dtype=np.int64 if raw.ordered or len(whole) >= 2**31 else np.int32)
    order = order if raw.ordered else np.random.default_rng(seed).permutation(order)
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
