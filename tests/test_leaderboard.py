"""Comparisons on several data sets as one table: ranks, ties, mean ranks with their error, and what is missing."""

import json
import math

import pandas as pd
import pytest

from fivefold.errors import OptionError, RunError
from fivefold.files import write_json
from fivefold.report import folder
from fivefold.report.leaderboard import leaderboard
from tests.test_report import IMAGE, failed, row


def comparison(place, name, rows):
    """A comparison's folder of these rows, on data of this name."""
    directory = place / name
    (directory / "rows").mkdir(parents=True)
    settings = {"data": {"name": name, "source": name, "fingerprint": name}, "space": IMAGE.to_json(), "budget": "30s"}
    write_json(directory / folder.SETTINGS, settings)
    for position, one in enumerate(rows):
        path = directory / "rows" / f"{folder.file_name(one['label'], one['seed'])}.json"
        write_json(path, one | {"position": position})
    return directory


def board(place, *frechet, **options):
    """The leaderboard of data sets, each given as the distances of systems a, b, c, ...; None: it is missing there."""
    folders = [
        comparison(place, f"data{i}", [row(label, frechet=v) for label, v in zip("abcdef", values, strict=False) if v])
        for i, values in enumerate(frechet)
    ]
    return leaderboard(folders, **options)


def by_label(found):
    return {place.label: place for place in found.places}


def test_the_mean_rank_and_its_error_of_a_known_case(tmp_path):
    """Ranks 1, 2, 3 on three data sets: mean 2, error 1 / sqrt(3). All values are far apart for their errors."""
    found = by_label(board(tmp_path, (1.0, 2.0, 4.0), (2.0, 4.0, 1.0), (4.0, 1.0, 2.0)))
    assert found["a"].ranks == (1.0, 2.0, 3.0)
    for place in found.values():
        assert place.mean == 2.0
        assert place.error == pytest.approx(1 / math.sqrt(3))


def test_who_is_always_first_has_no_error_and_comes_first(tmp_path):
    found = board(tmp_path, (8.0, 1.0, 4.0), (8.0, 1.0, 20.0))
    assert [place.label for place in found.places] == ["b", "a", "c"]
    assert (found.places[0].mean, found.places[0].error) == (1.0, 0.0)
    assert found.places[1].ranks == (3.0, 2.0)
    assert found.places[1].error == pytest.approx(0.5)  # sd of 3 and 2 is 1 / sqrt(2), over the root of 2


def test_those_not_told_apart_share_their_ranks(tmp_path):
    """An error of 5 %: 1.00 and 1.01 are one, 3 and 9 are not. Ranks add up to 10, as without ties."""
    found = by_label(board(tmp_path, (1.01, 1.0, 3.0, 9.0)))
    assert {label: place.ranks for label, place in found.items()} == {"a": (1.5,), "b": (1.5,), "c": (3,), "d": (4,)}


def test_on_one_data_set_the_error_is_that_of_the_values(tmp_path):
    """Two equal values: either is first in half of the redrawn tables, so that a rank moves by 1/2; far ones by 0."""
    found = by_label(board(tmp_path, (2.0, 2.0, 90.0)))
    assert found["a"].error == pytest.approx(0.5, abs=0.02)
    assert found["c"].error == 0.0


def test_more_is_better_where_the_column_says_so(tmp_path):
    rows = [row("slow", rate=10.0), row("fast", rate=9e4)]
    found = leaderboard([comparison(tmp_path, "data", rows)], by="sample_64")
    assert [place.label for place in found.places] == ["fast", "slow"]


def test_what_is_missing_is_stated_and_never_ranked(tmp_path):
    """Nor does it move the ranks of those that are everywhere."""
    one = comparison(tmp_path, "one", [row("a", frechet=5.0), row("b", frechet=2.0), row("best", frechet=0.4)])
    two = comparison(tmp_path, "two", [row("a", frechet=5.0), row("b", frechet=2.0), failed("best", "diverged", "NaN")])
    three = comparison(tmp_path, "three", [row("a", frechet=5.0), row("b", frechet=2.0)])
    found = leaderboard([one, two, three])
    places = by_label(found)
    assert (places["b"].mean, places["a"].mean, places["best"].mean) == (1.0, 2.0, None)
    assert places["best"].missing == {"two": "diverged: NaN", "three": "not compared"}
    assert "- best: two: diverged: NaN; three: not compared" in found.text
    assert "of the 2 systems that have one on all of 3" in found.text


def test_densities_are_ranked_among_their_kind(tmp_path):
    rows = [row("a", bits=2.0), row("b", bits=1.5), row("bound", kind="lower bound", bits=1.0), row("g", kind="none")]
    one = comparison(tmp_path, "one", rows)
    found = by_label(leaderboard([one], by="density"))
    assert {label: place.mean for label, place in found.items()} == {"b": 1.0, "a": 2.0, "bound": None, "g": None}
    assert found["bound"].missing == {"one": "bits per dimension: ≤ 1.00 ± 0.02 (bound, 16 samples)"}
    assert by_label(leaderboard([one], by="density", kind="lower bound"))["bound"].mean == 1.0


def test_files(tmp_path):
    found = board(tmp_path, (1.0, 2.0, 4.0), (1.0, 2.0, None))
    for name in ("board.csv", "board.parquet"):
        path = found.write(tmp_path / name)
        frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        assert frame["system"].tolist() == ["a", "b", "c"]
        assert frame["mean rank"].tolist()[:2] == [1.0, 2.0]
        assert math.isnan(frame["mean rank"][2])
        assert frame["missing"][2] == "data1: not compared"
    assert found.write(tmp_path / "board.md").read_text().startswith("| System | Mean rank | data0 | data1 |")
    with pytest.raises(OptionError, match=r"a suffix of \.csv, \.md, \.parquet"):
        found.write(tmp_path / "board.xlsx")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": "beauty"}, "nothing to be ranked by 'beauty': one of density, frechet"),
        ({"by": "at_end"}, "nothing to be ranked by 'at_end'"),
        ({"kind": "exact"}, "says nothing of 'frechet'"),
    ],
)
def test_what_cannot_be_ranked_by(tmp_path, options, words):
    with pytest.raises(OptionError, match=words):
        board(tmp_path, (1.0, 2.0), **options)


def test_other_folders_are_refused(tmp_path):
    one = comparison(tmp_path, "one", [row("a")])
    with pytest.raises(RunError, match="on other data, got one, one"):
        leaderboard([one, one])
    two = comparison(tmp_path, "two", [row("a")])
    settings = json.loads((two / folder.SETTINGS).read_text())
    settings["data"]["name"] = "one"  # another file of the same name
    write_json(two / folder.SETTINGS, settings)
    assert leaderboard([one, two]).names == ("one", "two")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="is no comparison"):
        leaderboard([tmp_path / "empty"])


def test_the_command(tmp_path):
    from click.testing import CliRunner

    from fivefold.cli.app import app

    one = comparison(tmp_path, "one", [row("a", frechet=5.0), row("b", frechet=2.0)])
    done = CliRunner().invoke(app, ["leaderboard", str(one), "--out", str(tmp_path / "all.csv")])
    assert done.exit_code == 0, done.output
    assert "| b | 1" in done.output
    assert len(pd.read_csv(tmp_path / "all.csv")) == 2
