"""From tables to what a detector takes: which columns, as which matrix, from which accounts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from reperform.errors import ReperformError, nearest

KEY_COLUMNS = ["transaction_id", "account_id", "booked_at"]
ARRIVAL = "known_at"


def model_inputs(
    dictionary: Sequence[Mapping[str, Any]], exclude: Sequence[str] = (), *, aids: bool = False
) -> list[str]:
    """Names of the columns that detectors read, in the dictionary's order.

    Columns that are unknown on every row are left out: they teach nothing.

    Args:
        dictionary: the feature dictionary of stage featurize.
        exclude: `train.exclude_features`.
        aids: also those that are no model inputs, such as flags.

    Raises:
        ReperformError: for an excluded name that the dictionary does not know.
    """
    known = [str(entry["name"]) for entry in dictionary]
    for name in exclude:
        if name not in known:
            raise ReperformError(
                f"There is no feature {name!r} to exclude.",
                expected="a name in data/featurize/dictionary.json",
                got=name,
                where="params.yaml:train.exclude_features",
                fix=nearest(name, known),
            )
    return [
        str(entry["name"])
        for entry in dictionary
        if (aids or entry["is_model_input"]) and entry["name"] not in exclude and (entry.get("null_share") or 0) < 1
    ]


def matrix(frame: pl.DataFrame, features: Sequence[str]) -> NDArray[np.float32]:
    """Shape (rows, features), float32; null becomes NaN, so does nothing else."""
    columns = frame.select(pl.col(name).cast(pl.Float32) for name in features)
    return np.ascontiguousarray(columns.to_numpy().reshape(frame.height, len(features)), np.float32)


def with_arrival(features: pl.DataFrame, transactions: pl.DataFrame) -> pl.DataFrame:
    """Features with the time at which each row arrived, after booked_at.

    Args:
        features: with `KEY_COLUMNS`.
        transactions: with transaction_id and known_at.

    Raises:
        ReperformError: for a row that is no transaction.
    """
    known = features.select("transaction_id").join(
        transactions.select("transaction_id", ARRIVAL), on="transaction_id", how="left", maintain_order="left"
    )
    missing = known.filter(pl.col(ARRIVAL).is_null())["transaction_id"]
    if len(missing):
        raise ReperformError(
            "Features hold rows that are no transactions.",
            expected="every transaction_id in data/validate/transactions.parquet",
            got=", ".join(missing.head(5)),
            where="data/featurize/features.parquet",
            fix="run `dvc repro featurize`",
        )
    return features.insert_column(len(KEY_COLUMNS), known[ARRIVAL])


def account_codes(frame: pl.DataFrame) -> NDArray[np.int64]:
    """A number for each row's account, equal where the account is: shape (rows,)."""
    return frame["account_id"].rank("dense").cast(pl.Int64).to_numpy()
