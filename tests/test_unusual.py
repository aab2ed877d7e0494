"""What is unusual to a model is ranked first, and the column that makes it so is named."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fivefold import fit
from fivefold.data import load_data
from fivefold.errors import DataError, Unfit
from fivefold.evaluation.score import score_file
from fivefold.evaluation.unusual import DRAWS, contributions, typical, unusual
from fivefold.space import Batch
from fivefold.system import Density, System
from fivefold.tools.distributions import gaussian_log_prob
from fivefold.tools.roc import roc_area

RNG = np.random.default_rng(0)
CORRELATED = np.linalg.cholesky(0.6 * np.ones((4, 4)) + 0.4 * np.eye(4))


class Gaussian(System):
    """The standard normal law of encoded examples; its density has no wrong digits."""

    densities = {"table": Density.EXACT}

    def build(self):
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def loss(self, batch):
        return self.weight.square().sum()

    def _sample(self, n, condition):
        return torch.randn(n, self.space.dims)

    def _log_prob(self, x, condition):
        return gaussian_log_prob(x, torch.zeros(()), torch.zeros(())).sum(1)


class Unnormalised(Gaussian):
    densities = {"table": Density.UNNORMALISED}


class Sampler(Gaussian):
    densities = {"table": Density.NONE}


def table(n=300, names="abcd"):
    return pd.DataFrame(RNG.standard_normal((n, 4)) @ CORRELATED.T, columns=list(names))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A run on a Gaussian table, and a file like it with one outlier: row 17, in column "c"."""
    folder = tmp_path_factory.mktemp("planted")
    table(1000).to_csv(folder / "train.csv", index=False)
    other = table(200)
    other.loc[17] = [1.0, 1.2, -3.0, 0.9]  # within the column's range, but not beside its neighbours
    other.to_csv(folder / "other.csv", index=False)
    fit("maf-flow", load_data(folder / "train.csv"), budget="300steps", evaluations=2, out=folder / "run", device="cpu")
    return folder


@pytest.mark.parametrize("by", ["density", "typicality"])
def test_a_planted_row_is_first_and_its_column_named(planted, by):
    said = score_file(planted / "run", planted / "s.csv", data=str(planted / "other.csv"), by=by, explain=5)
    frame = pd.read_csv(planted / "s.csv")
    assert frame["rank"].argmin() == 17
    assert frame["unusual_columns"][17].startswith("c +")
    assert "the most unusual is example 18, by its c +" in said
    assert frame["unusual_columns"].notna().sum() <= 5
    assert set(frame["rank"][frame["unusual_columns"].notna()]) <= {1, 2, 3, 4, 5}
    order = frame.sort_values("log_prob_nats")
    if by == "density":
        assert order["rank"].tolist() == list(range(1, 201))
    else:
        assert f"ranked by typicality: how far -log p is from {_mean(planted):.4g} nats" in said
        assert frame.sort_values("rank")["typicality"].is_monotonic_decreasing


def _mean(planted):
    from fivefold.run import Run

    run = Run.open(planted / "run")
    return -float(run.load_system().score_encoded(run.load_data().valid.batch(slice(None))).log_prob.mean())


def test_a_cell_contributes_what_its_replacement_saves():
    """Of an independent normal law: half its square less the median of the others' half squares."""
    data = load_data(RNG.standard_normal((200, 3)))
    system, x = Gaussian(data.space), torch.tensor([[4.0, 0.0, -1.0], [0.5, 0.5, 0.5]])
    others = data.train.spread(DRAWS).x.square() / 2
    expected = x.square() / 2 - others.median(0).values
    torch.testing.assert_close(contributions(system, Batch(x), data.train).float(), expected, atol=1e-5, rtol=0)


def test_too_probable_is_not_typical():
    """At the mode of 50 normal columns -log p is the least there is, and 5 standard deviations from the usual."""
    data = load_data(RNG.standard_normal((3000, 50)))
    system = Gaussian(data.space)
    like = typical(system, data.train, data.valid)
    assert like.split == "validation"
    assert like.deviation == pytest.approx(math.sqrt(50 / 2), rel=0.15)  # of half a chi-square of 50
    log_prob = system.score_encoded(Batch(torch.cat([torch.zeros(1, 50), data.test.batch(slice(99)).x]))).log_prob
    assert unusual(log_prob).argmin() == 0
    assert unusual(log_prob, like).argmax() == 0
    assert unusual(log_prob, like)[0] == pytest.approx(25 / like.deviation, rel=0.1)


def test_what_has_no_number_is_the_most_unusual():
    log_prob = torch.tensor([-1.0, math.nan, -math.inf])
    assert unusual(log_prob).tolist() == [1.0, math.inf, math.inf]


def test_nothing_is_typical_where_all_is_equal():
    data = load_data(np.tile([[0.0, 1.0], [1.0, 0.0]], (30, 1)))
    system = Gaussian(data.space)
    system._log_prob = lambda x, condition: torch.zeros(len(x))
    with pytest.raises(DataError, match="-log p does not vary over the training split"):
        typical(system, data.train, data.valid)


def test_the_area_is_the_reference_s():
    low, high = RNG.integers(0, 9, 60) / 3, RNG.integers(2, 12, 45) / 3
    expected = roc_auc_score(np.r_[np.zeros(60), np.ones(45)], np.r_[low, high])
    assert roc_area(low, high).value == pytest.approx(expected, abs=1e-12)
    assert roc_area(low, low).value == pytest.approx(0.5)
    assert roc_area([0, 1], [2, 3]) == (1.0, 0.0)
    with pytest.raises(ValueError, match="got 1 and 2"):
        roc_area([0], [1, 2])


@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_the_area_s_error_is_its_spread(apart):
    found = [roc_area(RNG.normal(0, 1, 60), RNG.normal(apart, 2, 90)) for _ in range(600)]
    values, errors = np.array(found).T
    assert values.mean() == pytest.approx(0.5 if apart == 0 else 0.6726, abs=0.008)  # Phi(1 / sqrt 5)
    assert errors.mean() == pytest.approx(values.std(), rel=0.1)


def test_other_data_are_told_apart(planted):
    far = table(150) * 2
    far.to_csv(planted / "far.csv", index=False)
    said = score_file(planted / "run", planted / "s.parquet", against=str(planted / "far.csv"))
    frame = pd.read_parquet(planted / "s.parquet")
    assert frame["source"].tolist() == ["test split"] * 150 + [str(planted / "far.csv")] * 150
    expected = roc_auc_score(np.arange(300) >= 150, -frame["log_prob_nats"])
    assert f"(150 examples) apart from its test split: {expected:.4f} ±" in said
    assert expected > 0.75


def test_explaining_needs_the_training_data_and_scoring_does_not(planted, tmp_path, monkeypatch):
    def gone(self):
        raise DataError("no such file")

    monkeypatch.setattr("fivefold.run.Run.load_data", gone)
    said = score_file(planted / "run", tmp_path / "s.csv", data=str(planted / "other.csv"))
    assert "no columns are named, since the training data cannot be had: no such file" in said
    assert pd.read_csv(tmp_path / "s.csv")["rank"].argmin() == 17


@pytest.mark.parametrize(
    ("system", "words"), [(Unnormalised, "unnormalised: ranks and differences hold"), (Sampler, "")]
)
def test_kinds_of_density(planted, tmp_path, monkeypatch, system, words):
    other = str(planted / "other.csv")
    monkeypatch.setattr("fivefold.run.Run.load_system", lambda self: system(load_data(planted / "train.csv").space))
    if words:
        assert words in score_file(planted / "run", tmp_path / "s.csv", data=other)
        assert pd.read_csv(tmp_path / "s.csv")["bits_per_dim"].isna().all()
    else:
        with pytest.raises(Unfit, match="Sampler has no density: it can only sample, so it cannot rank examples"):
            score_file(planted / "run", tmp_path / "s.csv", data=other)


def test_an_unknown_measure_is_named(planted, tmp_path):
    with pytest.raises(DataError, match="cannot rank by 'age': choose one of density, typicality"):
        score_file(planted / "run", tmp_path / "s.csv", by="age")
