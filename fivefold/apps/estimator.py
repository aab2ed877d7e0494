"""scikit-learn's manner: any system on a table, as a density estimator that can be cloned and piped."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from fivefold.data import load_data
from fivefold.system import Batch, Density
from fivefold.training.fit import fit


class Estimator(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """A generative model of the rows of an array or DataFrame.

    Args:
        system: id of a system that models tables.
        steps: optimiser steps of training.
        batch_size: rows a step.
        random_state: seed, generator or None.
        options: other options of the system, its optimisers and the trainer.

    Attributes:
        model_: the fitted System.
        n_features_in_: columns seen in `fit`.
    """

    def __init__(
        self,
        system: str = "spline-flow",
        *,
        steps: int = 1000,
        batch_size: int = 64,
        random_state: Any = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.system = system
        self.steps = steps
        self.batch_size = batch_size
        self.random_state = random_state
        self.options = options

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit to rows `(N, D)`; `y` is ignored. The best weights on a tenth of the rows are kept."""
        mixed = _is_mixed(X)  # strings and categories pass to our own loader, which checks them by name
        kind = None if mixed else np.float64
        checked = validate_data(self, X, dtype=kind, ensure_min_samples=2, skip_check_array=mixed)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        budget = f"{self.steps}steps"
        size = min(self.batch_size, len(checked))
        options = {"budget": budget, "batch_size": size, "seed": seed, "evaluations": 5, **(self.options or {})}
        rows = _frame_or_array(X, checked, mixed)
        data = load_data(rows, test=rows)  # every row trains but those that choose the weights
        self.model_ = fit(self.system, data, device="cpu", **options)
        self.random_ = np.random.RandomState(seed)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Nats `(N,)` of each row, in the units of the data, of the kind that `model_.density` says."""
        check_is_fitted(self)
        x = self.model_.data_space.encode(self._check(X))
        if self.model_.density is not Density.EXACT:
            return self.model_.score_encoded(Batch(x)).log_prob.numpy()
        exact = copy.deepcopy(self.model_).double()  # so that a row's value does not depend on the others
        return exact.score_encoded(Batch(x.double())).log_prob.numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> Any:
        """`n_samples` rows, as the data came: an array, or a DataFrame with its columns and types."""
        check_is_fitted(self)
        return self.model_.sample(n_samples, seed=int(self.random_.randint(2**31 - 1)))

    def _check(self, X: Any) -> Any:
        mixed = _is_mixed(X)
        checked = validate_data(self, X, reset=False, dtype=None if mixed else np.float64, skip_check_array=mixed)
        return _frame_or_array(X, checked, mixed)


def _is_mixed(X: Any) -> bool:
    """A DataFrame with columns that are not all numbers."""
    return hasattr(X, "columns") and not all(kind.kind in "fiub" for kind in np.asarray(X.dtypes))


def _frame_or_array(X: Any, checked: Any, mixed: bool) -> Any:
    return X if mixed or hasattr(X, "columns") else checked
