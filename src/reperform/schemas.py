"""Contracts between stages: one pandera schema for every canonical table. The only module that builds them."""

from typing import Any

import pandera.polars as pa
import polars as pl
from pandera.errors import SchemaError, SchemaErrors

from reperform.errors import ReperformError

UTC_US = pl.Datetime("us", "UTC")
DIRECTIONS = ("in", "out")
SPLITS = ("history", "train", "validation", "delay", "test", "later")
SEVERITIES = ("info", "warning", "error", "inconsistency")


def _text(*checks: pa.Check, nullable: bool = False, unique: bool = False) -> pa.Column:
    return pa.Column(pl.String, list(checks), nullable=nullable, unique=unique)


def _time(*, nullable: bool = False) -> pa.Column:
    return pa.Column(UTC_US, nullable=nullable)


def _number(*checks: pa.Check, nullable: bool = False) -> pa.Column:
    return pa.Column(pl.Float64, list(checks), nullable=nullable)


def _schema(name: str, columns: dict[str, pa.Column]) -> pa.DataFrameSchema:
    return pa.DataFrameSchema(columns, name=name, strict=True, ordered=True)


TRANSACTIONS = _schema(
    "transactions",
    {
        "transaction_id": _text(unique=True),
        "booked_at": _time(),
        "known_at": _time(),
        "account_id": _text(),
        "counterparty_id": _text(nullable=True),
        "entity_id": _text(),
        "direction": _text(pa.Check.isin(DIRECTIONS)),
        "amount": _number(pa.Check.gt(0)),
        "currency": _text(pa.Check.str_matches(r"^[A-Z]{3}$")),
        "amount_base": _number(pa.Check.gt(0)),
        "channel": _text(nullable=True),
        "country": _text(pa.Check.str_matches(r"^[A-Z]{2}$"), nullable=True),
        "latitude": _number(pa.Check.in_range(-90, 90), nullable=True),
        "longitude": _number(pa.Check.in_range(-180, 180), nullable=True),
        "balance_after": _number(nullable=True),
        "source_file": _text(),
        "source_record": pa.Column(pl.Int64, pa.Check.ge(0)),
    },
)
PAYMENT_DETAILS = _schema(
    # What payment messages tell beyond the transaction itself. One row for each transaction of such a message, none for
    # those of other sources; source_file and source_record lead back to the transaction's own row.
    "payment_details",
    {
        "transaction_id": _text(unique=True),
        "message": _text(),
        "message_id": _text(nullable=True),
        "statement_id": _text(nullable=True),
        "entry_reference": _text(nullable=True),
        "servicer_reference": _text(nullable=True),
        "instruction_id": _text(nullable=True),
        "end_to_end_id": _text(nullable=True),
        "uetr": _text(nullable=True),
        "mandate_id": _text(nullable=True),
        "structured_reference": _text(nullable=True),
        "remittance": _text(nullable=True),
        "value_date": pa.Column(pl.Date, nullable=True),
        "debtor_name": _text(nullable=True),
        "creditor_name": _text(nullable=True),
        "charges": _number(nullable=True),
        "charges_currency": _text(nullable=True),
        "instructed_amount": _number(nullable=True),
        "instructed_currency": _text(nullable=True),
        "exchange_rate": _number(nullable=True),
        "is_reversal": pa.Column(pl.Boolean),
        "n_in_batch": pa.Column(pl.Int64, pa.Check.ge(1)),
        "source_file": _text(),
        "source_record": pa.Column(pl.Int64, pa.Check.ge(0)),
    },
)
LABELS = _schema(
    "labels",
    {
        "transaction_id": _text(unique=True),
        "is_anomaly": pa.Column(pl.Boolean),
        "typology": _text(nullable=True),
        "confirmed_at": _time(),
    },
)
ACCOUNTS = _schema(
    "accounts",
    {
        "account_id": _text(unique=True),
        "entity_id": _text(),
        "opened_at": _time(nullable=True),
        "timezone": _text(nullable=True),
        "segment": _text(nullable=True),
        "home_country": _text(pa.Check.str_matches(r"^[A-Z]{2}$"), nullable=True),
    },
)
FILINGS = _schema(
    "filings",
    {
        "filing_id": _text(unique=True),
        "entity_id": _text(),
        "form": _text(),
        "period_start": pa.Column(pl.Date, nullable=True),
        "period_end": pa.Column(pl.Date),
        "due_at": _time(nullable=True),
        "filed_at": _time(),
        "source_file": _text(),
    },
)
FACTS = _schema(
    "facts",
    {
        "filing_id": _text(),
        "concept": _text(),
        "period_start": pa.Column(pl.Date, nullable=True),
        "period_end": pa.Column(pl.Date, nullable=True),
        "unit": _text(nullable=True),
        "decimals": _text(nullable=True),
        "value": _text(nullable=True),
        "is_nil": pa.Column(pl.Boolean),
        "dimensions": _text(),
        "source_line": pa.Column(pl.Int64, nullable=True),
        "footnotes": pa.Column(pl.String, nullable=True, required=False),  # facts saved by earlier versions have none
    },
)
MESSAGES = _schema(
    "messages",
    {
        "filing_id": _text(),
        "code": _text(),
        "severity": _text(pa.Check.isin(SEVERITIES)),
        "text": _text(),
        "source_line": pa.Column(pl.Int64, nullable=True),
    },
)
CHECKS = _schema(
    # What the taxonomy's own rules said of each filing: the denominators and the gaps behind KPIs 9 and 10.
    "checks",
    {
        "filing_id": _text(),
        "family": _text(pa.Check.isin(("required", "calculation", "assertion", "balance", "ledger", "prior"))),
        "rule": _text(),
        "is_evaluable": pa.Column(pl.Boolean),
        "is_satisfied": pa.Column(pl.Boolean, nullable=True),
        "reported": _number(nullable=True),
        "computed": _number(nullable=True),
        "gap": _number(nullable=True),
        "detail": _text(nullable=True),
    },
)
QUARANTINE = _schema(
    "quarantine",
    {
        "table": _text(),
        "source_file": _text(),
        "source_record": pa.Column(pl.Int64),
        "rule": _text(),
        "column": _text(nullable=True),
        "value": _text(nullable=True),
        "row": _text(),
    },
)
ORIGINS = _schema(
    # Where rows of tables without columns for it were read; `key` is the table's own key.
    "origins",
    {
        "table": _text(),
        "key": _text(),
        "source_file": _text(),
        "source_record": pa.Column(pl.Int64, pa.Check.ge(0)),
    },
)
FINDINGS = _schema(
    # What a data owner should look at: broken row rules by file, and feeds that are not as they were.
    "findings",
    {
        "source": _text(),
        "file": _text(),
        "day": pa.Column(pl.Date, nullable=True),
        "table": _text(),
        "rule": _text(),
        "severity": _text(pa.Check.isin(("warn", "quarantine", "stop"))),
        "rows": pa.Column(pl.Int64, pa.Check.ge(0)),
        "observed": _text(),
        "expected": _text(),
        "fix": _text(),
    },
)
QUALITY_DAYS = _schema(
    # What arrived from whom on which UTC day of booking: gaps and jumps of a feed show here.
    "quality_days",
    {
        "entity_id": _text(),
        "day": pa.Column(pl.Date),
        "n_transactions": pa.Column(pl.Int64, pa.Check.gt(0)),
        "n_accounts": pa.Column(pl.Int64, pa.Check.gt(0)),
        "amount_base": _number(pa.Check.ge(0)),
        "median_lateness_hours": _number(),
    },
)
QUALITY_MIXES = _schema(
    # How rows of an entity spread over hours, weekdays, channels, currencies, countries and amounts, month by month.
    "quality_mixes",
    {
        "entity_id": _text(),
        "month": _text(pa.Check.str_matches(r"^\d{4}-\d{2}$")),
        "kind": _text(pa.Check.isin(("hour", "weekday", "channel", "currency", "country", "amount_quantile"))),
        "value": _text(),
        "n": pa.Column(pl.Int64, pa.Check.ge(0)),
        "share": _number(nullable=True),
        "amount": _number(nullable=True),
    },
)
RATES = _schema(
    # Exchange rates as they were published; ingest uses them and hands no table of them on.
    "rates",
    {
        "currency": _text(),
        "rate_to_base": _number(pa.Check.gt(0)),
        "published_at": _time(),
    },
)
SPLIT_ROWS = _schema(
    "splits",
    {
        "transaction_id": _text(unique=True),
        "split": _text(pa.Check.isin(SPLITS)),
    },
)
SCORES = _schema(
    "scores",
    {
        "transaction_id": _text(nullable=True),
        "filing_id": _text(nullable=True),
        "split": _text(pa.Check.isin(SPLITS)),
        "detector": _text(),
        "score": _number(),
        "probability": _number(pa.Check.in_range(0, 1), nullable=True),
        "is_alert": pa.Column(pl.Boolean, nullable=True),
    },
)

CANONICAL = {schema.name: schema for schema in (TRANSACTIONS, LABELS, ACCOUNTS, FILINGS, FACTS, MESSAGES, CHECKS)}


def polars_schema(schema: pa.DataFrameSchema) -> dict[str, Any]:
    """Column names and Polars types of a contract."""
    return {name: column.dtype.type for name, column in schema.columns.items()}


def empty(schema: pa.DataFrameSchema) -> pl.DataFrame:
    """A frame without rows that meets a contract."""
    return pl.DataFrame(schema=polars_schema(schema))


def shaped(frame: pl.DataFrame, schema: pa.DataFrameSchema) -> pl.DataFrame:
    """The same frame, when its columns have the names, order and types of a contract; values are not looked at.

    Raises:
        ReperformError: naming the table and the first difference.
    """
    optional = {name for name, column in schema.columns.items() if not column.required}
    wanted = {n: kind for n, kind in polars_schema(schema).items() if n in frame.columns or n not in optional}
    if list(frame.schema.items()) != list(wanted.items()):
        differing = [f"{name}: {frame.schema.get(name)}" for name in wanted if frame.schema.get(name) != wanted[name]]
        raise ReperformError(
            f"Table {schema.name} has not the columns of its contract.",
            expected=", ".join(f"{name}: {kind}" for name, kind in wanted.items()),
            got=", ".join(differing) or f"another order or more columns: {', '.join(frame.columns)}",
            where=f"table {schema.name}",
            fix="mend the stage that made it",
        )
    return frame


def checked(frame: pl.DataFrame, schema: pa.DataFrameSchema) -> pl.DataFrame:
    """The same frame, when it meets its contract.

    Raises:
        ReperformError: naming the table, the column, the rule and examples.
    """
    try:
        return schema.validate(frame, lazy=True)
    except (SchemaErrors, SchemaError) as error:
        cases = getattr(error, "failure_cases", None)
        raise ReperformError(
            f"Table {schema.name} breaks its contract.",
            expected="columns, types and values as in reperform/schemas.py",
            got=str(cases.head(5).to_dicts() if isinstance(cases, pl.DataFrame) else cases)[:500],
            where=f"table {schema.name}, {frame.height} rows",
            fix="mend the stage that made it; rows from outside are quarantined by stage validate",
        ) from error


# What would explain that a ledger total of a filing differs from its transactions; see featurize/bridge.py.
FILING_BRIDGE: dict[str, Any] = {
    "filing_id": pl.String,
    "entity_id": pl.String,
    "filed_at": UTC_US,
    "concept": pl.String,
    "dimensions": pl.String,
    "unit": pl.String,
    "filed": pl.Float64,
    "ledger": pl.Float64,
    "gap": pl.Float64,
    "rank": pl.Int64,
    "explanation": pl.String,
    "detail": pl.String,
    "day": pl.Date,
    "n_transactions": pl.Int64,
    "transaction_ids": pl.String,
    "amount_explained": pl.Float64,
    "share_explained": pl.Float64,
    "lines_explained": pl.Int64,
    "lines_failed": pl.Int64,
    "is_known_at_filing": pl.Boolean,
}
