"""The feature dictionary: for every column what it means, where it comes from, and how it is distributed."""

import math
from typing import Any

import numpy as np
import polars as pl

from reperform.featurize.registry import Column, Kpi

REPLACED = ("opened_at", "segment", "timezone")  # where they are not given, a stand-in serves
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def entry(kpi: Kpi, column: Column, values: pl.Series, absent: frozenset[str]) -> dict[str, Any]:
    """One column's entry.

    Args:
        kpi: its family.
        column: its declaration.
        values: its values, null where unknown.
        absent: canonical columns that the source gives for no row.
    """
    null_rule = column.null_rule or kpi.null_rule
    null_share = values.null_count() / len(values) if len(values) else None
    return {
        "name": column.name,
        "kpi": kpi.title,
        "kpi_number": kpi.number,
        "family": kpi.family,
        "formula": column.formula,
        "windows": [column.window] if column.window else [],
        "unit": column.unit,
        "inputs": list(kpi.inputs),
        "key": kpi.key,
        "null_rule": null_rule,
        "source": kpi.source,
        # A model cannot learn from a column that this source leaves empty.
        "is_model_input": column.is_model_input and null_share != 1,
        "null_share": null_share,
        "null_reason": _reason(kpi, null_rule, null_share, absent),
        "quantiles": quantiles(values),
    }


def quantiles(values: pl.Series) -> dict[str, float | None]:
    """Nearest-rank quantiles of the known values, null without any; sorted once for all of them."""
    known = np.sort(values.drop_nulls().to_numpy())
    ranks = {f"{q:g}": math.floor(q * (len(known) - 1) + 0.5) for q in QUANTILES}
    return {q: float(known[rank]) if len(known) else None for q, rank in ranks.items()}


def _reason(kpi: Kpi, null_rule: str, null_share: float | None, absent: frozenset[str]) -> str | None:
    """Why values are missing: the rule, and the inputs that the source lacks where nothing is known."""
    if null_share is None:
        return "there are no transactions"
    if null_share == 0:
        return None
    lacking = [name for name in kpi.inputs if name in absent and name not in REPLACED]
    given = f"; the source gives no {', '.join(lacking)}" if null_share == 1 and lacking else ""
    return null_rule + given
