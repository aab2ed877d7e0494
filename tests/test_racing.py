"""`compare --within`: it ends in time, halves by the validation measure, and goes on from where it stopped."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console

from fivefold import catalog, compare, load_data
from fivefold.comparison import halving, racing
from fivefold.comparison.halving import plan
from fivefold.comparison.place import Local
from fivefold.comparison.racer import Racer, _warm_up, take
from fivefold.errors import OptionError, RunError
from fivefold.options import Slot
from fivefold.run import Run
from tests.toys import package, source

# --- the plan ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("systems", [1, 2, 6, 20])
@pytest.mark.parametrize("within", [200.0, 600.0, 3600.0])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_plan_fits_its_time(systems, within, jobs):
    try:
        found = plan(systems, within, jobs)
    except OptionError:
        assert systems == 20
        assert within == 200.0
        return
    turns = sum(-(-count // jobs) * seconds for count, seconds in zip(found.counts, found.seconds, strict=True))
    assert halving.STARTING + turns + found.measuring == pytest.approx(within)
    assert found.counts[0] == systems * found.each
    assert found.counts[-1] <= halving.FINALISTS
    assert found.seconds[0] >= halving.FEWEST_SECONDS
    assert list(found.seconds) == sorted(found.seconds)


def test_too_little_time_says_how_much_it_takes():
    with pytest.raises(OptionError, match=r"58 systems within 60 s: .* takes \d+ s at least"):
        plan(58, 60.0, 1)


# --- a race whose turns take no time ------------------------------------------------------------------


class Clock:
    """A clock that only turns move, and processes that answer by a formula."""

    def __init__(self, late=1.0):
        self.now, self.late, self.turns = 0.0, late, []

    def take(self, turn, latest):
        if "size" in turn:
            return {"state": "ok", "sized": {}}
        seconds = min(turn["seconds"] * self.late, latest)
        self.now += seconds
        begun = sum(seconds for run, seconds in self.turns if run == turn["run"])
        self.turns.append((turn["run"], seconds))
        value = turn["options"].get("lr", 0.01) * 100 + 1 / (1 + begun + seconds)
        return {
            "state": "ok",
            "value": value,
            "trained": begun + seconds,
            "seconds": seconds,
            "share": 0.7,
            "curve": [],
        }


@pytest.fixture
def race(tmp_path, monkeypatch):
    """A function that races two systems against a clock of its own."""

    def begin(clock, within=300.0, place="out"):
        monkeypatch.setattr(racing, "clock", lambda: clock.now)
        monkeypatch.setattr(Racer, "take", lambda racer, turn, latest: clock.take(turn, latest))
        monkeypatch.setattr(Racer, "wait_ready", lambda racer: None)
        monkeypatch.setattr(clock, "now", clock.now + 10.0)  # the processes start
        systems = [Slot("made"), Slot("nice")]
        shared = {"options": {"by": "distance", "batch_size": 64}, "threads": 1, "device": "cpu"}
        directory = tmp_path / place
        directory.mkdir(exist_ok=True)
        console = Console(file=io.StringIO(), width=140)
        found = racing.Race(
            directory, load_data("moons"), systems, shared, within, Local(directory, 1, 0), clock.now - 10.0, console
        )
        return found, console.file

    return begin


@pytest.mark.parametrize("late", [0.5, 1.0, 1.3])
def test_it_keeps_its_time_whatever_turns_take(race, late):
    """Also where every turn takes a third longer than it was given."""
    clock = Clock(late)
    found, said = race(clock)
    finalists = found.run()
    measuring = found.plan.measuring
    assert clock.now + measuring <= 1.1 * found.within
    assert clock.now > 0.4 * found.within
    assert len(finalists) == found.plan.counts[-1]
    assert said.getvalue().index("configurations") < said.getvalue().index("made after")


def test_the_best_go_on_and_the_default_is_first(race):
    clock = Clock()
    found, _ = race(clock)
    found.run()
    by_turn = [[e for e in found.entries if len(e.turns) > turn] for turn in range(len(found.plan.counts))]
    assert tuple(map(len, by_turn)) == found.plan.counts
    assert [entry.label for entry in found.entries[:2]] == ["made", "nice"]
    assert [entry.options for entry in found.entries[:2]] == [{}, {}]
    for turn in range(1, len(by_turn)):
        worst = max(entry.turns[turn - 1]["value"] for entry in by_turn[turn])
        out = [entry.turns[turn - 1]["value"] for entry in by_turn[turn - 1] if entry not in by_turn[turn]]
        assert worst <= min(out)
    each = [sum(entry.system == i for entry in found.entries) for i in (0, 1)]
    assert each == [found.plan.each] * 2  # as many configurations of every system


def test_what_fails_is_out_and_the_others_go_on(race):
    clock = Clock()
    usual = clock.take

    def take(turn, latest):
        answer = usual(turn, latest)
        return {"state": "diverged", "error": "nan"} if turn["system"] == "nice" else answer

    clock.take = take
    found, said = race(clock)
    assert {entry.system for entry in found.run()} == {0}
    assert "nice: diverged: nan" in said.getvalue().replace("  ", " ")


def test_an_interrupted_race_goes_on(race):
    whole = Clock()
    found, _ = race(whole, place="whole")
    expected = [entry.label for entry in found.run()]
    broken = Clock()
    usual, count = broken.take, 0

    def take(turn, latest):
        nonlocal count
        count += "size" not in turn
        if count == found.plan.counts[0] + 1:
            raise RuntimeError("as if killed")
        return usual(turn, latest)

    broken.take = take
    first, _ = race(broken)
    with pytest.raises(RuntimeError, match="as if killed"):
        first.run()
    turns = len(broken.turns)
    spent = broken.now
    broken.take = usual
    second, said = race(broken)
    assert [entry.label for entry in second.run()] == expected
    assert len(broken.turns) - turns == sum(found.plan.counts[1:])  # nothing of the first turn again
    assert "are over" in said.getvalue()
    assert second.elapsed() == pytest.approx(spent + broken.now - spent, abs=25)


# --- a whole one --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("modules")
    troubles = {"good": "0", "slow": "time.sleep(0.03)", "raising": "raise KeyError('no such key')"}
    with package(place, "racingtoys", {name: source(trouble) for name, trouble in troubles.items()}) as patch:
        patch.setattr("fivefold.comparison.halving.FEWEST_SECONDS", 2.0)
        yield place


def test_a_configuration_is_trained_on_from_its_checkpoint(place):
    """The second turn begins at the step at which the first ended, and keeps its best weights."""
    data = load_data("moons")
    turn = {
        "system": "racingtoys.good",
        "preset": None,
        "device": "cpu",
        "run": "turns/good",
        "share": 0.6,
        "options": {},
    }
    with catalog.trusting("racingtoys.good"):
        _warm_up()
        first = take({**turn, "seconds": 1.5}, data)
        step = Run.open("turns/good", trust="racingtoys.good").load_training(torch.device("cpu"))["step"]
        second = take({**turn, "seconds": 1.5}, data)
    run = Run.open("turns/good", trust="racingtoys.good")
    assert first["trained"] < second["trained"]
    assert second["value"] <= first["value"]
    assert second["curve"][: len(first["curve"])] == first["curve"]
    steps = [event["step"] for event in run.log() if "loss" in event]
    assert steps == sorted(set(steps))
    assert min(later for later in steps if later > step) > step > 0
    assert run.load_training(torch.device("cpu"))["step"] > step


def test_a_turn_ends_by_the_clock(place):
    """Where validation and building take more than was thought: the training is stopped and saved, not lost."""
    turn = {
        "system": "racingtoys.slow",
        "preset": None,
        "device": "cpu",
        "run": "turns/slow",
        "share": 20.0,
        "options": {},
    }
    began = time.monotonic()
    with catalog.trusting("racingtoys.slow"):
        answer = take({**turn, "seconds": 2.0}, load_data("moons"))
    assert 2.0 < time.monotonic() - began < 6.0
    assert answer["state"] == "ok"
    assert 0 < answer["trained"] < 6.0
    assert answer["share"] <= 1.0


@pytest.mark.slow
def test_a_whole_race(place):
    console = Console(file=io.StringIO(), width=140)
    how = {"data": "moons", "within": "60s", "out": "race", "console": console}
    began = time.monotonic()
    found = compare(["racingtoys.good", "racingtoys.raising"], **how)
    assert time.monotonic() - began < 1.1 * 60 + 15  # the machine that tests may be busy
    [row] = found.rows
    assert row["status"] == "ok"
    assert row["label"].startswith("racingtoys.good")
    record = json.loads((place / "race" / "race.json").read_text())
    winner = next(entry for entry in record["entries"] if entry["label"] == row["label"])
    trained = [turn["trained"] for turn in winner["turns"]]
    assert len(trained) > 1
    assert trained == sorted(trained)
    run = Run.open(place / "race" / "runs" / f"{winner['label'].replace(',', '_').replace(' ', '_')}-seed0",
                   trust="racingtoys.good")  # fmt: skip
    seconds = [event["seconds"] for event in run.log() if "validation" in event]
    assert seconds == sorted(seconds)  # one training from its first step to its last
    assert run.record["seconds"] == pytest.approx(trained[-1])
    assert run.record["arguments"]["fit"]["by"] == "distance"
    assert "KeyError" in next(e["error"] for e in record["entries"] if e["label"] == "racingtoys.raising")
    assert "The race" in found.report.read_text()
    said = console.file.getvalue()
    assert said.index("within 60 s, by the distance of samples") < said.index(" of training")
    with pytest.raises(RunError, match="made with"):
        compare(["racingtoys.good"], **how)
    with pytest.raises(OptionError, match="within is a time"):
        compare(["racingtoys.good"], "moons", within="50steps")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_goes_on(place, tmp_path, number):
    out = tmp_path / "out"
    program = "from fivefold import compare; from fivefold.comparison import halving; halving.FEWEST_SECONDS = 2.0\n"
    program += f"compare(['racingtoys.good'], 'moons', within='60s', out={str(out)!r})"
    path = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path})
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None and not (out / "race.json").exists():
        time.sleep(0.1)
    time.sleep(8)
    process.send_signal(number)
    process.wait(60)
    before = json.loads((out / "race.json").read_text())
    assert before["entries"]
    time.sleep(12)  # a killed parent's processes end by themselves
    found = compare(["racingtoys.good"], "moons", within="60s", out=out, console=Console(file=io.StringIO()))
    after = json.loads((out / "race.json").read_text())
    kept = [(entry["label"], entry["turns"][:1]) for entry in before["entries"]]
    assert [(entry["label"], entry["turns"][:1]) for entry in after["entries"]][: len(kept)] == kept
    assert found.rows[0]["status"] == "ok"
