"""What columns are: told by their values, overruled by the user, and what tells rows apart made anew."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.stats import lognorm

from fivefold import fit
from fivefold.cli.app import app
from fivefold.data import load_data, load_examples
from fivefold.data.writers import save_examples
from fivefold.errors import DataError, OptionError
from fivefold.tools.baselines import IndependentDims

RNG = np.random.default_rng(0)
N = 120
CODES = [f"{RNG.choice(list('ABC'))}-{number:04d}" for number in RNG.permutation(9999)[:N]]
FRAME = pd.DataFrame(
    {
        "row": np.arange(7, 7 + N),
        "code": CODES,
        "income": RNG.lognormal(8, 1, N).round(2),
        "zip": RNG.choice([10115, 20095, 80331], N),
        "grade": RNG.choice([1, 2, 3], N),
    }
)


def kinds(**options) -> dict[str, str]:
    return {column.name: column.kind for column in load_data(FRAME, **options).space.columns}


def test_what_tells_rows_apart_is_left_out_named_and_made_anew(tmp_path: Path) -> None:
    data = load_data(FRAME)
    assert [column.name for column in data.space.columns] == ["income", "zip", "grade"]
    assert "column 'row' is left out and made anew in samples: a running number, from 127" in data.notes
    assert "column 'code' is left out and made anew in samples: a code of 6 symbols" in data.notes
    again = type(data.space).from_json(data.space.to_json())
    drawn = again.decode(data.train.batch(slice(50)).x)
    assert list(drawn.columns) == list(FRAME.columns)
    assert drawn["row"].tolist() == list(range(127, 177))
    assert drawn["code"].is_unique
    assert drawn["code"].str.fullmatch(r"[ABC]-\d{4}").all()
    save_examples(tmp_path / "a.csv", again, drawn)
    assert list(pd.read_csv(tmp_path / "a.csv").columns) == list(FRAME.columns)


def test_ordinary_columns_are_no_identifiers() -> None:
    """Different in every row, but neither a range nor of one form; a range in too few rows; an array."""
    frame = pd.DataFrame({"x": RNG.normal(size=N), "n": RNG.permutation(10 * N)[:N]})
    assert not load_data(frame).space.made
    assert not load_data(FRAME[["row", "zip"]][:15]).space.made
    assert not load_data(FRAME[["row", "zip"]].to_numpy()).space.made


def test_the_user_overrules_what_is_told() -> None:
    assert kinds() == {"income": "real", "zip": "real", "grade": "integer"}
    told = kinds(columns="zip=category,grade=ordered,row=integer,code=drop")
    assert told == {"row": "integer", "income": "real", "zip": "categorical", "grade": "categorical"}
    data = load_data(FRAME, columns="zip=category,grade=real")
    assert data.space.columns[1].categories == (10115, 20095, 80331)
    back = data.space.decode(data.train.batch(slice(None)).x)
    assert set(back["zip"]) == {10115, 20095, 80331}
    assert load_data(FRAME, columns="grade=ordered").space.columns[2].dtype == "ordered category"


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ("zip=colour", OptionError, "kinds are real, integer, category"),
        ("zip", OptionError, "NAME=KIND"),
        ("zap=real", DataError, "no zap among row, code, income"),
        ("income=integer", DataError, "'income' cannot be integer .*fractions"),
        ("code=real", DataError, "'code' cannot be real"),
        ("grade=identifier", DataError, "'grade' tells rows apart in no way"),
    ],
)
def test_what_cannot_be_is_a_sentence(columns: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_data(FRAME, columns=columns)


def test_two_whole_values_are_no_density() -> None:
    """0.0 and 1.0 are whole numbers of two values, and come back as floats."""
    frame = pd.DataFrame({"flag": RNG.integers(0, 2, N).astype(float), "y": RNG.normal(size=N)})
    data = load_data(frame)
    assert (data.space.columns[0].kind, data.space.columns[0].levels) == ("integer", 2)
    back = data.space.decode(data.space.encode(frame))
    pd.testing.assert_series_equal(back["flag"], frame["flag"])
    told = load_data(frame, columns="flag=real")
    assert told.space.columns[0].kind == "real"
    assert any("'flag' is rounded to 1: its density is the mean over such a step" in note for note in told.notes)


def test_alike_columns_are_described_in_one_line() -> None:
    x = RNG.integers(0, 2, (60, 30))
    x[:2] = [[0], [1]]
    data = load_data(pd.DataFrame(x, columns=[f"c{i}" for i in range(30)]).assign(y=RNG.normal(size=60)))
    assert data.space.describe_columns()[0] == "c0 … c29: integer, 0 to 1"
    assert len(data.space.describe_columns()) == 2


DAYS = pd.Series(pd.Timestamp("2012-11-05") + pd.to_timedelta(RNG.integers(0, 900, N), unit="D"))
TIMES = DAYS + pd.to_timedelta(RNG.integers(0, 1440, N), unit="min")
SECONDS = TIMES + pd.to_timedelta(RNG.integers(0, 60, N), unit="s")
FINE = SECONDS + pd.to_timedelta(RNG.integers(0, 1000, N), unit="ms")
DATES = {
    "ISO": DAYS.dt.strftime("%Y-%m-%d"),
    "German": DAYS.dt.strftime("%d.%m.%Y"),
    "German without zeros": DAYS.dt.strftime("%-d.%-m.%Y"),
    "American": DAYS.dt.strftime("%m/%d/%Y"),
    "British": DAYS.dt.strftime("%d/%m/%Y"),
    "by name": DAYS.dt.strftime("%b %d, %Y"),
    "two digits": DAYS.dt.strftime("%d.%m.%y"),
    "minutes": TIMES.dt.strftime("%Y-%m-%d %H:%M"),
    "seconds": SECONDS.dt.strftime("%Y-%m-%dT%H:%M:%S"),
    "UTC": SECONDS.dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
    "zone": SECONDS.dt.strftime("%Y-%m-%d %H:%M:%S") + "+02:00",
    "milliseconds": FINE.dt.strftime("%Y-%m-%dT%H:%M:%S.%f").str[:-3],
    "half days": TIMES.dt.strftime("%m/%d/%Y %I:%M %p"),
    "datetimes": SECONDS,
    "datetimes in a zone": SECONDS.dt.tz_localize("Europe/Berlin", ambiguous=True, nonexistent="shift_forward"),
}


@pytest.mark.parametrize("form", DATES)
def test_dates_lie_on_an_axis_and_come_back_as_they_were(form: str) -> None:
    frame = pd.DataFrame({"when": DATES[form], "y": RNG.normal(size=N)})
    data = load_data(frame)
    space = type(data.space).from_json(data.space.to_json())
    column = space.columns[0]
    shown = {"minutes": TIMES, "half days": TIMES, "milliseconds": FINE}.get(
        form, DAYS if isinstance(DATES[form].iloc[0], str) and ":" not in DATES[form].iloc[0] else SECONDS
    )
    days = (space.encode(frame)[:, 0].double() * column.scale + column.location) * column.dates.step / 86400
    wanted = (shown - pd.Timestamp("1970-01-01")) / pd.Timedelta(days=1)
    assert np.abs(days.numpy() - wanted).max() < 0.09  # a zone is at most two hours from it
    back = space.decode(space.encode(frame))["when"]
    if column.kind == "integer":
        pd.testing.assert_series_equal(back, frame["when"], check_names=False)
    else:  # rounded where float32 is
        near = pd.to_datetime(back) - pd.to_datetime(frame["when"])
        assert near.abs().max() < pd.Timedelta(seconds=8)
        assert isinstance(back.iloc[0], str) == isinstance(frame["when"].iloc[0], str)
        assert not isinstance(back.iloc[0], str) or back.str.len().eq(frame["when"].str.len()).all()


def test_days_and_months_that_could_be_exchanged_are_said() -> None:
    early = pd.Series([f"{d:02d}/{m:02d}/2020" for d, m in RNG.integers(1, 13, (N, 2))], name="when")
    frame = pd.DataFrame({"when": early, "y": RNG.normal(size=N)})
    assert any("day and month could be exchanged" in note for note in load_data(frame).notes)
    told = load_data(frame, columns="when=date:%m/%d/%Y")
    assert told.space.columns[0].dates.format == "%m/%d/%Y"
    assert not any("exchanged" in note for note in told.notes)
    assert not any("exchanged" in n for n in load_data(pd.DataFrame({"w": DATES["British"], "y": frame["y"]})).notes)


def test_missing_dates_are_missing_values() -> None:
    frame = pd.DataFrame({"when": DATES["ISO"].where(np.arange(N) > 5), "y": RNG.normal(size=N)})
    with pytest.raises(DataError, match=r"missing values.*when \(6\)"):
        load_data(frame, missing="refuse")
    data = load_data(frame, missing="drop")
    assert len(data.train) + len(data.valid) + len(data.test) == 114
    space = load_data(frame).space
    assert space.columns[0].missing
    back = space.decode(space.encode(frame))["when"]
    pd.testing.assert_series_equal(back, frame["when"], check_names=False)


def test_describe_says_what_columns_are_and_draws_them(tmp_path: Path) -> None:
    """As the command prints it; a picture with something in it for every column, and for images."""
    FRAME.assign(when=DATES["German"], kind=RNG.choice(["oak", "ash"], N)).to_csv(tmp_path / "a.csv", index=False)
    run = CliRunner().invoke(app, ["describe", str(tmp_path / "a.csv"), "--out", str(tmp_path / "a.png")])
    assert run.exit_code == 0, run.output
    for line in ("income: real and positive", "zip: whole, mean ", "when: dates, ", "kind: categorical, 2: ash, oak"):
        assert line in run.output
    assert np.asarray(Image.open(tmp_path / "a.png").convert("L")).std() > 10
    run = CliRunner().invoke(app, ["describe", "digits", "--out", str(tmp_path / "b.png")])
    assert np.asarray(Image.open(tmp_path / "b.png").convert("L")).std() > 10
    run = CliRunner().invoke(app, ["describe", "pydocs", "--out", str(tmp_path / "c.png")])
    assert isinstance(run.exception, DataError)


INCOME = pd.DataFrame({"income": np.random.default_rng(1).lognormal(8, 1.2, 2000).round(2)})


def test_skewed_positive_numbers_are_modelled_by_their_logarithm_and_counted() -> None:
    """The slope of the encoding by difference; the density of values integrates to one, and is a log-normal's."""
    data = load_data(INCOME)
    (column,) = data.space.columns
    assert column.curve == "log"
    assert any("modelled by its logarithm" in note for note in data.notes)
    x = data.space.encode(INCOME)
    step = 1e-3 * INCOME
    rise = (data.space.encode(INCOME + step) - data.space.encode(INCOME - step))[:, 0].double().numpy()
    np.testing.assert_allclose(np.log(rise / (2 * step["income"])), data.space.log_det(x), atol=1e-2)
    grid = np.exp(np.linspace(0, 16, 20_001))
    points = data.space.encode(pd.DataFrame({"income": grid}))
    nats = IndependentDims(data.space, data.train.batch(slice(None)).x).log_prob(points).numpy()
    assert np.trapezoid(np.exp(nats), grid) == pytest.approx(1, abs=1e-3)
    truth = lognorm(column.scale, scale=math.exp(column.location)).logpdf(grid)
    np.testing.assert_allclose(nats, truth, atol=0.02)
    back = data.space.decode(8 * torch.randn(500, 1))
    assert back["income"].min() >= INCOME["income"].min()


def test_numbers_that_were_never_negative_are_not_so_in_samples() -> None:
    frame = pd.DataFrame({"length": RNG.uniform(0, 3, N), "change": RNG.normal(size=N)})
    back = load_data(frame).space.decode(3 * torch.randn(400, 2))
    assert back["length"].min() == frame["length"].min()
    assert back["change"].min() < frame["change"].min()


def test_numbers_at_the_edge_of_floats_have_a_finite_scale() -> None:
    frame = pd.DataFrame({"huge": RNG.normal(size=N) * 1e300, "count": RNG.integers(0, 2**40, N)})
    data = load_data(frame)
    assert all(math.isfinite(column.scale) for column in data.space.columns)
    assert data.space.encode(frame).isfinite().all()
    back = data.space.decode(data.space.encode(frame))
    np.testing.assert_allclose(back["huge"], frame["huge"], rtol=1e-4, atol=1e294)
    assert back["count"].dtype == frame["count"].dtype
    assert data.space.log_det(data.space.encode(frame)).isfinite().all()


def test_several_columns_are_one_condition_and_rare_classes_are_said(tmp_path: Path) -> None:
    kind = np.array(["oak", "ash"] * (N // 2))
    kind[3] = "elm"
    frame = pd.DataFrame({"y": RNG.normal(size=N), "z": RNG.normal(size=N), "kind": kind, "age": RNG.integers(1, 9, N)})
    data = load_data(frame.assign(split=["train"] * 80 + ["valid"] * 20 + ["test"] * 20), condition="kind,age")
    given = data.space.condition
    assert [column.name for column in given.columns] == ["kind", "age"]
    assert [column.name for column in data.space.columns] == ["y", "z"]
    back = given.decode(data.test.condition)
    assert back["kind"].tolist() == kind[100:].tolist()
    assert back["age"].tolist() == frame["age"][100:].tolist()
    assert any("one training example only of elm" in note for note in data.notes)
    with pytest.raises(DataError, match="no 'beech' among ash, elm, oak"):
        given.parse("beech,3")
    system = fit("made", data, budget="20steps", hidden=16)
    drawn = system.sample(4, given.parse("oak,3"), seed=0)
    save_examples(tmp_path / "a.csv", data.space, drawn, ["oak,3"] * 4)
    assert pd.read_csv(tmp_path / "a.csv")[["kind", "age"]].to_numpy().tolist() == [["oak", 3]] * 4
    frame.to_csv(tmp_path / "b.csv", index=False)
    split = load_examples(tmp_path / "b.csv", data.space, condition="kind,age")
    assert given.decode(split.condition)["age"].tolist() == frame["age"].tolist()


@pytest.mark.parametrize("named", [True, False])
def test_a_real_constant_is_left_out_and_comes_back(named: bool) -> None:
    """No density could be had of it; whole numbers and categories of one value have probability one, and stay."""
    x = np.stack([RNG.normal(size=N), np.full(N, 2.5), RNG.normal(size=N)], 1)
    given = pd.DataFrame(x, columns=["a", "b", "c"]) if named else x
    data = load_data(given)
    assert data.space.shape == (2,)
    assert any("is left out and made anew in samples: 2.5 in every row" in note for note in data.notes)
    back = data.space.decode(data.space.encode(given))
    np.testing.assert_allclose(np.asarray(back), x, atol=1e-6)
    assert not named or list(back.columns) == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"was 2\.5 in every row of the training data, got 3\.5"):
        data.space.encode(given + 1)
    with pytest.raises(DataError, match="nothing is left to model: a is 1 in every row"):
        load_data(pd.DataFrame({"a": np.ones(N)}))


PRICE, COUNT = RNG.uniform(1, 9, N).round(2), RNG.integers(1, 9, N)
SUMS = pd.DataFrame({"a": RNG.normal(size=N).round(1), "b": RNG.integers(0, 50, N), "price": PRICE, "n": COUNT})
SUMS = SUMS.assign(total=SUMS["a"] + SUMS["b"], paid=(PRICE * COUNT).round(2), change=SUMS["b"] - 2 * SUMS["n"])


def test_relations_are_found_said_and_kept(tmp_path: Path) -> None:
    """A sum, a product; samples hold them to the last digit only where they are kept."""
    data = load_data(SUMS)
    for words in ("total=a+b", "paid=price*n"):
        assert any(note.startswith(f"{words} in the rows looked at") for note in data.notes)
    kept = load_data(SUMS, keep="total=a+b, paid=price*n,change=b-2*n")
    assert [column.name for column in kept.space.columns] == ["a", "b", "price", "n"]
    assert "column 'change' is left out and made anew in samples: change=b-2*n" in kept.notes
    again = type(kept.space).from_json(kept.space.to_json())
    drawn = fit("made", kept, budget="20steps").sample(200, seed=0)
    assert list(drawn.columns) == list(SUMS.columns)
    assert drawn["change"].dtype == SUMS["change"].dtype
    np.testing.assert_array_equal(drawn["total"], (drawn["a"] + drawn["b"]).round(1))
    np.testing.assert_array_equal(drawn["paid"], (drawn["price"] * drawn["n"]).round(2))
    np.testing.assert_array_equal(drawn["change"], drawn["b"] - 2 * drawn["n"])
    pd.testing.assert_frame_equal(again.decode(again.encode(SUMS)), SUMS, rtol=1e-5)
    with pytest.raises(DataError, match="held in every row of the training data, not in these"):
        again.encode(SUMS.assign(total=0.0))


CITIES = {"Ulm": ("DE", 49), "Bonn": ("DE", 49), "Graz": ("AT", 43), None: (None, 0)}
PICKED = RNG.choice(np.array(list(CITIES), dtype=object), N)
PLACES = pd.DataFrame({"city": PICKED, "a": RNG.normal(size=N).round(1)})
PLACES = PLACES.assign(land=[CITIES[city][0] for city in PICKED], code=[CITIES[city][1] for city in PICKED])


def test_what_a_category_tells_is_found_said_and_kept(tmp_path: Path) -> None:
    """A country from its city, a number from it too: never a pair that the data do not have."""
    data = load_data(PLACES)
    for words in ("land=city", "code=city"):
        assert any(note.startswith(f"{words} in the rows looked at") for note in data.notes)
    assert not any(note.startswith(("city=", "a=", "land=a")) for note in data.notes)
    kept = load_data(PLACES, keep="land=city,code=city")
    assert [column.name for column in kept.space.columns] == ["city", "a"]
    again = type(kept.space).from_json(json.loads(json.dumps(kept.space.to_json())))
    model = fit("made", kept, budget="20steps")
    drawn = model.sample(300, seed=0)
    assert list(drawn.columns) == list(PLACES.columns)
    assert drawn["code"].dtype == PLACES["code"].dtype
    seen = {tuple(row) for row in drawn[["city", "land", "code"]].astype(object).where(drawn.notna(), None).to_numpy()}
    assert seen == {(city, *rest) for city, rest in CITIES.items()}
    pd.testing.assert_frame_equal(again.decode(again.encode(PLACES)), PLACES, rtol=1e-5)
    with pytest.raises(DataError, match="land=city held in every row of the training data, not in these"):
        again.encode(PLACES.assign(land="FR"))
    partial = pd.DataFrame({"code": [43, np.nan, 49], "city": [None, "Ulm", "Bonn"]})
    filled = model.fill_in(partial, seed=0)
    assert filled["city"].tolist() == ["Graz", "Ulm", "Bonn"]
    assert filled["land"].tolist() == ["AT", "DE", "DE"]
    assert filled["code"].tolist() == [43, 49, 49]
    with pytest.raises(DataError, match="row 2 gives 'code', which does not tell what is missing of code=city"):
        model.fill_in(pd.DataFrame({"code": [43, 49]}))


def test_what_a_category_does_not_tell_cannot_be_kept() -> None:
    with pytest.raises(DataError, match="city=land does not hold: 'land' is 'DE' in rows of which 'city' differs"):
        load_data(PLACES, keep="city=land")
    with pytest.raises(DataError, match=r"'land' holds .*, expected numbers, or 'code' .*--columns 'code=category'"):
        load_data(PLACES, keep="land=code")
    kept = load_data(PLACES, keep="land=code", columns="code=category").space
    pd.testing.assert_frame_equal(kept.decode(kept.encode(PLACES)), PLACES, rtol=1e-5)


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        ("total=a+c", OptionError, r"RESULT=COLUMN.*got 'total=a\+c'; columns are a, b"),
        ("total=total+b", OptionError, "both sides"),
        ("total=a-b", DataError, r"holds in \d.*% of the rows only, first not in row"),
        ("total=a+b,price=total*b", DataError, "price=total"),
    ],
)
def test_relations_that_cannot_be_kept_are_a_sentence(keep: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_data(SUMS, keep=keep)
