"""What the advice recommends of samplers whose right order is known, over splits of embedded data.

    python -m benchmarks.advice [--splits 20] [--data digits rings gaussians cancer]

On each split all samplers stand in one table, and then each beside the truth alone. Writes `results/advice.json`
and `.md`: how often each was recommended, and whether it deserves it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import torch

from benchmarks.common import RESULTS, machine, write_result
from benchmarks.known_samplers import samplers, split_anew
from fivefold.evaluation.evaluate import Arrays, evaluate_samples
from fivefold.evaluation.features import fit_features
from fivefold.report import pairs
from fivefold.report.advice import recommendation
from fivefold.report.columns import Row

TRUTH = "held-out data"
DESERVING = {TRUTH, "slight noise"}
# in a plane of thousands of points the noise is wider than their distances: a fair sampler, no copies
OF_PLANES = {"memoriser with slight noise"}
DATA = ("digits", "rings", "gaussians", "cancer")


def measured(name: str, split: int) -> dict[str, Row]:
    """The row of every sampler, by its name."""
    data = split_anew(name, split)
    features, rows = fit_features(data), {}
    for label, x in samplers(data, split).items():
        arrays: Arrays = {}
        row = evaluate_samples(label, data.space.decode(x), data, features=features, keep=arrays)
        rows[label] = row | {"shared": pairs.of_row(row, arrays)}
    return rows


def recommended(rows: list[Row]) -> list[str]:
    """The choice for sample quality."""
    return next(advice.choice for advice in recommendation(rows) if advice.need == "For sample quality")


def count(name: str, splits: int) -> dict[str, Any]:
    """How often each sampler was recommended among all, and beside the truth alone; what did not deserve it."""
    together, beside, labels = Counter[str](), Counter[str](), dict[str, None]()
    for split in range(splits):
        rows = measured(name, split)
        labels |= dict.fromkeys(rows)
        together.update(chosen := recommended(list(rows.values())))
        beside.update(label for label in rows if label != TRUTH and label in recommended([rows[TRUTH], rows[label]]))
        print(name, split, ", ".join(chosen) or "none", flush=True)
    fair = DESERVING | (OF_PLANES if name in ("rings", "gaussians") else set())
    counts = {
        label: {"together": together[label], "beside": beside[label], "deserves": label in fair} for label in labels
    }
    wrong = sum(counts[label][way] for label in labels if label not in fair for way in ("together", "beside"))
    return {"splits": splits, "undeserved": wrong, "samplers": counts}


def page(found: dict[str, dict[str, Any]]) -> str:
    """The table, in Markdown."""
    lines = ["# What the advice recommends of samplers whose right order is known", "",
             "How often: with all in one table / beside held-out data alone. In bold what deserves it.", "",
             "| sampler | " + " | ".join(f"{name}, {one['splits']} splits" for name, one in found.items()) + " |",
             "|---" * (1 + len(found)) + "|"]  # fmt: skip
    for label in dict.fromkeys(label for one in found.values() for label in one["samplers"]):
        lines.append(
            f"| {label} | " + " | ".join(_cell(one["samplers"].get(label), label) for one in found.values()) + " |"
        )
    return "\n".join([*lines, "", f"On {machine()}."]) + "\n"


def _cell(counts: dict[str, Any] | None, label: str) -> str:
    if counts is None:
        return "–"
    text = str(counts["together"]) if label == TRUTH else f"{counts['together']} / {counts['beside']}"
    return f"**{text}**" if counts["deserves"] else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--data", nargs="*", default=list(DATA))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = {name: count(name, given.splits) for name in given.data}
    wrong, total = sum(one["undeserved"] for one in found.values()), given.splits * len(found)
    headline = f"what does not deserve it was recommended {wrong} times over {total} splits"
    write_result("advice", headline, {"machine": machine(), "data": found})
    (RESULTS / "advice.md").write_text(page(found))


if __name__ == "__main__":
    main()
