"""Every system that fits the digits, 30 s each on one core, by the rule of sizes alone: who is behind the trivial?

    python -m benchmarks.equal_chances [SYSTEM ...] [--budget 30s] [--jobs 1] [--out equal-chances]
    python -m benchmarks.equal_chances --text PATH/tinyshakespeare.txt

Beside each system stands what was asked of it. Independent levels of every pixel are the trivial model: their bits
and the Fréchet distance of their samples are what every system has to be ahead of. The second line trains
`transformer` for 100 s on windows of 64 characters. Writes `results/equal_chances.json` and `.md`; the comparison
lies in the folder `--out`: run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, bits, figures, machine, number, write_result
from fivefold import compare, fit, load_data
from fivefold.evaluation.evaluate import SAMPLES, sample_quality
from fivefold.tools.baselines import IndependentDims

ASKED = {  # Fréchet distance and bits per dimension at most, where more is asked than to be ahead of the trivial
    "pixelrnn": (8.5, 1.84),
    "pixeliqn": (8.5, None),
    "progan": (9.5, None),
    "biggan": (10.0, None),
    "stylegan2-ada": (10.0, None),
}
TEXT_ASKED = 1.85  # nats a character


def trivial(data: Any) -> dict[str, float]:
    """Bits and Fréchet distance of independent levels."""
    model = IndependentDims(data.space, data.train.x)
    quality = sample_quality(model.sample(SAMPLES, seed=0), data)
    nats = float(model.log_prob(data.test.x).mean())
    return {"bits": -nats / data.space.dims / math.log(2), "frechet": quality["frechet"]["value"]}


def judged(row: dict[str, Any], base: dict[str, float]) -> dict[str, Any]:
    """A row's figures and what is wrong with them."""
    if row["status"] != "ok":
        return {"system": row["label"], "wrong": [f"{row['status']}: {row['error']}"]}
    found = figures(row)
    frechet, most_bits = ASKED.get(row["label"], (base["frechet"], None))
    wrong = []
    if found["frechet"] is None or found["frechet"] > frechet:
        wrong.append(f"distance above {frechet:.3g}")
    if found["bits"] is not None and found["bits"] > (most_bits or base["bits"]):
        wrong.append(f"bits above {most_bits or base['bits']:.3g}")
    cost = row["cost"]
    steps = cost["train_examples_per_second"] * cost["budget_seconds"] / row["sizes"]["batch_size"]
    return {
        "system": row["label"], **found, "steps": round(steps), "sizes": row["sizes"], "parameters": cost["parameters"],
        "validation": cost["validation_seconds"], "wall": cost["wall_seconds"], "wrong": wrong,
    }  # fmt: skip


def page(rows: list[dict[str, Any]], base: dict[str, float], budget: str, jobs: int) -> str:
    """The table, in Markdown."""
    lines = [
        f"# Digits, {budget} each on one core", "",
        f"{machine()}; {jobs} at a time, a core each. Sizes by the rule. Independent levels of every pixel: "
        f"{base['bits']:.2f} bits per dimension, a Fréchet distance of {base['frechet']:.1f}.", "",
        "| system | bits per dimension | Fréchet distance | steps | batch | size | parameters | validation | "
        "not as asked |", "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        if "steps" not in row:
            lines.append(f"| `{row['system']}` | | | | | | | | {row['wrong'][0]} |")
            continue
        sizes = row["sizes"]
        cells = [f"`{row['system']}`", bits(row), number(row["frechet"]), f"{row['steps']:,}", sizes["batch_size"],
                 f"{sizes['scale']:.2f}", f"{row['parameters']:,}", f"{number(row['validation'])} s",
                 "; ".join(row["wrong"])]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def text(source: Path, out: Path) -> None:
    """`transformer` on characters."""
    data = load_data(source, length=64)
    system = fit("transformer", data, budget="100s", out=out / "transformer")
    nats = -float(system.score_encoded(data.test.spread(2000)).log_prob.mean()) / 64
    sizes = json.loads((out / "transformer" / "run.json").read_text())["sizes"]
    threads = torch.get_num_threads()
    write_result(
        "equal_chances_text", f"transformer: {nats:.3f} nats a character after 100 s ({TEXT_ASKED} asked)",
        {"machine": machine(), "threads": threads, "nats": nats, "sizes": sizes},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*")
    parser.add_argument("--budget", default="30s")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("equal-chances"))
    parser.add_argument("--text", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.jobs)  # a core each
    if given.text:
        torch.set_num_threads(2)
        text(given.text, given.out)
        return
    data = load_data("digits")
    done = compare(
        given.systems or None, data, budget=given.budget, jobs=given.jobs, diagnostics=False, out=given.out / "digits"
    )
    base = trivial(data)
    rows = [judged(row, base) for row in done.rows]
    short = [row["system"] for row in rows if row["wrong"]]
    headline = f"{len(rows) - len(short)} of {len(rows)} systems as asked" + (
        f"; not: {', '.join(short)}" * bool(short)
    )
    write_result(
        "equal_chances", headline, {"machine": machine(), "budget": given.budget, "trivial": base, "rows": rows}
    )
    (RESULTS / "equal_chances.md").write_text(page(rows, base, given.budget, given.jobs))


if __name__ == "__main__":
    main()
