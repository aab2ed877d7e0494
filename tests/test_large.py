"""Tables and folders larger than memory: read in pieces, they are what they are when read whole."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fivefold import fit
from fivefold.data import Data, build, image_files, load_data, load_examples, pieces, stored, tables
from fivefold.data.writers import save_examples
from fivefold.errors import DataError

ROWS = 3000
RNG = np.random.default_rng(0)
TIMES = pd.Series(pd.Timestamp("2020-01-01") + pd.to_timedelta(RNG.permutation(10**6)[:ROWS], unit="s"))
FRAME = pd.DataFrame(
    {
        "number": np.arange(7, ROWS + 7),
        "code": [f"A{n:06d}" for n in RNG.permutation(10**6)[:ROWS]],
        "height": RNG.normal(1.7, 0.1, ROWS),
        "weight": RNG.normal(70, 9, ROWS).round(1),
        "pulse": np.where(RNG.random(ROWS) < 0.1, np.nan, RNG.integers(50, 100, ROWS)),
        "income": RNG.lognormal(10, 1, ROWS).round(2),
        "gift": np.where(RNG.random(ROWS) < 0.8, 0.0, RNG.lognormal(2, 1, ROWS).round(2)),
        "age": RNG.integers(18, 80, ROWS),
        "far": RNG.integers(0, 10**6, ROWS),
        "town": RNG.choice(["Bonn", "Rom, IT", "Ulm"], ROWS),
        "gone": RNG.choice(["yes", "no", None], ROWS),
        "smoker": RNG.random(ROWS) < 0.3,
        "day": (np.datetime64("2020-01-01") + RNG.integers(0, 900, ROWS)).astype(str),
        "time": TIMES.dt.strftime("%Y-%m-%d %H:%M:%S"),
        "same": 2.5,
    }
)


@pytest.fixture(params=[".csv", ".parquet"])
def suffix(request: Any) -> str:
    return request.param


@pytest.fixture
def in_pieces(monkeypatch: Any) -> Any:
    """Turns reading in pieces on."""

    def turn_on(sample: int | None = None) -> None:
        monkeypatch.setattr(pieces, "LARGE", 0)
        monkeypatch.setattr(pieces, "ROWS", 700)
        monkeypatch.setattr(pieces, "HEAD", 2**14)
        monkeypatch.setattr(pieces, "SPOTS", 4)
        monkeypatch.setattr(pieces, "SPOT", 2**12)
        monkeypatch.setattr(build, "STORED_IN_MEMORY", 0)
        if sample:
            monkeypatch.setattr(tables, "SAMPLE", sample)

    return turn_on


def written(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, index=False, row_group_size=1000)
    return path


def codes(data: Data) -> list[torch.Tensor]:
    return [split.batch(slice(None)).x for split in (data.train, data.valid, data.test)]


PLAIN = FRAME.drop(columns=["code", "day", "time"])  # whose forms take long to tell
CASES: list[tuple[pd.DataFrame, dict[str, Any]]] = [
    (FRAME, {}),
    (PLAIN, {"condition": "town,age", "columns": "far=integer,height=drop"}),
    (PLAIN, {"missing": "drop", "columns": "age=category,weight=ordered"}),
    (PLAIN.assign(split=RNG.choice(["train", "val", "test"], ROWS, p=[0.6, 0.2, 0.2])), {}),
    (PLAIN.assign(day=pd.to_datetime(FRAME["day"]), time=TIMES.dt.tz_localize("Europe/Berlin")), {}),
    (FRAME[["town", "age"]].astype({"town": "category", "age": "float32"}), {}),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_a_table_in_pieces_is_the_table_read_whole(case: int, suffix: str, tmp_path: Path, in_pieces: Any) -> None:
    frame, options = CASES[case]
    path = written(frame, tmp_path / f"a{suffix}")
    whole = load_data(path, **options)
    in_pieces()
    data = load_data(path, **options)
    assert data.train.x is None
    assert data.space == whole.space
    assert data.space.to_json() == whole.space.to_json()
    assert data.fingerprint == whole.fingerprint
    for x, y in zip(codes(data), codes(whole), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
    assert [note for note in data.notes if "read from disk" not in note] == list(whole.notes)
    if options.get("condition"):
        assert torch.equal(data.test.condition, whole.test.condition)
    elif not case:
        scored = load_examples(path, data.space, **data.arguments)
        assert len(scored) == sum(map(len, codes(data)))


def test_ranges_steps_and_categories_are_those_of_all_rows(suffix: str, tmp_path: Path, in_pieces: Any) -> None:
    """What only the last rows hold, which a sample of a tenth does not see."""
    frame = FRAME.copy()
    frame.loc[ROWS - 5, ["age", "weight", "town", "income", "day"]] = [200, 70.25, "Lyon", 0.5, "1999-12-31"]
    frame.loc[ROWS - 3, "height"] = 1e6
    frame["late"] = np.where(np.arange(ROWS) < ROWS - 2, RNG.integers(0, 50, ROWS), np.nan)
    path = written(frame, tmp_path / f"a{suffix}")
    whole = load_data(path)
    in_pieces(sample=300)
    data = load_data(path)
    assert [one.name for one in data.space.made] == ["number", "code", "same"]
    for found, exact in zip(data.space.columns, whole.space.columns, strict=True):
        facts = ["name", "kind", "dtype", "levels", "categories", "step", "low", "missing", "atoms", "dates"]
        facts += ["written"] if suffix == ".csv" else []
        assert [getattr(found, fact) for fact in facts] == [getattr(exact, fact) for fact in facts], found.name
        if found.name != "height":  # whose outlier is in the training part or is not
            assert abs(found.location - exact.location) < 0.3 * exact.scale
            assert found.scale == pytest.approx(exact.scale, rel=0.3)
    assert any("by 300 rows of each part" in note for note in data.notes)
    assert all(x.nan_to_num().isfinite().all() for x in codes(data))


@pytest.mark.parametrize("sep", [";", ","])
def test_dialects_are_read_in_pieces_and_written_back(sep: str, tmp_path: Path, in_pieces: Any) -> None:
    lines = [sep.join(["größe", "preis", "n", "flag"])]
    lines += [
        sep.join([f"{a:.2f}".replace(".", "," if sep == ";" else "."), f"{b:.2f} €".replace(".", ",") if sep == ";" else f"${b:.2f}", str(n), "?" if n == 3 else "True"])  # noqa: E501
        for a, b, n in zip(RNG.normal(0, 9, 2000), RNG.random(2000) * 99, RNG.integers(0, 9, 2000), strict=True)
    ]  # fmt: skip
    path = tmp_path / "a.csv"
    path.write_text("# kommentar\n\n" + "\r\n".join(lines) + "\n# ende\n", encoding="cp1252", newline="")
    whole = load_data(path)
    in_pieces()
    data = load_data(path)
    assert data.space.to_json() == whole.space.to_json()
    assert data.fingerprint == whole.fingerprint
    outs = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for out, one in zip(outs, (data, whole), strict=True):
        save_examples(out, one.space, one.space.decode(one.test.batch(slice(20)).x))
    assert outs[0].read_bytes() == outs[1].read_bytes()


def contradicted(path: Path, column: str, value: str) -> Path:
    """A file with another value in row 2,500."""
    frame = FRAME[["height", "age", "far", "time"]].astype(object)
    frame.loc[2499, column] = value
    frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("height", "tall", r"'height' holds 'tall' in row 2,500.*--columns 'height=category'"),
        ("age", "1O", r"'age' holds '1O' in row 2,500"),
        ("time", "yesterday", r"'time', row 2,500: expected dates such as .* got 'yesterday'"),
    ],
)
def test_what_contradicts_the_rows_before_is_named(
    column: str, value: str, message: str, tmp_path: Path, in_pieces: Any, monkeypatch: Any
) -> None:
    path = contradicted(tmp_path / "a.csv", column, value)
    in_pieces()
    monkeypatch.setattr(pieces, "SPOTS", 1)
    with pytest.raises(DataError, match=message):
        load_data(path)
    if column == "age":
        data = load_data(path, columns="age=category")
        assert "1O" in data.space.columns[1].categories


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (FRAME.assign(text=[f"some {n} words {n * n}" for n in range(ROWS)]), "'text' holds free text"),
        (FRAME.assign(height=[*FRAME["height"].astype(str)[:-1], "tall"]), "numbers as text|holds 'tall'"),
        (FRAME.assign(height=[*FRAME["height"][:-1], np.inf]), r"'height' has \d+ infinite"),
    ],
)
def test_refusals_are_the_same(frame: pd.DataFrame, message: str, suffix: str, tmp_path: Path, in_pieces: Any) -> None:
    path = written(frame, tmp_path / f"a{suffix}")
    in_pieces()
    with pytest.raises(DataError, match=message):
        load_data(path)


def test_odd_signs_of_missing_numbers_and_many_texts_start_again(
    tmp_path: Path, in_pieces: Any, monkeypatch: Any
) -> None:
    frame = FRAME[["height", "town"]].astype(object)
    frame.loc[2000:, "town"] = [f"town {n % 600}" for n in range(1000)]
    frame.loc[2499, "height"] = "nULL"
    frame.to_csv(tmp_path / "a.csv", index=False)
    whole = load_data(tmp_path / "a.csv")
    in_pieces()
    monkeypatch.setattr(pieces, "SPOTS", 1)
    assert load_data(tmp_path / "a.csv").space == whole.space
    monkeypatch.setattr(stored, "MOST_WORDS", 500)
    assert load_data(tmp_path / "a.csv").space == whole.space
    with pytest.raises(DataError, match="'town' has over 500 categories"):
        load_data(tmp_path / "a.csv", columns="town=category")


def test_no_row_is_held_and_training_reads_from_disk(tmp_path: Path, in_pieces: Any) -> None:
    """Eight times as many rows take little more memory than their positions."""
    peaks, frame = [], FRAME[["height", "income", "age"]]
    for copies in (2, 16):
        path = written(pd.concat([frame] * copies), tmp_path / f"{copies}.csv")
        in_pieces(sample=500)
        tracemalloc.start()
        data = load_data(path)
        if copies == 2:  # what is imported and compiled is not to count
            tracemalloc.reset_peak()
            data = load_data(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert data.train.x is None
    assert peaks[1] - peaks[0] < 24 * 14 * ROWS, "the rows are 24 bytes each as numbers, several times that as text"
    fit("made", data, budget="2steps", evaluations=1)


def images_in(folder: Path, n: int) -> Path:
    for i in range(n):
        (folder / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 5), i % 256, np.uint8)).save(folder / str(i % 2) / f"{i:04d}.png")
    return folder


def test_of_very_many_images_some_are_looked_at(tmp_path: Path, monkeypatch: Any) -> None:
    folder = images_in(tmp_path / "a", 300)
    whole = load_data(folder, condition="label")
    monkeypatch.setattr(image_files, "LOOKED_AT", 50)
    monkeypatch.setattr(build, "IN_MEMORY", 0)
    data = load_data(folder, condition="label")
    assert data.space == whole.space
    assert data.fingerprint == whole.fingerprint
    assert torch.equal(data.train.batch(slice(None)).x, whole.train.batch(slice(None)).x)
    assert any("50 of 300 files looked at" in note for note in data.notes)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "cannot be read as an image"),
        (Image.new("RGB", (5, 6)), "is of mode RGB, those looked at were of L"),
        (Image.new("L", (4, 6)), "is 4x6, those looked at were 5x6; pass size"),
    ],
)
def test_a_bad_image_that_was_not_looked_at_is_named_or_replaced(
    image: Image.Image | None, message: str, tmp_path: Path, monkeypatch: Any
) -> None:
    folder = images_in(tmp_path / "a", 40)
    bad = folder / "0" / "0002.png"
    bad.write_bytes(b"nothing") if image is None else image.save(bad)
    monkeypatch.setattr(image_files, "LOOKED_AT", 2)
    with pytest.raises(DataError, match=message):
        load_data(folder)
    with pytest.warns(UserWarning, match="the next is read in its place"):
        data = load_data(folder, skip_bad=True)
    shades = torch.cat(codes(data))[:, 0, 0, 0].tolist()
    assert sorted(shades) == sorted([4, *(i for i in range(40) if i != 2)])
    assert any("is replaced by the next" in note for note in data.notes)
