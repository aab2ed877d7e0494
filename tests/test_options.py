"""Options: declared once, inherited, changed by a leaf; their bounds; slots and what reaches into them."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from fivefold import Density, Space, System, catalog, option, slot
from fivefold.errors import OptionError, Unfit
from fivefold.options import Need, Slot, fixed, options_of, plain, presets_of, reach_into_slots, slot_of
from fivefold.training.options import arguments, options
from tests.systems import Regression

SPACE = Space("table", (2,))
NETWORK = Need("a network", parts={"small": nn.Identity, "linear": nn.Linear}, systems=False)


class Base(System):
    """Base."""

    densities = {"table": Density.NONE}
    presets = {"default": {"ema": 0.5}, "paper": {"width": 5}}

    width: int = option(4, "of a layer", least=1, most=64, tune=(2, 16))
    kind: Literal["plain", "fancy"] = option("plain", "of layer")
    rates: tuple[float, ...] = option((0.1, 0.2), "two rates", above=0, below=1)
    net: nn.Module = option(slot("small"), "the network", needs=NETWORK)

    def build(self) -> None:
        self.weight = nn.Parameter(torch.zeros(self.width))

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return torch.zeros(n, 2)


class Leaf(Base):
    """Leaf."""

    presets = {"paper": {"depth": 3}}
    width = 7
    depth: int = option(2, "layers", least=1)


class Single(Leaf):
    """Fixes what its base leaves open."""

    depth = fixed(1)


class Host(Base):
    """Has a slot that a system fills."""

    part: System = option(slot(Regression, poison_at=3), "the part", needs=Need("no density", densities=("NONE",)))

    def build(self) -> None:
        self.part = self.fill("part", self.space)


def test_a_leaf_inherits_changes_and_adds():
    assert list(options_of(Leaf)) == ["lr", "width", "kind", "rates", "net", "depth"]
    leaf = Leaf(SPACE, depth=5)
    assert (leaf.width, leaf.depth, leaf.lr, leaf.rates) == (7, 5, 1e-3, (0.1, 0.2))
    assert options_of(Base)["width"].default == 4
    assert options_of(Leaf)["width"].least == 1
    assert leaf.arguments["depth"] == 5


def test_a_leaf_may_fix_an_option():
    assert "depth" not in options_of(Single)
    assert Single(SPACE).depth == 1
    with pytest.raises(OptionError, match="no option 'depth'"):
        Single(SPACE, depth=2)


def test_presets_are_gathered_along_the_bases():
    assert presets_of(Leaf) == {"default": {"ema": 0.5}, "paper": {"width": 5, "depth": 3}}
    split = arguments(Leaf, "paper", {"depth": 1})
    assert split["system"] == {"width": 5, "depth": 1}
    assert split["fit"] == {"ema": 0.5}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"width": 0}, "'width' needs a number of at least 1 and of at most 64, got 0"),
        ({"width": 65}, "at most 64"),
        ({"width": 2.5}, "'width' expects int, got 2.5"),
        ({"width": True}, "expects int"),
        ({"lr": float("nan")}, "'lr' needs a number above 0, got nan"),
        ({"lr": 0}, "above 0"),
        ({"kind": "fanzy"}, "did you mean 'fancy'"),
        ({"rates": (0.5, 1.0)}, "below 1"),
        ({"rates": 0.5}, "float,..."),
        ({"widht": 3}, "did you mean 'width'"),
    ],
)
def test_a_value_that_does_not_fit_gets_a_sentence(given, says):
    with pytest.raises(OptionError, match=says.replace("(", r"\(")):
        Leaf(SPACE, **given)


@pytest.mark.parametrize("text", ["batch_size=0", "accumulate=0", "ema=2.0", "evaluations=0", "clip=-1.0"])
def test_training_has_bounds_too(text):
    name, value = text.split("=")
    with pytest.raises(OptionError, match=name):
        arguments(Leaf, None, {name: float(value) if "." in value else int(value)})


@pytest.mark.parametrize("name", list(catalog.entries()))
def test_every_default_is_within_its_own_bounds(name):
    for declared in options(catalog.class_of(name)).values():
        assert declared.check(declared.default) == declared.default, declared.name
        if declared.tune and not declared.choices:
            for value in declared.tune:
                declared.check(value)


def test_slots_are_read_from_text_classes_and_json():
    assert slot("transformer:small") == Slot("transformer", "small")
    assert slot("mymodule:Class") == Slot("mymodule:Class")
    nested = slot("vae", prior=slot("made", hidden=3))
    assert slot_of(plain(nested)) == Slot("vae", None, {"prior": plain(slot("made", hidden=3))})
    assert str(slot("made:large", hidden=3)) == "made:large(hidden=3)"


def test_options_reach_into_slots():
    known: dict[str, Any] = options_of(Host)
    assert reach_into_slots({"part.lr": 0.5}, known)["part"] == slot(Regression, poison_at=3, lr=0.5)
    assert reach_into_slots({"part": "made", "part.hidden": 8}, known)["part"] == slot("made", hidden=8)
    with pytest.raises(OptionError, match="'width' is no slot; the slots here: net, part"):
        reach_into_slots({"width.x": 1}, known)


def test_an_unfit_part_is_refused_with_those_that_fit():
    with pytest.raises(Unfit, match=r"it needs no density\. These fit: .*dcgan"):
        Host(SPACE)


def test_a_part_that_fits_is_built_with_its_options():
    host = Host(SPACE, part=slot(Leaf, width=9))
    assert host.part.width == 9
    assert isinstance(host.part, Leaf)


SLOTS = [(n, o) for n in catalog.entries() for o, option in options_of(catalog.class_of(n)).items() if option.needs]


@pytest.mark.parametrize(("name", "option"), SLOTS)
def test_every_slot_refuses_what_does_not_fit_and_says_what_does(name, option):
    """A GAN has no density and is no likelihood: it fits none of them."""
    space = Space("image", (1, 4, 4), levels=4)
    with pytest.raises((Unfit, OptionError), match=r"These fit: |takes \S+, got"):
        catalog.build(name, space, **{option: "dcgan"})
