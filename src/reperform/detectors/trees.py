"""Trees of scikit-learn as plain arrays, and the sum of the leaves that rows end in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperform.detectors.base import Arrays, FloatArray

NODE = np.dtype([("feature", np.int32), ("threshold", np.float32), ("left", np.int32), ("right", np.int32)])
NO_CHILD = -1


@dataclass(frozen=True)
class Forest:
    """Trees of one forest, one after another.

    Args:
        nodes: of `NODE`; a leaf is its own child.
        missing_left: whether an unknown value goes left.
        value: of each node.
        roots: node of each tree's root.
        depths: of each tree.
    """

    nodes: NDArray[Any]
    missing_left: NDArray[np.bool_]
    value: FloatArray
    roots: NDArray[np.int32]
    depths: NDArray[np.int32]

    def add(self, x: NDArray[np.float32], total: FloatArray) -> None:
        """Add the value of the leaf that each row ends in to its total, in the trees' order.

        Args:
            x: shape (n, p); NaN = unknown.
            total: shape (n,).
        """
        from reperform.detectors import kernels  # noqa: PLC0415  # numba costs half a second

        kernels.add_leaf_values(x, self.nodes, self.missing_left, self.value, self.roots, self.depths, total)


def forest(fields: Arrays, value: FloatArray, *, columns: NDArray[np.int64] | None = None) -> Forest:
    """A forest from its nodes as scikit-learn has them.

    Args:
        fields: node_counts, shape (trees,); and of all nodes, tree after tree, feature, threshold, left_child,
            right_child (numbered within the tree, -1 in a leaf) and, where values may be unknown, missing_go_to_left.
        value: of each node.
        columns: of each tree, which columns its features number, shape (trees, features); None = all.
    """
    counts = fields["node_counts"]
    starts = np.cumsum(counts) - counts
    first, own = np.repeat(starts, counts), np.arange(len(value))
    is_leaf = fields["left_child"] == NO_CHILD
    feature = np.where(is_leaf, 0, fields["feature"])
    nodes = np.zeros(len(value), NODE)
    nodes["feature"] = feature if columns is None else columns[np.repeat(np.arange(len(counts)), counts), feature]
    nodes["threshold"] = rounded_down(fields["threshold"])
    nodes["left"] = np.where(is_leaf, own, fields["left_child"] + first)
    nodes["right"] = np.where(is_leaf, own, fields["right_child"] + first)
    missing_left = fields.get("missing_go_to_left", np.zeros(len(value)))
    depth = node_depths(fields)
    deepest = np.maximum.reduceat(depth, starts).astype(np.int32)
    return Forest(nodes, missing_left.astype(bool), np.asarray(value, np.float64), starts.astype(np.int32), deepest)


def fields_of(trees: Sequence[Any], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """These fields of all nodes of scikit-learn's trees, tree after tree, and node_counts."""
    nodes = [tree.__getstate__()["nodes"] for tree in trees]
    joined = {name: np.concatenate([of[name] for of in nodes]) for name in names}
    return joined | {"node_counts": np.array([len(of) for of in nodes])}


def node_depths(fields: Arrays) -> NDArray[np.int64]:
    """Splits from the root to each node: shape (nodes,)."""
    counts = fields["node_counts"]
    starts = np.cumsum(counts) - counts
    first, depth = np.repeat(starts, counts), np.zeros(int(counts.sum()), np.int64)
    level, at = 0, starts
    while at.size:
        depth[at] = level
        inner = at[fields["left_child"][at] != NO_CHILD]
        at = np.concatenate([fields[side][inner] + first[inner] for side in ("left_child", "right_child")])
        level += 1
    return depth


def rounded_down(threshold: FloatArray) -> NDArray[np.float32]:
    """The largest float32 at or below each threshold: a float32 is at most the one if it is at most the other."""
    near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float32)
