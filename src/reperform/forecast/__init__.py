"""Forecast daily volumes, values and rates of anomalies, and the risk of each account."""

from datetime import datetime, timedelta
from typing import Any

import polars as pl

from reperform import params, schemas, tables
from reperform.forecast import account_risk, series
from reperform.params import ForecastParams, TrainParams

COLUMNS = ("transaction_id", "booked_at", "known_at", "account_id", "entity_id", "direction", "amount_base")


def _alert_rows(transactions: pl.DataFrame) -> pl.DataFrame:
    """Rows that the ensemble scored without having learned from them, and whether each is an alert."""
    scores = (
        tables.read_table("ensemble", "scores", ["transaction_id", "split", "is_alert"])
        .filter(pl.col("split").is_in(["validation", "delay", "test", "later"]) & pl.col("is_alert").is_not_null())
        .select("transaction_id", "is_alert")
    )
    joined = transactions.select("transaction_id", "booked_at").join(
        scores, on="transaction_id", how="inner", maintain_order="left"
    )
    return joined.select("booked_at", "is_alert")


def _account_risk(transactions: pl.DataFrame, labels: pl.DataFrame, settings: ForecastParams) -> Any:
    excluded = set(params.load(TrainParams).exclude_features)
    dictionary = tables.read_json("featurize", "dictionary")
    names = [e["name"] for e in dictionary if e["is_model_input"] and e["name"] not in excluded]
    if not transactions.height:
        return account_risk.empty_risk(), {"reason": "no transactions"}
    features = (
        tables.read_table("featurize", "features", ["transaction_id", "account_id", *names])
        .with_columns(pl.col(names).cast(pl.Float32))
        .join(
            transactions.select("transaction_id", "known_at"), on="transaction_id", how="inner", maintain_order="left"
        )
        .drop("transaction_id")
    )
    anomalies = labels.filter("is_anomaly").join(
        transactions.select("transaction_id", "account_id", "booked_at"),
        on="transaction_id",
        how="inner",
        maintain_order="left",
    )
    last: Any = transactions["booked_at"].max()
    end = datetime.combine(last.date() + timedelta(days=1), datetime.min.time(), tzinfo=last.tzinfo)
    return account_risk.account_risk(features, anomalies, transactions, end, settings)


def run(settings: ForecastParams) -> dict[str, Any]:
    """Write `data/forecast/{forecasts.parquet,account_risk.parquet,metrics.json}`; returns all three."""
    transactions = tables.read_table("validate", "transactions", list(COLUMNS))
    labels = schemas.checked(tables.read_table("validate", "labels"), schemas.LABELS)
    every = series.daily_series(transactions, _alert_rows(transactions), labels)
    forecasts, document = series.forecast_all(every, settings)
    risks, risk_document = _account_risk(transactions, labels, settings)
    report = {
        "n": len(every),
        "baseline": series.BASELINE,
        "horizon_days": settings.horizon_days,
        "season_days": settings.season_days,
        "levels": settings.levels,
        "series": document,
        "leaderboard": series.leaderboard(document, settings.levels),
        "account_risk": risk_document,
    }
    tables.write_table(forecasts, "forecast", "forecasts")
    tables.write_table(risks, "forecast", "account_risk")
    tables.write_json(report, "forecast", "metrics")
    return {"forecasts": forecasts, "account_risk": risks, "metrics": report}
