"""Random forest on labels: the mean of many deep trees, each grown on a draw of the rows."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeRegressor
from sklearn.tree._tree import Tree

from reperform.detectors.base import Arrays, Detector, FloatArray, FloatMatrix, GroupArray, LabelArray

CHUNK_ROWS = 50_000
THREADS = 2
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
        self.trees_ = [tree.tree_ for tree in forest.estimators_]
        self.shares_ = [_shares(tree, forest.classes_) for tree in self.trees_]

    def _score(self, x: FloatMatrix, groups: GroupArray | None) -> FloatArray:
        del groups
        # Summed chunk by chunk and tree by tree: scikit-learn's own sum depends on which thread is first.
        chunks = [x[start : start + CHUNK_ROWS] for start in range(0, len(x), CHUNK_ROWS)]
        with ThreadPoolExecutor(THREADS) as pool:
            total = np.concatenate(list(pool.map(self._total, chunks)))
        return np.asarray(np.log((total + 0.5) / (len(self.trees_) - total + 0.5)))

    def _total(self, x: FloatMatrix) -> FloatArray:
        total = np.zeros(len(x))
        for tree, shares in zip(self.trees_, self.shares_, strict=True):
            total += shares[tree.apply(x)]
        return total

    def _arrays(self) -> dict[str, NDArray[Any]]:
        nodes = [tree.__getstate__()["nodes"] for tree in self.trees_]
        return {
            **{field: np.concatenate([n[field] for n in nodes]) for field in NODE_FIELDS},
            "shares": np.concatenate(self.shares_),
            "node_counts": np.array([len(n) for n in nodes]),
            "depths": np.array([tree.max_depth for tree in self.trees_]),
        }

    def _restore(self, arrays: Arrays) -> None:
        ends = np.cumsum(arrays["node_counts"])
        spans = [slice(end - n, end) for end, n in zip(ends, arrays["node_counts"], strict=True)]
        self.shares_ = [arrays["shares"][span] for span in spans]
        self.trees_ = [
            _tree({field: arrays[field][span] for field in NODE_FIELDS}, int(depth), self.n_features_in_)
            for span, depth in zip(spans, arrays["depths"], strict=True)
        ]


def _shares(tree: Any, classes: NDArray[Any]) -> FloatArray:
    """Share of anomalies in each node; with labels of one kind there is one class."""
    weights = tree.value[:, 0, :]
    anomalies = weights[:, classes == 1].sum(axis=1)
    return np.asarray(anomalies / weights.sum(axis=1), np.float64)


def _tree(fields: Arrays, depth: int, width: int) -> Any:
    """A scikit-learn tree from its arrays; what plays no part in finding a row's leaf is left at its default."""
    tree = Tree(width, np.array([1], np.intp), 1)
    # A blank tree's state tells how this version of scikit-learn lays out a node.
    state = DecisionTreeRegressor().fit([[0.0]], [0.0]).tree_.__getstate__()
    nodes = np.zeros(len(fields["feature"]), state["nodes"].dtype)
    for name, values in fields.items():
        nodes[name] = values
    tree.__setstate__(
        {**state, "max_depth": depth, "node_count": len(nodes), "nodes": nodes, "values": np.zeros((len(nodes), 1, 1))}
    )
    return tree
