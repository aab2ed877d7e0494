"""Where jobs run: what a crew does with a place, jobs by Slurm's interface, working copies, ranking by machine."""

import hashlib
import io
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.cluster import processes
from fivefold import compare
from fivefold.cli.base import app
from fivefold.comparison import copies, node
from fivefold.comparison.copies import COMMON, Arrivals, pack
from fivefold.comparison.crew import Crew, task_of
from fivefold.comparison.node import SEEN, Home, python_path, run, versions
from fivefold.comparison.on_slurm import Slurm, _parameters
from fivefold.comparison.place import Ended, Local
from fivefold.comparison.where import Where
from fivefold.errors import OptionError, RunError, Stopped
from fivefold.report.advice import recommendation
from fivefold.report.columns import cells, columns, lines, machine
from tests.standin import jobs_of

STANDIN = "tests.standin"


@pytest.fixture
def place(tmp_path):
    """A folder as a comparison's is, that this machine sees."""
    for part in ("rows", "runs", "logs"):
        (tmp_path / part).mkdir()
    (tmp_path / "comparison.json").write_text("{}")
    (tmp_path / SEEN).write_text("word")
    return tmp_path


def home(place, word="word", found=None, content="nothing"):
    return Home(str(place), word, python_path(), str(Path.cwd()), found or versions(), content)


def crew(directory, jobs, place, **more):
    console = Console(file=io.StringIO(), width=200)
    return Crew(directory, jobs, place, console, module=STANDIN, **more), console.file


def rows_of(directory):
    return {path.stem: json.loads(path.read_text()) for path in (directory / "rows").glob("*.json")}


# --- a crew, anywhere -------------------------------------------------------------------------------


class Scripted:
    """A place whose jobs end as they are told, at once."""

    def __init__(self, tries, ends):
        self.tries, self.ends, self.jobs, self.begun, self.stopped = tries, ends, 2, [], 0
        self.running = []

    def room(self):
        return self.jobs - len(self.running)

    def start(self, task, avoid=()):
        self.begun.append((task.name, set(avoid)))
        self.running.append(task)

    def wait(self, seconds):
        task = self.running.pop(0)
        code, status, where = self.ends[task.name].pop(0)
        row = {**task.line["row"], "status": status, "error": status} if status else None
        return [Ended(task.name, code, row, where)]

    def stop(self, name=None):
        self.stopped += 1


LOST, KILLED, FULL, GOOD = (None, None), (-9, None), (0, "disk full"), (0, "ok")


@pytest.mark.parametrize(
    ("ends", "status", "begun"),
    [
        ([GOOD], "ok", 1),
        ([KILLED, GOOD], "ok", 2),
        ([LOST, KILLED, FULL, GOOD], "ok", 4),
        ([KILLED, LOST, KILLED], "killed", 3),
        ([FULL, FULL], "disk full", 2),
        ([(0, "failed")], "failed", 1),
        ([(3, None), (3, None)], "crashed", 2),
    ],
)
def test_what_ends_from_outside_is_tried_elsewhere_until_it_ends_so_twice(place, ends, status, begun):
    (place / "logs" / "a.txt").write_text("first\nlast words\n")
    there = Scripted(2, {"a": [(*end, f"node{i}") for i, end in enumerate(ends)]})
    found, said = crew(place, jobs_of(["a"]), there)
    found.work()
    assert len(there.begun) == begun
    assert there.begun[-1][1] == {f"node{i}" for i in range(begun - 1)}
    assert said.getvalue().count("tried again") == begun - 1
    assert said.getvalue().count("1/1") == 1
    row = rows_of(place).get("a")
    assert row is None or row["status"] == status
    if status in ("killed", "disk full", "crashed"):
        assert row["error"].startswith("twice: ")
        assert row["log"] == ["first", "last words"]


def test_jobs_with_the_same_tuning_are_one_after_another(place):
    there = Scripted(1, {name: [(0, "ok", "")] for name in "abc"})
    jobs = [job | {"tuning": "t"} if job["name"] in "ab" else job for job in jobs_of("abc")]
    crew(place, jobs, there)[0].work()
    assert [name for name, _ in there.begun] == ["a", "c", "b"]


def test_no_more_at_a_time_than_asked(place):
    there = Scripted(1, {name: [(0, "ok", "")] for name in "abc"})
    started, usual = [], there.start
    there.start = lambda task, avoid=(): (started.append(len(there.running)), usual(task, avoid))
    crew(place, jobs_of("abc"), there, most=1)[0].work()
    assert started == [0, 0, 0]


# --- this machine, and Slurm's interface --------------------------------------------------------------


class LocalSlurm(Slurm):
    """submitit's own stand-in for Slurm: processes on this machine."""

    kind = "local"


PLACES = {
    "local": lambda directory: Local(directory, 2, os.open(directory, os.O_RDONLY)),
    "slurm": lambda directory: LocalSlurm("slurm", directory, 1, 0, 2),
}


@pytest.fixture(params=PLACES)
def somewhere(request, place, monkeypatch):
    monkeypatch.setattr("fivefold.comparison.on_slurm.LOOKED", 0.1)
    found = PLACES[request.param](place)
    yield found
    found.close()


def test_rows_come_back(place, somewhere):
    found, said = crew(place, jobs_of(["a", "b", "c"], seconds=0.1), somewhere)
    found.work()
    assert {name: row["status"] for name, row in rows_of(place).items()} == {"a": "ok", "b": "ok", "c": "ok"}
    assert "3/3" in said.getvalue()
    assert rows_of(place)["b"]["directory"] == str(place)
    assert "said on b" in (place / "logs" / "b.txt").read_text()


def test_a_killed_process_is_one_row_here_and_tried_again_there(place, somewhere):
    """The stand-in kills itself at its first try alone."""
    found, said = crew(place, jobs_of(["a"], once="os.kill(os.getpid(), 9)"), somewhere)
    found.work()
    again = somewhere.tries > 1
    assert rows_of(place)["a"]["status"] == ("ok" if again else "killed")
    assert ("tried again" in said.getvalue()) == again


def test_interrupted_leaves_nothing_running(place, somewhere):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell put behind, and all it starts
    found, _ = crew(place, jobs_of(["a", "b"], seconds=60), somewhere)
    usual, until = somewhere.wait, time.monotonic() + 60

    def wait(seconds):
        usual(0.2)
        if len(list((place / "logs").glob("*.txt"))) == 2 and time.monotonic() < until:
            raise KeyboardInterrupt
        return []

    somewhere.wait = wait
    with pytest.raises(Stopped, match="0 of 2 rows finished; the same command goes on"):
        found.work()
    until = time.monotonic() + 60
    while processes(place) and time.monotonic() < until:
        time.sleep(0.1)
    assert not processes(place)
    assert not rows_of(place)


def test_slurm_says_what_it_needs(place, monkeypatch):
    assert _parameters("slurm:partition=gpu,time=600") == {"slurm_partition": "gpu", "slurm_time": 600}
    with pytest.raises(OptionError, match=r"slurm:partition=gpu,time=600, got 'slurm:gpu'"):
        _parameters("slurm:gpu")
    with pytest.raises(RunError, match="no Slurm here"):
        Slurm("slurm", place, 1, 0, None)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RunError, match=r"pip install 'fivefold\[slurm\]'"):
        Slurm("slurm", place, 1, 0, None)


# --- on a machine of a cluster ------------------------------------------------------------------------


def events_of(place, job, its_home, sent=lambda: b"", files=b""):
    return list(run(task_of(job, STANDIN), its_home, {"node": "n1", "jobs": 3}, sent, files))


def test_a_machine_with_other_versions_does_nothing(place):
    [job] = jobs_of(["a"])
    other = versions() | {"torch": "1.0"}
    first, last = events_of(place, job, home(place, found=other))
    assert first == {"node": "n1"}
    assert last["refused"] == f"has torch {versions()['torch']}, not 1.0"
    assert not rows_of(place)


def test_a_machine_that_joins_and_does_not_see_the_folder_is_refused(place):
    """Where all that were there at first did, nothing was packed for it."""
    [job] = jobs_of(["a"])
    *_, last = events_of(place, job, home(place, word="other", content=""))
    assert last["refused"].startswith(f"does not see {place}")


def test_versions_change_with_the_code(tmp_path, monkeypatch):
    (tmp_path / "comparison").mkdir()
    (tmp_path / "a.py").write_text("x = 1")
    monkeypatch.setattr(node, "__file__", str(tmp_path / "comparison" / "node.py"))
    before = versions()["fivefold"]
    (tmp_path / "a.py").write_text("x = 2")
    assert versions()["fivefold"] != before
    assert versions()["fivefold"].startswith("0.1.0 (")


def test_where_the_folder_is_seen_the_job_is_done_in_it(place):
    [job] = jobs_of(["a"])
    *_, last = events_of(place, job, home(place))
    assert last["code"] == 0
    assert last["result"] == rows_of(place)["a"]
    assert last["result"]["machine"] == {"node": "n1", "jobs": 3}


def test_elsewhere_it_is_done_in_a_copy_and_all_of_it_comes_back(place, tmp_path_factory, monkeypatch):
    kept = tmp_path_factory.mktemp("kept")
    monkeypatch.setattr("tempfile.tempdir", str(kept))
    monkeypatch.setattr(copies, "PIECE", 1000)
    (place / "data.pt").write_bytes(b"data")
    (place / "runs" / "a").mkdir()
    (place / "runs" / "a" / "begun").write_text("before")
    [job] = jobs_of(["a"], file=5000)
    fetched = []
    common, task = pack(place, COMMON), task_of(job, STANDIN)

    def sent():
        fetched.append(1)
        return common

    for _ in range(2):
        events = events_of(place, job, home(place, word="other", content="c1"), sent, pack(place, task.needs))
    assert fetched == [1]  # data reach a machine once
    assert not list(kept.glob("*/job-*"))
    assert not rows_of(place)
    arrivals = Arrivals(place)
    pieces = [event for event in events if "file" in event]
    assert sum(piece["file"] == "runs/a/weights" for piece in pieces) == 5
    for piece in pieces:
        arrivals.take("a", piece)
    assert not rows_of(place)  # as long as not all is there
    arrivals.settle("a", task.result)
    row = rows_of(place)["a"]
    assert row == events[-1]["result"]
    assert row["saw"] == ["begun", "comparison.json", "data.pt"]
    assert hashlib.sha256((place / "runs" / "a" / "weights").read_bytes()).hexdigest() == row["digest"]
    assert (place / "runs" / "a" / "empty").read_bytes() == b""
    assert "said on a" in (place / "logs" / "a.txt").read_text()
    assert not list((place / ".arriving").iterdir())


def test_closing_the_events_ends_the_process(place):
    [job] = jobs_of(["a"], seconds=60)
    events = run(task_of(job, STANDIN), home(place), {"node": "n1"}, lambda: b"", b"")
    assert next(events) == {"node": "n1"}
    assert next(events)["phase"] == "standing in"
    began = time.monotonic()
    events.close()
    assert time.monotonic() - began < 20
    assert not processes(place)


# --- what is given --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gpus": 0.5, "cluster": "auto"}, "takes whole GPUs, got 0.5"),
        ({"gpus": 1}, "give --cluster too"),
        ({"jobs": 0}, "'jobs' takes a whole number from 1, got 0"),
        ({"cpus": -1}, "'cpus_per_job' takes a whole number from 1, got -1"),
    ],
)
def test_what_does_not_go_together_is_refused(given, words):
    with pytest.raises(OptionError, match=words):
        Where(**given)


def test_without_ray_a_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"pip install 'fivefold\[ray\]'"):
        compare(["made"], "moons", out=tmp_path / "out", cluster="auto")
    with pytest.raises(RunError, match="no machine 'node7' without a cluster"):
        compare(["made"], "moons", out=tmp_path / "here", measure_on="node7")


def test_an_address_of_ray_s_client_is_refused(tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(RunError, match="got ray://head:10001: run it on a machine of the cluster"):
        compare(["made"], "moons", out=tmp_path / "out", cluster="ray://head:10001")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1: Connection refused; start one by"),
        ("lab", "no Ray cluster at lab"),
    ],
)
def test_where_there_is_no_cluster_a_sentence_says_how_to_start_one(tmp_path, address, words):
    pytest.importorskip("ray")
    with pytest.raises(RunError, match=re.escape(words)):
        compare(["made"], "moons", out=tmp_path / "out", cluster=address)


def test_threads_are_those_given_the_comparison_s_or_one(tmp_path):
    on_a_cluster = Where("auto")
    assert on_a_cluster.threads(tmp_path) == 1
    (tmp_path / "comparison.json").write_text('{"threads": 3}')
    assert on_a_cluster.threads(tmp_path) == 3
    assert Where("auto", cpus=2).threads(tmp_path) == 2
    assert Where(cpus=2).threads(tmp_path) == 2


def test_the_command_line_has_the_options():
    names = {option for param in app.commands["compare"].params for option in param.opts}
    assert {"--cluster", "--cpus-per-job", "--gpus-per-job", "--measure-on"} <= names


# --- speeds of several machines ---------------------------------------------------------------------------


def row(label, rate, processor, seed=0, **more):
    found = {"processor": processor, "cores": 4, "memory": 2**34, "device": "cpu", "jobs": 1}
    cost = {"sample_per_second_64": rate, "parameters": 100}
    return {"label": label, "seed": seed, "system": label, "status": "ok", "cost": cost, "machine": found, **more}


def marks(rows, key):
    column = next(column for column in columns(rows) if column.key == key)
    return {label: cell.mark for label, cell in cells(column, lines(rows)).items()}


def test_speeds_are_ranked_among_those_of_one_machine():
    rows = [row("a", 10, "P"), row("b", 20, "P"), row("c", 900, "Q"), row("d", 300, "Q")]
    assert marks(rows, "sample_64") == {"a": "", "b": "best", "c": "best", "d": ""}
    assert marks(rows[:2], "sample_64") == {"a": "", "b": "best"}
    assert "machine" not in {column.key for column in columns(rows[:2])}
    shown = next(column for column in columns(rows) if column.key == "machine")
    assert cells(shown, lines(rows))["c"].text == "Q, 4 cores, 16 GiB, 1 at a time"
    advice = {found.need: found for found in recommendation(rows)}["For speed of sampling"]
    assert advice.choice == []
    assert "2 kinds of machine" in advice.text
    assert {found.need: found for found in recommendation(rows[:2])}["For speed of sampling"].choice == ["b"]


def test_measured_again_on_one_machine_they_are_ranked():
    one = {"processor": "R", "cores": 8, "memory": 2**34, "device": "cpu", "jobs": 1, "node": "n"}
    rows = [row("a", 10, "P", timed=one), row("b", 20, "P", timed=one), row("c", 900, "Q", timed=one)]
    assert marks(rows, "sample_64") == {"a": "", "b": "", "c": "best"}
    assert machine(rows[0]).startswith("R, 8 cores")


def test_seeds_on_different_machines_are_ranked_with_none():
    rows = [row("a", 1000, "P"), row("a", 1000, "Q", seed=1), row("b", 20, "P"), row("c", 10, "P"), row("d", 900, "Q")]
    assert marks(rows, "sample_64") == {"a": "", "b": "best", "c": "", "d": ""}
