"""`fivefold diff`: paired differences of runs and rows, the examples behind them, and what cannot be compared."""

import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fivefold import fit, load_data
from fivefold.cli.app import app
from fivefold.comparison.diff import diff
from fivefold.errors import RunError
from fivefold.files import write_json
from fivefold.report import folder, single


def comparison(place, name, scores):
    """A comparison's folder with rows of given nats an example, by label a list over seeds; None: no density."""
    data = load_data(name)
    directory = place / f"compare-{name}"
    (directory / "rows").mkdir(parents=True)
    write_json(directory / folder.SETTINGS, single.describe(data))
    for label, runs in scores.items():
        for seed, nats in enumerate(runs):
            density = {"kind": "none"}
            path = directory / "rows" / folder.file_name(label, seed)
            if nats is not None:
                density = {"kind": "exact", "nats": float(nats.mean()), "own_error": 0.0,
                           "standard_error": float(nats.std() / len(nats) ** 0.5)}  # fmt: skip
                arrays = {"log_prob": nats.astype(np.float32), "log_prob_index": np.arange(len(nats))}
                folder.write_arrays(path.with_name(f"{path.name}.npz"), arrays)
            row = {"system": label, "label": label, "seed": seed, "status": "ok", "density": density}
            write_json(path.with_name(f"{path.name}.json"), row)
    broken = {"system": "broken", "label": "broken", "seed": 0, "status": "failed", "error": "ValueError: shape"}
    write_json(directory / "rows" / "broken-seed0.json", broken)
    return directory


def nats(n, **changes):
    """Hard and easy examples alike; `at_7=5.0` adds 5 nats to the seventh."""
    found = -100 + 10 * np.random.default_rng(0).normal(size=n)
    for name, change in changes.items():
        found[int(name.removeprefix("at_"))] += change
    return found


def test_the_examples_that_differ_most(tmp_path):
    """On all but three examples they agree to a hair: unpaired nobody would see a difference."""
    n = len(load_data("digits").test)
    place = comparison(tmp_path, "digits", {"a": [nats(n, at_7=30.0, at_3=20.0)], "b:small": [nats(n, at_9=10.0)]})
    found = diff(f"{place}:a", f"{place}:b:small", count=2, out=tmp_path / "most.png")
    assert [gap.example for gap in found.better["A"]] == [7, 3]
    assert [gap.example for gap in found.better["B"]] == [9]
    assert found.better["A"][0].nats == pytest.approx(30, abs=1e-4)
    assert f"{40 / n:.2f}" in found.text
    assert "these runs" in found.text
    assert Image.open(tmp_path / "most.png").size[0] > 100


@pytest.mark.parametrize(("shift", "words"), [(0.5, "paired: A is better"), (0.0, "paired: not told apart")])
def test_seeds_compare_systems(tmp_path, shift, words):
    n = len(load_data("moons").test)
    spread = [0.0, 0.02, -0.02]
    scores = {"a": [nats(n) + shift + s for s in spread], "b": [nats(n) - s + 0.01 for s in spread]}
    place = comparison(tmp_path, "moons", scores)
    text = diff(f"{place}:a", f"{place}:b").text
    assert words in text
    assert "the systems" in text


@pytest.mark.parametrize(("name", "words"), [("wine", "alcohol 1"), ("pydocs", "'")])
def test_examples_are_shown_as_what_they_are(tmp_path, name, words):
    n = len(load_data(name).test)
    place = comparison(tmp_path, name, {"a": [nats(n, at_7=30.0)], "b": [nats(n)]})
    result = CliRunner().invoke(app, ["diff", f"{place}:a", f"{place}:b", "-n", "1"])
    [line] = [line for line in result.output.splitlines() if line.strip().startswith("7 ")]
    assert words in line
    assert "+30.00" in line


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two comparisons, and a run, trained for a few steps."""
    place = tmp_path_factory.mktemp("diff")
    n = len(load_data("wine").test)
    comparison(place, "wine", {"a": [nats(n)], "none": [None], "few": [nats(10)]})
    comparison(place, "moons", {"a": [nats(5)]})
    fit("nice", load_data("wine"), budget="3steps", out=place / "run")
    return place


REFUSED = {
    "other data": ("compare-wine:a", "compare-moons:a", "is of wine and .* of other data"),
    "no such row": ("compare-wine:a", "compare-wine:c", "has no row 'c'; it has .*few"),
    "no such place": ("compare-wine:a", "nowhere", "neither a run's folder nor FOLDER:LABEL"),
    "a failed row": ("compare-wine:a", "compare-wine:broken", "nothing to compare: failed: ValueError: shape"),
}


@pytest.mark.parametrize(("a", "b", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_compared_is_refused(place, a, b, words):
    with pytest.raises(RunError, match=words):
        diff(str(place / a), str(place / b))


def test_no_density_is_said_and_few_examples_are_compared_where_both_have_them(place):
    text = diff(f"{place}/compare-wine:a", f"{place}/compare-wine:none").text
    assert "No examples are compared" in text
    assert "none has none (none)" in text
    assert "of 10 test examples" in diff(f"{place}/compare-wine:a", f"{place}/compare-wine:few").text


def test_a_run_is_measured_and_beside_itself_is_the_same(place, monkeypatch):
    monkeypatch.setattr(sys.modules["fivefold.evaluation.evaluate"], "RATE_SECONDS", 0.01)
    found = diff(str(place / "run"), str(place / "run"))
    assert found.better == {"A": [], "B": []}
    assert "Fréchet distance" in found.text
    assert "better" not in found.text
    assert "Log-likelihood" in diff(str(place / "run"), f"{place}/compare-wine:a").text
