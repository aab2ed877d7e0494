"""A kill at any file-system instant leaves something that the same command finishes, and nothing stays behind.

A killed process does nothing more. So the harness lets every call that changes the file system before the k-th
through and has that one and all later ones, those of clean-ups too, fail; for every k until the command ends.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import pathlib

import numpy as np
import pytest
import torch

import fivefold
from fivefold import load_data
from fivefold.data.writers import save_examples
from fivefold.errors import FivefoldError, RunError
from fivefold.files import is_temporary
from fivefold.report import write_report
from fivefold.run import Run, load
from fivefold.training.fit import fit, resume
from tests.systems import Regression


class Killed(BaseException):
    """What a killed process would not see."""


class Harness:
    """Counts what changes the file system; from the `last`-th on nothing does any more, by `error`."""

    def __init__(self, monkeypatch, place, last: int, error: BaseException, whole: bool = True) -> None:
        self.place, self.count, self.last, self.error, self.whole = str(place), 0, last, error, whole
        for home, name in ((os, "replace"), (os, "rename"), (os, "mkdir"), (os, "fsync"), (os, "unlink")):
            monkeypatch.setattr(home, name, self._guard(getattr(home, name)))
        for home in (builtins, io):
            monkeypatch.setattr(home, "open", self._guard_open(home.open))
        monkeypatch.setattr(os, "open", self._guard_os_open(os.open))
        monkeypatch.setattr(os, "getpid", lambda: 2**22 + 7)  # no such process

    def _tick(self, path) -> None:
        if not (isinstance(path, int) or str(path).startswith(self.place)):
            return
        self.count += 1
        if self.count == self.last or (self.whole and self.count > self.last):
            raise self.error

    def _guard(self, function):
        def guarded(path, *arguments, **keywords):
            self._tick(path)
            return function(path, *arguments, **keywords)

        return guarded

    def _guard_open(self, function):
        def guarded(file, mode="r", *arguments, **keywords):
            if any(letter in mode for letter in "wax+"):
                self._tick(file)
            return function(file, mode, *arguments, **keywords)

        return guarded

    def _guard_os_open(self, function):
        def guarded(path, flags, *arguments, **keywords):
            if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                self._tick(path)
            return function(path, flags, *arguments, **keywords)

        return guarded


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    table = load_data(np.random.default_rng(0).normal(size=(60, 2)))
    train(tmp_path_factory.mktemp("once"), table)  # so that what torch imports late is imported
    return table


def train(place, table):
    torch.manual_seed(0)
    fit(Regression, table, out=place / "run", budget="4steps", evaluations=2, checkpoint_seconds=1e-9, batch_size=8)


def train_further(place, table):
    resume(place / "run", budget="6steps", data=table, trust="tests.systems")


def sample(place, table):
    system = load(place / "run", trust="tests.systems")
    save_examples(place / "samples.csv", system.space, system.sample(3, seed=0))


COMMANDS = {"train": (train, ()), "resume": (train_further, (train,)), "sample": (sample, (train,))}


def stray(place):
    return [path for path in place.rglob("*") if is_temporary(path)]


def finished(place):
    record = place / "run" / "run.json"
    return record.exists() and json.loads(record.read_text())["status"] == "finished"


def whole(place, name):
    if name == "sample":
        return len((place / "samples.csv").read_text().splitlines()) == 4
    steps = json.loads((place / "run" / "run.json").read_text())["steps"]
    return finished(place) and steps == (6 if name == "resume" else 4)


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_anywhere_the_same_command_finishes(name, table, tmp_path):
    command, before = COMMANDS[name]
    for last in range(1, 400):
        place = tmp_path / str(last)
        place.mkdir()
        for earlier in before:
            earlier(place, table)
        with pytest.MonkeyPatch.context() as patch:
            harness = Harness(patch, place, last, Killed())
            try:
                command(place, table)
                killed = False
            except Killed:
                killed = True
        if killed and not (name == "train" and finished(place)):  # a run that ended is not made again
            command(place, table)
        assert whole(place, name), last
        assert not stray(place), last
        if not killed:
            assert harness.count >= 3
            return
    raise AssertionError("the command never ended")


def test_a_comparison_killed_at_its_beginning_takes_its_own_folder(table, tmp_path, monkeypatch):
    from fivefold.comparison.plan import locked, settle

    shared = {"budget": "1s", "device": "cpu", "features": "fitted", "threads": 1, "preset": None, "options": {}}
    shared |= {"diagnostics": False, "jobs": 1, "tune": None, "within": None}

    def begin(place):
        with locked(place):
            settle(place, table, shared)

    for last in range(1, 100):
        place = tmp_path / str(last)
        with pytest.MonkeyPatch.context() as patch:
            Harness(patch, place, last, Killed())
            try:
                begin(place)
                killed = False
            except Killed:
                killed = True
        begin(place)
        assert (place / "comparison.json").exists()
        assert not stray(place)
        if not killed:
            return
    raise AssertionError("it never ended")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_a_sentence_wherever_it_is_met(name, table, tmp_path):
    """And what was there before stays."""
    command, before = COMMANDS[name]
    met = 0
    for last in range(1, 400):
        place = tmp_path / str(last)
        place.mkdir()
        for earlier in before:
            earlier(place, table)
        said = None
        with pytest.MonkeyPatch.context() as patch:
            harness = Harness(patch, place, last, OSError(errno.ENOSPC, "No space left on device"), whole=False)
            try:
                command(place, table)
            except (FivefoldError, OSError) as error:
                said = error
        if harness.count < last:
            break
        if said is not None:
            met += 1
            assert name == "sample" or isinstance(said, RunError), repr(said)
            assert "No space left" in str(said)
        if before:
            load(place / "run", trust="tests.systems")
    assert met >= 3


# --- what a run says of itself ------------------------------------------------------------------------


def changed(run: Run, **fields) -> pathlib.Path:
    """The run with fields of its record changed (`...`: gone) and the checksum made right again."""
    for name, value in fields.items():
        if value is ...:
            del run.record[name]
        else:
            run.record[name] = value
    run.update()
    return run.directory


@pytest.fixture
def nice(tmp_path, table):
    fit("nice", table, out=tmp_path / "nice", budget="2steps", evaluations=1, hidden=8, couplings=2)
    return Run.open(tmp_path / "nice")


@pytest.mark.parametrize("version", ["9.9.9", "0.0.1"])
@pytest.mark.parametrize(
    ("field", "value"),
    [("space", ...), ("arguments", []), ("budget", 3), ("data", {}), ("status", None), ("arguments", {"system": {}})],
)
def test_a_record_of_another_version_is_a_sentence_with_both(nice, version, field, value):
    with pytest.raises(RunError, match=rf"made by fivefold {version}, and this is {fivefold.__version__}.*{field}"):
        load(changed(nice, versions={"fivefold": version}, **{field: value}))


def test_an_option_that_is_gone_is_a_sentence_with_both_versions(nice):
    arguments = {"system": nice.record["arguments"]["system"] | {"gone": 1}, "fit": {}}
    with pytest.raises(RunError, match=r"made by fivefold 0\.0\.1, and this is .*no option 'gone'"):
        load(changed(nice, versions={"fivefold": "0.0.1"}, arguments=arguments))


def test_all_options_are_kept_as_they_were(nice):
    """A default that changes later changes no run."""
    assert nice.record["arguments"]["system"]["layers"] == 2
    assert nice.record["arguments"]["fit"]["batch_size"] == 64
    assert nice.record["given"]["system"] == {"hidden": 8, "couplings": 2}


def test_a_damaged_log_stops_nothing(nice, table):
    log = nice.directory / "log.jsonl"
    log.write_bytes(b"\xff\xfe not a line\n" + log.read_bytes()[:20])
    assert load(nice.directory).sample(2).shape == (2, 2)
    assert fivefold.evaluate(nice.directory, table)["status"] == "ok"
    resume(nice.directory, budget="3steps", data=table)


EVIL = "import pathlib\npathlib.Path('trace').touch()\nfrom fivefold.flow.nice import NICE as Foo\n"


@pytest.mark.parametrize("name", ["nice:Foo", "evil", "evil:Foo", "evil.mod", "evilpackage.mod:Foo"])
@pytest.mark.parametrize("where", ["system", "slot", "nested", "plain", "listed"])
def test_a_run_folder_can_run_nothing(tmp_path, table, monkeypatch, where, name):
    """Names that the catalogue does not have, at any place of the record, with modules of that name at hand."""
    fit("distilled-flow", table, out=tmp_path / "run", budget="2steps", evaluations=1,
        **{"teacher.hidden": 8, "student.hidden": 8, "student.layers": 1})  # fmt: skip
    run = Run.open(tmp_path / "run")
    system = dict(run.record["arguments"]["system"])
    filled = {"slot": name, "preset": None, "options": {}}
    system["teacher"] = {
        "system": system["teacher"],
        "slot": filled,
        "nested": {**system["teacher"], "options": {"prior": filled}},
        "plain": name,
        "listed": [filled],
    }[where]
    fields = {"system": name} if where == "system" else {"arguments": {**run.record["arguments"], "system": system}}
    changed(run, **fields)
    monkeypatch.chdir(tmp_path)
    for module in ("nice", "evil"):
        (tmp_path / f"{module}.py").write_text(EVIL)
    (tmp_path / "evilpackage").mkdir()
    (tmp_path / "evilpackage" / "__init__.py").write_text(EVIL)
    (tmp_path / "evilpackage" / "mod.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    for use in (load, lambda run: resume(run, budget="3steps", data=table), write_report):
        with pytest.raises(FivefoldError):
            use(tmp_path / "run")
    assert not (tmp_path / "trace").exists()


def test_the_working_directory_is_searched_for_typed_names_alone(tmp_path, monkeypatch):
    import sys

    from fivefold import catalog
    from fivefold.errors import Untrusted

    (tmp_path / "typedname.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    with pytest.raises(Untrusted):
        catalog.class_of("typedname:Foo")
    assert str(tmp_path) not in sys.path
    with catalog.trusting("typedname"):
        assert catalog.class_of("typedname:Foo").__name__ == "NICE"


# --- the clock of the learning rate -------------------------------------------------------------------


def test_a_run_that_is_extended_has_the_rate_that_its_new_budget_says(table, tmp_path):
    """From the first step on, and bit for bit what a run that was stopped there and resumed has."""
    rates = []

    class Watched(Regression):
        def learning_rate(self, progress):
            return 1.0 if progress < 0.5 else 0.1

        def updates(self, batch, progress):
            rates.append((round(progress, 4), self.rates()))
            yield from super().updates(batch, progress)

        def optimizers(self):
            made = super().optimizers()
            object.__setattr__(self, "rates", lambda: next(iter(made.values())).param_groups[0]["lr"])
            return made

    fit(Watched, table, out=tmp_path / "run", budget="10steps", batch_size=8, evaluations=1)
    rates.clear()
    run = Run.open(tmp_path / "run", trust=__name__)
    from fivefold.training import fit as fitting

    arguments = run.record["arguments"] | {"fit": run.record["arguments"]["fit"] | {"budget": "40steps"}}
    trainer = fitting._trainer(Watched, arguments, table, "cpu", lambda event: None)
    fitting._keep_in(run, trainer, lambda event: None)
    trainer.train()
    assert rates[0][0] == 0.25
    assert all(rate == pytest.approx(1e-2 if progress < 0.5 else 1e-3) for progress, rate in rates)
