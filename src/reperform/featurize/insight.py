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


NORMAL = "normal rows"
SPREAD = (0.05, 0.25, 0.5, 0.75, 0.95)
LEAST_STORY = 30  # rows of an account with a history
FROM_LABELS = 7  # the KPI that knows confirmed anomalies: it tells by definition, and nothing of behaviour
UNNAMED = "kind not named"
FEW_NORMAL = 8_000  # per typology every column is ranked once


def with_typology(labelled: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """`with_labels` and a `typology`: of confirmed anomalies theirs (or `UNNAMED`), of all others `NORMAL`."""
    named = labels.select("transaction_id", "typology")
    joined = labelled.join(named, on="transaction_id", how="left", maintain_order="left")
    kind = pl.when("is_anomaly").then(pl.col("typology").fill_null(UNNAMED)).otherwise(pl.lit(NORMAL))
    return joined.with_columns(typology=kind)


def spread(typed: pl.DataFrame, names: list[str], least: int = LEAST_ANOMALIES) -> pl.DataFrame:
    """Quantiles of some columns for normal rows and for each typology.

    Args:
        typed: see `with_typology`.
        names: of columns.
        least: known values, for a group to be shown.

    Returns:
        name, typology, n, then `q5`, `q25`, `q50`, `q75`, `q95`; normal rows first, then typologies by name.
    """
    found = []
    for name in names:
        known = typed.select("typology", value=name).drop_nulls()
        for (kind,), part in sorted(known.partition_by("typology", as_dict=True).items(), key=_normal_first):
            if part.height >= least:
                values = part["value"].sort()
                at = {f"q{100 * q:g}": values.quantile(q, "nearest") for q in SPREAD}
                found.append({"name": name, "typology": kind, "n": part.height, **at})
    schema = {"name": pl.String, "typology": pl.String, "n": pl.Int64} | {f"q{100 * q:g}": pl.Float64 for q in SPREAD}
    return pl.DataFrame(found, schema=schema)


def _normal_first(item: tuple[tuple[object, ...], pl.DataFrame]) -> tuple[bool, str]:
    kind = str(item[0][0])
    return kind != NORMAL, kind


def cases(typed: pl.DataFrame, ranked_of: dict[str, str]) -> list[dict[str, Any]]:
    """For each typology one account and the column that tells most of it.

    Args:
        typed: see `with_typology`.
        ranked_of: typology to column, see `telling`.

    Returns:
        typology, column, account_id: the account with the most confirmed anomalies of the kind, among those with a
        history to compare with, if there are any; of equal ones the first by name.
    """
    found = []
    for kind, column in ranked_of.items():
        known = typed.filter(pl.col(column).is_not_null()).sort("account_id")
        counts = (
            known.group_by("account_id", maintain_order=True)
            .agg(hits=(pl.col("typology") == kind).sum(), rows=pl.len())
            .filter(pl.col("hits") > 0)
            .with_columns(is_told=pl.col("rows") >= LEAST_STORY)
            .sort("is_told", "hits", "account_id", descending=[True, True, False])
        )
        if counts.height:
            found.append({"typology": kind, "column": column, "account_id": counts["account_id"][0]})
    return found


def telling(typed: pl.DataFrame, dictionary: list[dict[str, Any]]) -> dict[str, str]:
    """The column that tells each typology best from normal rows; typologies with enough anomalies, by name.

    Columns of KPI 7 are left out: they know of earlier confirmations, not of behaviour.
    """
    few = sampled(typed, FEW_NORMAL)
    dictionary = [entry for entry in dictionary if entry["kpi_number"] != FROM_LABELS]
    out = {}
    for kind in sorted(set(few["typology"].unique()) - {NORMAL, UNNAMED}):
        ranked = separation(few.filter(pl.col("typology").is_in([kind, NORMAL])), dictionary)
        if ranked.height:
            out[kind] = str(ranked["name"][0])
    return out
