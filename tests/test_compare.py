"""The comparison: each system in its own process, what fails is a row, what is finished is not repeated."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console

from fivefold import compare, fit, load_data, slot
from fivefold.errors import DataError, RunError
from fivefold.report import write_report
from fivefold.training.failures import reason, status
from tests.toys import package, source

TROUBLES = {  # name of the system: what its loss does, the row's status, words of its reason
    "raising": ("raise KeyError('no <such> key')", "failed", "KeyError: 'no <such> key'"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "killed", "signal 9"),
    "leaving": ("print('farewell', flush=True); os._exit(3)", "crashed", "code 3; last words: farewell"),
    "greedy": ("raise MemoryError('4 GB')", "out of memory", "4 GB"),
}

ONCE = {  # trouble at the first step alone, and the row's status
    "stopped": ("os.kill(os.getpid(), signal.SIGKILL)", "killed"),
    "wrong": ("raise ValueError('shape')", "failed"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder on the Python path with one good system and every sort of bad one."""
    place = tmp_path_factory.mktemp("modules")
    modules = {name: source(trouble) for name, (trouble, *_) in TROUBLES.items()}
    modules |= {"good": source(presets={"quick": {"batch_size": 16}}), "slow": source("time.sleep(0.03)")}
    for name in ONCE:
        once = f"new = not os.path.exists('{name}.flag'); open('{name}.flag', 'a').close()\\nif new: {ONCE[name][0]}"
        modules[name] = source(once)
    modules["unfit"] = source(kind="text")
    with package(place, "toys", modules):
        yield place


@pytest.fixture(scope="module")
def finished(place):
    """A comparison of the good system and all the bad ones."""
    console = Console(file=io.StringIO(), width=140)
    systems = [f"toys.{name}" for name in ("good", "unfit", *TROUBLES)]
    return compare(systems, "moons", budget="30steps", jobs=2, out="out", console=console), console.file.getvalue()


def test_says_what_it_will_do(finished):
    said = finished[1]
    assert "6 rows: toys.good" in said
    assert "trained for 30steps" in said
    assert said.index("report: out/report.html") < said.index("1/6")


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_is_a_row(finished, name):
    _, expected, words = TROUBLES[name]
    [row] = [row for row in finished[0].rows if row["label"] == f"toys.{name}"]
    assert row["status"] == expected
    assert words in row["error"]


def test_others_go_on(finished):
    rows = {row["label"]: row for row in finished[0].rows}
    assert rows["toys.unfit"]["status"] == "unfit"
    assert rows["toys.good"]["status"] == "ok"
    assert rows["toys.good"]["density"]["nats"] < 0
    assert "toys.good" in finished[0].recommendation
    text = finished[0].report.read_text()
    assert "no &lt;such&gt; key" in text
    assert "<such>" not in text


def test_finished_rows_are_not_repeated_and_further_ones_are_added(place, finished):
    rows = place / "out" / "rows"
    before = {path.name: path.stat().st_mtime_ns for path in rows.iterdir()}
    np.save(place / "theirs.npy", np.random.default_rng(0).normal(size=(300, 2)))
    again = compare(
        ["toys.good"], "moons", budget="30steps", jobs=2, seeds=2, samples={"theirs": "theirs.npy"}, out="out",
        console=Console(file=io.StringIO()),
    )  # fmt: skip
    assert {name: (rows / name).stat().st_mtime_ns for name in before} == before
    theirs = next(row for row in again.rows if row["label"] == "theirs")
    assert theirs["status"] == "ok", theirs["error"]
    assert theirs["density"]["kind"] == "none"
    assert [row["seed"] for row in again.rows if row["label"] == "toys.good"] == [0, 1]
    assert write_report("out") == again.report


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": "40steps"}, "budget 30steps, not 40steps"),
        ({"data": "rings"}, "other data"),
        ({"batch_size": 8}, "options none"),
        ({"jobs": 1}, "jobs 2, not 1"),
        ({"preset": "quick"}, "preset none, not quick"),
        ({"preset": "slow"}, "no system has a preset 'slow'"),
        ({"samples": {"theirs": "nowhere.npy"}}, "no samples"),
        ({"samples": {"toys.good": "theirs.npy"}}, "name of their own"),
    ],
)
def test_incomparable_is_refused(finished, change, words):
    with pytest.raises(RunError, match=words):
        compare(["toys.good"], **{"data": "moons", "budget": "30steps", "jobs": 2, "out": "out", **change})


def test_samples_of_another_shape_are_a_row_that_says_so(place, finished):
    np.save(place / "wide.npy", np.zeros((60, 3)))
    quiet = Console(file=io.StringIO())
    rows = compare(
        ["toys.good"], "moons", budget="30steps", jobs=2, samples={"wide": "wide.npy"}, out="out", console=quiet
    ).rows
    [row] = [row for row in rows if row["label"] == "wide"]
    assert row["status"] == "failed"
    assert "(N, 2)" in row["error"]


def test_what_failed_from_outside_is_tried_again(place):
    """And what failed by itself is not, though it would do now."""
    systems = [f"toys.{name}" for name in ONCE]
    about = {"budget": "5steps", "out": "again", "diagnostics": False, "console": Console(file=io.StringIO())}
    first = compare(systems, "moons", **about).rows
    second = compare(systems, "moons", **about)
    assert {row["label"]: row["status"] for row in first} == {f"toys.{n}": s for n, (_, s) in ONCE.items()}
    assert {row["status"] for row in second.rows if row["label"] != "toys.wrong"} == {"ok"}
    assert next(row for row in second.rows if row["label"] == "toys.wrong")["error"] == "ValueError: shape"
    settings = json.loads((place / "again" / "comparison.json").read_text())
    assert {(row["machine"]["jobs"], row["threads"]["given"]) for row in second.rows} == {(1, settings["threads"])}
    assert "thread" in second.report.read_text()


def test_data_in_memory_and_the_page_of_one_run(place):
    data = load_data(np.random.default_rng(0).normal(size=(400, 2)))
    done = compare(["toys.good"], data, budget="30steps", out="memory", console=Console(file=io.StringIO()))
    assert [row["status"] for row in done.rows] == ["ok"]
    fit("toys.good", load_data("moons"), budget="30steps", out="run")
    with pytest.raises(RunError, match="trust"):
        write_report("run")
    text = write_report("run", trust="toys.good").read_text()
    assert "toys.good" in text
    assert "density</p>" in text  # in two dimensions as a picture
    with pytest.raises(RunError, match="neither a comparison nor a run"):
        write_report(place)


def test_a_preset_is_of_the_systems_that_have_it_and_rows_say_so(place):
    def rows(*systems):
        return compare(
            systems, "moons", budget="5steps", preset="quick", diagnostics=False, precision="bf16", out="presets",
            console=Console(file=io.StringIO()),
        ).rows  # fmt: skip

    found = rows("toys.good", "toys.slow")
    records = [json.loads(path.read_text()) for path in sorted(place.glob("presets/runs/*/run.json"))]
    options = [record["arguments"]["fit"] for record in records]
    assert [(row["label"], row["preset"]) for row in found] == [("toys.good", "quick"), ("toys.slow", None)]
    assert [(o.get("batch_size"), o["precision"]) for o in options] == [(16, "bf16"), (64, "bf16")]
    assert not any("diagnostics" in row for row in found)
    assert found[0]["cost"]["peak_memory_bytes"] > 0
    (place / "presets" / "rows" / "toys.good-seed0.json").unlink()  # measuring was killed; the run is whole
    again = rows("toys.good")[0]
    assert again["status"] == "ok"
    assert again["cost"]["peak_memory_bytes"] is None


def test_what_other_tools_left_is_named(place):
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").touch()
    with pytest.raises(RunError, match="not empty and holds no comparison"):
        compare(["toys.good"], "moons", out="mine")
    (place / "mine" / "comparison.json").write_text("{")
    with pytest.raises(RunError, match="truncated"):
        compare(["toys.good"], "moons", out="mine")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_interrupted_goes_on(place, tmp_path, number, code):
    """Ctrl-C and a kill stop the workers; the same command then finishes the half-trained run, not a new one."""
    out = tmp_path / "out"
    program = f"from fivefold import compare; compare(['toys.slow'], 'moons', budget='60steps', out={str(out)!r})"
    program = f"from fivefold.cli import app as cli; cli.app = lambda **_: exec({program!r}); cli.main()"
    command = [sys.executable, "-c", program]
    log = out / "runs" / "toys.slow-seed0" / "log.jsonl"
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(place)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell's children ignore it
    ) as process:
        _until(lambda: log.exists() and log.stat().st_size > 0)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert number != signal.SIGINT or "goes on from here" in said
    record = log.with_name("run.json")
    _until(lambda: json.loads(record.read_text())["status"] == "stopped")  # the worker saved, though its parent is gone
    first = json.loads(record.read_text())
    assert not list((out / "rows").iterdir())
    _until(lambda: subprocess.run(command, env={**os.environ, "PYTHONPATH": str(place)}, check=False).returncode == 0)
    assert json.loads((out / "rows" / "toys.slow-seed0.json").read_text())["status"] == "ok"
    assert json.loads(record.read_text())["steps"] == 60 > first["steps"] > 0
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if "loss" in line]
    assert steps == sorted(steps)
    assert steps[0] <= first["steps"]


def _until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_words_for_exceptions():
    assert status(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")) == "out of memory"
    assert status(RuntimeError("shape")) == "failed"
    full = RunError("cannot save the log")
    full.__cause__ = OSError(errno.ENOSPC, "")
    assert status(full) == "disk full"
    assert status(RuntimeError("[enforce fail] write failed: No space left on device")) == "disk full"
    assert status(OSError(errno.ENOENT, "")) == "failed"
    assert reason(DataError("")) == "DataError: no message"


def test_table_1_is_the_survey_s(tmp_path):
    """All of its 21 rows (VQ-VAE twice), its figures beside those measured and only where they were asked for."""
    from fivefold.comparison.plan import plan, print_beside
    from fivefold.report.columns import columns
    from fivefold.report.survey import TABLE_1

    assert len({published.method for published in TABLE_1.values()}) == 22
    planned = plan(tmp_path, load_data("digits"), [slot("vae"), slot("made")], 1, {}, {"budget": "1s", "options": {}})
    rows = [job["row"] | {"status": "ok"} for job in planned]
    assert "survey_fid" not in {column.key for column in columns(rows)}
    print_beside(planned)
    shown = {column.key: column for column in columns([job["row"] | {"status": "ok"} for job in planned])}
    assert shown["survey_fid"].read(planned[0]["row"]).value == 106.37
    reading = shown["survey_bits"].read(planned[0]["row"])
    assert shown["survey_bits"].show(reading, False) == "≤ 4.54"
    assert shown["survey_fid"].read(planned[1]["row"]) is None


def test_free_form_is_as_the_survey_ticks_it():
    from fivefold import catalog
    from fivefold.report.survey import TABLE_1

    for name, entry in catalog.entries().items():
        if name in TABLE_1:
            assert {True: "✓", False: "✗"}[entry.free_form] == TABLE_1[name].free_form, name
