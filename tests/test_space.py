"""A Space encodes, decodes and counts its own log-determinant."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from fivefold.errors import DataError
from fivefold.space import Column, Space, label_space

RNG = np.random.default_rng(0)
MIXED = Space(
    "table",
    (5,),
    columns=(
        Column("height", "real", "float32", location=1.7, scale=0.1),
        Column("age", "integer", "int64", location=18.0, levels=80),
        Column("sex", "categorical", "object", levels=3, categories=("f", "m", None)),
        Column("size", "categorical", "ordered category", levels=3, categories=("s", "m", "l")),
        Column("smoker", "categorical", "bool", levels=2, categories=(False, True)),
    ),
    frame=True,
)
FRAME = pd.DataFrame(
    {
        "height": np.array([1.6, 1.75, 1.9], np.float32),
        "age": [18, 40, 97],
        "sex": pd.Series(["f", None, "m"], dtype=object),
        "size": pd.Categorical(["l", "s", "s"], ["s", "m", "l"], ordered=True),
        "smoker": [True, False, False],
    }
)
IMAGES = {
    "HW": (Space("image", (1, 4, 6), levels=17, layout="HW"), RNG.integers(0, 17, (5, 4, 6), np.uint8)),
    "HWC": (Space("image", (3, 4, 6), levels=256, layout="HWC"), RNG.integers(0, 256, (5, 4, 6, 3), np.uint8)),
    "CHW": (Space("image", (2, 4, 6), levels=2, layout="CHW", dtype="bool"), RNG.random((5, 2, 4, 6)) < 0.5),
    "real": (Space("image", (1, 2, 2), layout="HW", dtype="float64", location=3.0, scale=2.0), RNG.random((5, 2, 2))),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_come_back_as_they_were(name: str) -> None:
    space, x = IMAGES[name]
    encoded = space.encode(x)
    assert encoded.shape == (5, *space.shape)
    assert encoded.dtype == (torch.int64 if space.discrete else torch.float32)
    back = space.decode(encoded)
    assert back.dtype == x.dtype
    np.testing.assert_allclose(back, x, atol=1e-6)


def test_tables_come_back_with_columns_types_and_categories() -> None:
    back = MIXED.decode(MIXED.encode(FRAME[reversed(FRAME.columns)]))  # columns go by name
    pd.testing.assert_frame_equal(back, FRAME, rtol=1e-6)
    assert list(MIXED.decode(torch.tensor([[0.0, 99.4, 2.0, 1.0, -3.0]])).iloc[0, 1:]) == [97, None, "m", False]


@pytest.mark.parametrize(
    ("space", "data"),
    [
        (Space("text", (3,), levels=3, symbols="abc"), ["abc", "bca"]),
        (Space("audio", (4,), levels=65536, rate=8000), np.array([[-32768, 0, 1, 32767]], np.int16)),
        (label_space((0, 1, 2)), np.array([[0], [2]], object)),
    ],
)
def test_text_sound_and_labels_come_back(space: Space, data: object) -> None:
    back = space.decode(space.encode(data))
    assert back == data if isinstance(data, list) else np.array_equal(back, data)


def test_log_det_is_that_of_the_encoding() -> None:
    """Against autograd-free truth: the slope of every real column of the encoding, by difference."""
    moved = FRAME.assign(height=FRAME["height"] + np.float32(0.01))
    slope = (MIXED.encode(moved) - MIXED.encode(FRAME))[:, 0].double() / 0.01
    torch.testing.assert_close(slope.log(), MIXED.log_det(MIXED.encode(FRAME)), atol=1e-3, rtol=0)
    assert IMAGES["real"][0].log_det(torch.zeros(2, 1)).tolist() == [-4 * math.log(2)] * 2
    assert IMAGES["HW"][0].log_det(torch.zeros(2, 1)).tolist() == [0, 0]


@pytest.mark.parametrize("space", [MIXED, IMAGES["HWC"][0].conditioned_on(MIXED)], ids=["table", "conditional"])
def test_json_keeps_everything(space: Space) -> None:
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
    assert space.describe()


def test_a_label_may_be_given_as_text() -> None:
    assert label_space((0, 3)).encode(np.array([["3"], [0]], object)).tolist() == [[1.0], [0.0]]


REFUSED = [
    (MIXED, FRAME.drop(columns="age"), "columns missing: age"),
    (MIXED, FRAME.assign(age=[18, 17, 40]), "whole numbers from 18 to 97"),
    (MIXED, FRAME.assign(age=["x", "y", "z"]), "'age': expected numbers"),
    (MIXED, FRAME.assign(height=[1.0, np.nan, 2.0]), "'height' has 1 missing"),
    (MIXED, FRAME.assign(sex="x"), "'sex': x not among the 3 known"),
    (MIXED, np.zeros((3, 4)), r"\(N, 5\), got \(3, 4\)"),
    (IMAGES["HW"][0], np.zeros((5, 6, 4), np.uint8), r"\(N, 4, 6\), got \(5, 6, 4\)"),
    (IMAGES["HW"][0], np.full((5, 4, 6), 17), r"0\.\.16, got 17"),
    (IMAGES["HW"][0], np.full((5, 4, 6), 0.5), "fractions"),
    (IMAGES["real"][0], np.full((5, 2, 2), np.nan), "20 values are missing"),
    (Space("text", (3,), levels=2, symbols="ab"), ["abz"], "symbols not in the training text: 'z'"),
    (Space("text", (3,), levels=2, symbols="ab"), ["ab"], "texts of 3 characters, got one of 2"),
    (Space("audio", (4,), rate=8000), np.zeros((2, 5), np.int16), r"\(N, 4\), got \(2, 5\)"),
]


@pytest.mark.parametrize(("space", "data", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_does_not_fit_is_refused_by_name(space: Space, data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        space.encode(data)


def test_an_array_of_booleans_comes_back_so() -> None:
    columns = tuple(Column(f"x{i}", "categorical", "bool", levels=2, categories=(False, True)) for i in range(2))
    back = Space("table", (2,), 2, columns).decode(torch.tensor([[0.0, 1.0]]))
    assert back.dtype == bool
    assert back.tolist() == [[False, True]]
