"""Score rows with the detectors that were trained: other rows, or the same rows with other features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from reperform import detectors, ensemble, paths, tables
from reperform.detectors import inputs
from reperform.detectors.base import Detector, FloatArray
from reperform.errors import ReperformError
from reperform.train import Rows, scored

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Member:
    """A trained detector of the ensemble.

    Args:
        name: its name.
        final: fitted on everything before the test.
        features: names of its columns, in order.
        parameters: it was fitted with.
        seed: it was fitted with.
    """

    name: str
    final: Detector
    features: list[str]
    parameters: dict[str, Any]
    seed: int

    def first(self) -> Detector:
        """The same detector fitted before the validation."""
        return detectors.load(paths.data("train") / self.name / "first_model")


def members(names: Sequence[str]) -> list[Member]:
    """The trained detectors.

    Raises:
        ReperformError: when one was not trained, as in a run without transactions.
    """
    return [_member(name) for name in names]


def _member(name: str) -> Member:
    document = tables.read_json(f"train/{name}", "fit")
    folder = paths.data("train") / name / "model"
    if not folder.is_dir():
        raise ReperformError(
            f"Detector {name} is not trained.",
            expected="a model",
            got="a run in which there was nothing to learn from",
            where=str(folder),
            fix="run `make repro` on data with transactions",
        )
    return Member(name, detectors.load(folder), document["features"], document["parameters"], document["seed"])


def rows_of(features: pl.DataFrame, names: Sequence[str]) -> Rows:
    """Rows of a feature table that says when each arrived, with these columns, as detectors take them."""
    keys = features.select(*inputs.KEY_COLUMNS, inputs.ARRIVAL)
    return Rows(keys, inputs.matrix(features, names), inputs.account_codes(features), list(names))


def read_features(names: Sequence[str]) -> pl.DataFrame:
    """Identity, time of arrival and these columns of `data/featurize/features.parquet`, as Float32."""
    chosen = list(dict.fromkeys(names))
    lazy = tables.scan_table("featurize", "features")
    frame = lazy.select(*inputs.KEY_COLUMNS, *(pl.col(name).cast(pl.Float32) for name in chosen)).collect()
    arrivals = tables.scan_table("validate", "transactions").select("transaction_id", inputs.ARRIVAL).collect()
    return inputs.with_arrival(frame, arrivals)


def scores_of(members_used: Sequence[Member], features: pl.DataFrame, wanted: Bools) -> dict[str, FloatArray]:
    """Each member's scores of the wanted rows, one run in time; sequences also see the rows before them."""
    return {one.name: scored(one.final, rows_of(features, one.features), wanted) for one in members_used}


def margins(scores: Mapping[str, FloatArray]) -> FloatArray:
    """The ensemble's score from its members' scores, by the model at hand."""
    return ensemble.margins(tables.read_json("ensemble", "model"), scores)
