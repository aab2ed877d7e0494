"""What the log gets goes to the trackers too: stand-ins that record, and MLflow itself where it is installed."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

import fivefold
from fivefold.errors import OptionError
from fivefold.run import Run
from fivefold.training.fit import resume
from tests.systems import Regression

DATA = np.random.default_rng(0).normal(size=(60, 2))
TRAINING = {"budget": "6steps", "batch_size": 6, "evaluations": 1}


@pytest.fixture
def data(tmp_path):
    np.save(tmp_path / "x.npy", DATA)
    return fivefold.load_data(str(tmp_path / "x.npy"))


def numbers(run):
    """What the log holds, flat: {step: {name: value}}."""
    found: dict[int, dict[str, float]] = {}

    def flat(event, prefix=""):
        for name, value in event.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{name}/")
            elif isinstance(value, int | float):
                yield f"{prefix}{name}", value

    for event in Run.open(run).log():
        found.setdefault(event.pop("step"), {}).update(flat(event))
    return found


class FakeTrackio(SimpleNamespace):
    def __init__(self):
        super().__init__(begun=[], lines=[], finished=0)

    def init(self, **options):
        self.begun.append(options)

    def log(self, values, step):
        self.lines.append((step, values))

    def finish(self):
        self.finished += 1


def test_trackio_gets_what_the_log_gets_and_resuming_goes_on(data, tmp_path, monkeypatch):
    trackio = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    fivefold.fit("nice", data, out=tmp_path / "run", track="trackio", hidden=8, **TRAINING)
    (begun,) = trackio.begun
    assert (begun["project"], begun["resume"], begun["config"]["system"]) == ("fivefold", "allow", "nice")
    assert begun["config"]["hidden"] == 8
    assert trackio.finished == 1
    told: dict[int, dict[str, float]] = {}
    for step, values in trackio.lines:
        told.setdefault(step, {}).update(values)
    assert told == numbers(tmp_path / "run")
    assert "validation" in told[6]
    assert any(name.startswith("loss/") for name in told[6])
    resume(tmp_path / "run", budget="9steps")
    assert trackio.begun[1]["name"] == begun["name"]
    assert max(step for step, _ in trackio.lines) == 9
    fivefold.fit("nice", data, out=tmp_path / "elsewhere" / "run", track="trackio", hidden=8, **TRAINING)
    assert trackio.begun[2]["name"] != begun["name"]  # another folder of the same name is another run


def test_a_tracker_that_fails_does_not_end_the_training(data, tmp_path, monkeypatch):
    trackio = FakeTrackio()

    def log(values, step):
        raise ConnectionError("the server is gone")

    trackio.log = log
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    with pytest.warns(UserWarning, match="trackio tracks no further: the server is gone"):
        fivefold.fit("nice", data, out=tmp_path / "run", track="trackio", hidden=8, **TRAINING)
    assert Run.open(tmp_path / "run").record["status"] == "finished"
    assert trackio.finished == 0


@pytest.mark.parametrize("name", ["trackio", "mlflow"])
def test_a_missing_library_is_a_sentence_before_anything_is_written(name, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(OptionError, match=rf"needs the library {name}: pip install 'fivefold\[{name}\]'"):
        fivefold.fit("nice", data, out=tmp_path / "run", track=name, hidden=8, **TRAINING)
    assert not (tmp_path / "run").exists()
    with pytest.raises(OptionError, match=r"takes none\|trackio\|mlflow, got 'wandb'"):
        fivefold.fit("nice", data, out=tmp_path / "run", track="wandb", **TRAINING)


# --- MLflow ---------------------------------------------------------------------------------------


class FakeClient:
    """As much of MLflow's client as is used, in memory."""

    runs: list[SimpleNamespace] = []

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="7") if name == "fivefold" and self.runs else None

    def create_experiment(self, name):
        return "7"

    def search_runs(self, experiments, filter_string):
        return [
            one for one in self.runs if f"tags.`fivefold.folder` = '{one.tags['fivefold.folder']}'" == filter_string
        ]

    def create_run(self, experiment, run_name, tags):
        made = SimpleNamespace(info=SimpleNamespace(run_id=str(len(self.runs))), name=run_name, tags=tags, params={})
        made.metrics, made.status = [], ["RUNNING"]
        self.runs.append(made)
        return made

    def update_run(self, run_id, status):
        self.runs[int(run_id)].status.append(status)

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100
        self.runs[int(run_id)].metrics += metrics
        self.runs[int(run_id)].params |= {one.key: one.value for one in params}

    def set_terminated(self, run_id, status):
        self.runs[int(run_id)].status.append(status)


@pytest.fixture
def mlflow(monkeypatch):
    def metric(key, value, timestamp, step):
        assert timestamp > 1e12  # milliseconds
        return SimpleNamespace(key=key, value=value, step=step)

    def param(key, value):
        return SimpleNamespace(key=key, value=value)

    monkeypatch.setattr(FakeClient, "runs", [])
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mlflow.entities", SimpleNamespace(Metric=metric, Param=param))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", SimpleNamespace(MlflowClient=FakeClient))
    return FakeClient


def test_mlflow_gets_what_the_log_gets_and_resuming_goes_on(mlflow, data, tmp_path):
    fivefold.fit("nice", data, out=tmp_path / "run", track="mlflow", hidden=8, **TRAINING)
    resume(tmp_path / "run", budget="9steps")
    (made,) = mlflow.runs
    assert made.name == "run"
    assert made.status == ["RUNNING", "FINISHED", "RUNNING", "FINISHED"]
    assert (made.params["system"], made.params["hidden"]) == ("nice", "8")
    told: dict[int, dict[str, float]] = {}
    for one in made.metrics:
        told.setdefault(one.step, {})[one.key] = one.value
    assert told == numbers(tmp_path / "run")


def test_mlflow_hears_of_a_training_that_diverged(mlflow, data, tmp_path):
    with pytest.raises(fivefold.errors.Diverged):
        fivefold.fit(Regression, data, out=tmp_path / "run", track="mlflow", poison_at=2, retries=0, **TRAINING)
    assert mlflow.runs[0].status[-1] == "FAILED"


def test_mlflow_itself(data, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    fivefold.fit("nice", data, out=tmp_path / "run", track="mlflow", hidden=8, **TRAINING)
    resume(tmp_path / "run", budget="9steps")
    client = MlflowClient()
    (made,) = client.search_runs([client.get_experiment_by_name("fivefold").experiment_id])
    assert made.info.status == "FINISHED"
    assert made.data.params["system"] == "nice"
    steps = numbers(tmp_path / "run")
    found = {one.step: one.value for one in client.get_metric_history(made.info.run_id, "validation")}
    assert found == {step: values["validation"] for step, values in steps.items() if "validation" in values}
