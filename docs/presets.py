"""Presets that are named after a paper's data, and their sizes: `python -m docs.presets` writes docs/presets.md."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from fivefold import Space, System, catalog
from fivefold.space import label_space
from fivefold.training.options import arguments, options

PAGE = Path(__file__).parents[1] / "docs" / "presets.md"
# The data of each preset that is named after them (up to a hyphen): shape, levels, classes of a conditional system.
PAPERS = {
    "mnist": ((1, 28, 28), 2, 10),
    "cifar10": ((3, 32, 32), 256, 10),
    "svhn": ((3, 32, 32), 256, 10),
    "imagenet32": ((3, 32, 32), 256, 1000),
    "imagenet64": ((3, 64, 64), 256, 1000),
    "imagenet128": ((3, 128, 128), 256, 1000),
    "imagenet256": ((3, 256, 256), 256, 1000),
    "celeba": ((3, 64, 64), 256, None),
    "lsun64": ((3, 64, 64), 256, None),
    "lsun256": ((3, 256, 256), 256, None),
    "celebahq256": ((3, 256, 256), 256, None),
    "celebahq1024": ((3, 1024, 1024), 256, None),
    "ffhq256": ((3, 256, 256), 256, None),
    "ffhq1024": ((3, 1024, 1024), 256, None),
}
CONDITIONAL = {"biggan"}  # whose published models know the label
# Whatever says how long one training step or sample goes on, at its least.
SHORT = {"chain_steps": 2, "sample_steps": 2, "sampling_steps": 2, "tolerance": 0.1, "sampling_tolerance": 0.1}
MOST = {"parameters": 60e6, "side": 64, "parameters x evaluations": 5e10}  # of a preset that is tried


def data_of(preset: str) -> str:
    return preset.partition("-")[0]


ALL = [
    (name, preset) for name, entry in catalog.entries().items() for preset in entry.presets if data_of(preset) in PAPERS
]


def space_of(name: str, preset: str) -> Space:
    shape, levels, classes = PAPERS[data_of(preset)]
    space = Space("image", shape, levels=levels)
    return (
        space.conditioned_on(label_space(tuple(map(str, range(classes))))) if classes and name in CONDITIONAL else space
    )


def device_of(preset: str) -> str:
    """Where its size costs no memory, but for those that are small: not every network can be built without values."""
    return "cpu" if data_of(preset) == "mnist" else "meta"


def build(name: str, preset: str, device: str, short: bool = False) -> System:
    """The preset's system; `short`, with as few steps of whatever it repeats as `SHORT` says."""
    given = arguments(catalog.class_of(name), preset, {})["system"]
    known = options(catalog.class_of(name))
    with torch.device(device):
        less = {key: value for key, value in SHORT.items() if short and key in known}
        return catalog.build(name, space_of(name, preset), **given | less)


def affordable(name: str, preset: str) -> bool:
    """Whether a step and a sample at batch 1 take seconds: what `MOST` allows, `SHORT` being applied."""
    system, side = build(name, preset, device_of(preset), short=True), max(space_of(name, preset).shape)
    size = parameters_of(system)
    cost = {"parameters": size, "side": side, "parameters x evaluations": size * system.sample_evaluations}
    return all(cost[what] < most for what, most in MOST.items() if what != "side") and side <= MOST["side"]


@cache
def count(name: str, preset: str) -> tuple[int, int]:
    """Parameters of the whole system, and of the part that was published (the whole, where none is)."""
    system = build(name, preset, device_of(preset))
    published = catalog.class_of(name).published.get(preset, ())
    part = getattr(system, published[2]) if len(published) > 2 else system
    return parameters_of(system), parameters_of(part)


def parameters_of(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def row(name: str, preset: str) -> str:
    """A row of the page's table."""
    whole, counted = count(name, preset)
    published = catalog.class_of(name).published.get(preset)
    if published is None:
        return f"| `{name}` | `{preset}` | {whole:,} | none | | |"
    figure, source, *part = published
    size = f"{whole:,} ({counted:,} of the {part[0]})" if part else f"{whole:,}"
    return f"| `{name}` | `{preset}` | {size} | {figure:,.0f} | {counted / figure - 1:+.1%} | {source} |"


def table() -> str:
    head = "| system | preset | parameters here | published | apart | source |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(row(name, preset) for name, preset in ALL) + "\n"


if __name__ == "__main__":
    text, _, _ = PAGE.read_text(encoding="utf-8").partition("| system |")
    PAGE.write_text(text + table(), encoding="utf-8")
