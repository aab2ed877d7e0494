"""Draws the pictures of these pages from the folder of a comparison: `python docs/pictures.py compare-digits`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from fivefold import Space
from fivefold.data.writers import grid

PICTURES = Path(__file__).parent / "pictures"


def main(comparison: Path) -> None:
    space = Space.from_json(json.loads((comparison / "comparison.json").read_text())["space"])
    PICTURES.mkdir(exist_ok=True)
    for path in sorted((comparison / "rows").glob("*.npz")):
        name = json.loads(path.with_suffix(".json").read_text())["system"]
        samples = torch.from_numpy(np.load(path)["samples"][:16])
        grid(space, space.decode(samples), columns=8).save(PICTURES / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
