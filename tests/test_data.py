"""Data of every kind come in, are split, described, refused by name, and go out as they came."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from fivefold.data import EMBEDDED, Data, build, load_data
from fivefold.data.images import infer_layout, level_count
from fivefold.data.raw import PARTS
from fivefold.data.toy import TOYS
from fivefold.data.writers import save_examples
from fivefold.errors import DataError
from fivefold.space import Space

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (40, 6, 5, 3), np.uint8)
FRAME = pd.DataFrame(
    {
        "height": RNG.normal(1.7, 0.1, 200),
        "age": RNG.integers(18, 80, 200),
        "sex": RNG.choice(["f", "m"], 200),
        "smoker": RNG.random(200) < 0.3,
    }
)


def whole(data: Data) -> list[Any]:
    """Every split in the user's own form."""
    return [data.space.decode(getattr(data, part).batch(slice(None)).x) for part in PARTS]


def same(a: Data, b: Data) -> bool:
    batches = [(getattr(a, part).batch(slice(None)).x, getattr(b, part).batch(slice(None)).x) for part in PARTS]
    return all(torch.equal(x, y) for x, y in batches)


def images_in(folder: Path, n: int, size: tuple[int, int] = (6, 5), mode: str = "RGB", seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (n, *size, 4), np.uint8)
    for i in range(n):
        Image.fromarray(pixels[i]).convert("RGBA" if "A" in mode else "RGB").convert(mode).save(folder / f"{i:03d}.png")
    return folder


def sounds_in(folder: Path, n: int, rate: int = 8000, samples: int = 100, **kind: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shape = (samples, kind.get("channels", 1))
    for i in range(n):
        sound = np.random.default_rng(i).integers(-9999, 9999, shape).astype(kind.get("dtype", np.int16))
        wavfile.write(folder / f"{i}.wav", rate, sound[:, 0] if shape[1] == 1 else sound)
    return folder


# --- embedded data ------------------------------------------------------------------------------

SHAPES = {"digits": (1, 8, 8), "photos": (3, 32, 32), "cancer": (30,), "wine": (13,), "pydocs": (64,)}


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_data_are_deterministic_and_described(name: str) -> None:
    data = load_data(name)
    again = load_data(name)
    assert data.fingerprint == again.fingerprint
    assert same(data, again)
    assert data.space.shape == SHAPES.get(name, (2,))
    assert data.space.describe() in data.describe()
    assert f"{len(data.test):,} test" in data.describe()
    if name not in ("photos", "pydocs"):
        n = len(data.train) + len(data.valid) + len(data.test)
        assert abs(len(data.train) - 0.75 * n) <= 1.5
        assert abs(len(data.valid) - 0.10 * n) <= 1
    if name != "pydocs":
        labelled = load_data(name, condition="label")
        assert labelled.train.batch(slice(3)).condition.shape == (3, 1)
        assert labelled.fingerprint != data.fingerprint


def test_digits_keep_a_large_test_split_and_another_seed_splits_otherwise() -> None:
    assert len(load_data("digits").test) >= 256
    assert load_data("digits").space.levels == 17
    assert load_data("digits", split_seed=1).fingerprint != load_data("digits").fingerprint


def test_photos_share_no_pixel_between_parts(monkeypatch: Any) -> None:
    """Reads where every patch lies, from pictures whose pixels are their own positions."""
    where = np.arange(2 * 427 * 640).reshape(2, 427, 640)
    pictures = np.stack([where % 256, where // 256 % 256, where // 65536], -1).astype(np.uint8)
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: SimpleNamespace(images=list(pictures)))
    train, valid, test = [set(np.unique(part @ [1, 256, 65536])) for part in whole(load_data("photos"))]
    assert not train & valid
    assert not train & test
    assert not valid & test
    assert len(train | valid | test) == 120 * 64 * 64


@pytest.mark.parametrize("name", TOYS)
def test_a_density_integrates_to_one_has_its_entropy_and_its_samples(name: str) -> None:
    """By quadrature on a grid; the samples' mean log-density within four standard errors of minus the entropy."""
    toy, m = TOYS[name], 160
    line = ((np.arange(m) + 0.5) / m * 2 - 1) * toy.reach
    points = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    log_p = np.concatenate([toy.log_density(piece) for piece in np.array_split(points, 40)])
    cell, p = (2 * toy.reach / m) ** 2, np.exp(log_p)
    assert (p * cell).sum() == pytest.approx(1, abs=1e-4)
    assert -(p * np.where(p > 0, log_p, 0) * cell).sum() == pytest.approx(toy.entropy, abs=1e-3)
    x, _ = toy.sample(np.random.default_rng(1), 4000)
    values = toy.log_density(x)
    assert abs(values.mean() + toy.entropy) < 4 * values.std() / math.sqrt(4000) + 1e-6
    for moment in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x.prod(1), lambda x: (x**2).sum(1)):
        expected, got = (p * cell * moment(points)).sum(), moment(x)
        assert abs(got.mean() - expected) < 4 * got.std() / math.sqrt(4000) + 1e-3
    assert load_data(name).entropy == toy.entropy


# --- arrays, NPY, NPZ ---------------------------------------------------------------------------

LAYOUTS = [
    ((9, 8, 8), "HW"), ((9, 8, 8, 3), "HWC"), ((9, 3, 8, 8), "CHW"), ((9, 1, 4, 4), "CHW"), ((9, 4, 4, 1), "HWC"),
    ((9, 4, 4, 4), "HWC"), ((9, 1, 1, 1), "HWC"), ((9, 1, 1, 2), "HWC"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "layout"), LAYOUTS)
def test_layout_is_inferred_and_comes_back(shape: tuple[int, ...], layout: str) -> None:
    assert infer_layout(shape, []) == layout
    data = load_data(RNG.integers(0, 256, shape, np.uint8))
    assert data.space.decode(data.train.batch(slice(2)).x).shape == (2, *shape[1:])


@pytest.mark.parametrize(
    ("x", "levels", "dtype"),
    [
        (RNG.integers(0, 2, (20, 4, 4), np.uint8), 2, "uint8"),
        (RNG.random((20, 4, 4)) < 0.5, 2, "bool"),
        (np.zeros((20, 4, 4), np.uint8), 2, "uint8"),
        (RNG.integers(0, 17, (200, 4, 4)).astype(np.float64), 17, "float64"),
        (RNG.integers(0, 200, (20, 4, 4), np.uint8), 256, "uint8"),
        (RNG.integers(0, 4000, (50, 4, 4), np.uint16), 4096, "uint16"),
        (RNG.random((20, 4, 4), np.float32), None, "float32"),
    ],
)
def test_levels_of_images(x: np.ndarray, levels: int | None, dtype: str) -> None:
    data = load_data(x)
    assert (data.space.levels, data.space.dtype) == (levels, dtype)
    assert any("level" in note or "real values" in note for note in data.notes)
    assert sum(len(part) for part in whole(data)) == len(x)
    assert all(part.dtype == x.dtype for part in whole(data))


def test_level_rule() -> None:
    assert [level_count(top) for top in (0, 1, 16, 31, 32, 255, 256, 65535)] == [2, 2, 17, 32, 256, 256, 512, 65536]


def test_real_images_are_scaled_by_the_training_split_only() -> None:
    x = RNG.normal(5, 3, (100, 2, 2))
    data = load_data({"x_train": x, "x_test": x[:50] * 100})
    train = data.space.decode(data.train.batch(slice(None)).x)
    assert (data.space.location, data.space.scale) == pytest.approx((train.mean(), train.std()), rel=1e-5)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["mapped", "compressed"])
def test_npz_with_the_users_own_parts(tmp_path: Path, save: Any) -> None:
    y = np.arange(40) % 3
    save(tmp_path / "a.npz", x_train=BYTES, y_train=y, x_test=BYTES[:8], y_test=y[:8], note=np.zeros(2))
    data = load_data(tmp_path / "a.npz", condition="label")
    assert (len(data.train), len(data.valid), len(data.test)) == (35, 5, 8)
    assert np.array_equal(whole(data)[2], BYTES[:8])
    assert data.test.batch(slice(None)).condition[:, 0].tolist() == y[:8].tolist()
    assert "arrays not used: note" in data.notes
    np.savez(tmp_path / "b.npz", wine=RNG.random((9, 4)), other=np.zeros(3))
    assert load_data(f"{tmp_path}/b.npz:wine").space.shape == (4,)


@pytest.mark.parametrize("kind", ["npy", "npz", "images", "sounds", "text", "table"])
def test_larger_than_memory_is_read_from_disk_and_equal(tmp_path: Path, kind: str, monkeypatch: Any) -> None:
    np.save(tmp_path / "a.npy", BYTES)
    np.savez(tmp_path / "a.npz", x=BYTES)
    np.savez(tmp_path / "table.npz", x_train=RNG.random((40, 3)), x_test=RNG.random((9, 3)))
    (tmp_path / "a.txt").write_text("some text, often told. " * 60)
    sources = {
        "images": images_in(tmp_path / "i", 12),
        "sounds": sounds_in(tmp_path / "s", 5),
        "table": tmp_path / "table.npz",
    }
    suffix = {"text": "txt"}.get(kind, kind)
    source, options = sources.get(kind, tmp_path / f"a.{suffix}"), {"length": 16} if kind in ("sounds", "text") else {}
    held = load_data(source, **options)
    monkeypatch.setattr(build, "IN_MEMORY", 0)
    lazy = load_data(source, **options)
    assert held.train.x is not None
    assert lazy.train.x is None
    assert same(held, lazy)
    assert held.fingerprint == lazy.fingerprint
    assert torch.equal(held.train.spread(4).x, lazy.train.spread(4).x)


def test_mapped_arrays_are_not_copied_into_memory(tmp_path: Path) -> None:
    from fivefold.data.arrays import _open_npz

    np.savez(tmp_path / "a.npz", x=BYTES, y=np.asfortranarray(np.eye(3)))
    arrays, mapped = _open_npz(tmp_path / "a.npz")
    assert mapped
    assert isinstance(arrays["x"], np.memmap)
    assert np.array_equal(arrays["x"], BYTES)
    assert np.array_equal(arrays["y"], np.eye(3))


def test_size_resizes_arrays() -> None:
    data = load_data(BYTES, size=4)
    assert data.space.shape == (3, 4, 4)
    assert whole(data)[0].shape[1:] == (4, 4, 3)


# --- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_comes_back_with_columns_types_and_categories(tmp_path: Path, suffix: str) -> None:
    frame = FRAME.assign(city=pd.Series([None, "Bonn", "Rom", "Ulm"] * 50))
    write = {".csv": pd.DataFrame.to_csv, ".parquet": pd.DataFrame.to_parquet}[suffix]
    write(frame, tmp_path / f"a{suffix}", index=False)
    data = load_data(tmp_path / f"a{suffix}")
    assert [column.kind for column in data.space.columns] == [
        "real",
        "integer",
        "categorical",
        "categorical",
        "categorical",
    ]
    assert data.space.columns[4].categories == ("Bonn", "Rom", "Ulm", None)
    assert "column 'city': 50 missing values are a category of their own" in data.notes
    back = pd.concat(whole(data))
    assert list(back.dtypes) == list(frame.dtypes)
    key = ["age", "height"]
    expected = frame.sort_values(key, ignore_index=True)
    pd.testing.assert_frame_equal(back.sort_values(key, ignore_index=True), expected, rtol=1e-6)
    (saved,) = save_examples(tmp_path / f"out{suffix}", data.space, whole(data)[0])
    read = {".csv": pd.read_csv, ".parquet": pd.read_parquet}[suffix](saved)
    assert list(read.dtypes) == list(frame.dtypes)


def test_metres_and_millimetres_differ_by_ln_1000_a_column() -> None:
    x = RNG.normal(3, 2, (200, 4))
    metres, millimetres = load_data(x), load_data(x * 1000)
    torch.testing.assert_close(metres.train.x, millimetres.train.x, atol=1e-6, rtol=0)
    apart = metres.space.log_det(metres.train.x) - millimetres.space.log_det(millimetres.train.x)
    torch.testing.assert_close(apart, torch.full_like(apart, 4 * math.log(1000)), atol=1e-5, rtol=0)


def test_scaling_is_fitted_on_the_training_split_only() -> None:
    data = load_data(FRAME[["height"]], test=FRAME[["height"]] * 50)
    column, train = data.space.columns[0], whole(data)[0]["height"]
    assert (column.location, column.scale) == pytest.approx((train.mean(), train.std(ddof=0)), rel=1e-6)


@pytest.mark.parametrize(
    ("column", "kind", "levels"),
    [
        (np.arange(200) * 5, "integer", 996),
        (np.arange(200) * 1000, "real", None),
        (np.arange(200) * 10**9, "real", None),
        (np.full(200, 7), "integer", 1),
        (pd.array([1, 2] * 100, "Int64"), "integer", 2),
        (pd.Categorical(["a", "b"] * 100, ["a", "b", "never"]), "categorical", 3),
        (["only"] * 200, "categorical", 1),
    ],
)
def test_kinds_of_columns(column: Any, kind: str, levels: int | None) -> None:
    frame = FRAME[["height"]].assign(c=column)
    data = load_data(frame)
    assert (data.space.columns[1].kind, data.space.columns[1].levels) == (kind, levels)
    back = pd.concat(whole(data))["c"]
    assert back.dtype == frame["c"].dtype
    assert set(back) == set(frame["c"]) or kind == "real"
    assert data.train.x.isfinite().all()
    if frame["c"].nunique() == 1:
        assert "column 'c' is constant" in data.notes


def test_rows_with_missing_numbers_are_dropped_on_request() -> None:
    frame = FRAME.assign(height=FRAME["height"].where(FRAME["height"] > 1.6))
    lost = int(frame["height"].isna().sum())
    with pytest.raises(DataError, match=rf"of 200 rows: height \({lost}\).*--missing drop"):
        load_data(frame, missing="refuse")
    data = load_data(frame, missing="drop")
    assert sum(map(len, whole(data))) == 200 - lost
    assert any(f"{lost} of 200 rows dropped" in note for note in data.notes)


@pytest.mark.parametrize(("condition", "kind"), [("sex", "categorical"), ("height", "real"), ("age", "integer")])
def test_a_column_becomes_the_condition(condition: str, kind: str) -> None:
    data = load_data(FRAME, condition=condition)
    assert data.space.condition.columns[0].kind == kind
    assert condition not in [column.name for column in data.space.columns]
    batch = data.train.batch(slice(None))
    back = data.space.decode(batch.x).assign(**{condition: data.space.condition.decode(batch.condition)[condition]})
    merged = back.round(5).merge(FRAME.round(5), on=list(FRAME.columns))
    assert len(merged) >= len(back)


def test_split_column_and_test_argument(tmp_path: Path) -> None:
    data = load_data(FRAME.assign(split=["train"] * 150 + ["val"] * 20 + ["test"] * 30))
    assert [len(part) for part in (data.train, data.valid, data.test)] == [150, 20, 30]
    pd.testing.assert_frame_equal(whole(data)[2], FRAME[170:].reset_index(drop=True), rtol=1e-6)
    FRAME.to_csv(tmp_path / "a.csv")  # with the index as a column without a name
    FRAME[:30].to_csv(tmp_path / "b.csv")
    data = load_data(tmp_path / "a.csv", test=tmp_path / "b.csv")
    assert [len(part) for part in (data.train, data.valid, data.test)] == [176, 24, 30]
    assert len(data.space.columns) == 4
    for line in ("height: real, mean 1.7", "age: integer, 18 to 79", "sex: categorical, 2: f, m", "176 train"):
        assert line in data.describe()


def test_csv_without_header(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "a.csv", RNG.random((20, 3)), delimiter=",")
    data = load_data(tmp_path / "a.csv")
    assert sum(map(len, whole(data))) == 20
    assert isinstance(whole(data)[0], np.ndarray)


# --- folders, text ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "shape", "levels"),
    [
        ("L", (1, 6, 5), 256),
        ("RGB", (3, 6, 5), 256),
        ("RGBA", (4, 6, 5), 256),
        ("LA", (2, 6, 5), 256),
        ("P", (3, 6, 5), 256),
        ("1", (1, 6, 5), 2),
        ("I;16", (1, 6, 5), 65536),
    ],
)
def test_image_modes(tmp_path: Path, mode: str, shape: tuple[int, ...], levels: int) -> None:
    folder = images_in(tmp_path, 8, mode="L" if mode == "I;16" else mode)
    if mode == "I;16":
        for path in folder.glob("*.png"):
            Image.fromarray(RNG.integers(0, 65536, (6, 5)).astype(np.uint16)).save(path)
    data = load_data(folder)
    assert (data.space.shape, data.space.levels) == (shape, levels)
    scale, seen_as = {"1": (255, "L"), "P": (1, "RGB")}.get(mode, (1, None))
    pictures = [Image.open(path) for path in folder.iterdir()]
    found = {np.asarray(picture.convert(seen_as) if seen_as else picture).tobytes() for picture in pictures}
    expected = {(image * scale).astype(image.dtype).tobytes() for part in whole(data) for image in part}
    assert found == expected
    assert load_data(folder, size=4).space.shape == (shape[0], 4, 4)


def test_image_folders_parts_labels_and_size(tmp_path: Path) -> None:
    for seed, (part, label) in enumerate([("train", "cat"), ("train", "dog"), ("test", "cat"), ("test", "dog")]):
        images_in(tmp_path / part / label, 6, size=(6 + seed, 9), seed=seed)
    with pytest.raises(DataError, match=r"000\.png is 9x6, 000\.png is 9x7; pass size"):
        load_data(tmp_path)
    data = load_data(tmp_path, size=5, condition="label")
    assert [len(part) for part in (data.train, data.valid, data.test)] == [11, 1, 12]
    assert data.space.condition.columns[0].categories == ("cat", "dog")
    assert data.test.batch(slice(None)).condition[:, 0].tolist() == [0] * 6 + [1] * 6


def test_sound_comes_back_at_its_rate(tmp_path: Path) -> None:
    for label in ("no", "yes"):
        sounds_in(tmp_path / "in" / label, 6, rate=11025)
    sounds_in(tmp_path / "in" / "yes", 1, rate=11025, channels=2)
    data = load_data(tmp_path / "in", length=30, condition="label")
    assert (data.space.rate, data.space.shape, data.space.levels) == (11025, (30,), 65536)
    assert any("mixed down" in note for note in data.notes)
    assert sum(map(len, whole(data))) == 12 * 3
    _, first = wavfile.read(tmp_path / "in" / "no" / "0.wav")
    assert first[30:60].tobytes() in {sound.tobytes() for part in whole(data) for sound in part}
    assert len(set(data.train.condition[:, 0].tolist())) == 2
    paths = save_examples(tmp_path / "out.wav", data.space, whole(data)[0][:3])
    assert [path.name for path in paths] == ["out-1.wav", "out-2.wav", "out-3.wav"]
    rate, sound = wavfile.read(paths[2])
    assert rate == 11025
    assert np.array_equal(sound, whole(data)[0][2])


@pytest.mark.parametrize("alphabet", ["abcdefgh \n", "abäöü€ \n"], ids=["ascii", "unicode"])
def test_text_blocks_never_overlap(tmp_path: Path, alphabet: str) -> None:
    text = "".join(RNG.choice(list(alphabet), 4000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8", newline="")
    data = load_data(tmp_path / "a.txt", length=20)
    assert data.space.symbols == "".join(sorted(alphabet))
    train, valid, test = whole(data)
    assert ["".join(part) for part in (valid, test)] == [text[3000:3400], text[3400:4000]]
    assert train == [text[start : start + 20] for start in range(0, 2981, 5)]


# --- the hub ------------------------------------------------------------------------------------


def test_hub_data_from_a_local_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the library 'datasets' is not installed")
    label = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"x": datasets.Value("float64"), "label": label})
    one = datasets.Dataset.from_dict({"x": RNG.random(40).tolist(), "label": [0, 1] * 20}, features)
    datasets.DatasetDict({"train": one, "test": one.select(range(8))}).save_to_disk(tmp_path / "table")
    data = load_data(f"hf:{tmp_path / 'table'}", condition="label")
    assert (len(data.train), len(data.valid), len(data.test)) == (35, 5, 8)
    assert data.space.condition.columns[0].categories == ("no", "yes")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    pictures = [Image.fromarray(image) for image in BYTES]
    datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 20}, features).save_to_disk(tmp_path / "images")
    data = load_data(f"hf:{tmp_path / 'images'}", condition="label")
    assert {image.tobytes() for part in whole(data) for image in part} == {image.tobytes() for image in BYTES}
    datasets.Dataset.from_dict({"text": ["to be or not to be"] * 20}).save_to_disk(tmp_path / "text")
    assert load_data(f"hf:{tmp_path / 'text'}", length=10).space.symbols == " benort"


def test_hub_names_its_extra(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"fivefold\[hub\]"):
        load_data("hf:anything")


# --- refusals -----------------------------------------------------------------------------------

BAD = {
    "digit": "did you mean 'digits'",
    "/no/such/place.csv": "a path: a folder of images",
    "hf:/no/such/place": "cannot be loaded",
}
BAD_ARRAYS = [
    (BYTES[:1], {}, r"one sample|1 sample .*n_samples=1"),
    (BYTES[:2], {}, "2 samples .*needs at least 3"),
    (BYTES[:0], {}, "empty"),
    (np.zeros((9, 7, 8, 9)), {}, "no axis of 1 to 4 channels"),
    (np.zeros(9), {}, "expected numbers as a table"),
    (np.full((9, 4, 4), np.nan), {}, "pixels are missing"),
    (np.full((9, 4, 4), 0.5), {}, "every pixel of the training images is 0.5: there is nothing to model"),
    (np.where(np.eye(9) > 0, np.nan, 1.0), {"missing": "refuse"}, r"x0 \(1\), x1 \(1\)"),
    (np.where(np.eye(9) > 0, np.inf, 1.0), {}, "'x0' has 1 infinite"),
    (np.eye(9, dtype=complex), {}, "complex128"),
    ({"a": BYTES, "b": BYTES}, {}, "the arrays a, b: expected x_train"),
    ({"x": BYTES, "y": np.zeros((40, 2))}, {}, r"labels of shape \(40, 2\)"),
    ({"x": BYTES, "y": np.zeros(40, int)}, {"condition": "label"}, "one class only"),
    ({"x_train": BYTES, "x_test": BYTES[:, :4]}, {}, "different shapes"),
    (BYTES, {"condition": "label"}, "no condition 'label'.*no labels"),
    (BYTES, {"test": FRAME}, "the test data are table data"),
    ("digits", {"size": 16}, "size .* does not apply"),
    ("digits", {"length": 16}, r"\(--length\) is for text and audio data; these are image data"),
    ("photos", {"size": 65}, "size 1 to 64"),
    ("digits", {"missing": "guess"}, "'drop' or 'refuse'"),
    (["short", "text"], {}, "too short .*--length"),
    (FRAME, {"condition": "weight"}, "choose of: height, age, sex, smoker"),
    (FRAME, {"test": FRAME[["age"]]}, "test part has columns age"),
    (FRAME[["age"]], {"condition": "age"}, "the only column"),
    (FRAME[:0], {}, "empty: 0 rows"),
    (FRAME.assign(when=pd.Timedelta("1 day")), {}, "'when' holds durations"),
    (FRAME.assign(when=["2020-01-01", "1. May 2020"] * 100), {"columns": "when=date"}, "'when' holds no dates"),
    (FRAME.assign(name=[f"person {i}" for i in range(200)]), {}, "'name' holds free text"),
    (FRAME.assign(power=[*map(str, range(199)), "?"]), {}, r"'power' holds numbers as text, among them '\?'"),
    (FRAME.assign(thing=[[1]] * 200), {}, "'thing' holds list"),
    (pd.concat([FRAME, FRAME], axis=1), {}, "occur twice: age"),
]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_unknown_names_say_what_there_is(name: str) -> None:
    if name.startswith("hf:"):
        pytest.importorskip("datasets", reason="the library 'datasets' is not installed")
    with pytest.raises(DataError, match=BAD[name]):
        load_data(name)


@pytest.mark.parametrize(("source", "options", "message"), BAD_ARRAYS, ids=[message for *_, message in BAD_ARRAYS])
def test_bad_data_are_refused_by_name(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(source, **options)


def _file(name: str, content: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(content)


BAD_FILES = [
    (lambda folder: None, "", "holds no files"),
    (_file("a.xyz", b"1"), "", "holds 1 .xyz: expected images"),
    (_file("a.xyz", b"1"), "a.xyz", "by its suffix '.xyz'"),
    (_file("a.csv", b""), "a.csv", "cannot be read as CSV"),
    (_file("a.npz", b"no archive"), "a.npz", "cannot be read as NPZ"),
    (_file("a.npy", b"no array"), "a.npy", "a.npy"),
    (_file("a.parquet", b"nothing"), "a.parquet", "cannot be read as Parquet"),
    (_file("a.txt", b""), "a.txt", "is empty"),
    (_file("a.txt", b"a\x00b"), "a.txt", "expected a text file|is no .* text"),
    (_file("a.txt", b"\xff" * 99), "a.txt", "a text of|is no .* text|too short"),
    (_file("a.png", b"nothing"), "", "a.png cannot be read as an image"),
    (_file("a.wav", b"nothing"), "", "a.wav cannot be read as sound"),
    (lambda folder: np.save(folder / "a.npy", np.array([{}])), "a.npy", "Python objects"),
    (lambda folder: np.savez(folder / "a.npz", x=np.array([{}])), "a.npz", "Python objects"),
    (lambda folder: sounds_in(folder, 3, samples=9), "", "no file has 1024 samples"),
    (
        lambda folder: (images_in(folder, 3) / "000.png").write_bytes((folder / "001.png").read_bytes()[:70]),
        "",
        "000.png",
    ),
    (lambda folder: [images_in(folder, 1), sounds_in(folder, 1)], "", "holds 1 .png, 1 .wav"),
]


@pytest.mark.parametrize(("make", "name", "message"), BAD_FILES, ids=[message for *_, message in BAD_FILES])
def test_bad_files_are_refused_by_name(tmp_path: Path, make: Any, name: str, message: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        load_data(tmp_path / name)


# --- writing ------------------------------------------------------------------------------------


def test_images_are_written_as_grid_and_array(tmp_path: Path) -> None:
    data = load_data("digits", condition="label")
    x = whole(data)[0][:5]
    save_examples(tmp_path / "a.png", data.space, x, labels=[3, 1, 4, 1, 5])
    grid = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    assert np.array_equal(np.round(grid[:64:8, :64:8] / 255 * 16), x[0])
    save_examples(tmp_path / "a.npz", data.space, x, labels=[3, 1, 4, 1, 5])
    assert np.array_equal(load_data(tmp_path / "a.npz").space.encode(x)[:, 0], x)
    assert np.load(tmp_path / "a.npz")["y"].tolist() == [3, 1, 4, 1, 5]


@pytest.mark.parametrize("layout", ["HWC", "CHW"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_grid_of_any_channels(tmp_path: Path, layout: str, channels: int) -> None:
    space = Space("image", (channels, 70, 5), layout=layout, dtype="float32")
    x = space.decode(torch.rand(3, channels, 70, 5))
    save_examples(tmp_path / "a.png", space, x)
    assert Image.open(tmp_path / "a.png").size == (2 * 7, 2 * 84)


def test_conditions_are_written_beside_a_table(tmp_path: Path) -> None:
    data = load_data(FRAME, condition="sex")
    x = whole(data)[0][:2]
    save_examples(tmp_path / "a.csv", data.space, x, labels=["f", "m"])
    assert pd.read_csv(tmp_path / "a.csv")["sex"].tolist() == ["f", "m"]


@pytest.mark.parametrize(("n", "written"), [(1, "one\n"), (2, "--- 1 ---\none\n--- 2 ---\ntwo\n")])
def test_text_is_written(tmp_path: Path, n: int, written: str) -> None:
    save_examples(tmp_path / "a.txt", Space("text", (3,), symbols="enotw"), ["one", "two"][:n])
    assert (tmp_path / "a.txt").read_text() == written


@pytest.mark.parametrize(
    ("name", "space", "message"),
    [
        (
            "a.csv",
            Space("image", (1, 8, 8), levels=17, layout="HW"),
            "image examples to 'a.csv': choose a suffix of .png, .npz",
        ),
        ("a", Space("text", (3,)), "choose a suffix of .txt, .npz"),
        ("none/a.npz", Space("text", (3,)), "none does not exist"),
    ],
)
def test_a_format_that_makes_no_sense_is_refused(tmp_path: Path, name: str, space: Space, message: str) -> None:
    with pytest.raises(DataError, match=message):
        save_examples(tmp_path / name, space, ["abc"])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"old")
    data = load_data(FRAME)
    with pytest.raises(DataError, match=r"choose \.csv or \.parquet"):
        save_examples(tmp_path / "a.npz", data.space, whole(data)[0])
    with pytest.raises(ValueError, match="surrogates not allowed"):
        save_examples(tmp_path / "b.txt", Space("text", (1,)), ["\ud800"])
    assert (tmp_path / "a.npz").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
