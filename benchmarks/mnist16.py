"""All systems of the survey's Table 1 on MNIST at 16x16, two minutes each: a page of samples and a classifier's view.

    python -m benchmarks.mnist16 PATH/mnist.npz [--budget 120s] [--out mnist16] [--systems dcgan glow]

The comparison lies in the folder `--out`: run again, it goes on where it stopped. A classifier trained on the same
images then says how many of 500 samples it is at least 80 % sure of, and which digits it finds among those.
Writes `results/mnist16.json` and `.md`, and the page of samples as `results/mnist16.png`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import RESULTS, bits, figures, kept_arrays, machine, number, picture, write_result
from fivefold import catalog, compare, load, load_data
from fivefold.data import Data
from fivefold.report.survey import TABLE_1

SIDE, SAMPLES, SURE = 16, 500, 0.8


def small_mnist(source: Path) -> dict[str, Any]:
    """The arrays of `source` with images at 16x16."""
    from PIL import Image

    arrays = dict(np.load(source))
    for part in ("x_train", "x_test"):
        images = [Image.fromarray(x).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for x in arrays[part]]
        arrays[part] = np.stack([np.asarray(image) for image in images])
    return arrays


class Classifier(nn.Module):
    """Two pairs of convolutions; about 99 % right after three epochs."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(1, 32), (32, 32), (32, 64), (64, 64)]
        self.layers = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in widths)
        self.hidden, self.last = nn.Linear(64 * (SIDE // 4) ** 2, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = x.float() / 255
        for i, layer in enumerate(self.layers):
            h = F.relu(layer(h))
            h = F.max_pool2d(h, 2) if i % 2 else h
        return self.last(F.relu(self.hidden(F.dropout(h.flatten(1), 0.3, self.training))))


def classifier(source: Path, out: Path, epochs: int = 3, size: int = 128) -> tuple[Classifier, float]:
    """Trained once on `source`, with its accuracy on the test images."""
    path, net = out / "classifier.pt", Classifier()
    arrays = np.load(source)
    x, y, x_test, y_test = (torch.from_numpy(arrays[f"{k}_{p}"]) for p in ("train", "test") for k in "xy")
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
    else:
        torch.manual_seed(0)
        steps = len(x) // size
        optimizer = torch.optim.Adam(net.parameters(), fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(x))[: steps * size].view(steps, size):
                optimizer.zero_grad()
                F.cross_entropy(net(x[rows, None]), y[rows].long()).backward()
                optimizer.step()
                schedule.step()
        torch.save(net.state_dict(), path)
    net.eval()
    with torch.no_grad():
        found = torch.cat([net(part).argmax(1) for part in x_test[:, None].split(1000)])
    return net, (found == y_test).float().mean().item()


def judge(net: Classifier, images: Tensor) -> dict[str, Any]:
    """Share of the images that the classifier is sure of, and how many digits it finds among those."""
    with torch.no_grad():
        confidence, digit = net(images).softmax(1).max(1)
    sure = confidence >= SURE
    return {"sure": sure.float().mean().item(), "digits": len(digit[sure].unique())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="MNIST as an .npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--budget", default="120s")
    parser.add_argument("--out", type=Path, default=Path("mnist16"))
    parser.add_argument("--systems", nargs="*")
    given = parser.parse_args()
    source = kept_arrays(given.out / "data.npz", lambda: small_mnist(given.source))
    net, accuracy = classifier(source, given.out)
    data = load_data(source)
    names = given.systems or [name for name in TABLE_1 if name in catalog.entries()]
    done = compare(names, data, budget=given.budget, out=given.out / "comparison", table1=True, diagnostics=False)
    in_order = sorted(done.rows, key=lambda row: list(TABLE_1).index(row["system"]))
    rows, samples = measure(in_order, net, data, given.out)
    picture(samples, RESULTS / "mnist16.png")
    clear = sum(row.get("sure", 0) >= 0.6 for row in rows[1:])
    headline = f"{clear} of {len(rows) - 1} systems: at least 60 % clear digits"
    write_result(
        "mnist16", headline, {"machine": machine(), "classifier": accuracy, "budget": given.budget, "rows": rows}
    )
    (RESULTS / "mnist16.md").write_text(page(rows, headline, accuracy, given.budget))


def measure(rows: list[dict[str, Any]], net: Classifier, data: Data, out: Path) -> tuple[list[Any], dict[str, Tensor]]:
    """Each row's figures and samples; a system that failed keeps its word."""
    real = data.test.spread(SAMPLES).x
    found: list[Any] = [{"system": "real test images", **judge(net, real)}]
    samples = {"real": real}
    for row in rows:
        if row["status"] != "ok":
            found.append({"system": row["label"], "note": f"{row['status']}: {row['error']}"})
            continue
        x = load(out / "comparison" / "runs" / f"{row['label']}-seed0").sample_encoded(SAMPLES, seed=0)
        samples[row["label"]] = x
        found.append({"system": row["label"], **judge(net, x), **figures(row)})
    return found, samples


def page(rows: list[Any], headline: str, accuracy: float, budget: str) -> str:
    """The table, in Markdown."""
    lines = [f"| `{r['system']}` | {r['sure']:.0%} | {r['digits']} | {number(r.get('frechet'))} | {bits(r)} |"
             if "sure" in r else f"| `{r['system']}` | {r['note']} | | | |" for r in rows]  # fmt: skip
    head = [
        "# MNIST at 16x16", "", f"{headline}. {budget} each on {machine()}.", "",
        f"Sure: the share of {SAMPLES} samples to which a classifier ({accuracy:.1%} right on test images) gives "
        f"one digit with at least {SURE:.0%}; digits: how many of the ten it finds among those.", "",
        "![Samples](mnist16.png)", "",
        "| system | sure | digits | Fréchet distance | bits per dimension |", "|---|---|---|---|---|",
    ]  # fmt: skip
    return "\n".join([*head, *lines]) + "\n"


if __name__ == "__main__":
    main()
