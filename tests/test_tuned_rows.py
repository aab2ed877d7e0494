"""`compare --tune N`: beside each system's own row one that is tuned, the same number of trials for all."""

import io
import json

import pytest
from rich.console import Console

from fivefold import compare
from fivefold.errors import RunError
from tests.toys import package, source

HOW = {"data": "moons", "budget": "20steps", "tune": 3, "tune_budget": "20steps", "diagnostics": False, "out": "out"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("modules")
    with package(place, "tunedtoys", {"good": source(), "raising": source("raise KeyError('no such key')")}):
        yield place


@pytest.fixture(scope="module")
def finished(place):
    console = Console(file=io.StringIO(), width=140)
    return compare(["tunedtoys.good", "tunedtoys.raising"], jobs=2, console=console, **HOW), console.file.getvalue()


def test_the_tuned_row_stands_beside_the_systems_own(finished):
    comparison, said = finished
    labels = [row["label"] for row in comparison.rows]
    assert labels == [
        "tunedtoys.good",
        "tunedtoys.good (tuned over 3)",
        "tunedtoys.raising",
        "tunedtoys.raising (tuned over 3)",
    ]
    own, tuned, *failed = comparison.rows
    assert (own["status"], tuned["status"]) == ("ok", "ok")
    assert tuned["tuned"] | {"options": {}} == {"trials": 3, "budget": "20steps", "options": {}}
    assert "tuned over 3 trials of 20steps" in tuned["note"]
    assert "tunedtoys.good (tuned over 3)" in said
    assert [row["status"] for row in failed] == ["failed", "failed"]
    assert "none of 3 trials" in failed[1]["error"]
    assert "KeyError: 'no such key'" in failed[1]["error"]


def test_every_system_has_as_many_trials_and_the_best_is_trained(place, finished):
    trials = {
        path.parent.name: json.loads(path.read_text())["trials"] for path in place.glob("out/tuning/*/trials.json")
    }
    assert {name: len(found) for name, found in trials.items()} == {"tunedtoys.good": 3, "tunedtoys.raising": 3}
    best = min(trials["tunedtoys.good"], key=lambda trial: trial["value"])
    record = json.loads((place / "out" / "runs" / "tunedtoys.good_tuned_over_3-seed0" / "run.json").read_text())
    given = record["given"]["system"] | record["given"]["fit"]
    assert {name: given[name] for name in best["options"]} == best["options"]
    text = (place / "out" / "report.html").read_text()
    assert "What tuning tried" in text
    assert "3 trials of 20steps" in text


def test_another_number_of_trials_is_not_comparable_and_the_same_is_not_repeated(place, finished):
    console = Console(file=io.StringIO(), width=140)
    with pytest.raises(RunError, match=r"made with tune .*name another --out"):
        compare(["tunedtoys.good"], jobs=2, console=console, **HOW | {"tune": 4})
    (place / "out" / "rows" / "tunedtoys.good_tuned_over_3-seed0.json").unlink()
    before = (place / "out" / "tuning" / "tunedtoys.good" / "trials.json").read_text()
    again = compare(["tunedtoys.good"], jobs=2, console=console, **HOW)
    assert [row["status"] for row in again.rows][:2] == ["ok", "ok"]
    assert "1 of 2 rows are finished" in console.file.getvalue()
    after = (place / "out" / "tuning" / "tunedtoys.good" / "trials.json").read_text()
    assert json.loads(after)["trials"] == json.loads(before)["trials"]
