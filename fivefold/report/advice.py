"""What the numbers recommend, in plain sentences, and where they do not decide."""

from __future__ import annotations

from fivefold.report.columns import (
    BITS,
    COST,
    NATS,
    QUALITY,
    Column,
    Line,
    Reading,
    Row,
    amount,
    apart,
    by_kind,
    columns,
    leaders,
    lines,
    number,
    score,
    with_error,
)

Readings = dict[str, Reading]
_FRECHET = next(column for column in QUALITY if column.key == "frechet")
_SPEED = next(column for column in COST if column.key == "sample_64")
_COPYING = 0.6  # memorisation from which a sample is said to lie too near the training set
_NEAR = 2.0  # a quality within this factor of the best counts as good in the advice on speed


def recommendation(rows: list[Row]) -> dict[str, str]:
    """Sentences by need: "For a density", "For speed of sampling", "For sample quality"."""
    good = [line for line in lines(rows) if line.finished]
    if not good:
        return {"No recommendation": "No system finished."}
    return {
        "For a density": _density(good, BITS if BITS in columns(rows) else NATS),
        "For speed of sampling": _speed(good),
        "For sample quality": _quality(good),
    }


def _readings(column: Column, good: list[Line]) -> Readings:
    return {line.label: r for line in good if (r := line.reading(column)) is not None}


def _density(good: list[Line], column: Column) -> str:
    """Exact values and bounds are both guarantees, so the best guarantee leads; the rest is what it leaves open.

    A bound that beats every exact value decides (the truth is better still); an exact value that beats a
    bound does not, since the truth behind the bound may be better. An estimate is no guarantee at all.
    """
    kinds = by_kind(_readings(column, good))
    guaranteed = {**kinds.get("exact", {}), **kinds.get("lower bound", {})}
    estimates = kinds.get("estimate", {})
    if not guaranteed and not estimates:
        return "No system here has a density that can be compared."
    first = leaders(column, guaranteed or estimates)
    lead = (guaranteed or estimates)[first[0]]
    sentences = [f"{first[0]}: {column.show(lead, False)} {'bits per dimension' if column is BITS else 'nats'}."]
    if not guaranteed:
        sentences[0] = f"Only estimates are there, none of them a guarantee; the best is {sentences[0]}"
    if first[1:]:
        sentences.append(f"Within error of it, so not decided: {_list(first[1:])}.")
    if lead.kind == "lower bound" and kinds.get("exact"):
        sentences.append("It is a bound and yet better than every exact value here, so the truth is better still.")
    behind = [label for label in kinds.get("lower bound", {}) if label not in first]
    if behind:
        sentences.append(f"{_list(behind)}: only a bound is known, and the truth behind it may be better.")
    flattered = [label for label, r in estimates.items() if guaranteed and _clearly_better(column, r, lead)]
    if flattered:
        sentences.append(f"{_list(flattered)} shows a better figure, but an estimate, which can err either way.")
    return " ".join(sentences)


def _clearly_better(column: Column, a: Reading, b: Reading) -> bool:
    difference = score(column, b) - score(column, a)
    return difference > 0 and apart(a, b, difference)


def _speed(good: list[Line]) -> str:
    rates = _readings(_SPEED, good)
    if not rates:
        return "Sampling was not timed."
    first = leaders(_SPEED, rates)
    text = f"{first[0]}: {amount(rates[first[0]].value)} samples a second, 64 at a time."
    if first[1:]:
        text += f" As fast within the error of timing: {_list(first[1:])}."
    distances = _readings(_FRECHET, good)
    near = _near_the_best(distances)
    if not near or first[0] in near:
        return text
    text += " Its samples are not among the better ones"
    if first[0] in distances:
        best = min(r.value for r in distances.values())
        text += f" (Fréchet distance {number(distances[first[0]].value)}, the best has {number(best)})"
    quick = leaders(_SPEED, {label: rates[label] for label in near if label in rates})
    return f"{text}; of the systems near the best in quality, {quick[0]} is the fastest." if quick else f"{text}."


def _near_the_best(distances: Readings) -> list[str]:
    """Labels whose distance, over the floor where one is known, is within `_NEAR` times the best or tied with it."""
    if not distances:
        return []
    best = min(score(_FRECHET, r) for r in distances.values())
    tied = leaders(_FRECHET, distances)
    return [label for label, r in distances.items() if score(_FRECHET, r) <= _NEAR * best or label in tied]


def _quality(good: list[Line]) -> str:
    distances = _readings(_FRECHET, good)
    if not distances:
        return "Sample quality was not measured."
    first = leaders(_FRECHET, distances)
    best = distances[first[0]]
    sentences = [f"{first[0]}: Fréchet distance {with_error(best.value, best.error)}."]
    if first[1:]:
        sentences.append(f"Within error of it, so not decided: {_list(first[1:])}.")
    if best.floor is not None:
        floor = number(best.floor)
        at_floor = best.value <= best.floor or not apart(best, best, best.value - best.floor)
        sentences.append(
            f"That is at the floor ({floor}, real data against real data): this measure sees no difference."
            if at_floor
            else f"Real data against real data would have {floor}."
        )
    sentences += _dissent(good, first) + _copying(good, first)
    return " ".join(sentences)


def _dissent(good: list[Line], first: list[str]) -> list[str]:
    """Other measures of quality whose best are all systems that the Fréchet distance ranks lower."""
    against = []
    for column in QUALITY:
        if column.key in ("kernel", "recall", "coverage", "two_sample_accuracy"):
            theirs = leaders(column, _readings(column, good))
            if theirs and not set(theirs) & set(first):
                against.append(f"{column.title.lower()} prefers {_list(theirs)}")
    return [f"Not all measures agree: {'; '.join(against)}."] if against else []


def _copying(good: list[Line], first: list[str]) -> list[str]:
    column = next(column for column in QUALITY if column.key == "memorisation")
    readings = {label: r for label, r in _readings(column, good).items() if label in first}
    near = [label for label, r in readings.items() if r.value > _COPYING and apart(r, r, r.value - 0.5)]
    return (
        [f"Samples of {_list(near)} lie nearer to the training set than unseen data do: look for copies."]
        if near
        else []
    )


def _list(labels: list[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"
