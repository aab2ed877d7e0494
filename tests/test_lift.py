"""What columns become: point masses, missing numbers, cells of rounded values, categories without order.

Held against laws that are known: the truth is that of a model whose density on the lifted space is given.
"""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from fivefold import fit
from fivefold.data import load_data
from fivefold.evaluation.evaluate import evaluate_samples
from fivefold.space import Column, Space
from fivefold.space.lift import GAP, SPREAD, Lift, lift_of
from fivefold.system import Density, System
from fivefold.tools.distributions import gaussian_log_prob

RNG = np.random.default_rng(0)
N = 2000


def table(*columns: Column) -> Space:
    return Space("table", (len(columns),), columns=columns, frame=True)


class Known(System):
    """Independent dimensions of the lifted space: a probability of each level, Gaussians of deviation 0.8."""

    densities = {"table": Density.EXACT}
    points = True

    def build(self) -> None:
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        columns = [
            0.8 * torch.randn(n) if levels is None else torch.multinomial(weights(levels), n, replacement=True).float()
            for levels in self.space.dim_levels
        ]
        return torch.stack(columns, 1)

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        parts = [
            gaussian_log_prob(x[:, i], torch.zeros(()), torch.tensor(math.log(0.8)))
            if levels is None
            else weights(levels)[x[:, i].long()].log()
            for i, levels in enumerate(self.space.dim_levels)
        ]
        return torch.stack(parts, 1).sum(1)


class KnownLevels(Known):
    points = False


def weights(levels: int) -> Tensor:
    w = torch.arange(1.0, levels + 1)
    return w / w.sum()


def test_point_masses_and_the_density_of_the_rest_are_one_probability() -> None:
    """Their sum and the integral of the rest is 1, and a mass is the model's own, whatever the noise that stands in."""
    column = Column("a", location=2.0, scale=3.0, atoms=(0.0, 7.0), missing=True)
    system = KnownLevels(table(column))
    assert system.density is Density.LOWER_BOUND
    masses = system.log_prob(pd.DataFrame({"a": np.tile([0.0, 7.0, np.nan], 500)})).exp().view(500, 3)
    np.testing.assert_allclose(masses.mean(0), weights(4)[1:], rtol=0.02)
    grid = torch.linspace(-40, 40, 4001, dtype=torch.float64) + 1e-4
    density = system.log_prob(pd.DataFrame({"a": grid.numpy()})).exp()
    assert density.sum() * (grid[1] - grid[0]) == pytest.approx(float(weights(4)[0]), rel=1e-3)
    assert density[2000] == pytest.approx(
        0.1 * math.exp(-0.5 * (2 / 2.4) ** 2) / (2.4 * math.sqrt(2 * math.pi)), rel=1e-3
    )


def test_which_of_several_it_is_has_no_order_where_examples_are_points() -> None:
    """A number, 0, 7 or missing are four corners, which are alike to Gaussians that know none of them."""
    column = Column("a", location=2.0, scale=3.0, atoms=(0.0, 7.0), missing=True)
    system = Known(table(column))
    assert system.space.dims == 5
    assert system.lift is not None
    assert system.lift.corners == [slice(0, 4)]
    x = np.array([0.0, 7.0, np.nan, 4.0])
    torch.manual_seed(0)
    found = system.log_prob(pd.DataFrame({"a": np.tile(x, 4000)})).exp().view(-1, 4)
    number = 0.25 * math.exp(-0.5 * (2 / 2.4) ** 2) / (2.4 * math.sqrt(2 * math.pi))
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - torch.tensor([0.25, 0.25, 0.25, number])).abs() < 4 * error).all()
    assert (error / found.mean(0) < 0.03).all()
    codes = torch.from_numpy(column.encode(x))[:, None]
    lift = Lift(table(column), points=True)
    torch.testing.assert_close(lift.down(lift.up(codes)[0]), codes, equal_nan=True)


@pytest.mark.parametrize("curve", ["", "log", "asinh"])
def test_the_density_of_a_rounded_value_is_the_mean_over_its_cell(curve: str) -> None:
    column = Column("a", scale=0.8, location=0.3, curve=curve, step=0.5, cells=True, middle=0.2, unit=1.3)
    column = Column("a", scale=0.8, location=0.3, curve=curve, step=0.5, cells=True) if curve == "log" else column
    values = np.array([0.5, 1.0, 2.5])
    edges = np.stack([values - 0.25, values + 0.25])
    torch.manual_seed(0)
    lift = Lift(table(column), points=True)
    x = torch.from_numpy(column.encode(values))[:, None]
    draws = []
    for _ in range(4000):
        y, weight = lift.up(x)
        draws.append(torch.distributions.Normal(0, 1.5).log_prob(y[:, 0].double()) + weight)
    found = torch.stack(draws).exp().mean(0) * column.log_det(x[:, 0].double()).exp()
    truth = np.diff(
        torch.distributions.Normal(0, 1.5).cdf(torch.from_numpy((column.straighten(edges) - 0.3) / 0.8)), axis=0
    )
    np.testing.assert_allclose(found, truth[0] / 0.5, rtol=0.02)


@pytest.mark.parametrize("count", [3, 7, 40])
def test_the_law_about_a_corner_is_normalised(count: int) -> None:
    """Of the mixture of the Gaussians about all corners every region has 1 / count, by symmetry."""
    space = table(Column("a", "categorical", "str", levels=count, categories=tuple(map(str, range(count)))))
    lift = Lift(space, points=True)
    assert lift.inner.dims == count
    torch.manual_seed(0)
    codes = torch.full((50_000, 1), 2.0)
    y, weight = lift.up(codes)
    assert torch.equal(lift.down(y), codes)
    mixture = torch.stack([
        torch.distributions.Normal(GAP * (torch.eye(count)[k] - 1 / count).double(), SPREAD).log_prob(y.double()).sum(1)
        for k in range(count)
    ]).logsumexp(0) - math.log(count)  # fmt: skip
    share = (mixture + weight).exp()
    assert float(share.mean()) == pytest.approx(1 / count, abs=4 * float(share.std()) / math.sqrt(len(y)))


def test_ordered_categories_and_two_keep_their_dimension() -> None:
    two = Column("a", "categorical", "str", levels=2, categories=("x", "y"))
    ordered = Column("b", "categorical", "ordered category", levels=3, categories=("x", "y", "z"))
    assert lift_of(table(two, ordered), points=True) is None
    three = Column("c", "categorical", "str", levels=3, categories=("x", "y", "z"))
    assert lift_of(table(three), points=False) is None
    assert lift_of(table(three), points=True).inner.dims == 3  # type: ignore[union-attr]
    assert lift_of(Lift(table(three), points=True).inner, points=True) is None


def frame() -> pd.DataFrame:
    """Spending that is mostly zero, counts over magnitudes, missing numbers, three classes of which two are rare."""
    lack = RNG.random(N) < 0.15
    return pd.DataFrame(
        {
            "rain": np.where(RNG.random(N) < 0.7, 0, RNG.gamma(1.2, 4, N)).round(1),
            "count": np.rint(np.exp(RNG.normal(9, 2, N))).astype(int) + 1,
            "age": np.where(lack, np.nan, RNG.normal(40, 9, N).round()),
            "pay": np.where(lack & (RNG.random(N) < 0.8), np.nan, RNG.lognormal(8, 1, N).round(2)),
            "class": RNG.choice(["a", "b", "c"], N, p=[0.05, 0.85, 0.10]),
        }
    )


FRAME = frame()


def test_codes_and_values_are_the_same_again() -> None:
    space = load_data(FRAME).space
    x = space.encode(FRAME)
    back = space.decode(x)
    for name in ("rain", "age", "class"):
        pd.testing.assert_series_equal(back[name], FRAME[name])
    assert (back["pay"].isna() == FRAME["pay"].isna()).all()
    assert (back["pay"] - FRAME["pay"]).abs().div(FRAME["pay"]).max() < 1e-5
    for points in (True, False):
        lift = lift_of(space, points)
        assert lift is not None
        torch.testing.assert_close(lift.down(lift.up(x)[0]), x, equal_nan=True)
    again = type(space).from_json(space.to_json())
    assert again == space


@pytest.mark.parametrize("name", ["spline-flow", "score-sde", "vae", "made", "rbm"])
def test_samples_have_the_support_of_the_data(name: str) -> None:
    data = load_data(FRAME)
    drawn = fit(name, data, budget="600steps", batch_size=128, evaluations=1).sample(1000, seed=0)
    assert (drawn["rain"] == 0).mean() == pytest.approx(0.7, abs=0.12)
    assert drawn["rain"].min() >= 0
    assert drawn["count"].min() >= 1
    assert drawn["count"].dtype == FRAME["count"].dtype
    assert drawn["age"].isna().mean() == pytest.approx(0.15, abs=0.08)
    lack = drawn[["age", "pay"]].isna()
    assert lack.all(axis=1).mean() > 2 * lack.mean().prod()  # they miss together, as in the data
    shares = drawn["class"].value_counts(normalize=True)
    assert shares["b"] == pytest.approx(0.85, abs=0.08)
    assert shares.get("a", 0) == pytest.approx(0.05, abs=0.045)
    for column, decimals in (("rain", 1), ("pay", 2), ("age", 0)):
        values = drawn[column].dropna()
        np.testing.assert_array_equal(values, values.round(decimals))


def test_the_bounds_of_all_categories_sum_to_nearly_1() -> None:
    """Of a trained flow, by enumeration: never above 1 beyond its draws' error, and the bound is of use."""
    cells = pd.DataFrame({"a": list("xxxyyyzzz"), "b": list("uvw" * 3)})
    frame = cells.iloc[RNG.choice(9, N, p=[0.3, 0.05, 0.05, 0.05, 0.1, 0.05, 0.1, 0.25, 0.05])].reset_index(drop=True)
    model = fit("spline-flow", load_data(frame), budget="800steps", batch_size=128, evaluations=1)
    found = model.score(cells)
    total = found.log_prob.exp().sum()
    assert 0.85 < total < 1 + 4 * (found.log_prob.exp() * found.standard_error).norm()
    truth = frame.value_counts(normalize=True)
    for (a, b), probability in zip(cells.to_numpy(), found.log_prob.exp(), strict=True):
        assert probability == pytest.approx(truth[a, b], abs=0.04)


@pytest.mark.parametrize("step", ["D", "h", "15min", "s"])
def test_dates_are_weeks_weekdays_and_hours(step: str) -> None:
    """The parts are those of the calendar, and the way back is exact, whether steps are few or very many."""
    first, last = ("2019-12-30", "2020-03-02") if step == "s" else ("2012-01-05", "2021-07-01")
    whole = pd.date_range(first, last, freq=step)
    when = pd.Series(whole[np.sort(RNG.choice(len(whole), 800, replace=False))])
    if step == "15min":
        when = when.dt.tz_localize("Europe/Berlin", ambiguous=True, nonexistent="shift_forward").dt.tz_convert("+01:00")
        when = when.map(lambda t: t.isoformat()).astype(str)
    space = load_data(pd.DataFrame({"when": when, "y": RNG.normal(size=800)})).space
    lift = lift_of(space, points=False)
    assert lift is not None
    x = space.encode(pd.DataFrame({"when": when, "y": np.zeros(800)}))
    y, weight = lift.up(x)
    torch.testing.assert_close(lift.down(y)[:, 0], x[:, 0], rtol=0, atol=1e-6)
    stamps = pd.to_datetime(when)
    np.testing.assert_array_equal(y[:, 1], stamps.dt.day_of_week)
    if step != "D":
        np.testing.assert_array_equal(y[:, 2], stamps.dt.hour)
    assert (y.min(0).values[:2] >= 0).all()
    assert all((y[:, i] < (levels or math.inf)).all() for i, levels in enumerate(lift.inner.dim_levels))
    # the log-determinant of the encoding is taken back: what is left is a probability of the step
    assert torch.allclose(weight + space.log_det(x) - space.columns[1].log_det(x[:, 1]), torch.zeros(800).double())


def test_very_many_categories_are_grouped_and_come_back_by_their_frequencies() -> None:
    share = 1 / np.arange(1, 601) ** 1.2
    names = np.array([f"n{i:03d}" for i in range(600)])
    frame = pd.DataFrame({"name": RNG.choice(names, 8000, p=share / share.sum()), "y": RNG.normal(size=8000)})
    data = load_data(frame)
    assert any("255 most frequent are modelled apart, the others, " in note for note in data.notes)
    for points in (False, True):
        lift = lift_of(data.space, points)
        assert lift is not None
        assert lift.inner.dims == (257 if points else 2)
    x = data.space.encode(frame)
    lift = lift_of(data.space, points=False)
    assert lift is not None
    y, weight = lift.up(x)
    rare = y[:, 0] == 255
    back = lift.down(y)
    assert torch.equal(back[~rare], x[~rare])
    assert (lift.up(back)[0][rare, 0] == 255).all()
    # the group's shares are one law: over its members exp(-weight) sums to 1
    everything = torch.stack(
        [
            torch.arange(float(len(data.space.columns[0].categories))),
            torch.zeros(1)[0].expand(len(data.space.columns[0].categories)),
        ],
        1,
    )
    y, weight = lift.up(everything)
    assert float(weight[y[:, 0] == 255].exp().sum()) == pytest.approx(1)
    assert (weight[y[:, 0] < 255] == 0).all()


def test_levels_that_stand_out_are_atoms_to_points_only() -> None:
    """Hours of which half are 40; the law over all levels sums to no more than 1 by enumeration."""
    hours = np.where(RNG.random(N) < 0.5, 40, RNG.integers(1, 80, N))
    frame = pd.DataFrame({"hours": hours, "y": RNG.normal(size=N)})
    space = load_data(frame).space
    assert space.columns[0].atoms == (40.0,)
    assert lift_of(space, points=False) is None
    lift = lift_of(space, points=True)
    assert lift is not None
    assert lift.inner.dims == 3
    x = space.encode(frame)
    torch.testing.assert_close(lift.down(lift.up(x)[0]), x)
    only = load_data(frame[["hours"]]).space
    levels = pd.DataFrame({"hours": np.tile(np.arange(1, 80), 200)})
    mass = Known(only).log_prob(levels).exp().view(200, 79).mean(0)
    truth = weights(79) * weights(2)[0]
    truth[39] = weights(2)[1]
    np.testing.assert_allclose(mass[np.arange(79) != 39], truth[np.arange(79) != 39], rtol=1e-4)
    assert float(mass[39]) == pytest.approx(float(truth[39]), rel=0.05)


def test_a_few_numbers_between_the_others_do_not_hide_the_resolution() -> None:
    x = RNG.integers(-20, 40, N).astype(float)
    x[:4] = [14.67, 3.25, -1.5, 0.123]
    (column, _) = load_data(pd.DataFrame({"x": x, "y": RNG.normal(size=N)})).space.columns
    assert column.step == 1.0
    assert column.cells


def test_samples_that_miss_are_measured_and_those_that_never_do_are_seen() -> None:
    """Held-out rows at the floor; the same with no number missing, or no point mass, are farther."""
    data = load_data(FRAME)
    held_out = data.space.decode(data.test.batch(slice(None)).x)
    filled = held_out.assign(age=held_out["age"].fillna(40.0), pay=held_out["pay"].fillna(3000.0))
    wet = held_out.assign(rain=held_out["rain"].where(held_out["rain"] > 0, 2.0))
    found = {name: evaluate_samples(name, frame, data)["quality"] for name, frame in
             {"held out": held_out, "filled": filled, "wet": wet}.items()}  # fmt: skip
    for name in ("filled", "wet"):
        assert found[name]["frechet"]["value"] > 2 * found["held out"]["frechet"]["value"]
        assert found[name]["column_shapes"]["value"] < found["held out"]["column_shapes"]["value"] - 0.01


def test_dates_of_which_one_is_far_or_many_are_the_same_are_probabilities_too() -> None:
    """Whatever the curve and the atoms of the axis, they are taken back and the way back is exact."""
    days = RNG.integers(18000, 18060, N)
    days[: N // 4], days[-1] = 18020, 2000
    when = pd.Series(pd.Timestamp(0) + pd.to_timedelta(days, unit="D"))
    space = load_data(pd.DataFrame({"when": when, "y": RNG.normal(size=N)})).space
    assert space.columns[0].curve == "asinh"
    lift = lift_of(space, points=False)
    assert lift is not None
    x = space.encode(pd.DataFrame({"when": when, "y": np.zeros(N)}))
    y, weight = lift.up(x)
    torch.testing.assert_close(lift.down(y)[:, 0], x[:, 0], rtol=0, atol=1e-6)
    assert torch.allclose(weight + space.log_det(x) - space.columns[1].log_det(x[:, 1]), torch.zeros(N).double())
