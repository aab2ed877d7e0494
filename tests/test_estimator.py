"""scikit-learn's own checks, and what its users do."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

from fivefold import Estimator


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks():
    results = check_estimator(Estimator("spline-flow", steps=10), on_skip=None)
    assert {result["status"] for result in results} <= {"passed", "skipped"}


@pytest.mark.parametrize("system", ["spline-flow", "realnvp", "made", "transformer", "vae"])
def test_arrays(system):
    x = np.random.default_rng(0).normal(size=(200, 2)) * [1.0, 100.0]
    estimator = clone(Estimator(system, steps=50, random_state=0)).fit(x)
    scores = estimator.score_samples(x)
    assert scores.shape == (200,)
    assert np.isclose(estimator.score(x), scores.mean())
    assert np.allclose(scores, estimator.model_.log_prob(x).numpy(), atol=0.5)
    sample = estimator.sample(500)
    assert sample.shape == (500, 2)
    assert sample[:, 1].std() > 10 * sample[:, 0].std()
    again = clone(estimator).fit(x)
    assert np.allclose(again.score_samples(x), scores)


def test_dataframes_come_back_as_they_came():
    frame = pd.DataFrame({"height": np.random.default_rng(0).normal(size=100), "kind": ["a", "b"] * 50})
    estimator = Estimator("made", steps=30, random_state=0).fit(frame)
    sample = estimator.sample(20)
    assert list(sample.columns) == ["height", "kind"]
    assert set(sample["kind"]) <= {"a", "b"}
    assert np.isfinite(estimator.score_samples(frame)).all()
