"""What the KPIs say in hindsight, for readers and not for models: how anomalies differ, which accounts to look at."""

from typing import Any

import numpy as np
import polars as pl

MOST_ROWS = 200_000  # a rank correlation does not get better with more
LEAST_ANOMALIES = 5
LEAST_KNOWN = 0.2  # a column that is known for few rows is compared on few, and looks better than it is


def with_labels(features: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """Features with `is_anomaly`: true where an anomaly was confirmed at any time, else false."""
    confirmed = labels.filter(pl.col("is_anomaly")).select("transaction_id", is_anomaly=pl.lit(value=True))
    joined = features.join(confirmed, on="transaction_id", how="left", maintain_order="left")
    return joined.with_columns(pl.col("is_anomaly").fill_null(value=False))


def sampled(labelled: pl.DataFrame, most: int = MOST_ROWS) -> pl.DataFrame:
    """All anomalies and every k-th other row, in order: few enough to draw and to rank."""
    others = labelled.filter(~pl.col("is_anomaly"))
    step = max(1, -(-others.height // most))
    return pl.concat([labelled.filter(pl.col("is_anomaly")), others.gather_every(step)])


def separation(labelled: pl.DataFrame, dictionary: list[dict[str, Any]]) -> pl.DataFrame:
    """How well each column alone tells confirmed anomalies from other rows; columns known for few rows are left out.

    Args:
        labelled: see `with_labels`.
        dictionary: the feature dictionary.

    Returns:
        name, kpi_number, kpi, unit, null_share, auc: the probability that an anomaly has the higher value where both
        are known (0.5 tells nothing, below 0.5 anomalies have the lower one), and distance from 0.5; largest first.
    """
    rows = sampled(labelled)
    found = []
    for entry in dictionary:
        known = rows.select("is_anomaly", value=entry["name"]).drop_nulls()
        n = int(known["is_anomaly"].sum())
        enough = known.height >= LEAST_KNOWN * rows.height and LEAST_ANOMALIES <= n < known.height
        if entry["is_model_input"] and enough:
            rank = known["value"].rank("average").filter(known["is_anomaly"]).sum()
            auc = (float(rank) - n * (n + 1) / 2) / (n * (known.height - n))
            kept = {key: entry[key] for key in ("name", "kpi_number", "kpi", "unit", "null_share")}
            found.append({**kept, "auc": auc, "distance": abs(auc - 0.5)})
    schema = {"name": pl.String, "kpi_number": pl.Int64, "kpi": pl.String, "unit": pl.String} | dict.fromkeys(
        ("null_share", "auc", "distance"), pl.Float64
    )
    return pl.DataFrame(found, schema=schema).sort("distance", "name", descending=[True, False])


def best_of_each(ranked: pl.DataFrame, most: int) -> list[str]:
    """Names of the columns that tell most, at most one per KPI."""
    return ranked.unique("kpi_number", keep="first", maintain_order=True).head(most)["name"].to_list()


def contrast(labelled: pl.DataFrame) -> dict[str, str]:
    """Two accounts to look at side by side.

    Returns:
        `suspicious`: the account with the most confirmed anomalies; `normal`: an account without any that has about as
        many transactions. Empty where there are no anomalies, or no such account.
    """
    counts = (
        labelled.sort("account_id")
        .group_by("account_id", maintain_order=True)
        .agg(n=pl.len(), anomalies=pl.col("is_anomaly").sum())
    )
    bad, good = counts.filter(pl.col("anomalies") > 0), counts.filter(pl.col("anomalies") == 0)
    if bad.is_empty() or good.is_empty():
        return {}
    worst = bad.sort("anomalies", "account_id", descending=[True, False]).row(0, named=True)
    distance = np.abs(good["n"].to_numpy().astype(float) - worst["n"])
    return {"suspicious": worst["account_id"], "normal": good["account_id"][int(distance.argmin())]}


def overview(dictionary: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record per KPI: its columns, how many a model sees, and the share of values that are unknown."""
    out: dict[tuple[int, str], dict[str, Any]] = {}
    for entry in dictionary:
        record = out.setdefault(
            (entry["kpi_number"], entry["kpi"]),
            {"kpi_number": entry["kpi_number"], "kpi": entry["kpi"], "columns": 0, "inputs": 0, "unknown": []},
        )
        record["columns"] += 1
        record["inputs"] += entry["is_model_input"]
        record["unknown"].append(entry["null_share"])
    return [
        record | {"unknown": None if None in record["unknown"] else float(np.mean(record["unknown"]))}
        for _, record in sorted(out.items())
    ]
