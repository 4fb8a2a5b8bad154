"""Random forest on labels: the mean of many deep trees, each grown on a draw of the rows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from reperform.detectors import trees
from reperform.detectors.base import (
    THREADS,
    Arrays,
    Detector,
    FloatArray,
    FloatMatrix,
    GroupArray,
    LabelArray,
    over_rows,
)

NODE_FIELDS = ("left_child", "right_child", "feature", "threshold", "missing_go_to_left")


class RandomForestDetector(Detector):
    """Score: log odds of the mean share of anomalies in the leaves, with half a tree added on either side.

    Classes are neither resampled nor reweighted. At each split, unknown values go to the side that suits the training
    rows.

    Args:
        n_estimators: trees.
        max_depth: of each tree; 0 grows them until their leaves are pure.
        min_samples_leaf: least rows in a leaf.
        max_features: share of columns tried at each split; 0 tries the square root of their number.
        max_samples: rows drawn for each tree, with replacement; 0 draws as many as there are. Fewer cost less time, and
            trees that saw different rows differ more.
        features: names of the columns.
        seed: of the draws.

    Source: Breiman (2001), "Random forests", Machine Learning 45.
    """

    needs_labels = True
    limits = {  # noqa: RUF012  # as declared by the base class
        "n_estimators": (1, 2000),
        "max_depth": (0, 64),
        "min_samples_leaf": (1, 100_000),
        "max_features": (0, 1),
        "max_samples": (0, 100_000_000),
    }

    def __init__(
        self,
        *,
        n_estimators: int = 100,
        max_depth: int = 0,
        min_samples_leaf: int = 1,
        max_features: float = 0.0,
        max_samples: int = 0,
        features: tuple[str, ...] = (),
        seed: int = 0,
    ) -> None:
        self.n_estimators = n_estimators
        self.max_depth = max_depth
        self.min_samples_leaf = min_samples_leaf
        self.max_features = max_features
        self.max_samples = max_samples
        self.features = features
        self.seed = seed

    def _fit(self, x: FloatMatrix, y: LabelArray, groups: GroupArray | None, weight: FloatArray | None) -> None:
        del groups
        if not 0 < self.rows_["known_anomalies"] < len(y):
            self.notes_.append("labels of one kind only: every row gets the same score")
        forest = RandomForestClassifier(
            n_estimators=self.n_estimators,
            max_depth=self.max_depth or None,
            min_samples_leaf=self.min_samples_leaf,
            max_features=self.max_features or "sqrt",
            max_samples=min(self.max_samples, len(x)) or None,
            n_jobs=THREADS,
            random_state=self.seed,
        ).fit(x, y, sample_weight=weight)
        grown = [one.tree_ for one in forest.estimators_]
        shares = np.concatenate([_shares(tree, forest.classes_) for tree in grown])
        self._keep(trees.fields_of(grown, NODE_FIELDS), shares)

    def _keep(self, fields: Arrays, shares: FloatArray) -> None:
        self.fields_ = fields
        self.trees_ = trees.forest(fields, shares)

    def _score(self, x: FloatMatrix, groups: GroupArray | None) -> FloatArray:
        del groups
        total = np.zeros(len(x))
        over_rows(lambda part: self.trees_.add(x[part], total[part]), len(x))
        return np.asarray(np.log((total + 0.5) / (len(self.trees_.roots) - total + 0.5)))

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {**self.fields_, "shares": self.trees_.value}

    def _restore(self, arrays: Arrays) -> None:
        self._keep({name: arrays[name] for name in (*NODE_FIELDS, "node_counts")}, arrays["shares"])


def _shares(tree: Any, classes: NDArray[Any]) -> FloatArray:
    """Share of anomalies in each node; with labels of one kind there is one class."""
    weights = tree.value[:, 0, :]
    anomalies = weights[:, classes == 1].sum(axis=1)
    return np.asarray(anomalies / weights.sum(axis=1), np.float64)
