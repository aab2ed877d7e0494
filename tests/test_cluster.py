"""Comparisons on two local Ray nodes: the same rows as without, whatever is killed, and nothing left behind."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks.cluster import NODE, cluster, facts, one_kill, processes
from fivefold import compare, load_data, tune
from fivefold.comparison import copies, node, on_ray
from fivefold.comparison.crew import Crew
from fivefold.comparison.on_ray import Ray
from fivefold.errors import OptionError, RunError
from fivefold.run import Run
from fivefold.training.trials import HOPELESS
from tests.standin import jobs_of
from tests.toys import package, source

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")
SYSTEMS = ("made", "nice", "vae", "dcgan", "ddpm", "igebm")
HOW = {"budget": "20steps", "diagnostics": False, "batch_size": 16}


@pytest.fixture(scope="module")
def nodes():
    with cluster(2) as (made, _):
        yield made


def quiet():
    return Console(file=io.StringIO(), width=160)


def weights(out):
    return {path.name: Run.open(path).load_weights() for path in sorted((out / "runs").iterdir())}


def test_six_systems_give_the_same_rows_bit_for_bit(nodes, tmp_path):
    """And in working copies too, where the data come from the driver; then a seed more without the cluster."""
    threads = {"cpus_per_job": 1}
    compare(SYSTEMS, "digits", out=tmp_path / "here", console=quiet(), **HOW, **threads)
    done = compare(SYSTEMS, "digits", out=tmp_path / "there", console=quiet(), cluster=nodes.address, **HOW)
    found = {
        kind: {path.stem: facts(path) for path in sorted((tmp_path / kind / "rows").glob("*.json"))}
        for kind in ("here", "there")
    }
    assert len(found["here"]) == 6
    assert {row["status"] for row in found["here"].values()} == {"ok"}
    assert json.dumps(found["there"]) == json.dumps(found["here"])
    for name, expected in weights(tmp_path / "here").items():
        for key, tensor in weights(tmp_path / "there")[name].items():
            assert torch.equal(tensor, expected[key]), (name, key)
    assert {row["machine"]["node"] for row in done.rows} == {"node0", "node1"}
    assert {row["machine"]["jobs"] for row in done.rows} == {1}
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "there" / "rows").iterdir()}
    more = compare(("made", "nice"), "digits", out=tmp_path / "there", seeds=2, console=quiet(), **HOW, **threads)
    assert {path: (tmp_path / "there" / "rows" / path).stat().st_mtime_ns for path in before} == before
    assert len(more.rows) == 8


def test_nodes_that_do_not_see_the_folder_work_in_copies(nodes, tmp_path, monkeypatch):
    """The word in the folder is another one for them. Everything of a row comes back."""
    seen = on_ray.Home
    monkeypatch.setattr(on_ray, "Home", lambda directory, word, *rest: seen(directory, f"not {word}", *rest))
    shutil.rmtree(copies.kept_here(), ignore_errors=True)
    samples = tmp_path / "theirs.npy"
    np.save(samples, np.random.default_rng(0).normal(size=(300, 2)))
    done = compare(
        ("made", "nice"), "moons", out=tmp_path / "copies", samples={"theirs": samples}, console=quiet(),
        cluster=nodes.address, **HOW,
    )  # fmt: skip
    assert [row["status"] for row in done.rows] == ["ok", "ok", "ok"], [row["error"] for row in done.rows]
    compare(("made", "nice"), "moons", out=tmp_path / "here", console=quiet(), cpus_per_job=1, **HOW)
    for name in ("made-seed0", "nice-seed0"):
        a, b = (tmp_path / place / "rows" / f"{name}.json" for place in ("copies", "here"))
        assert json.dumps(facts(a)) == json.dumps(facts(b))
        assert {path.name for path in (tmp_path / "copies" / "runs" / name).iterdir()} == {
            path.name for path in (tmp_path / "here" / "runs" / name).iterdir()
        }
        assert a.with_suffix(".npz").exists()
    assert "theirs.npy" in done.rows[-1]["command"]
    [kept] = [path for path in copies.kept_here().iterdir() if path.is_dir()]  # of both nodes, which are one machine
    assert {path.name for path in kept.iterdir()} == set(copies.COMMON)


@pytest.mark.parametrize("what", ["worker", "raylet", "node"])
def test_whatever_is_killed_all_rows_arrive_once(nodes, what):
    other = nodes.add_node(**NODE, node_name="other")
    try:
        found = one_kill(nodes.address, other, what, 1.0)
    finally:
        nodes.remove_node(other)
    assert found["arrived"] == found["of"]
    assert found["finished_twice"] == 0


def test_a_training_whose_process_is_killed_goes_on_from_its_checkpoint(nodes, tmp_path):
    modules = {"slow": source("time.sleep(0.05)")}
    with package(tmp_path, "clustertoys", modules):
        out = tmp_path / "out"
        killer = threading.Thread(target=kill_the_worker, args=(out, out / "runs" / "clustertoys.slow-seed0"))
        killer.start()
        console = quiet()
        done = compare(
            ["clustertoys.slow"], "moons", budget="200steps", out=out, console=console, cluster=nodes.address,
            diagnostics=False, checkpoint_seconds=0.5,
        )  # fmt: skip
        killer.join()
        [row] = done.rows
        assert row["status"] == "ok", row["error"]
        assert console.file.getvalue().count("tried again") == 1
        run = Run.open(out / "runs" / "clustertoys.slow-seed0", trust="clustertoys.slow")
        assert run.record["steps"] == 200
        log = (out / "logs" / "clustertoys.slow-seed0.txt").read_text()
        assert "Traceback" not in log


def kill_the_worker(out, run):
    """Once it has a checkpoint."""
    until = time.monotonic() + 300
    while not (run / "training.pt").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1.0)
    for pid in processes(out):
        os.kill(pid, signal.SIGKILL)


def test_interrupted_leaves_nothing_running_and_goes_on(nodes, tmp_path):
    out = tmp_path / "out"
    program = f"cli.app = lambda **_: exec({PROGRAM.format(out=str(out))!r}); cli.main()"
    program = f"from fivefold.cli import app as cli; {program}"
    with package(tmp_path, "interruptedtoys", {"slow": source("time.sleep(0.05)")}):
        command = [sys.executable, "-c", program]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
        env["FIVEFOLD_TEST_ADDRESS"] = nodes.address
        run = out / "runs" / "interruptedtoys.slow-seed0"
        with subprocess.Popen(
            command, env=env, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:  # fmt: skip
            until = time.monotonic() + 120
            while not (run / "log.jsonl").exists() and time.monotonic() < until:
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=120)
        assert process.returncode == 130, said
        assert "goes on from here" in said
        assert not processes(out)
        record = json.loads((run / "run.json").read_text())
        assert record["status"] == "stopped"
        steps = record["steps"]
        assert subprocess.run(command, env=env, check=False).returncode == 0
        record = json.loads((run / "run.json").read_text())
        assert record["steps"] == 100 > steps > 0
        assert json.loads((out / "rows" / "interruptedtoys.slow-seed0.json").read_text())["status"] == "ok"


PROGRAM = """
import os
from fivefold import compare
compare(["interruptedtoys.slow"], "moons", budget="100steps", out={out!r}, diagnostics=False,
        cluster=os.environ["FIVEFOLD_TEST_ADDRESS"])
"""


def test_speeds_are_measured_again_on_one_node(nodes, tmp_path):
    first = compare(("made", "nice"), "moons", out=tmp_path / "out", console=quiet(), cluster=nodes.address, **HOW)
    how = {"out": tmp_path / "out", "cluster": nodes.address, "measure_on": "node1", **HOW}
    again = compare(("made", "nice"), "moons", console=quiet(), **how)
    for old, new in zip(first.rows, again.rows, strict=True):
        assert new["timed"]["node"] == "node1"
        assert new["cost"]["sample_per_second_64"] != old["cost"]["sample_per_second_64"]
        assert new["cost"]["train_examples_per_second"] > 0
        assert new["quality"] == old["quality"]
        assert new["machine"] == old["machine"]
    console = quiet()
    compare(("made", "nice"), "moons", console=console, **how)
    assert "speeds of 0 rows again" in console.file.getvalue()
    with pytest.raises(RunError, match="no machine 'node7' in the cluster: there are node"):
        compare(("made", "nice"), "moons", console=quiet(), **how | {"measure_on": "node7"})


def test_a_node_with_other_versions_is_refused_by_name(nodes, tmp_path, monkeypatch):
    usual = node.versions()
    monkeypatch.setattr(on_ray, "versions", lambda: usual | {"torch": "1.0"})
    with pytest.raises(
        RunError, match=rf"node\d has torch {torch.__version__.split('+')[0]}.*, not 1.0; install there"
    ):
        compare(["made"], "moons", out=tmp_path / "out", console=quiet(), cluster=nodes.address, **HOW)


def test_more_than_any_machine_has_is_refused(nodes, tmp_path):
    with pytest.raises(OptionError, match="no machine of the cluster has 64 CPUs"):
        compare(["made"], "moons", out=tmp_path / "out", cluster=nodes.address, cpus_per_job=64)
    with pytest.raises(OptionError, match="has 1 CPUs and 1 GPUs"):
        compare(["made"], "moons", out=tmp_path / "gpu", cluster=nodes.address, gpus_per_job=1)
    assert not ray.is_initialized()
    assert not (tmp_path / "gpu" / node.SEEN).exists()


def test_a_tuning_makes_its_trials_at_the_same_time(nodes, tmp_path):
    told = []
    how = {"budget": "20steps", "out": tmp_path / "tuning", "batch_size": 16, "told": told.append}
    found = tune("nice", load_data("moons"), trials=4, cluster=nodes.address, **how)
    assert len(found.trials) == len(told) == 4
    assert found.trials[0].options == {}
    assert {trial.state for trial in found.trials} <= {"ok", HOPELESS}
    assert found.best.value == min(trial.value for trial in found.trials if trial.state == "ok")
    assert len(tune("nice", load_data("moons"), trials=5, **how).trials) == 5  # goes on without


def test_a_race_on_the_cluster(nodes, tmp_path, monkeypatch):
    monkeypatch.setattr("fivefold.comparison.halving.FEWEST_SECONDS", 2.0)
    how = {"within": "90s", "out": tmp_path / "race", "console": quiet(), "cluster": nodes.address}
    found = compare(["made", "nice"], "moons", **how)
    assert [row["status"] for row in found.rows] == ["ok"] * len(found.rows)
    race = json.loads((tmp_path / "race" / "race.json").read_text())
    assert max(len(entry["turns"]) for entry in race["entries"]) == len(race["plan"]["counts"])
    assert not processes(tmp_path / "race")


def test_a_crew_goes_on_when_a_node_joins(nodes, tmp_path):
    for part in ("rows", "runs", "logs"):
        (tmp_path / part).mkdir()
    place = Ray(nodes.address, tmp_path, 1, 0, None, quiet())
    before = place.slots()
    other = nodes.add_node(**NODE, node_name="late")
    Crew(tmp_path, jobs_of([f"row{i}" for i in range(24)], seconds=0.5), place, quiet(), module="tests.standin").work()
    place.close()
    where = {json.loads(path.read_text())["machine"]["node"] for path in (tmp_path / "rows").glob("*.json")}
    nodes.remove_node(other)
    assert before == 2
    assert "late" in where
