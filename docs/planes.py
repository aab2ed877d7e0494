"""Draws what flows do in the plane, on the two moons: `python docs/planes.py [SYSTEM ...] [--budget 60s]`.

A picture for each system, `pictures/plane-SYSTEM.png`: its density, and where it takes circles and rays of noise (or
samples, where a noise has no one place or more dimensions than the plane).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch

from fivefold import LatentSystem, System, catalog, fit, load_data
from fivefold.bijections.base import Layer
from fivefold.errors import Unfit
from fivefold.space import Space

PICTURES = Path(__file__).parent / "pictures"
LOW, HIGH = (-1.7, -1.3), (2.7, 1.8)  # what is shown of the plane
CELLS = 160


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*")
    parser.add_argument("--budget", default="60s")
    given = parser.parse_args()
    data = load_data("moons")
    for name in given.systems or [name for name in catalog.fitting("table") if fits(name, data.space)]:
        draw(fit(name, data, budget=given.budget), data.test.spread(1000).x.numpy(), PICTURES / f"plane-{name}.png")


def fits(name: str, space: Space) -> bool:
    """Whether it is a flow, of real columns too."""
    if catalog.find(name).family != "flow":
        return False
    try:
        catalog.build(name, space)
    except Unfit:
        return False
    return True


def draw(system: System, examples: np.ndarray, path: Path) -> None:
    """Density and warp, side by side; the data as points."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(6, 2.2))
    axes[0].imshow(density(system), origin="lower", extent=(LOW[0], HIGH[0], LOW[1], HIGH[1]), cmap="magma")
    axes[1].scatter(*system.space.decode(torch.from_numpy(examples)).T, s=1, color="0.8")
    if has_rings(system):
        for line, colour in rings_and_rays():
            axes[1].plot(*warped(system, line).T, color=colour, linewidth=0.7)
    else:
        axes[1].scatter(*system.sample(1000, seed=0).T, s=1, color="tab:purple")
    for axis in axes:
        axis.set(xlim=(LOW[0], HIGH[0]), ylim=(LOW[1], HIGH[1]), aspect="equal", xticks=[], yticks=[])
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def has_rings(system: System) -> bool:
    """Whether every noise has its one place, and noise as many dimensions as the plane."""
    drawn = isinstance(getattr(system, "flow", None), Layer) and system.flow.exactness.inverse == "drawn"
    return isinstance(system, LatentSystem) and not drawn and getattr(system, "noise_dims", 2) == len(LOW)


def density(system: System) -> np.ndarray:
    """`(CELLS, CELLS)` in the user's units, the second column upwards."""
    lines = (np.linspace(low, high, CELLS) for low, high in zip(LOW, HIGH, strict=True))
    points = np.stack(np.meshgrid(*lines), -1).reshape(-1, 2).astype(np.float32)
    return system.score(points, batch_size=4096).log_prob.exp().view(CELLS, CELLS).numpy()


def rings_and_rays() -> list[tuple[torch.Tensor, object]]:
    """Circles of the radii that hold 10, 40, 70 and 95 % of the noise, and rays between them, `(n, 2)` each."""
    turn = 2 * np.pi * torch.linspace(0, 1, 400)
    circle = torch.stack([turn.cos(), turn.sin()], 1)
    radii = (-2 * (1 - torch.tensor([0.1, 0.4, 0.7, 0.95])).log()).sqrt()
    rays = [(torch.linspace(0, float(radii[-1]), 200)[:, None] * circle[i], matplotlib.colormaps["hsv"](i / 400))
            for i in range(0, 400, 25)]  # fmt: skip
    return [*((radius * circle, "black") for radius in radii), *rays]


@torch.no_grad()
def warped(system: LatentSystem, noise: torch.Tensor) -> np.ndarray:
    """Where noise `(n, 2)` comes from, in the user's units."""
    return system.space.decode(system._decode(noise, None))


if __name__ == "__main__":
    main()
