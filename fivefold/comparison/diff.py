"""Two runs, or two lines of a comparison, side by side: paired differences, and the examples they differ most on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fivefold.comparison.worker import read_data
from fivefold.data import Data, load_data
from fivefold.data.writers import save_examples
from fivefold.errors import RunError
from fivefold.evaluation.evaluate import Arrays, evaluate
from fivefold.files import read_json
from fivefold.report import folder, pairs
from fivefold.report.columns import COST, DENSITY, Column, Line, Reading, Row, columns, number, score, with_error
from fivefold.report.terminal import COMPARED
from fivefold.run import Run
from fivefold.space import Space

_WIDE = 110  # characters of an example that are printed


@dataclass(frozen=True)
class Party:
    """One side: its line of the table, the nats of each test example (mean over its runs), and its data."""

    name: str
    line: Line
    data: dict[str, Any]  # name, source, arguments, fingerprint

    @property
    def density(self) -> str:
        return (self.line.rows[0].get("density") or {}).get("kind", "none")

    @property
    def nats(self) -> pairs.Shared | None:
        """None where it has no density that can be compared."""
        return pairs.mean([row["shared"].get("log_prob") for row in self.line.rows])


@dataclass(frozen=True)
class Difference:
    """What `diff` found: `text` for people; under A and B the examples each is most ahead on, the largest gap first."""

    text: str
    better: dict[str, list[Gap]]


def diff(a: str, b: str, *, count: int = 8, out: str | Path | None = None, trust: str | None = None) -> Difference:
    """Compare two runs or two lines of comparisons by what they share: the test examples.

    Args:
        a: a run's folder, or `FOLDER:LABEL`, a line of a comparison with all its seeds.
        b: the same; what is positive is `a`'s.
        count: how many examples to name on either side.
        out: a file for those examples in the data's own form: .png, .csv, .txt, .wav.
        trust: the module name of a run's system outside the package, to allow importing it.

    Raises:
        RunError: there is no such run or line, or the two are of other data.
    """
    first, second = party(a, trust), party(b, trust)
    if first.data["fingerprint"] != second.data["fingerprint"]:
        raise RunError(
            f"{a} is of {first.data['name']} and {b} of other data ({second.data['name']}): only runs on the same data "
            "can be compared"
        )
    better: dict[str, list[Gap]] = {"A": [], "B": []}
    text = [f"{first.data['name']}: A is {first.name}, B is {second.name}", "", *_table(first, second), ""]
    if missing := [one for one in (first, second) if one.nats is None]:
        words = " and ".join(f"{one.name} has none ({one.density})" for one in missing)
        text.append(f"No examples are compared: that needs a density of each, and {words}.")
    else:
        data, gaps = _load(first), _gaps(first, second)
        better = {"A": [gap for gap in gaps[:count] if gap.nats > 0],
                  "B": [gap for gap in gaps[::-1][:count] if gap.nats < 0]}  # fmt: skip
        text += _described(gaps, better, data)
        if out is not None:
            text += ["", *(f"wrote {path}" for path in _write(data, [*better["A"], *better["B"]], Path(out)))]
    severally = all(len(one.line.rows) > 1 for one in (first, second))
    return Difference("\n".join([*text, "", f"What is compared: {COMPARED[severally]}."]), better)


# --- what is compared ---------------------------------------------------------------------------


def party(name: str, trust: str | None = None) -> Party:
    """The run or line of that name; a run outside a comparison is measured now."""
    path = Path(name)
    if (path / "run.json").exists():
        if (kept := folder.row_of_run(path)) is not None:
            return Party(name, Line(name, (_finished(kept, path),)), Run.open(path, trust=trust).record["data"])
        arrays: Arrays = {}
        row = evaluate(path, trust=trust, keep=arrays)
        row["shared"] = pairs.of_row(row, arrays)
        return Party(name, Line(name, (row,)), Run.open(path, trust=trust).record["data"])
    place, _, label = name.partition(":")
    directory = Path(place)
    if not (directory / folder.SETTINGS).exists():
        raise RunError(f"{name} is neither a run's folder nor FOLDER:LABEL of a comparison")
    rows = folder.read_rows(directory)
    chosen = [row for row in rows if row["label"] == label]
    if not chosen:
        raise RunError(f"{place} has no row {label!r}; it has {', '.join(dict.fromkeys(row['label'] for row in rows))}")
    good = [row for row in chosen if row["status"] == "ok"] or [_finished(chosen[0], directory)]
    return Party(name, Line(name, tuple(good)), read_json(directory / folder.SETTINGS)["data"])


def _finished(row: Row, path: Path) -> Row:
    if row["status"] != "ok":
        raise RunError(f"{row['label']} of {path} has nothing to compare: {row['status']}: {row.get('error')}")
    return row


def _load(one: Party) -> Data:
    """The data by their name; those of memory a comparison has kept."""
    if one.data["source"]:
        return load_data(one.data["source"], **one.data["arguments"])
    place = Path(one.name.partition(":")[0])
    for directory in (place, place.parent.parent):
        if (directory / folder.SETTINGS).exists():
            return read_data(directory)
    raise RunError(f"{one.name} was trained on data in memory, which are not kept: its examples cannot be shown")


# --- the table ----------------------------------------------------------------------------------


def _table(a: Party, b: Party) -> list[str]:
    """A line for each measure that both have: both values, their difference and who is better."""
    chosen = [c for c in columns([*a.line.rows, *b.line.rows]) if c.best is not None and c not in COST]
    lines = [f"{'':<22}{'A':>18}{'B':>18}{'A − B':>20}"]
    for column in chosen:
        first, second = a.line.reading(column), b.line.reading(column)
        if first is not None and second is not None:
            why = _incomparable(column, first, second, a, b)
            shown = [with_error(r.value, r.error) if np.isfinite(r.value) else r.kind for r in (first, second)]
            words = why or _verdict(column, first, second)
            lines.append(f"{column.title:<22}{shown[0]:>18}{shown[1]:>18}{words}")
    return lines


def _incomparable(column: Column, first: Reading, second: Reading, a: Party, b: Party) -> str:
    """Why the two values have no difference, if they have none."""
    if column.group == "Density":
        lacking = [one.density for one in (a, b) if one.density not in DENSITY]
        return f"  no density to compare ({', '.join(lacking)})" if lacking else ""
    rows = [row["quality"] for row in (*a.line.rows, *b.line.rows)]
    if len({row.get("features") for row in rows}) > 1:
        return "  not comparable: other features"
    alike = len({(row.get("samples"), row.get("reference")) for row in rows}) == 1
    return "" if alike else "  not comparable: other numbers of samples"


def _verdict(column: Column, first: Reading, second: Reading) -> str:
    error = pairs.difference(first.side, second.side)
    apart = first.value - second.value
    shown = f"{with_error(apart, error.error):>20}"
    how = "paired" if pairs.paired(first.shared, second.shared) is not None else "unpaired"
    lead = score(column, first) - score(column, second)
    who = ("A" if lead < 0 else "B") + " is better" if error.tells(lead) else "not told apart"
    loser = second if lead < 0 else first
    doubt = error.tells(lead) and (loser.kind == "lower bound" or "estimate" in (first.kind, second.kind))
    return f"{shown}  {how}: {who}{', as far as is known: ' + loser.kind if doubt else ''}"


# --- the examples -------------------------------------------------------------------------------


class Gap(NamedTuple):
    """A test example, its log-probability by A and by B, and by how much A's is more."""

    example: int
    first: float
    second: float

    @property
    def nats(self) -> float:
        return self.first - self.second


def _gaps(a: Party, b: Party) -> list[Gap]:
    """Of all test examples that both have scored, A's best first."""
    assert a.nats is not None
    assert b.nats is not None
    index, at_a, at_b = np.intersect1d(a.nats.examples, b.nats.examples, return_indices=True)
    if not len(index):
        raise RunError(f"{a.name} and {b.name} were scored on other test examples")
    found = [Gap(*values) for values in zip(index.tolist(), a.nats.terms[at_a], b.nats.terms[at_b], strict=True)]
    return sorted(found, key=lambda gap: -gap.nats)


def _described(gaps: list[Gap], better: dict[str, list[Gap]], data: Data) -> list[str]:
    """The examples on which each is most ahead, in lines for people."""
    share = np.mean([gap.nats > 0 for gap in gaps])
    lines = [f"A gives more probability to {share:.0%} of {len(gaps):,} test examples."]
    for name, chosen in better.items():
        lines += ["", f"{name} is most ahead on", f"{'example':>9}{'A, nats':>12}{'B, nats':>12}{'A − B':>10}"]
        lines += [f"{gap.example:>9}{gap.first:>12.2f}{gap.second:>12.2f}{gap.nats:>+10.2f}  {words}".rstrip()
                  for gap, words in zip(chosen, _shown(data, chosen), strict=True)]  # fmt: skip
    return lines


def _shown(data: Data, gaps: list[Gap]) -> list[str]:
    """Examples as text where that says something: a table's rows, text; nothing of images and sound."""
    if data.space.kind not in _WORDS or not gaps:
        return [""] * len(gaps)
    x = data.test.batch(torch.tensor([gap.example for gap in gaps])).x
    return [words[:_WIDE] for words in _WORDS[data.space.kind](data.space, x)]


def _rows(space: Space, x: torch.Tensor) -> list[str]:
    columns = [column.decode(codes) for column, codes in zip(space.columns, x.numpy().T, strict=True)]
    names = [column.name for column in space.columns]
    return [", ".join(f"{name} {_short(value)}" for name, value in zip(names, row, strict=True))
            for row in zip(*columns, strict=True)]  # fmt: skip


def _short(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


_WORDS = {"table": _rows, "text": lambda space, x: [repr(text) for text in space.decode(x)]}


def _write(data: Data, better: list[Gap], path: Path) -> list[Path]:
    """The examples in a file of the data's own form, in their order; of images each with its number and difference."""
    index = torch.tensor([gap.example for gap in better])
    captions = [f"{gap.example} {gap.nats:+.1f}" for gap in better] if data.space.kind == "image" else None
    return save_examples(path, data.space, data.space.decode(data.test.batch(index).x), captions)
