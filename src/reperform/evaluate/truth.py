"""What is true of each test row: what was planted, or what confirmed labels say once they are mature."""

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from reperform import schemas
from reperform.metrics import Bools

TRUTH_COLUMNS = ("is_anomaly", "typology", "event_id", "event_started_at")


def planted_truth(rows: pl.DataFrame, truth: pl.DataFrame, booked: pl.DataFrame) -> pl.DataFrame:
    """Rows with what the simulation planted: is_anomaly (never null), typology, event_id, event_started_at.

    Args:
        rows: transactions.
        truth: transaction_id, typology, event_id of the planted ones.
        booked: transaction_id, booked_at of every transaction, because an event may begin before `rows` do.
    """
    planted = (
        truth.select("transaction_id", "typology", "event_id", is_anomaly=pl.lit(value=True))
        .join(booked.select("transaction_id", "booked_at"), on="transaction_id", how="left", maintain_order="left")
        .with_columns(pl.col("booked_at").min().over("event_id").alias("event_started_at"))
        .drop("booked_at")
    )
    joined = rows.join(planted, on="transaction_id", how="left", maintain_order="left")
    return joined.with_columns(pl.col("is_anomaly").fill_null(value=False)).select(*rows.columns, *TRUTH_COLUMNS)


def label_truth(rows: pl.DataFrame, labels: pl.DataFrame, *, known_at: datetime, maturity_days: int) -> pl.DataFrame:
    """Rows with what confirmed labels say: is_anomaly, typology, event_id, event_started_at; null where unknown.

    Without a label, a transaction counts as normal once it is mature. Labels name no events: anomalies of one
    typology on one account are taken as one.

    Args:
        rows: transactions.
        labels: as `schemas.LABELS`.
        known_at: when the truth is looked at.
        maturity_days: age from which a transaction without a label counts as normal.
    """
    known = labels.filter(pl.col("confirmed_at") < pl.lit(known_at, schemas.UTC_US))
    joined = rows.join(
        known.select("transaction_id", "is_anomaly", "typology"),
        on="transaction_id",
        how="left",
        maintain_order="left",
    )
    mature = pl.col("booked_at") + pl.duration(days=maturity_days) <= pl.lit(known_at, schemas.UTC_US)
    is_anomaly = pl.coalesce("is_anomaly", pl.when(mature).then(pl.lit(value=False)))
    event = pl.when(is_anomaly).then(pl.format("{}: {}", "account_id", pl.col("typology").fill_null("anomaly")))
    return (
        joined.with_columns(is_anomaly=is_anomaly, event_id=event)
        .with_columns(pl.col("booked_at").filter("is_anomaly").min().over("event_id").alias("event_started_at"))
        .select(*rows.columns, *TRUTH_COLUMNS)
    )


def knowledge_end(transactions: pl.DataFrame, labels: pl.DataFrame, default: datetime) -> datetime:
    """The first midnight (UTC) after everything that is in the data, because nothing later can be known.

    Args:
        transactions: with known_at.
        labels: with confirmed_at.
        default: what to take when both are empty.
    """
    moments: list[Any] = [transactions["known_at"].max(), labels["confirmed_at"].max()]
    last = max((moment for moment in moments if moment is not None), default=None)
    if last is None:
        return default
    return datetime.combine(last.date() + timedelta(days=1), datetime.min.time(), tzinfo=last.tzinfo)


def known_compromised(rows: pl.DataFrame, labels: pl.DataFrame, accounts_of: pl.DataFrame, since: datetime) -> Bools:
    """Rows of accounts that were known to be compromised when their day began.

    The handbook's protocol leaves them out of the test: a bank has blocked such a card already.

    Args:
        rows: test rows with booked_at and account_id.
        labels: confirmed labels.
        accounts_of: transaction_id, account_id, booked_at of every transaction.
        since: anomalies booked before this moment no longer count.

    Returns:
        Shape (rows,).
    """
    known = (
        labels.filter("is_anomaly")
        .select("transaction_id", "confirmed_at")
        .join(accounts_of, on="transaction_id", how="inner", maintain_order="left")
        .filter(pl.col("booked_at") >= pl.lit(since, schemas.UTC_US))
        .sort("account_id", "confirmed_at")
        .group_by("account_id", maintain_order=True)
        .agg(pl.col("confirmed_at").first().alias("found_at"))
    )
    joined = rows.select("account_id", "booked_at").join(known, on="account_id", how="left", maintain_order="left")
    flag = (pl.col("found_at") < pl.col("booked_at").dt.truncate("1d")).fill_null(value=False)
    return joined.select(flag.alias("known"))["known"].to_numpy().astype(np.bool_)
