"""What the records that ingest refused say about their file."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from reperform.feeds.finding import FeedFinding

CUT_OFF = ("wrong_number_of_fields", "malformed_quotes", "missing_value", "bad_number", "bad_time")
TOTAL = r"(?i)\b(total|totals|subtotal|sum|summe|gesamt|gesamtsumme|somme|totale)\b"
STATEMENTS = "statement."
RULE_OF_FILES = "file_"
_WHOLE = {"file_duplicate": "file_delivered_twice"}


def with_source(refused: pl.DataFrame, source_of: Mapping[str, str]) -> pl.DataFrame:
    """The quarantine of ingest with the source that each file belongs to."""
    return refused.with_columns(
        source=pl.col("source_file").replace_strict(dict(source_of), default="unknown", return_dtype=pl.String)
    )


def findings(refused: pl.DataFrame, receipt: Mapping[str, Any]) -> list[FeedFinding]:
    """One finding for each file, rule and column of which records were refused.

    Args:
        refused: the quarantine of ingest with `source`.
        receipt: the receipt of ingest.
    """
    records = {
        file["path"]: file.get("records", 0)
        for s in receipt["sources"].values()
        for file in s["files"]
        if "path" in file
    }
    last = pl.col("source_file").replace_strict(records, default=-1, return_dtype=pl.Int64) == pl.col("source_record")
    kind = (
        pl.when(pl.col("rule") == "file_duplicate").then(pl.lit("file_delivered_twice"))
        .when(pl.col("rule").str.starts_with(RULE_OF_FILES)).then(pl.lit("file_unreadable"))
        .when(pl.col("rule") == "duplicate_id").then(pl.lit("rows_delivered_twice"))
        .when(pl.col("row").str.contains(TOTAL)).then(pl.lit("total_row"))
        .when(_like_a_header()).then(pl.lit("header_repeated"))
        .when(last & pl.col("rule").is_in(CUT_OFF)).then(pl.lit("truncated_file"))
        .otherwise(pl.lit("records_refused"))
    )  # fmt: skip
    by = ["source", "source_file", "table", "kind", "rule", "column"]
    grouped = refused.with_columns(kind=kind).group_by(by).agg(
        n=pl.len(), value=pl.col("value").drop_nulls().min(), record=pl.col("source_record").min()
    )  # fmt: skip
    return [_finding(row) for row in grouped.sort(by).iter_rows(named=True)]


def _like_a_header() -> pl.Expr:
    """A record without one digit: every real one has an amount and a time."""
    return (
        ~pl.col("row").str.contains(r"\d") & (pl.col("row").str.len_chars() > 0) & (pl.col("table") == "transactions")
    )


def _finding(row: Mapping[str, Any]) -> FeedFinding:
    where = f" in {row['column']}" if row["column"] else ""
    such = f", such as {row['value']!r}" if row["value"] else ""
    at = f", first at record {row['record']}" if row["record"] else ""
    observed = f"{row['n']:,} refused by ingest: {row['rule']}{where}{such}{at}"
    file = row["source_file"]
    return FeedFinding(row["source"], row["kind"], file, row["n"], observed, "none", table=row["table"], files=(file,))


def statements(messages: pl.DataFrame, source_of: Mapping[str, str]) -> list[FeedFinding]:
    """Statements whose balances, entries or sequence do not agree: one finding for each file and kind.

    Args:
        messages: as ingested; `filing_id` of a statement is its file and its number.
        source_of: from raw files to their sources.
    """
    told = messages.filter(pl.col("code").str.starts_with(STATEMENTS) & (pl.col("severity") != "info"))
    grouped = (
        told.with_columns(file=pl.col("filing_id").str.extract(r"^([^#]+)", 1))
        .group_by("file", "code", maintain_order=True)
        .agg(n=pl.len(), text=pl.col("text").first())
        .sort("file", "code")
    )
    return [
        FeedFinding(
            source_of.get(row["file"], row["file"]), "statement_balance", row["file"], row["n"],
            f"{row['code']}: {row['text']}", "none", table="messages", files=(row["file"],),
        )
        for row in grouped.iter_rows(named=True)
    ]  # fmt: skip
