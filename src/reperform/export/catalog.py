"""What is exported: every table with its source, key and columns, and every view."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from reperform import schemas
from reperform.errors import ReperformError
from reperform.export import sources
from reperform.export.sources import NUL, NUL_SYMBOL, UTC_US, Columns
from reperform.params import ExportParams, TrainParams

# Sums of float8 depend on the order of rows, so amounts become numeric: the very decimal number that the float shows.
AMOUNTS = frozenset(
    ["amount", "amount_base", "amount_in", "amount_out", "balance_after", "balance_end", "computed", "gap", "reported"]
)
POSITION = "position"


@dataclass(frozen=True)
class Table:
    """One table of the database.

    Args:
        name: its name there.
        source: the outputs that it is made of, for people.
        comment: what a row is.
        key: columns that tell rows apart; `position`, the row's number in its source, where nothing else does.
        columns: those that are there even when the source is absent, with their Polars types; more may follow.
        read: its rows; None when its source is absent.
        documents: text columns that hold JSON.
        indexes: columns to search by, beside the key.
    """

    name: str
    source: str
    comment: str
    key: tuple[str, ...]
    columns: Columns
    read: sources.Reader
    documents: frozenset[str] = frozenset()
    indexes: tuple[tuple[str, ...], ...] = ()

    def type_of(self, column: str, dtype: Any) -> str:
        """PostgreSQL's type for a column of a prepared frame."""
        if column in self.documents:
            return "jsonb"
        if column in AMOUNTS and dtype == pl.Float64:
            return "numeric"
        return POSTGRES_TYPES[dtype]


@dataclass(frozen=True)
class View:
    """One view: `sql/<name>.sql` holds its query."""

    name: str
    comment: str


POSTGRES_TYPES: dict[Any, str] = {
    pl.String(): "text",
    pl.Float64(): "double precision",
    pl.Int64(): "bigint",
    pl.Boolean(): "boolean",
    pl.Date(): "date",
    UTC_US: "timestamp with time zone",
}


def frames(export: ExportParams, train: TrainParams) -> list[tuple[Table, pl.DataFrame]]:
    """Every table with the rows that it is to hold; a table whose source is absent has none."""
    settings = sources.Settings(detectors=train.detectors, features_of=export.features_of)
    return [(table, prepared(table, table.read(settings))) for table in TABLES]


def prepared(table: Table, frame: pl.DataFrame | None) -> pl.DataFrame:
    """The frame in types that PostgreSQL knows.

    Raises:
        ReperformError: for a missing column, or an amount that is not finite.
    """
    if frame is None:
        frame = pl.DataFrame(schema=dict(table.columns))
    missing = [name for name in table.columns if name not in frame.columns and name != POSITION]
    if missing:
        raise ReperformError(
            f"Table {table.name} lacks columns that the views need.",
            expected=", ".join(table.columns),
            got=f"no {', '.join(missing)}",
            where=table.source,
            fix="run the stage that makes it again (`dvc repro`)",
        )
    if table.key == (POSITION,) and POSITION not in frame.columns:
        frame = frame.with_row_index(POSITION)
    frame = frame.with_columns(_plain(frame[name]) for name in frame.columns)
    _check_amounts(table, frame)
    return frame


def _plain(column: pl.Series) -> pl.Series:
    """A column as one of `POSTGRES_TYPES`; nested values become JSON."""
    dtype = column.dtype
    if dtype.is_nested() or dtype == pl.Object:
        return pl.Series(column.name, [sources.as_json(value) for value in column.to_list()], dtype=pl.String)
    if dtype.is_integer():
        return column.cast(pl.Int64)
    if dtype.is_float() or dtype.is_decimal():
        return column.cast(pl.Float64)
    if isinstance(dtype, pl.Datetime):
        return (column if dtype.time_zone else column.dt.replace_time_zone("UTC")).cast(UTC_US)
    if dtype in (pl.Boolean, pl.Date):
        return column
    return column.cast(pl.String).str.replace_all(NUL, NUL_SYMBOL, literal=True)


def _check_amounts(table: Table, frame: pl.DataFrame) -> None:
    for name in frame.columns:
        if name in AMOUNTS and frame[name].dtype == pl.Float64 and not frame[name].drop_nulls().is_finite().all():
            raise ReperformError(
                f"Table {table.name} holds an amount that is no number.",
                expected="finite amounts; unknown ones are null",
                got="NaN or an infinite value",
                where=f"{table.source}, column {name}",
                fix="mend the stage that made it",
            )


def _without(schema: Any, *names: str) -> Columns:
    return {name: dtype for name, dtype in schemas.polars_schema(schema).items() if name not in names}


def _canonical(schema: Any, comment: str, key: tuple[str, ...], indexes: tuple[tuple[str, ...], ...] = ()) -> Table:
    name = str(schema.name)
    columns = schemas.polars_schema(schema)
    return Table(
        name, f"data/validate/{name}.parquet", comment, key, columns, sources.parquet("validate", name), indexes=indexes
    )


TABLES = (
    _canonical(
        schemas.TRANSACTIONS,
        "Transactions that met their contract, one row each.",
        ("transaction_id",),
        indexes=(("account_id", "booked_at"), ("counterparty_id",)),
    ),
    _canonical(schemas.ACCOUNTS, "Accounts of the reporting institutions.", ("account_id",)),
    _canonical(
        schemas.LABELS, "What case handling has confirmed so far, reviewed and normal included.", ("transaction_id",)
    ),
    _canonical(schemas.FILINGS, "Regulatory filings that were received, one row per version.", ("filing_id",)),
    _canonical(schemas.FACTS, "Facts as reported in the filings.", (POSITION,), indexes=(("filing_id", "concept"),)),
    _canonical(schemas.MESSAGES, "What the reader of the filings had to say about them.", (POSITION,)),
    _canonical(
        schemas.CHECKS, "What the taxonomy's rules said of each filing.", (POSITION,), indexes=(("filing_id",),)
    ),
    Table(
        "quarantine",
        "data/ingest/quarantine.parquet and data/validate/quarantine.parquet",
        "Records that ingest could not read and rows that validate refused, with rule, value and origin.",
        (POSITION,),
        schemas.polars_schema(schemas.QUARANTINE),
        sources.quarantine,
    ),
    Table(
        "splits",
        "data/split/splits.parquet",
        "Which part of the calendar a transaction belongs to.",
        ("transaction_id",),
        schemas.polars_schema(schemas.SPLIT_ROWS),
        sources.parquet("split", "splits"),
    ),
    Table(
        "features",
        "data/featurize/features.parquet",
        "KPI values as known at each transaction's moment. The Parquet file holds every transaction; "
        "export.features_of says whose rows are here.",
        ("transaction_id",),
        sources.FEATURES,
        sources.features,
    ),
    Table(
        "feature_dictionary",
        "data/featurize/dictionary.json",
        "What every KPI column means: formula, window, unit, inputs, and when it is unknown.",
        ("name",),
        sources.DICTIONARY,
        sources.dictionary,
        documents=frozenset(["windows", "inputs", "quantiles"]),
    ),
    Table(
        "account_days",
        "data/featurize/account_days.parquet",
        "One row per account and day with its flows and closing balance.",
        ("account_id", "day"),
        sources.ACCOUNT_DAYS,
        sources.parquet("featurize", "account_days"),
    ),
    Table(
        "filing_kpis",
        "data/featurize/filing_kpis.parquet",
        "Completeness and consistency of each filing (KPIs 9 and 10).",
        ("filing_id",),
        sources.FILING_KPIS,
        sources.parquet("featurize", "filing_kpis"),
    ),
    Table(
        "filing_checks",
        "data/featurize/filing_checks.parquet",
        "Every rule that KPIs 9 and 10 count: the taxonomy's own, and comparisons with the ledger and earlier filings.",
        (POSITION,),
        schemas.polars_schema(schemas.CHECKS),
        sources.parquet("featurize", "filing_checks"),
        indexes=(("filing_id",),),
    ),
    Table(
        "filing_bridge",
        "data/featurize/filing_bridge.parquet",
        "What would explain that a ledger total of a filing differs from its transactions, the best explanation first.",
        ("filing_id", "concept", "dimensions", "unit", "rank"),
        schemas.FILING_BRIDGE,
        sources.parquet("featurize", "filing_bridge"),
    ),
    Table(
        "scores",
        "data/train/*/scores.parquet, data/ensemble/scores.parquet",
        "Scores of every detector and of the ensemble; higher is more anomalous.",
        ("transaction_id", "detector"),
        _without(schemas.SCORES, "filing_id"),
        sources.scores,
    ),
    Table(
        "filing_scores",
        "data/ensemble/filing_scores.parquet",
        "Scores of filings; higher is more anomalous.",
        ("filing_id", "detector"),
        _without(schemas.SCORES, "transaction_id"),
        sources.filing_scores,
    ),
    Table(
        "models",
        "data/train/*/fit.json, data/ensemble/model.json",
        "How each detector was fitted: features, parameters, seed, rows seen and rows left out.",
        ("detector",),
        sources.MODELS,
        sources.models,
        documents=frozenset(["model"]),
    ),
    Table(
        "tuning_trials",
        "data/tune/*/trials.json",
        "Every trial of the search for a detector's parameters, the poor ones included.",
        ("detector", "number"),
        sources.TRIALS,
        sources.trials,
        documents=frozenset(["trial"]),
    ),
    Table(
        "metrics",
        "data/evaluate/metrics.json",
        "How well each detector finds anomalies at true prevalence, with intervals.",
        ("detector", "metric"),
        sources.METRICS,
        sources.metrics,
    ),
    Table(
        "curves",
        "data/evaluate/curves.parquet",
        "Points of the curves that the evaluation draws.",
        (POSITION,),
        {"detector": pl.String, "curve": pl.String, "x": pl.Float64, "y": pl.Float64},
        sources.parquet("evaluate", "curves"),
    ),
    Table(
        "evaluation",
        "data/evaluate/tables.json",
        "Rows of the evaluation's tables: per typology, day, segment and institution, costs, comparisons, and more.",
        ("topic", "position"),
        sources.EVALUATION,
        sources.evaluation,
        documents=frozenset(["record"]),
    ),
    Table(
        "outcomes",
        "data/evaluate/outcomes.parquet",
        "Every transaction of the test period: scored, raised or not, and what it was in truth.",
        ("transaction_id",),
        sources.OUTCOMES,
        sources.parquet("evaluate", "outcomes"),
    ),
    Table(
        "alerts",
        "data/evaluate/alerts.parquet",
        "Alerts of the ensemble in the test period, best first.",
        ("transaction_id",),
        sources.ALERTS,
        sources.parquet("evaluate", "alerts"),
    ),
    Table(
        "attributions",
        "data/explain/attributions.parquet",
        "How much each feature moved an alert's score, by SHAP and by LIME.",
        ("transaction_id", "detector", "method", "feature"),
        sources.ATTRIBUTIONS,
        sources.parquet("explain", "attributions"),
    ),
    Table(
        "alert_members",
        "data/explain/members.parquet",
        "How much each member of the ensemble moved an alert's score.",
        ("transaction_id", "member"),
        sources.MEMBERS,
        sources.parquet("explain", "members"),
    ),
    Table(
        "importance",
        "data/explain/importance.parquet",
        "How much each feature moves scores on average, among alerts and among ordinary transactions.",
        ("population", "detector", "feature"),
        sources.IMPORTANCE,
        sources.parquet("explain", "importance"),
    ),
    Table(
        "explainability",
        "data/explain/explainability.parquet",
        "How far each explanation can be trusted (KPI 15), with its components.",
        ("population", "transaction_id", "detector"),
        sources.EXPLAINABILITY,
        sources.parquet("explain", "explainability"),
    ),
    Table(
        "receipts",
        "data/explain/receipts.json",
        "Why each alert was raised, in words and as a document.",
        ("transaction_id",),
        sources.RECEIPTS,
        sources.receipts,
        documents=frozenset(["receipt"]),
    ),
    Table(
        "forecasts",
        "data/forecast/forecasts.parquet",
        "Forecasts from several origins with their intervals, and what came.",
        ("series", "model", "origin", "day"),
        sources.FORECASTS,
        sources.parquet("forecast", "forecasts"),
    ),
    Table(
        "account_risk",
        "data/forecast/account_risk.parquet",
        "How likely each account is to have a confirmed anomaly within so many days (KPI 14).",
        ("account_id", "snapshot", "model", "horizon_days"),
        sources.ACCOUNT_RISK,
        sources.parquet("forecast", "account_risk"),
    ),
    Table(
        "drift",
        "data/monitor/drift.parquet",
        "How far data, scores and performance of the current window are from the reference.",
        ("kind", "name"),
        sources.DRIFT,
        sources.parquet("monitor", "drift"),
    ),
    Table(
        "triggers",
        "data/monitor/triggers.json",
        "Rules of monitoring, and whether they call for action.",
        ("rule",),
        sources.TRIGGERS,
        sources.triggers,
        documents=frozenset(["names"]),
    ),
    Table(
        "quality_days",
        "data/validate/quality_days.parquet",
        "How much each institution sent per day, and how late.",
        ("entity_id", "day"),
        sources.QUALITY_DAYS,
        sources.parquet("validate", "quality_days"),
    ),
    Table(
        "quality_findings",
        "data/validate/findings.parquet",
        "What a data owner should look at: broken row rules by file, and feeds that are not as they were.",
        (POSITION,),
        schemas.polars_schema(schemas.FINDINGS),
        sources.parquet("validate", "findings"),
        indexes=(("source", "day"),),
    ),
    Table(
        "quality_mixes",
        "data/validate/quality_mixes.parquet",
        "How an institution's rows spread over hours, weekdays, channels, currencies, countries and amounts, by month.",
        (POSITION,),
        schemas.polars_schema(schemas.QUALITY_MIXES),
        sources.parquet("validate", "quality_mixes"),
        indexes=(("entity_id", "kind"),),
    ),
    Table(
        "quality",
        ", ".join(f"data/{stage}/{name}.json" for stage, name in sources.QUALITY_DOCUMENTS),
        "Every figure of the listed documents under its path.",
        ("document", "path"),
        sources.QUALITY,
        sources.quality,
    ),
)
VIEWS = (
    View("v_alert_reasons", "Each alert's features by SHAP and LIME, with what the feature means."),
    View("v_alerts", "Each alert with its transaction, probability and three strongest reasons."),
    View("v_detector_metrics", "Each detector's metrics with intervals, beside those of the rules."),
    View("v_daily_volume", "Transactions, amounts, alerts and confirmed anomalies per day and institution."),
    View("v_filing_scores", "Each filing with its score, completeness, consistency and lateness."),
    View("v_quarantine_summary", "Refused rows by table, rule and source file."),
    View("v_open_triggers", "Monitoring rules that call for a look."),
)
