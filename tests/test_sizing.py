"""The rule of sizes: what it makes of a system's options, by data and by clock, and that a run keeps what it chose."""

import json
import math

import numpy as np
import pytest
import torch

from fivefold import catalog, load_data, slot
from fivefold.autoregressive.gated_pixelcnn import GatedPixelcnn
from fivefold.energy.flow_contrastive import FlowContrastive
from fivefold.options import options_of, slot_of
from fivefold.training import sizing
from fivefold.training.fit import _begun_sizes, fit, resume
from fivefold.training.options import arguments
from fivefold.training.sizing import PER_NUMBER, SCALES, Sizes, shrunk

DIGITS = load_data("digits")


def given(**options):
    return arguments(GatedPixelcnn, None, options)


def test_widths_and_depths_shrink_and_what_was_given_stays():
    assert shrunk(GatedPixelcnn, {}, 1.0, math.inf) == {}
    assert shrunk(GatedPixelcnn, {}, 0.5, math.inf) == {"channels": 16, "layers": 3}
    assert shrunk(GatedPixelcnn, {"channels": 24}, 0.5, math.inf) == {"channels": 24, "layers": 3}
    assert shrunk(GatedPixelcnn, {}, SCALES[-1], math.inf) == {"channels": 8, "layers": 1}  # no less than may be tuned


def test_dropout_is_left_out_where_the_data_are_hardly_seen_twice():
    whole = options_of(GatedPixelcnn)["dropout"].default
    assert shrunk(GatedPixelcnn, {}, 1.0, 2.0) == {"dropout": 0.0}
    assert shrunk(GatedPixelcnn, {}, 1.0, 10.0) == {"dropout": pytest.approx(whole / 2, abs=0.01)}
    assert shrunk(GatedPixelcnn, {}, 1.0, 15.0) == {}
    assert shrunk(GatedPixelcnn, {"dropout": 0.3}, 1.0, 2.0) == {"dropout": 0.3}


def test_parts_of_slots_shrink_too():
    inside = slot_of(shrunk(FlowContrastive, {}, 0.5, math.inf)["flow"])
    assert inside.name == "glow"
    assert inside.options["layers"] == 3
    assert inside.options["scales"] == 3  # said by the default's content, and no size
    typed = slot_of(shrunk(FlowContrastive, {"flow": slot("glow", layers=6)}, 0.5, math.inf)["flow"])
    assert typed.options["layers"] == 6
    assert typed.options["hidden"] == 48


@pytest.mark.parametrize("name", catalog.entries())
def test_every_system_builds_at_the_smallest_size(name):
    cls = catalog.class_of(name)
    for data in (DIGITS, load_data("moons")):
        if cls.density_on(data.space) is not None:
            small = catalog.build(cls, data.space, **shrunk(cls, {}, SCALES[-1], 1.0))
            assert sum(p.numel() for p in small.parameters()) < PER_NUMBER * 1347 * 64


def test_no_more_parameters_than_the_data_warrant_and_no_clock_without_a_time(monkeypatch):
    monkeypatch.setattr(sizing, "_Rehearsal", None)
    few = load_data(np.random.default_rng(0).integers(0, 256, (400, 12, 12, 3), dtype=np.uint8))
    cls = catalog.class_of("made")
    asked = arguments(cls, None, {"budget": "100steps"})
    sizes = sizing.choose(cls, asked, few, torch.device("cpu"))
    assert (sizes.batch_size, sizes.seconds) == (64, 0.0)
    assert sizes.scale < 1
    system = catalog.build(cls, few.space, **sizing.apply(cls, asked, sizes)["system"])
    assert sum(p.numel() for p in system.parameters()) <= PER_NUMBER * len(few.train) * 432
    assert sizing.choose(GatedPixelcnn, given(budget="3epochs"), DIGITS, torch.device("cpu")).passes == 3


def test_what_is_all_given_is_neither_built_nor_rehearsed(monkeypatch):
    monkeypatch.setattr(sizing._Search, "build", lambda *_: pytest.fail("built"))
    asked = given(budget="100s", batch_size=20, channels=500, layers=40)
    assert sizing.choose(GatedPixelcnn, asked, DIGITS, torch.device("cpu")) == Sizes(1.0, 20)


def test_several_processes_use_the_rule_without_the_clock(monkeypatch):
    monkeypatch.setattr(sizing.ranks, "world", lambda: 2)
    monkeypatch.setattr(sizing, "_Rehearsal", None)
    found = sizing.choose(GatedPixelcnn, given(budget="100s"), DIGITS, torch.device("cpu"))
    assert found == Sizes(1.0, 64)


def test_a_run_of_another_version_is_no_choice(tmp_path):
    (tmp_path / "run.json").write_text('{"system": "made"}')
    assert _begun_sizes(tmp_path) is None


@pytest.mark.parametrize(
    ("each", "scale", "batch"),
    [  # seconds of a step by scale and batch, for a budget of 100
        (lambda s, b: 1e-4 * b, 1.0, 64),  # quick: the usual batch
        (lambda s, b: 8e-4 * b, 1.0, 16),  # 4,000 steps
        (lambda s, b: 4e-3 * s * s * b, 2**-0.25, 16),  # smaller until there are 2,000
        (lambda s, b: 4e-3 * s * b, 1.0, 16),  # to be smaller does not make it that much quicker
        (lambda s, b: 0.1 + 1e-4 * b, 1.0, 64),  # nor do smaller batches make steps
        (lambda s, b: 1.0 * s * s, 2**-2.25, 64),
    ],
)
def test_steps_that_the_budget_holds(monkeypatch, each, scale, batch):
    monkeypatch.setattr(sizing._Search, "step_seconds", lambda self, s, b: each(s, b))
    found = sizing.choose(GatedPixelcnn, given(budget="100s"), DIGITS, torch.device("cpu"))
    assert (found.scale, found.batch_size) == (pytest.approx(scale), batch)


def test_large_data_have_large_batches_where_time_allows(monkeypatch):
    many = load_data(np.zeros((8000, 4, 4), dtype=np.uint8))
    for seconds, batch in ((1e-4, 256), (0.02, 64)):
        monkeypatch.setattr(sizing._Search, "step_seconds", lambda self, s, b, each=seconds: each * b / 64)
        assert sizing.choose(GatedPixelcnn, given(budget="100s"), many, torch.device("cpu")).batch_size == batch


def test_a_run_keeps_what_was_chosen_and_its_time_counts(tmp_path, monkeypatch):
    chosen = Sizes(0.5, 16, 10, 0.4, 0.1)
    monkeypatch.setattr(sizing, "choose", lambda *_: chosen)
    fit("gated-pixelcnn", DIGITS, budget="0.5s", out=tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert Sizes(**record["sizes"]) == chosen
    assert record["arguments"]["system"]["channels"] == 16
    assert record["arguments"]["system"]["dropout"] == 0
    assert record["arguments"]["fit"]["batch_size"] == 16
    assert record["seconds"] >= 0.5 > record["seconds"] - 0.4
    monkeypatch.setattr(sizing, "choose", lambda *_: pytest.fail("chosen again"))
    again = resume(tmp_path / "run", budget="0.6s")
    assert again.channels == 16
