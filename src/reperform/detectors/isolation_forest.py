"""Isolation forest: anomalies are cut off from the rest by few random splits."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from sklearn.tree import DecisionTreeRegressor
from sklearn.tree._tree import Tree

from reperform.detectors.base import Arrays, Detector, FloatArray, FloatMatrix, GroupArray, LabelArray
from reperform.detectors.scaling import RobustScaler

CHUNK_ROWS = 50_000
THREADS = 2
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
        self.forest_ = IsolationForest(
            n_estimators=self.n_estimators,
            max_samples=self.psi_,
            max_features=self.max_features,
            random_state=self.seed,
        ).fit(self.scaler_.transform(rows))
        self._measure([tree.tree_ for tree in self.forest_.estimators_], self.forest_.estimators_features_)

    def _measure(self, trees: list[Any], columns: list[NDArray[np.intp]]) -> None:
        self.trees_ = trees
        self.columns_ = [np.asarray(c, np.int64) for c in columns]
        self.lengths_ = [path_lengths(tree) for tree in trees]

    def _score(self, x: FloatMatrix, groups: GroupArray | None) -> FloatArray:
        del groups
        # Summed chunk by chunk and tree by tree: scikit-learn's own sum depends on which thread is first.
        chunks = [x[start : start + CHUNK_ROWS] for start in range(0, len(x), CHUNK_ROWS)]
        with ThreadPoolExecutor(THREADS) as pool:
            parts = list(pool.map(self._mean_length, chunks))
        usual = float(mean_search_length(np.array([self.psi_]))[0]) or 1.0
        return np.asarray(np.exp2(-np.concatenate(parts) / usual), np.float64)

    def _mean_length(self, x: FloatMatrix) -> FloatArray:
        scaled = self.scaler_.transform(x)
        total = np.zeros(len(x))
        every = np.arange(x.shape[1])
        for tree, columns, lengths in zip(self.trees_, self.columns_, self.lengths_, strict=True):
            view = scaled if np.array_equal(columns, every) else np.ascontiguousarray(scaled[:, columns])
            total += lengths[tree.apply(view)]
        return total / len(self.trees_)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        nodes = [tree.__getstate__()["nodes"] for tree in self.trees_]
        return {
            **self.scaler_.arrays(),
            **{field: np.concatenate([n[field] for n in nodes]) for field in TREE_FIELDS},
            "node_counts": np.array([len(n) for n in nodes]),
            "depths": np.array([tree.max_depth for tree in self.trees_]),
            "columns": np.stack(self.columns_),
            "psi": np.array([self.psi_]),
        }

    def _restore(self, arrays: Arrays) -> None:
        self.scaler_ = RobustScaler.restored(arrays)
        self.psi_ = int(arrays["psi"][0])
        ends = np.cumsum(arrays["node_counts"])
        width = arrays["columns"].shape[1]
        trees = [
            _tree({field: arrays[field][end - count : end] for field in TREE_FIELDS}, int(depth), width)
            for end, count, depth in zip(ends, arrays["node_counts"], arrays["depths"], strict=True)
        ]
        self._measure(trees, list(arrays["columns"]))


def _tree(fields: Arrays, depth: int, width: int) -> Any:
    """A scikit-learn tree from its arrays; what plays no part in path lengths is left at its default."""
    tree = Tree(width, np.array([1], np.intp), 1)
    state = _blank_tree().__getstate__()
    nodes = np.zeros(len(fields["feature"]), state["nodes"].dtype)
    for name, values in fields.items():
        nodes[name] = values
    nodes["weighted_n_node_samples"] = fields["n_node_samples"]
    tree.__setstate__(
        {**state, "max_depth": depth, "node_count": len(nodes), "nodes": nodes, "values": np.zeros((len(nodes), 1, 1))}
    )
    return tree


def _blank_tree() -> Any:
    # Its state tells how this version of scikit-learn lays out a node.
    return DecisionTreeRegressor().fit([[0.0]], [0.0]).tree_


def path_lengths(tree: Any) -> FloatArray:
    """Splits from the root to each node, plus those that a random tree would need for the rows still in it."""
    depth = np.zeros(tree.node_count)
    left, right = tree.children_left, tree.children_right
    for node in np.flatnonzero(left != right):  # a parent is numbered before its children
        depth[left[node]] = depth[right[node]] = depth[node] + 1
    return np.asarray(depth + mean_search_length(tree.n_node_samples))


def mean_search_length(rows: NDArray[Any]) -> FloatArray:
    """Mean path length of an unsuccessful search in a binary search tree of n rows (Liu et al., eq. 1)."""
    n = np.asarray(rows, np.float64)
    safe = np.maximum(n, 3)
    long = 2 * (np.log(safe - 1) + EULER_GAMMA) - 2 * (safe - 1) / safe
    return np.asarray(np.where(n > 2, long, np.where(n == 2, 1.0, 0.0)))  # noqa: PLR2004  # the formula's own cases
