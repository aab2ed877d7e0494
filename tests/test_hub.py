"""Data sets of the hub are read by their declared features; the hub's library is a stand-in that is made in memory."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image as Picture

from fivefold.data import load_data
from fivefold.data.raw import PARTS
from fivefold.errors import DataError

RNG = np.random.default_rng(0)


class Value:
    def __init__(self, dtype):
        self.dtype = dtype


class ClassLabel(Value):
    def __init__(self, names):
        super().__init__("int64")
        self.names = names


class Image:
    dtype = "PIL.Image.Image"


class Audio:
    dtype = "dict"

    def __init__(self, sampling_rate=None, decode=True):
        self.sampling_rate, self.decode = sampling_rate, decode


class Dataset:
    """Columns in memory, as the library hands them out; sound cannot be decoded here."""

    def __init__(self, features, columns):
        self.features, self.columns = features, columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, wanted):
        if isinstance(wanted, str):
            assert not isinstance(self.features[wanted], Audio)
            return self.columns[wanted]
        if np.ndim(wanted):
            return {key: [values[i] for i in wanted] for key, values in self.columns.items()}
        assert not any(isinstance(feature, Audio) and feature.decode for feature in self.features.values())
        return {key: values[wanted] for key, values in self.columns.items()}

    def cast_column(self, key, feature):
        return Dataset({**self.features, key: feature}, self.columns)

    def to_pandas(self):
        return pd.DataFrame(self.columns)


@pytest.fixture
def hub(monkeypatch):
    """A function that puts a data set, or a dictionary of splits, on the hub."""
    asked = []

    def put(found):
        def load_dataset(name, configuration=None):
            asked.append((name, configuration))
            if name == "nothing":
                raise FileNotFoundError("no such data set")
            return found

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
        return asked

    return put


def whole(data):
    return [data.space.decode(getattr(data, part).batch(slice(None)).x) for part in PARTS]


def test_images_with_the_labels_that_are_named(hub):
    pixels = RNG.integers(0, 256, (30, 6, 5), np.uint8)
    features = {"id": Value("int64"), "img": Image(), "fine": ClassLabel(list("abc")), "coarse": ClassLabel(["x", "y"])}
    columns = {"id": list(range(30)), "img": [Picture.fromarray(one) for one in pixels]}
    columns |= {"fine": [i % 3 for i in range(30)], "coarse": [i % 2 for i in range(30)]}
    test = {key: values[:6] for key, values in columns.items()}
    asked = hub({"train": Dataset(features, columns), "test": Dataset(features, test)})
    data = load_data("hf:pictures:small", condition="coarse")
    assert asked == [("pictures", "small")]
    assert data.space.shape == (1, 6, 5)
    assert np.array_equal(whole(data)[2], pixels[:6])
    assert data.test.batch(slice(None)).condition[:, 0].tolist() == [0, 1] * 3
    assert data.space.condition.columns[0].categories == ("x", "y")
    assert "columns not used: id, fine" in data.notes
    assert load_data("hf:pictures", condition="label").space.condition.columns[0].categories == ("a", "b", "c")
    assert load_data("hf:pictures", condition="id").space.condition.columns[0].levels == 30


@pytest.mark.parametrize("stored", ["bytes", "path"])
def test_sound_by_its_files(hub, stored, tmp_path):
    sounds, files = RNG.integers(-9999, 9999, (8, 100)).astype(np.int16), []
    for i, sound in enumerate(sounds):
        written = io.BytesIO()
        soundfile.write(written, sound, 8000, format="WAV", subtype="PCM_16")
        (tmp_path / f"{i}.wav").write_bytes(written.getvalue())
        path = str(tmp_path / f"{i}.wav") if stored == "path" else None
        files.append({"path": path, "bytes": None if path else written.getvalue()})
    features = {"audio": Audio(8000), "label": ClassLabel(["no", "yes"])}
    hub(Dataset(features, {"audio": files, "label": [0, 1] * 4}))
    data = load_data("hf:sounds", length=50, condition="label")
    assert (data.space.rate, data.space.shape) == (8000, (50,))
    found = {one.tobytes() for part in whole(data) for one in part}
    assert found == {one.tobytes() for one in sounds.reshape(16, 50)}
    hub(Dataset({"audio": Audio(4000)}, {"audio": files}))
    assert load_data("hf:sounds", length=25).space.rate == 4000  # as the feature declares
    files[3] = {"path": None, "bytes": b"no sound"}
    with pytest.raises(DataError, match="row 3 cannot be read as sound"):
        load_data("hf:sounds", length=25)
    assert sum(map(len, whole(load_data("hf:sounds", length=25, skip_bad=True)))) == 14


def test_texts_alone_or_by_the_field(hub):
    texts = [chr(ord("a") + i % 26) * 30 for i in range(40)]
    features = {"text": Value("string"), "label": ClassLabel(["no", "yes"])}
    split = Dataset(features, {"text": texts, "label": [0, 1] * 20})
    hub({"train": split, "validation": split, "test": split})
    data = load_data("hf:texts")
    assert data.space.shape == (30,)  # all are shorter than 64
    assert "columns not used: label" in data.notes
    assert whole(data)[2][0] == "a" * 30
    wide = Dataset({**features, "title": Value("large_string")}, {**split.columns, "title": texts})
    hub(wide)
    assert load_data("hf:texts", field="title", length=10).space.kind == "text"
    with pytest.raises(DataError, match=r"no field 'body' of text; name one with field.*text, title"):
        load_data("hf:texts", field="body")


def test_other_columns_are_a_table(hub):
    features = {"x": Value("float64"), "name": Value("string"), "kind": ClassLabel(["no", "yes"])}
    columns = {"x": RNG.random(40).tolist(), "name": ["a", "b"] * 20, "kind": [0, 1] * 20}
    hub(Dataset(features, columns))
    data = load_data("hf:table", condition="kind")
    assert [(column.name, column.kind) for column in data.space.columns] == [("x", "real"), ("name", "categorical")]
    assert data.space.condition.columns[0].categories == ("no", "yes")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:", "hf: alone names no data set: expected hf:NAME"),
        ("hf: ", "hf: alone names no data set"),
        ("hf:nothing", "hf:nothing cannot be loaded: no such data set"),
        ("hf:odd", "has the splits extra: expected one called train"),
    ],
)
def test_refusals(hub, name, message):
    hub({"extra": Dataset({}, {})})
    with pytest.raises(DataError, match=message):
        load_data(name)
