"""scikit-learn's own checks of estimators, on every detector.

A detector takes float matrices in the order of its features and refuses anything else in its own words. The adapter
does what a scikit-learn user's code around it would: it validates with scikit-learn's functions, and asks for fit
before scores. What is checked behind it is the detector: parameters, clones, pickles, repeated fits, order of columns,
rows one by one, memory it must not write to, state that only fit may set.
All checks apply; those of array libraries other than NumPy are skipped by scikit-learn itself.
"""

from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.utils import Tags
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

from reperform import detectors
from tests.test_detectors import SMALL

TINY = SMALL | {"lstm_autoencoder": {"length": 2, "hidden_size": 2, "code_size": 1, "epochs": 1}}
RULES = {"rules": {"first": {"when": {"0": {"at_least": 1}}}}}
NEEDS_LABELS = [name for name, kind in detectors.DETECTORS.items() if kind.needs_labels]


class Adapter(BaseEstimator):
    """A detector by name, for matrices without named columns."""

    def __init__(self, name: str = "isolation_forest", seed: int = 0) -> None:
        self.name = name
        self.seed = seed

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.target_tags.required = self.name in NEEDS_LABELS
        return tags

    def fit(self, X: Any, y: Any = None) -> "Adapter":  # noqa: N803  # scikit-learn's name
        """Fit the detector; of any kind of target, the highest values are the anomalies."""
        wanted = y is not None or self.name in NEEDS_LABELS
        if wanted:
            X, y = validate_data(self, X, y, dtype=np.float32, ensure_all_finite="allow-nan")  # noqa: N806
        else:
            X = validate_data(self, X, dtype=np.float32, ensure_all_finite="allow-nan")  # noqa: N806
        given = RULES if self.name == "rules" else TINY[self.name]
        columns = tuple(str(number) for number in range(X.shape[1]))
        self.detector_ = detectors.build(self.name, given, features=columns, seed=self.seed)
        self.detector_.fit(X, None if y is None else (y == np.max(y)).astype(np.int8))
        return self

    def score_samples(self, X: Any) -> Any:  # noqa: N803
        """Minus the score, as scikit-learn's outlier detectors have it: lower = more anomalous."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, ensure_all_finite="allow-nan", reset=False)  # noqa: N806
        return -self.detector_.score(X)


@parametrize_with_checks([Adapter(name) for name in TINY])
def test_a_detector_passes_scikit_learns_checks(estimator: Adapter, check: Any) -> None:
    check(estimator)


def test_every_detector_is_checked() -> None:
    assert set(TINY) == set(detectors.DETECTORS)
    with pytest.raises(KeyError):
        Adapter("none").fit(np.ones((3, 2)))
