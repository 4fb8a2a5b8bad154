"""Isolation forest: anomalies are cut off from the rest by few random splits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from sklearn.tree import ExtraTreeRegressor

from reperform.detectors import trees
from reperform.detectors.base import Arrays, Detector, FloatArray, FloatMatrix, GroupArray, LabelArray, over_rows
from reperform.detectors.scaling import RobustScaler

EULER_GAMMA = 0.5772156649015329
TREE_FIELDS = ("left_child", "right_child", "feature", "threshold", "n_node_samples")


class IsolationForestDetector(Detector):
    """Score: 2 to the power of minus the mean path length, relative to that of a random search tree; in (0, 1).

    Args:
        n_estimators: trees.
        max_samples: rows drawn for each tree.
        max_features: share of columns drawn for each tree.
        features: names of the columns.
        seed: of the draws.

    Source: Liu, Ting and Zhou (2008), "Isolation Forest", ICDM.
    """

    leaves_out_anomalies = True
    limits = {"n_estimators": (1, 2000), "max_samples": (2, 100_000), "max_features": (0.01, 1)}  # noqa: RUF012  # as declared by the base class

    def __init__(
        self,
        *,
        n_estimators: int = 100,
        max_samples: int = 256,
        max_features: float = 1.0,
        features: tuple[str, ...] = (),
        seed: int = 0,
    ) -> None:
        self.n_estimators = n_estimators
        self.max_samples = max_samples
        self.max_features = max_features
        self.features = features
        self.seed = seed

    def _fit(self, x: FloatMatrix, y: LabelArray, groups: GroupArray | None, weight: FloatArray | None) -> None:
        del groups, weight  # each tree draws its own rows
        rows = x[y != 1]
        rows = rows if len(rows) else x
        self.scaler_ = RobustScaler().fit(rows)
        self.psi_ = min(self.max_samples, len(rows))
        forest = _Forest(
            n_estimators=self.n_estimators,
            max_samples=self.psi_,
            max_features=self.max_features,
            random_state=self.seed,
        ).fit(self.scaler_.transform(rows))
        columns = np.stack([np.asarray(one, np.int64) for one in forest.estimators_features_])
        self._measure(trees.fields_of([one.tree_ for one in forest.estimators_], TREE_FIELDS), columns)

    def _measure(self, fields: Arrays, columns: NDArray[np.int64]) -> None:
        self.fields_, self.columns_ = fields, columns
        # Splits to each node, and those that a random tree would need for the rows still in it.
        lengths = trees.node_depths(fields) + mean_search_length(fields["n_node_samples"])
        self.trees_ = trees.forest(fields, lengths, columns=columns)

    def _score(self, x: FloatMatrix, groups: GroupArray | None) -> FloatArray:
        del groups
        total = np.zeros(len(x))
        over_rows(lambda part: self.trees_.add(self.scaler_.transform(x[part]), total[part]), len(x))
        usual = float(mean_search_length(np.array([self.psi_]))[0]) or 1.0
        return np.asarray(np.exp2(-(total / len(self.columns_)) / usual), np.float64)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {**self.scaler_.arrays(), **self.fields_, "columns": self.columns_, "psi": np.array([self.psi_])}

    def _restore(self, arrays: Arrays) -> None:
        self.scaler_ = RobustScaler.restored(arrays)
        self.psi_ = int(arrays["psi"][0])
        self._measure({name: arrays[name] for name in (*TREE_FIELDS, "node_counts")}, arrays["columns"])


class _Tree(ExtraTreeRegressor):
    """Takes no weights: each tree is then given its own rows instead of a copy of all of them, most at weight 0."""

    def fit(self, X: Any, y: Any, check_input: bool = True) -> Any:  # noqa: N803  # scikit-learn's own names
        return super().fit(X, y, check_input=check_input)


class _Forest(IsolationForest):
    def _get_estimator(self) -> Any:
        return _Tree(**super()._get_estimator().get_params())


def mean_search_length(rows: NDArray[Any]) -> FloatArray:
    """Mean path length of an unsuccessful search in a binary search tree of n rows (Liu et al., eq. 1)."""
    n = np.asarray(rows, np.float64)
    safe = np.maximum(n, 3)
    long = 2 * (np.log(safe - 1) + EULER_GAMMA) - 2 * (safe - 1) / safe
    return np.asarray(np.where(n > 2, long, np.where(n == 2, 1.0, 0.0)))  # noqa: PLR2004  # the formula's own cases
