"""Read the outputs that tables are made of: Parquet tables, and JSON documents as rows."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from reperform import paths, schemas, tables

UTC_US = schemas.UTC_US
Columns = Mapping[str, Any]
NUL, NUL_SYMBOL = "\0", "\u2400"  # PostgreSQL's text takes every character but this one


@dataclass(frozen=True)
class Settings:
    """What decides which rows are read: detectors that the run knows, and whose features go along."""

    detectors: Sequence[str]
    features_of: str


Reader = Callable[[Settings], pl.DataFrame | None]

DICTIONARY: Columns = {
    "name": pl.String,
    "kpi": pl.String,
    "kpi_number": pl.Int64,
    "family": pl.String,
    "formula": pl.String,
    "windows": pl.String,
    "unit": pl.String,
    "inputs": pl.String,
    "key": pl.String,
    "null_rule": pl.String,
    "source": pl.String,
    "is_model_input": pl.Boolean,
    "null_share": pl.Float64,
    "null_reason": pl.String,
    "quantiles": pl.String,
}
METRICS: Columns = {
    "detector": pl.String,
    "metric": pl.String,
    "estimate": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
}
EVALUATION: Columns = {"topic": pl.String, "position": pl.Int64, "detector": pl.String, "record": pl.String}
OUTCOMES: Columns = {
    "transaction_id": pl.String,
    "booked_at": UTC_US,
    "entity_id": pl.String,
    "amount_base": pl.Float64,
    "score": pl.Float64,
    "probability": pl.Float64,
    "is_alert": pl.Boolean,
    "is_anomaly": pl.Boolean,
    "typology": pl.String,
    "outcome": pl.String,
}
EXPLAINABILITY: Columns = {
    "transaction_id": pl.String,
    "account_id": pl.String,
    "population": pl.String,
    "detector": pl.String,
    "index": pl.Float64,
    "index_low": pl.Float64,
    "index_high": pl.Float64,
}
MEMBERS: Columns = {
    "transaction_id": pl.String,
    "member": pl.String,
    "score": pl.Float64,
    "contribution": pl.Float64,
    "share": pl.Float64,
}
IMPORTANCE: Columns = {
    "population": pl.String,
    "detector": pl.String,
    "feature": pl.String,
    "kpi_number": pl.Int64,
    "mean_abs_contribution": pl.Float64,
    "share": pl.Float64,
    "rank": pl.Int64,
}
RECEIPTS: Columns = {"transaction_id": pl.String, "why": pl.String, "receipt": pl.String}
TRIALS: Columns = {
    "detector": pl.String,
    "number": pl.Int64,
    "value": pl.Float64,
    "state": pl.String,
    "trial": pl.String,
}
MODELS: Columns = {"detector": pl.String, "model": pl.String}
TRIGGERS: Columns = {
    "rule": pl.String,
    "status": pl.String,
    "measures": pl.String,
    "value": pl.Float64,
    "warn_limit": pl.Float64,
    "act_limit": pl.Float64,
    "compared": pl.Int64,
    "warned": pl.Int64,
    "acted": pl.Int64,
    "names": pl.String,
    "what_to_do": pl.String,
}
QUALITY: Columns = {"document": pl.String, "path": pl.String, "number": pl.Float64, "text": pl.String}
QUALITY_DAYS: Columns = {
    "entity_id": pl.String,
    "day": pl.Date,
    "n_transactions": pl.Int64,
    "n_accounts": pl.Int64,
    "amount_base": pl.Float64,
    "median_lateness_hours": pl.Float64,
}
QUALITY_DOCUMENTS = (
    ("ensemble", "thresholds"),
    ("explain", "quality"),
    ("forecast", "metrics"),
    ("ingest", "receipt"),
    ("split", "summary"),
    ("validate", "quality"),
)
ALERTS: Columns = {
    "transaction_id": pl.String,
    "booked_at": UTC_US,
    "day": pl.Date,
    "account_id": pl.String,
    "counterparty_id": pl.String,
    "entity_id": pl.String,
    "amount_base": pl.Float64,
    "score": pl.Float64,
    "probability": pl.Float64,
    "rank": pl.Int64,
    "is_anomaly": pl.Boolean,
    "typology": pl.String,
}
ATTRIBUTIONS: Columns = {
    "transaction_id": pl.String,
    "detector": pl.String,
    "method": pl.String,
    "feature": pl.String,
    "value": pl.Float64,
    "contribution": pl.Float64,
    "rank": pl.Int64,
}
FEATURES: Columns = {
    "transaction_id": pl.String,
    "account_id": pl.String,
    "counterparty_id": pl.String,
    "entity_id": pl.String,
    "booked_at": UTC_US,
}
ACCOUNT_DAYS: Columns = {
    "account_id": pl.String,
    "day": pl.Date,
    "n_transactions": pl.Int64,
    "amount_in": pl.Float64,
    "amount_out": pl.Float64,
    "balance_end": pl.Float64,
}
FILING_KPIS: Columns = {
    "filing_id": pl.String,
    "entity_id": pl.String,
    "form": pl.String,
    "period_end": pl.Date,
    "filed_at": UTC_US,
    "n_required": pl.Int64,
    "n_present": pl.Int64,
    "completeness": pl.Float64,
    "timeliness_days": pl.Float64,
    "n_rules": pl.Int64,
    "n_evaluable": pl.Int64,
    "consistency": pl.Float64,
    "severity": pl.Float64,
}
FORECASTS: Columns = {
    "series": pl.String,
    "model": pl.String,
    "origin": pl.Date,
    "day": pl.Date,
    "mean": pl.Float64,
    "actual": pl.Float64,
}
ACCOUNT_RISK: Columns = {
    "account_id": pl.String,
    "snapshot": pl.Date,
    "model": pl.String,
    "horizon_days": pl.Int64,
    "probability": pl.Float64,
    "expected_loss": pl.Float64,
}
DRIFT: Columns = {
    "kind": pl.String,
    "name": pl.String,
    "value": pl.Float64,
    "null_value": pl.Float64,
    "status": pl.String,
}


def _exists(stage: str, name: str, suffix: str) -> bool:
    place = paths.data(stage) / f"{name}{suffix}"
    return place.is_file() or (suffix == ".parquet" and (paths.data(stage) / name).is_dir())


def parquet(stage: str, name: str) -> Reader:
    """A reader of one Parquet table."""

    def read(_: Settings) -> pl.DataFrame | None:
        return tables.read_table(stage, name) if _exists(stage, name, ".parquet") else None

    return read


def quarantine(settings: Settings) -> pl.DataFrame | None:
    """What ingest refused, then what validate refused."""
    parts = [part for stage in ("ingest", "validate") if (part := parquet(stage, "quarantine")(settings)) is not None]
    return pl.concat(parts) if parts else None


def _document(stage: str, name: str) -> Any:
    return tables.read_json(stage, name) if _exists(stage, name, ".json") else None


def rows_frame(rows: Iterable[Mapping[str, Any]], columns: Columns, rest: str | None = None) -> pl.DataFrame:
    """Records as a frame of known columns.

    Args:
        rows: records of a JSON document.
        columns: names and types; a value that is a list or a mapping becomes JSON text.
        rest: a column that holds the whole record as JSON.
    """
    records = [dict(row) | ({rest: row} if rest else {}) for row in rows]
    return pl.DataFrame(
        {name: [_value(record.get(name), dtype) for record in records] for name, dtype in columns.items()},
        schema=dict(columns),
    )


def _value(value: Any, dtype: Any) -> Any:
    if value is None:
        return None
    if dtype == pl.String:
        return value if isinstance(value, str) else as_json(value)
    return float(value) if dtype == pl.Float64 else value


def scores(settings: Settings) -> pl.DataFrame | None:
    """Scores of transactions by every detector of this run, and by the ensemble."""
    places = [(f"train/{detector}", "scores") for detector in settings.detectors] + [("ensemble", "scores")]
    found = [tables.read_table(*place) for place in places if _exists(*place, ".parquet")]
    return pl.concat(found).filter(pl.col("transaction_id").is_not_null()).drop("filing_id") if found else None


def filing_scores(_: Settings) -> pl.DataFrame | None:
    """Scores of filings."""
    if not _exists("ensemble", "filing_scores", ".parquet"):
        return None
    return tables.read_table("ensemble", "filing_scores").drop("transaction_id")


def features(settings: Settings) -> pl.DataFrame | None:
    """Feature rows of alerts, of the scored test period, or of every transaction."""
    if settings.features_of == "none" or not _exists("featurize", "features", ".parquet"):
        return None
    lazy = tables.scan_table("featurize", "features")
    if settings.features_of == "all":
        return lazy.collect()
    if settings.features_of == "alerts":
        wanted = _ids("evaluate", "alerts", pl.lit(value=True))
    else:
        wanted = _ids("split", "splits", pl.col("split") == "test")
    return lazy.filter(pl.col("transaction_id").is_in(wanted.implode())).collect()


def _ids(stage: str, name: str, chosen: pl.Expr) -> pl.Series:
    if not _exists(stage, name, ".parquet"):
        return pl.Series("transaction_id", [], dtype=pl.String)
    return tables.scan_table(stage, name).filter(chosen).select("transaction_id").collect()["transaction_id"]


def dictionary(_: Settings) -> pl.DataFrame | None:
    """The feature dictionary, one row per KPI column."""
    entries = _document("featurize", "dictionary")
    return None if entries is None else rows_frame(entries, DICTIONARY)


def metrics(_: Settings) -> pl.DataFrame | None:
    """`<detector>.<metric>` with estimate and interval, one row each."""
    document = _document("evaluate", "metrics")
    if document is None:
        return None
    rows = [
        {"detector": detector, "metric": metric, **value}
        for detector, metrics in sorted(document.items())
        if isinstance(metrics, Mapping)
        for metric, value in sorted(metrics.items())
        if isinstance(value, Mapping)
    ]
    return rows_frame(rows, METRICS)


def evaluation(_: Settings) -> pl.DataFrame | None:
    """The rows of every table that the evaluation made, each as a document."""
    document = _document("evaluate", "tables")
    if document is None:
        return None
    rows = [
        {"topic": topic, "position": position, "detector": record.get("detector"), "record": record}
        for topic, records in sorted(document.items())
        if isinstance(records, list)
        for position, record in enumerate(records)
        if isinstance(record, Mapping)
    ]
    return rows_frame(rows, EVALUATION)


def receipts(_: Settings) -> pl.DataFrame | None:
    """One row per explained alert, with its whole receipt."""
    document = _document("explain", "receipts")
    if document is None:
        return None
    receipts = document["receipts"] if isinstance(document, Mapping) else document
    rows = [{"transaction_id": receipt["transaction"]["transaction_id"], **receipt} for receipt in receipts]
    return rows_frame(rows, RECEIPTS, rest="receipt")


def trials(settings: Settings) -> pl.DataFrame | None:
    """Every trial of every detector's search."""
    rows = []
    for detector in settings.detectors:
        document = _document(f"tune/{detector}", "trials") or []
        trials = document["trials"] if isinstance(document, Mapping) else document
        rows += [{"detector": detector, **trial} for trial in trials]
    return rows_frame(rows, TRIALS, rest="trial") if rows else None


def models(settings: Settings) -> pl.DataFrame | None:
    """How each detector of this run, and the ensemble, was fitted."""
    places = [(name, f"train/{name}", "fit") for name in settings.detectors] + [("ensemble", "ensemble", "model")]
    rows = [{"detector": name, "model": _document(stage, file)} for name, stage, file in places]
    found = [row for row in rows if row["model"] is not None]
    return rows_frame(found, MODELS) if found else None


def triggers(_: Settings) -> pl.DataFrame | None:
    """Monitoring rules with their state."""
    document = _document("monitor", "triggers")
    if document is None:
        return None
    triggers = document["triggers"] if isinstance(document, Mapping) else document
    rows = [{**one, "warn_limit": one.get("limit")} for one in triggers]  # LIMIT is a word of SQL's own
    return rows_frame(rows, TRIGGERS)


def quality(_: Settings) -> pl.DataFrame | None:
    """Figures of quality, thresholds and forecasts, each under its document and its path in it."""
    rows: list[dict[str, Any]] = []
    for stage, name in QUALITY_DOCUMENTS:
        document = _document(stage, name)
        if document is not None:
            rows += [{"document": f"{stage}/{name}", **leaf} for leaf in leaves(document)]
    return rows_frame(rows, QUALITY) if rows else None


def leaves(document: Any, path: str = "") -> list[dict[str, Any]]:
    """Every plain value of a JSON document with its dotted path."""
    if isinstance(document, Mapping | list) and document:
        pairs = document.items() if isinstance(document, Mapping) else enumerate(document)
        return [leaf for key, value in pairs for leaf in leaves(value, f"{path}.{key}" if path else str(key))]
    number = float(document) if isinstance(document, int | float) and not isinstance(document, bool) else None
    return [{"path": path, "number": number, "text": None if document is None else _value(document, pl.String)}]


def as_json(value: Any) -> str | None:
    """A value as JSON text that PostgreSQL takes."""
    if value is None:
        return None
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=_plain_value)
    return text.replace("\\u0000", NUL_SYMBOL)


def _plain_value(value: Any) -> Any:
    return value.to_list() if isinstance(value, pl.Series) else str(value)
