"""Paper presets: they build on the paper's data, with the number of parameters that was published."""

from __future__ import annotations

import pytest
import torch

from fivefold import catalog
from fivefold.arguments import arguments
from fivefold.space import Space, label_space

# The data of each preset that is named after them (up to a hyphen): shape, levels, classes of a conditional system.
PAPERS = {
    "mnist": ((1, 28, 28), 2, 10),
    "cifar10": ((3, 32, 32), 256, 10),
    "imagenet32": ((3, 32, 32), 256, 1000),
    "imagenet64": ((3, 64, 64), 256, 1000),
    "imagenet128": ((3, 128, 128), 256, 1000),
    "imagenet256": ((3, 256, 256), 256, 1000),
    "celeba": ((3, 64, 64), 256, None),
    "lsun64": ((3, 64, 64), 256, None),
    "svhn": ((3, 32, 32), 256, 10),
    "celebahq256": ((3, 256, 256), 256, None),
    "celebahq1024": ((3, 1024, 1024), 256, None),
    "ffhq256": ((3, 256, 256), 256, None),
    "ffhq1024": ((3, 1024, 1024), 256, None),
}
CONDITIONAL = {"biggan"}  # whose published models know the label


def data_of(preset: str) -> str:
    return preset.partition("-")[0]


ALL = [
    (name, preset) for name, entry in catalog.entries().items() for preset in entry.presets if data_of(preset) in PAPERS
]


def build(name: str, preset: str) -> torch.nn.Module:
    """On the meta device, where size costs no memory."""
    cls = catalog.class_of(name)
    shape, levels, classes = PAPERS[data_of(preset)]
    space = Space("image", shape, levels=levels)
    if name in CONDITIONAL and classes:
        space = space.conditioned_on(label_space(tuple(map(str, range(classes)))))
    with torch.device("cpu" if preset == "mnist" else "meta"):  # those are small
        return catalog.build(name, space, **arguments(cls, preset, {})["system"])


@pytest.mark.parametrize(("name", "preset"), ALL)
def test_presets_build_with_the_published_number_of_parameters(name, preset):
    system = build(name, preset)
    published = catalog.class_of(name).published.get(preset)
    if published is None:
        return
    counted, source, *part = published
    assert len(source) > 10
    module = getattr(system, part[0]) if part else system
    parameters = sum(p.numel() for p in module.parameters())
    assert abs(parameters / counted - 1) < 0.02, f"{parameters:,} against {counted:,.0f} ({source})"


def test_what_is_published_is_of_a_preset():
    for name, entry in catalog.entries().items():
        assert catalog.class_of(name).published.keys() <= set(entry.presets), name
