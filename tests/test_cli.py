"""The command line as a person types it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import fivefold
from fivefold import catalog, slot
from fivefold.cli.app import app, main
from fivefold.errors import FivefoldError


def run(*words: str) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "made"
    run(
        "train",
        "made",
        "--data",
        "digits",
        "--condition",
        "label",
        "--budget",
        "20steps",
        "--hidden",
        "16",
        "--out",
        out,
    )
    return out


@pytest.mark.parametrize("words", [["--help"], ["list"], ["train", "--help"], ["list", "--json"]])
def test_help_and_list_do_not_start_torch(words):
    code = (
        f"import sys; sys.argv = ['fivefold', *{words!r}]\n"
        "from fivefold.cli import main\n"
        "try: main()\n"
        "except SystemExit as error: assert not error.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_list_as_json():
    rows = json.loads(run("list", "--json"))
    assert {row["id"] for row in rows} == set(catalog.entries())
    assert set(rows[0]) == {"id", "family", "section", "reference", "density", "spaces", "summary"}
    flows = {row["id"] for row in json.loads(run("list", "--family", "flow", "--json"))}
    assert flows == {path.stem.replace("_", "-") for path in (Path(catalog.__file__).parent / "flow").glob("[!_]*.py")}
    assert "gated-pixelcnn" not in {row["id"] for row in json.loads(run("list", "--data", "wine", "--json"))}


@pytest.mark.parametrize("system", list(catalog.entries()))
def test_every_systems_help_names_its_options(system):
    text = run("train", system, "--help")
    assert "--lr FLOAT" in text
    assert "--budget TEXT" in text
    assert "[default:" in text


def test_train_resume_sample_score_evaluate(trained, tmp_path):
    assert "step 30" in run("resume", trained, "--budget", "30steps")
    run("sample", trained, "-n", 4, "--seed", 1, "--condition", 3, "--out", tmp_path / "a.npz")
    run("sample", trained, "-n", 4, "--condition", 3, "--out", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["x"].shape == (4, 8, 8)
    assert "exact" in run("score", trained, "--out", tmp_path / "scores.csv")
    frame = pd.read_csv(tmp_path / "scores.csv")
    assert list(frame.columns) == ["log_prob_nats", "bits_per_dim", "kind", "standard_error", "rank"]
    assert np.allclose(frame["bits_per_dim"], -frame["log_prob_nats"] / 64 / np.log(2))
    assert frame["rank"].sort_values().tolist() == list(range(1, len(frame) + 1))
    said = run("score", trained, "--by", "typicality", "--against", _shifted(tmp_path), "--out", tmp_path / "s.parquet")
    assert "ranked by typicality" in said
    assert "area under the ROC curve" in said
    row = json.loads(run("evaluate", trained, "--json"))
    assert row["density"]["bits_per_dim"] == pytest.approx(frame["bits_per_dim"].mean(), rel=1e-3)
    assert "other data" in run("score", trained, "--data", _shifted(tmp_path), "--out", tmp_path / "other.csv")


def test_options_reach_into_what_fills_a_slot(tmp_path):
    words = ["--prior", "maf-flow:small", "--prior.layers=2", "--posterior.hidden", "8", "--posterior", "iaf-flow"]
    small = ["--latent", "2", "--width", "1", "--budget", "1steps", "--evaluations", "1", "--out", tmp_path / "run"]
    run("train", "vae", "--data", "digits", *words, *small)
    system = json.loads((tmp_path / "run" / "run.json").read_text())["arguments"]["system"]
    assert system["prior"] == {"slot": "maf-flow", "preset": "small", "options": {"layers": 2}}
    assert system["posterior"] == {"slot": "iaf-flow", "preset": None, "options": {"hidden": 8}}
    assert "bits" in run("evaluate", tmp_path / "run", "--json")


def _shifted(folder):
    from sklearn.datasets import load_digits

    raw = load_digits()
    np.savez(folder / "other.npz", x=raw.images[:50].astype(np.uint8), y=raw.target[:50])
    return folder / "other.npz"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "vea", "--data", "digits"], "did you mean 'vae'"),
        (["train", "made", "--data", "digit"], "did you mean 'digits'"),
        (["train", "made", "--data", "digits", "--hiden", "4"], "--hidden"),
        (["train", "made", "--data", "digits", "--budget", "9"], "60s"),
        (["train", "realnvp", "--data", "pydocs", "--budget", "1steps"], "Systems for text data"),
        (["train", "made", "--data", "digits", "--precision", "8"], "bf16"),
        (["train", "vae", "--data", "digits", "--prior.layers", "4"], "--prior.layers"),  # the usual prior has none
        (["train", "vae", "--data", "digits", "--prior", "maf-flow", "--prior.layers", "0"], "at least 1"),
        (["train", "vae", "--data", "digits", "--prior", "maf-flow", "--prior.hiden", "4"], "--prior.hiden"),
        (["train", "vae", "--data", "digits", "--prior", "dcgan", "--budget", "1steps"], "spline-flow"),
        (["resume", "nowhere"], "not a run"),
        (["sample", "nowhere", "--out", "a.png"], "not a run"),
        (["compare", "--samples", "mine"], "NAME=FILE"),
        (["train", "made", "--data", "digits", "--hidden", "-3"], "'--hidden': needs a number of at least 1, got -3"),
        (["train", "made", "--data", "digits", "--hidden", "many"], "'--hidden': expected int, got 'many'"),
        (["train", "made", "--data", "digits", "--lr", "nan"], "'--lr': needs a number above 0, got nan"),
        (["train", "made", "--data", "digits", "--batch-size", "0"], "'--batch-size': needs a number of at least 1"),
        (["train", "made", "--data", "digits", "--accumulate", "0"], "'--accumulate': needs a number of at least 1"),
        (["train", "made", "--data", "digits", "--ema", "2"], "'--ema': needs a number of at least 0 and below 1"),
        (["train", "made", "--data", "digits", "--device", "gpu"], "takes auto|cpu"),
        (["train", "made", "--data", "digits", "--device", "cuda:9"], "got 'cuda:9'"),
        (["train", "made", "--data", "digits", "--preset", "x"], "no preset 'x'"),
        (["train", "made", "--data", "digits", "--budget", "0s"], "60s"),
        (["train", "vae", "--data", "digits", "--prior", "nicer"], "did you mean 'nice'"),
        (["train", "vae", "--data", "digits", "--prior", "nice", "--prior.hiden", "3"], "--prior.hidden"),
        (["train", "vae", "--data", "digits", "--prior", "nice", "--prior.hidden", "0"], "'--prior.hidden': needs a"),
        (
            ["train", "vae", "--data", "digits", "--prior", "dcgan", "--budget", "1steps"],
            "These fit: standard-normal, ",
        ),
        (["compare", "vae", "--ema", "2"], "below 1"),
        (["compare", "vae --lattent 3"], "--latent"),
    ],
)
def test_errors_are_one_clear_line(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fivefold", *words])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code != 0
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert len(printed.err.strip().splitlines()) <= 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [({"hidden": -3}, "at least 1, got -3"), ({"lr": float("nan")}, "got nan"), ({"device": "gpu"}, "got 'gpu'"),
     ({"batch_size": 0}, "at least 1"), ({"ema": 2.0}, "below 1")],
)  # fmt: skip
def test_python_says_the_same(options, says):
    with pytest.raises(FivefoldError, match=says):
        fivefold.fit("made", "digits", budget="1steps", **options)


def test_arrays_and_frames_are_data():
    x = np.random.default_rng(0).normal(size=(60, 2))
    for data in (x, pd.DataFrame(x, columns=["a", "b"])):
        system = fivefold.fit("nice", data, budget="2steps", evaluations=1, hidden=8)
        assert type(system.sample(2)) is type(data)


def test_the_package_shows_its_names():
    assert {"fit", "load", "compare", "option", "slot", "System", "Space"} <= set(dir(fivefold))


def test_help_shows_a_slot_and_what_fills_it():
    text = run("train", "vae", "--help")
    assert "--prior SYSTEM" in text
    assert "standard-normal" in text
    text = run("train", "vae", "--prior", "spline-flow", "--help")
    assert "In the slot prior: spline-flow" in text
    assert "--prior.bins INTEGER" in text


def test_a_slot_is_trained_and_the_printed_command_repeats_it(tmp_path):
    words = ["--prior", "nice", "--prior.hidden", "8", "--prior.couplings", "2"]
    run("train", "vae", "--data", "digits", "--budget", "2steps", *words, "--width", "2", "--out", tmp_path / "a")
    row = json.loads(run("evaluate", tmp_path / "a", "--json"))
    assert row["label"] == "vae, prior nice(hidden=8, couplings=2)"
    again = shlex.split(row["command"])[1:]
    run(*again, "--out", tmp_path / "b")
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in "ab"]
    assert records[0]["arguments"] == records[1]["arguments"]


def test_rows_of_a_comparison_are_written_as_train_takes_them(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "fivefold.comparison.compare.compare", lambda systems, data, **rest: seen.update(rest, systems=systems)
    )
    run("compare", "vae", "made:mnist", "vae --prior nice --prior.hidden 8", "--data", "digits", "--preset", "mnist",
        "--batch-size", "32", "--no-diagnostics", "--clip", "1")  # fmt: skip
    assert seen["systems"] == ["vae", slot("made:mnist"), slot("vae", prior=slot("nice"), **{"prior.hidden": 8})]
    assert (seen["preset"], seen["batch_size"], seen["clip"], seen["diagnostics"]) == ("mnist", 32, 1.0, False)
    assert "ema" not in seen


def test_wrong_suffixes_are_refused_before_work(trained, tmp_path, capsys, monkeypatch):
    for words in (
        ["sample", str(trained), "--condition", "1", "--out", "a.wav"],
        ["score", str(trained), "--out", "a.xls"],
    ):
        monkeypatch.setattr(sys, "argv", ["fivefold", *words])
        with pytest.raises(SystemExit):
            main()
        assert "choose a suffix" in capsys.readouterr().err
