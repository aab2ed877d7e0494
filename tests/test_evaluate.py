"""Rows of the table: what each field says of a system whose truth is known."""

import json
import math
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.known_samplers import samplers, split_anew
from fivefold.data import Data, Split, load_data
from fivefold.errors import FeatureError
from fivefold.evaluation.evaluate import (
    affordable,
    columns_beside,
    density,
    evaluate,
    evaluate_samples,
    sample_quality,
    seconds_to_best,
    stars,
)
from fivefold.evaluation.features import fit_features, inception_features
from fivefold.space import Column, Space
from fivefold.system import Density, System
from fivefold.tools.baselines import IndependentDims
from fivefold.tools.metrics import MEASURES, score, spread
from fivefold.tools.resampling import difference_error
from fivefold.training.fit import fit

KINDS = ("image", "table", "text", "audio")


class Marginals(System):
    """Independent dimensions (test; nobody, 2024)."""

    densities = dict.fromkeys(KINDS, Density.EXACT)

    def __init__(self, data, kind=Density.EXACT, error=0.0):
        super().__init__(data.space)
        self.density, self.error = kind, error
        self.marginals = IndependentDims(data.space, data.train.spread(5000).x)
        self.weight = nn.Parameter(torch.zeros(3))

    def _sample(self, n, condition):
        assert (condition is None) == (self.space.condition is None)
        return self.marginals.sample(n)

    def _log_prob(self, x, condition):
        value = self.marginals.log_prob(x) - self.space.log_det(x)
        return value, torch.full_like(value, self.error)


def toy(space, x, name="toy", condition=None):
    parts = [slice(0, 300), slice(300, 350), slice(350, None)]
    splits = [Split(len(x[p]), x[p], None if condition is None else condition[p]) for p in parts]
    return Data(name, space, *splits, fingerprint=name)


def noise(*shape, levels):
    return torch.randint(levels, shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def features(digits):
    return fit_features(digits)


def test_row_of_independent_pixels(digits, features):
    row = evaluate(Marginals(digits), digits, features=features)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["density"]["bits_per_dim"] == pytest.approx(2.43, abs=0.03)
    assert row["density"]["examples"] == len(digits.test.x)
    quality = row["quality"]
    assert quality["features"] == "64 features of a classifier fitted on the training data"
    assert quality.keys() & MEASURES.keys() == MEASURES.keys() - {"column_shapes", "column_pairs"}
    assert quality["frechet"]["value"] > 4 * quality["frechet"]["floor"] + 3 * quality["frechet"]["error"]
    assert (
        abs(quality["two_sample_accuracy"]["floor"] - 0.5) < 0.1 < 0.3 < quality["two_sample_accuracy"]["value"] - 0.5
    )
    assert row["stars"] == {"training": None, "sampling": 5, "parameters": 5}
    assert row["facts"] == {"free_form_jacobian": True, "exact_density": "yes"}
    assert row["cost"]["parameters"] == 3
    assert row["cost"]["sample_per_second_64"] > row["cost"]["sample_per_second_1"] > 0
    assert row["cost"]["peak_memory_bytes"] > 1e7


def test_training_data_are_at_their_own_floor(digits, features):
    quality = sample_quality(digits.train.spread(500).x, digits, features)
    for name in ("frechet", "precision", "two_sample_accuracy"):
        assert quality[name]["value"] == pytest.approx(quality[name]["floor"])
    assert quality["memorisation"]["value"] == 1  # samples that are training examples; the floor leaves each out
    assert quality["copies"]["value"] == 1
    assert abs(quality["memorisation"]["floor"] - 0.5) < 0.1


# of samplers whose order is known, the measures by which each is worse than held-out data by over three errors
SEEN = {
    "memoriser": ("memorisation", "copies"),
    "half copies, half noise": ("frechet", "memorisation", "copies"),
    "half the classes dropped": ("frechet", "kernel", "coverage", "column_shapes"),
    "one Gaussian": ("frechet", "two_sample_accuracy"),
    "shuffled columns": ("frechet", "two_sample_accuracy"),
}


@pytest.mark.parametrize(("name", "more"), [("gaussians", ()), ("cancer", ("column_pairs",))])
def test_measures_see_what_is_wrong_with_a_table(name, more):
    data = split_anew(name, 0)
    features, test, found = fit_features(data), data.test.batch(slice(0, 200)).x, samplers(data, 0)
    real, training = features(test), features.of(data.train, 10_000)
    scores = {
        label: score(
            features(x := spread(found[label], 200)), real, training, columns=columns_beside(x, test, data.space)
        )
        for label in (*SEEN, "held-out data")
    }
    truth = scores["held-out data"]
    for label, seen in (SEEN | {"shuffled columns": SEEN["shuffled columns"] + more}).items():
        for key in seen:
            excess = float(scores[label][key].value - truth[key].value)
            excess = -excess if MEASURES[key].best == "high" else excess
            times = 2 if (label, key) == ("one Gaussian", "two_sample_accuracy") else 3
            assert excess > times * difference_error(scores[label][key], truth[key]), (label, key)


def test_small_tables_keep_a_distance():
    data = load_data("wine")
    features = fit_features(data)
    assert features.of(data.test, 500).shape[1] < len(data.test)
    assert "frechet" in sample_quality(data.train.spread(100).x, data, features)


@pytest.mark.parametrize(("kind", "common"), [(Density.EXACT, 0), (Density.LOWER_BOUND, 0), (Density.ESTIMATE, 0.7)])
def test_density_error(kind, common):
    """Of a mean over examples; an estimate's own error does not average out."""
    data = toy(Space("table", (2,), columns=(Column("a", scale=2.0), Column("b"))), torch.randn(500, 2))
    row = density(Marginals(data, kind, error=0.7), data)
    values = Marginals(data).score_encoded(data.test.spread(150)).log_prob
    assert row["kind"] == kind.value
    assert row["nats"] == pytest.approx(float(values.mean()))
    assert row["standard_error"] == pytest.approx(math.hypot(float(values.std()) / math.sqrt(150), common))
    assert row["bits_per_dim"] is None  # real columns have no bits


def test_what_was_left_out_is_said(monkeypatch):
    monkeypatch.setattr(sys.modules["fivefold.evaluation.evaluate"], "TRAINING_EXAMPLES", 100)
    monkeypatch.setattr("fivefold.evaluation.features.STEPS", 5)
    quality = sample_quality(noise(60, 3, 6, 5, levels=256), toy(*CASES["image"]))
    assert "Fréchet distance of 64 features" in quality["note"]
    assert "100 of 300 training examples" in quality["note"]
    data = toy(Space("table", (80,), columns=(Column("a"),) * 80), torch.randn(400, 80))
    assert density(Marginals(data), data, seconds=0.0)["note"] == "32 of 50 test examples"


@pytest.mark.parametrize("kind", [Density.UNNORMALISED, Density.NONE])
def test_no_density_is_only_its_kind(kind, digits):
    assert density(Marginals(digits, kind), digits) == {"kind": kind.value}


def test_impossible_examples_are_counted():
    x = torch.cat([torch.zeros(350, 1), torch.ones(150, 1)])
    data = toy(Space("table", (1,), levels=2, columns=(Column("a", "integer", levels=2),)), x)
    system = Marginals(data)
    system.marginals.probabilities = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    row = density(system, data)
    assert row["nats"] is None
    assert "150 of 150 test examples" in row["note"]


def test_conditions_are_those_of_the_test_split(monkeypatch):
    monkeypatch.setattr("fivefold.evaluation.features.STEPS", 5)
    data = load_data("digits", condition="label")
    row = evaluate(Marginals(data), data, samples=300)
    assert row["quality"]["features"] == "64 features of a classifier fitted on the training data"


CASES = {
    "image": (Space("image", (3, 6, 5), levels=256), noise(500, 3, 6, 5, levels=256)),
    "pixel": (Space("image", (1, 1, 1), levels=2), noise(500, 1, 1, 1, levels=2)),
    "table": (
        Space("table", (2,), columns=(Column("a"), Column("b", "categorical", levels=3, categories=(1, 2, 3)))),
        torch.cat([torch.randn(500, 1) * 9, noise(500, 1, levels=3).float()], 1),
    ),
    "text": (Space("text", (20,), levels=5, symbols="abcde"), noise(500, 20, levels=5)),
    "audio": (Space("audio", (600,), levels=65536, rate=8000), noise(500, 600, levels=65536)),
}


@pytest.mark.parametrize("name", CASES)
def test_features_of_every_kind(name, monkeypatch, tmp_path):
    """Float64, variance 1 on average, at most 64, the same again and from the file."""
    monkeypatch.setattr("fivefold.evaluation.features.STEPS", 5)
    data = toy(*CASES[name])
    first, again = fit_features(data, tmp_path / "features.safetensors"), fit_features(data)
    stored = fit_features(data, tmp_path / "features.safetensors")
    x = first.of(data.train, 1000)
    assert x.dtype == torch.float64
    assert x.shape[1] <= 64
    torch.testing.assert_close(x.var(0).mean(), torch.tensor(1.0, dtype=torch.float64))
    assert first.name == stored.name
    assert torch.equal(x, stored.of(data.train, 1000))
    assert torch.equal(x, again.of(data.train, 1000))


def test_feature_file_of_other_data(tmp_path):
    path = tmp_path / "features.safetensors"
    fit_features(toy(*CASES["table"]), path)
    with pytest.raises(FeatureError, match="other data"):
        fit_features(toy(*CASES["table"], name="other"), path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FeatureError, match="damaged"):
        fit_features(toy(*CASES["table"]), path)


def test_inception(monkeypatch):
    space = Space("image", (1, 8, 8), levels=17)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(FeatureError, match=r"fivefold\[inception\]"):
        inception_features(space)

    class Extractor(nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path=None):
            super().__init__()
            if feature_extractor_weights_path != "here.pth":
                raise FileNotFoundError(feature_extractor_weights_path)

        def forward(self, x):
            assert x.dtype == torch.uint8
            return (x.float().mean((2, 3)),)

    library = types.SimpleNamespace(FeatureExtractorInceptionV3=Extractor)
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", library)
    with pytest.raises(FeatureError, match=r"from there\.pth"):
        inception_features(space, "there.pth")
    with pytest.raises(FeatureError, match="1 or 3 channels"):
        inception_features(CASES["text"][0])
    fid = inception_features(space, "here.pth")
    assert fid.distance == "FID"
    assert fid(torch.full((2, 1, 8, 8), 16)).tolist() == [[255.0] * 3] * 2


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"sampling": "autoregressive"}, {"sampling": 1}),
        ({"sampling": "mcmc"}, {"sampling": 2}),
        ({"sampling": "iterative", "sample_evaluations": 50}, {"sampling": 3}),
        ({"sampling": "iterative", "sample_evaluations": 20}, {"sampling": 4}),
        ({"parameters": 10_000_001}, {"parameters": 4}),
        ({"parameters": 2e8}, {"parameters": 1}),
        ({"seconds_to_best": 1.0}, {"training": 5}),
        ({"seconds_to_best": 4.0}, {"training": 3}),
        ({"seconds_to_best": 10.0}, {"training": 1}),
    ],
)
def test_stars(facts, expected):
    cost = {"sample_evaluations": 1, "parameters": 5, "seconds_to_best": None, "budget_seconds": 10.0, **facts}
    space = Space("image", facts.get("shape", (1, 8, 8)), 2)
    system = types.SimpleNamespace(space=space, sampling=facts.get("sampling", "direct"))
    found = stars(system, cost)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("scale", [1.0, 1e-3, 40.0])
@pytest.mark.parametrize("shift", [0.0, -300.0, 1e4])
def test_seconds_to_best_do_not_depend_on_units(scale, shift):
    """From 140 to 100 in the first unit: 1 % of the way is 0.4."""
    points = [(1, 140.0), (2, 101.0), (3, 100.3), (4, 100.0), (5, 120.0)]
    assert seconds_to_best([[0, math.nan]] + [[at, scale * value + shift] for at, value in points]) == 3
    assert seconds_to_best([[at, scale * at + shift] for at in (1, 2)]) == 1  # it never got better
    assert seconds_to_best([[1, math.inf]]) is None


def test_affordable(monkeypatch):
    """Work of 1 s and 0.1 s an example: 40 take 5 s."""
    monkeypatch.setattr(sys.modules["fivefold.evaluation.evaluate"], "_seconds", lambda work, n: 1 + 0.1 * n)
    assert affordable(len, 1000, 5.0) in (39, 40)
    assert affordable(len, 36, 5.0) == 36
    assert affordable(len, 1000, 0.5) == 32


@pytest.mark.parametrize(
    ("x", "note"),
    [
        (torch.full((300, 2), math.nan), "not finite"),
        (torch.randn(10, 2), "10 samples; sample quality needs at least 25"),
    ],
)
def test_quality_that_cannot_be_had_says_why(x, note):
    data = toy(Space("table", (2,), columns=(Column("a"), Column("b"))), torch.randn(500, 2))
    quality = sample_quality(x, data)
    assert note in quality["note"]
    assert "frechet" not in quality


def test_slow_samplers_say_so(digits, features):
    row = evaluate(Marginals(digits), digits, features=features, sample_seconds=1e-9)
    assert "500 samples would take" in row["quality"]["note"]


def test_other_peoples_samples(digits, features):
    samples = digits.space.decode(Marginals(digits).sample_encoded(400, seed=0))
    row = evaluate_samples("theirs", samples, digits, features=features)
    assert row["label"] == "theirs"
    assert row["density"] == {"kind": "none"}
    assert row["quality"]["samples"] == 400
    assert "only 400 samples" in row["note"]


def test_other_data_are_measured_in_the_models_encoding():
    """Metres and millimetres: the same model in another encoding gives the same density."""
    x = torch.randn(500, 1)
    metres = toy(Space("table", (1,), columns=(Column("a", location=1.0, scale=2.0),)), x)
    other = toy(Space("table", (1,), columns=(Column("a", location=0.0, scale=4.0),)), (2 * x + 1) / 4, name="other")
    system = Marginals(metres)
    assert density(system, other)["nats"] == pytest.approx(density(system, metres)["nats"], rel=1e-5)


SYSTEM = '''
import torch
from torch import nn
from fivefold import Density, System, option

class Weights(System):
    """Bernoulli pixels (survey 5; test)."""

    densities = {"image": Density.EXACT}

    hidden_units: int = option(3, "of nothing")

    def build(self):
        self.logits = nn.Parameter(torch.zeros(self.space.dims, self.space.levels))

    def loss(self, batch):
        return -self._log_prob(batch.x, None).mean()

    def _sample(self, n, condition):
        p = self.logits.softmax(-1)
        return torch.multinomial(p, n, replacement=True).T.view(n, *self.space.shape)

    def _log_prob(self, x, condition):
        return self.logits.log_softmax(-1).gather(-1, x.flatten(1).T).sum(0)
'''


def test_row_of_a_run(tmp_path, monkeypatch, digits, features):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "weights.py").write_text(SYSTEM)
    monkeypatch.syspath_prepend(tmp_path)
    fit("own.weights", digits, budget="200steps", out=tmp_path / "run", lr=0.05, seed=3)
    row = evaluate(tmp_path / "run", features=features, trust="own.weights")
    assert row["title"] == "Bernoulli pixels"
    assert row["seed"] == 3
    assert row["note"] == ""
    assert 2.3 < row["density"]["bits_per_dim"] < 2.6
    assert row["command"].startswith("fivefold train own.weights --data digits ")
    assert "--lr 0.05" in row["command"]
    assert "--missing" not in row["command"]
    assert row["cost"]["train_examples_per_second"] > 0
    assert 0 < row["cost"]["seconds_to_best"] <= row["cost"]["budget_seconds"]
    assert row["stars"]["training"] in range(1, 6)
    assert len(row["curves"]["validation"]) >= 2
    assert np.isfinite(row["curves"]["loss"]).all()
    other = toy(digits.space, digits.train.spread(500).x, name="other")
    assert "measured on other data" in evaluate(tmp_path / "run", other, features=features, trust="own.weights")["note"]
