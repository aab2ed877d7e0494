"""The largest resolution: what ends the search is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fivefold import Density, System
from fivefold.errors import Unfit
from fivefold.evaluation import resolution
from fivefold.evaluation.evaluate import resolution_stars
from fivefold.options import option
from fivefold.space import Space

GREY = Space("image", (1, 8, 8), levels=4)


class Pixels(System):
    """Refuses, fills memory or is slow from 64 pixels a side on."""

    densities = {"image": Density.NONE}

    fault: str = option("", "what goes wrong")

    def build(self):
        self.scale, self.fault = nn.Parameter(torch.ones(())), self.fault if self.space.shape[1] >= 64 else ""
        if self.fault == "unfit":
            raise Unfit("too many positions")

    def loss(self, batch):
        if self.fault == "memory":
            torch.ones(2**40, dtype=torch.uint8)
        return (batch.x * self.scale).mean()

    def _sample(self, n, condition):
        return torch.zeros(n, *self.space.shape)


@pytest.mark.parametrize(
    ("fault", "seconds", "expected"),
    [("unfit", 60.0, "too many positions"), ("memory", 60.0, "out of memory"), ("", 0.0, " s a step")],
)
def test_what_does_not_fit(fault, seconds, expected, monkeypatch):
    monkeypatch.setattr(resolution, "SECONDS", seconds)
    space = Space("image", (1, 64, 64), levels=4)
    assert expected in resolution._step(Pixels, {"fault": fault}, space)
    monkeypatch.setattr(resolution, "SECONDS", 60.0)
    assert resolution._step(Pixels, {"fault": fault}, GREY) == ""


def test_a_step_is_the_larger_one_of_both_ends_of_training(monkeypatch):
    """A system that grows is measured when it has grown, one that shrinks before."""
    seen = []

    class Growing(Pixels):
        def updates(self, batch, progress):
            seen.append(progress)
            return super().updates(batch, progress)

    assert resolution._step(Growing, {}, GREY) == ""
    assert set(seen) == {0.0, 1.0}


def test_the_search_doubles_until_it_ends(monkeypatch):
    """In a process of its own; with no patience at all nothing fits, and the reason says so."""
    monkeypatch.setattr(resolution, "PATIENCE", 0.0)
    found = resolution.largest_resolution("vae", {"width": 8}, GREY, 1)
    assert (found["side"], found["why"]) == (None, "8: not within 0 s")


@pytest.mark.slow
def test_a_real_system():
    found = resolution.largest_resolution("vae", {"width": 8}, GREY, 1)
    assert found["side"] in (64, 128, 256, 512)
    assert found["why"].startswith(str(2 * found["side"]))


def test_stars():
    assert [resolution_stars(side) for side in (None, 16, 32, 64, 128, 256, 1024)] == [1, 1, 2, 3, 3, 4, 5]
