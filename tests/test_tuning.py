"""Tuning: as many trials for every system, judged on the validation split alone, none lost but the one running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from torch import nn

from fivefold import Density, System, catalog, fit, load_data, option, tune
from fivefold.data.splits import Split
from fivefold.errors import OptionError, RunError, Stopped, Unfit
from fivefold.report import write_report
from fivefold.training.options import arguments
from fivefold.training.ranges import ranges
from fivefold.training.trials import HOPELESS, JOURNAL
from tests.systems import Regression

MOONS = load_data("moons")


class Lacking(System):
    """A Gaussian whose density lacks what its option says: the best values are known."""

    densities = {"table": Density.EXACT}

    lr = 1e-2
    lacks: float = option(5.0, "nats that the density lacks", least=0, tune=(0.0, 10.0))
    parts: int = option(2, "that must be even", least=1, tune=(1, 4))
    trouble: str = option("none", "what its loss does", choices=("none", "nan", "memory"))
    pause: float = option(0.0, "seconds of a step", least=0)

    def build(self) -> None:
        if self.parts % 2:
            raise OptionError(f"option 'parts' must be even, got {self.parts}")
        self.mean = nn.Parameter(torch.zeros(self.space.dims))

    def _law(self):
        return torch.distributions.Normal(self.mean, 1.0)

    def loss(self, batch):
        time.sleep(self.pause)
        if self.trouble == "memory":
            raise MemoryError("8 GB")
        return -self._log_prob(batch.x, None).mean() * (float("nan") if self.trouble == "nan" else 1.0)

    def _log_prob(self, x, condition):
        return self._law().log_prob(x).sum(1) - self.lacks

    def _sample(self, n, condition):
        return self._law().sample((n,))


class Troubled(Lacking):
    """Two of three values of an option make it fail."""

    trouble: str = option("none", "what its loss does", choices=("none", "nan", "memory"), tune=("nan", "memory"))


class Forbidden(Split):
    """A split that may not be looked at."""

    def batch(self, index):
        raise AssertionError("the test split was looked at")

    def spread(self, n):
        raise AssertionError("the test split was looked at")

    def __getattribute__(self, name):
        assert name not in ("x", "read"), "the test split was looked at"
        return super().__getattribute__(name)


@pytest.fixture
def lacking(monkeypatch):
    """The system, without an option that does nothing here."""
    monkeypatch.setattr("fivefold.training.trials.CHANGED", 2)
    return {"lr": 1e-2, "batch_size": 64, "budget": "30steps"}


def test_judged_on_the_validation_split_alone(tmp_path, lacking):
    hidden = replace(MOONS, test=Forbidden(10))
    found = tune(Lacking, hidden, trials=3, out=tmp_path / "out", **lacking)
    assert [trial.state for trial in found.trials] == ["ok"] * 3
    system = fit(Lacking, MOONS, **lacking)
    value = -system.score_encoded(MOONS.valid.spread(250)).log_prob.mean().item()
    assert found.trials[0].value == pytest.approx(value, rel=1e-5)  # the first is the system as it is
    other = -system.score_encoded(MOONS.test.spread(250)).log_prob.mean().item()
    assert abs(value - other) > 1e-3 * abs(value)  # the two splits can be told apart by it


def test_the_best_is_found_and_can_be_typed(tmp_path, lacking):
    found = tune(Lacking, MOONS, trials=8, out=tmp_path, **lacking)
    assert len(found.trials) == 8
    assert found.trials[0].options == {}
    assert found.best.value == min(trial.value for trial in found.trials if trial.value is not None)
    assert found.options["lacks"] < 5
    assert f"--lacks {found.options['lacks']}" in found.command
    assert "--budget 60s" in found.command
    assert all(
        trial.options.get("parts", 2) % 2 == 0 for trial in found.trials
    )  # the odd were refused, and cost nothing
    assert max(found.importances, key=found.importances.get) == "lacks"
    kept = json.loads((tmp_path / "trials.json").read_text())
    assert [trial["value"] for trial in kept["trials"]] == [trial.value for trial in found.trials]


def test_what_is_hopeless_is_stopped(tmp_path, lacking):
    found = tune(Lacking, MOONS, trials=10, out=tmp_path, **lacking)
    stopped = [trial for trial in found.trials if trial.state == HOPELESS]
    assert stopped
    full = max(len(trial.curve) for trial in found.trials)
    assert all(len(trial.curve) < full for trial in stopped)
    assert all(trial.value > found.best.value for trial in stopped)


def test_a_trial_that_fails_is_one_of_them(tmp_path, lacking):
    found = tune(Troubled, MOONS, trials=8, lacks=0.0, parts=2, out=tmp_path, **lacking)
    assert len(found.trials) == 8
    states = {(trial.options.get("trouble", "none"), trial.state) for trial in found.trials}
    assert states == {("none", "ok"), ("nan", "diverged"), ("memory", "out of memory")}


def test_by_distance_or_density(tmp_path):
    found = tune(Lacking, MOONS, trials=1, by="distance", budget="20steps", out=tmp_path / "a")
    density = tune(Lacking, MOONS, trials=1, by="density", budget="20steps", out=tmp_path / "b")
    assert found.best.value != pytest.approx(density.best.value, rel=1e-2)
    assert "--by distance" in found.command
    with pytest.raises(RunError, match="no density to validate by"):
        tune(Regression, MOONS, trials=1, by="density", budget="20steps", out=tmp_path / "c")


def test_another_tuning_is_not_gone_on_with(tmp_path, lacking):
    tune(Lacking, MOONS, trials=1, out=tmp_path, **lacking)
    with pytest.raises(RunError, match=r"budget 30steps, not 40steps: name another --out"):
        tune(Lacking, MOONS, trials=1, out=tmp_path, **lacking | {"budget": "40steps"})
    with pytest.raises(OptionError, match="no option left"):
        tune(Lacking, MOONS, lr=1e-2, batch_size=8, lacks=1.0, parts=2, trouble="none", out=tmp_path / "other")
    with pytest.raises(Unfit):
        tune("gated-pixelcnn", MOONS, trials=1, out=tmp_path / "unfit")


PROGRAM = """
from fivefold import tune
from tests.test_tuning import Lacking, MOONS
tune(Lacking, MOONS, trials=4, out={out!r}, lr=1e-2, batch_size=64, budget="40steps", pause=0.02)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_kill_loses_the_running_trial_at_most(tmp_path, number):
    """The second trial is interrupted: it is made again, and the first is not."""
    place = str(Path(__file__).parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(out=str(tmp_path))], cwd=place, env={**os.environ, "PYTHONPATH": place},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 60
    journal = tmp_path / JOURNAL
    while time.monotonic() < until and process.poll() is None:
        trials = _study(journal) if journal.exists() else []
        if len(trials) == 2 and trials[1].intermediate_values:
            break
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(30)
    before = _study(journal)
    assert process.returncode != 0
    assert before[0].state.name == "COMPLETE"
    found = tune(
        Lacking, MOONS, trials=4, out=tmp_path, lr=1e-2, batch_size=64, budget="40steps", pause=0.02,
    )  # fmt: skip
    assert len(found.trials) == 4
    assert found.trials[0].value == before[0].value
    again = found.trials[1]
    assert again.number > 1
    assert {n: v for n, v in again.options.items() if n == "lacks"}["lacks"] == pytest.approx(
        before[1].params["lacks"], rel=1e-2
    )


def _study(journal: Path) -> list[optuna.trial.FrozenTrial]:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        return optuna.load_study(study_name="trials", storage=JournalStorage(JournalFileBackend(str(journal)))).trials
    except (KeyError, ValueError):  # it is being begun
        return []


def test_what_kills_the_process_twice_is_a_failed_trial(tmp_path, lacking, monkeypatch):
    def killed(*args, **named):
        raise SystemExit  # as abrupt as it can be made here: nothing is told

    with monkeypatch.context() as patch:
        patch.setattr("fivefold.training.tuning.attempt", killed)
        for _ in range(2):
            with pytest.raises(SystemExit):
                tune(Lacking, MOONS, trials=3, out=tmp_path, **lacking)
    found = tune(Lacking, MOONS, trials=3, out=tmp_path, **lacking)
    assert [trial.state for trial in found.trials] == ["killed", "ok", "ok"]


def test_interrupted_says_how_far_it_came(tmp_path, lacking, monkeypatch):
    def interrupted(*args, **named):
        raise Stopped

    monkeypatch.setattr("fivefold.training.tuning.attempt", interrupted)
    for _ in range(3):  # an interruption is nobody's fault
        with pytest.raises(Stopped, match="0 of 3 trials; the same command goes on"):
            tune(Lacking, MOONS, trials=3, out=tmp_path, **lacking)


def test_the_page_shows_every_trial(tmp_path, lacking):
    tune(Lacking, MOONS, trials=5, out=tmp_path, **lacking)
    text = write_report(tmp_path).read_text()
    assert "5 trials of 30steps" in text
    assert "Which option mattered" in text
    assert text.count('<tr><th scope="row">') == 5
    assert text.count('class="curve"') == 5


# --- ranges -----------------------------------------------------------------------------------------


def test_ranges_lie_around_the_usual_value():
    found = ranges(catalog.class_of("transformer"), None, {"layers": 3})
    assert (found["lr"].low, found["lr"].high) == (2e-4, 2e-2)
    assert (found["width"].low, found["width"].high, found["width"].short(61)) == (32, 256, 64)
    assert found["heads"].choices == (4, 1, 2, 8)
    assert "layers" not in found
    inside = ranges(catalog.class_of("flow-contrastive"), None, {"flow.hidden": 32})
    assert "flow.layers" in inside
    assert not {"flow.hidden", "flow.lr", "seed", "budget"} & inside.keys()
    rule = ranges(catalog.class_of("vae"), None, {})["free_bits"]
    assert rule.choices == (None, 0.0, 0.05, 0.1, 0.15, 0.2)


SPACES = {"image": "digits", "table": "wine", "text": "pydocs"}
TRIES = [(name, kind) for name, entry in catalog.entries().items() for kind in SPACES if kind in entry.densities]


@pytest.fixture(scope="module")
def spaces():
    return {kind: load_data(name).space for kind, name in SPACES.items()}


@pytest.mark.parametrize(("name", "kind"), TRIES)
def test_what_is_drawn_builds_or_is_refused_in_words(name, kind, spaces):
    cls = catalog.class_of(name)
    found = ranges(cls, None, {})
    assert {"lr", "batch_size"} <= found.keys()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=len(name)))
    built = 0
    for _ in range(3):
        drawn = study.ask({option: one.distribution() for option, one in found.items()}).params
        values = {option: found[option].short(value) for option, value in drawn.items()}
        split = arguments(cls, None, values)
        with contextlib.suppress(Unfit, OptionError):  # anything else is a bug
            catalog.build(cls, spaces[kind], **split["system"])
            built += 1
    fits = cls.density_on(spaces[kind]) is not None
    assert built or not fits or name == "vaebm"  # which takes one of its VAE's mixtures alone
