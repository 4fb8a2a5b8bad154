"""Amounts in the base currency, at the rate that was published when a transaction became known."""

import polars as pl

from reperform import schemas
from reperform.ingest.source import row_as_json

NO_RATE = "no_exchange_rate"


def with_amount_base(
    transactions: pl.DataFrame, rates: pl.DataFrame, base_currency: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Fill `amount_base` where it is missing, in unchanged order.

    A rate counts from `published_at` on: a transaction known at t takes the last rate of its currency with
    published_at <= t, so a later correction of the rate never reaches back.

    Args:
        transactions: as `schemas.TRANSACTIONS`.
        rates: as `schemas.RATES`: units of the base currency for one unit of `currency`.
        base_currency: its own rate is 1.

    Returns:
        The transactions with a known amount, and the others as `schemas.QUARANTINE`.
    """
    foreign = transactions.select((pl.col("currency") != base_currency) & pl.col("amount_base").is_null()).to_series()
    rate = _rate_as_known(transactions, rates) if foreign.any() else pl.lit(None, pl.Float64)
    filled = transactions.with_columns(
        amount_base=pl.when(pl.col("amount_base").is_not_null())
        .then("amount_base")
        .when(pl.col("currency") == base_currency)
        .then("amount")
        .otherwise(pl.col("amount") * rate)
    )
    known = pl.col("amount_base").is_not_null()
    if not filled.get_column("amount_base").has_nulls():
        return filled, _without_rate(filled.clear())
    return filled.filter(known), _without_rate(filled.filter(~known))


def _rate_as_known(transactions: pl.DataFrame, rates: pl.DataFrame) -> pl.Series:
    ordered = rates.sort("currency", "published_at", maintain_order=True)
    # Two rates of the same moment: the one that was delivered last replaces the other.
    latest = ordered.unique(["currency", "published_at"], keep="last", maintain_order=True)
    numbered = transactions.select("currency", "known_at").with_row_index("place")
    found = numbered.sort("known_at", "place").join_asof(
        latest.sort("published_at", maintain_order=True),
        left_on="known_at",
        right_on="published_at",
        by="currency",
        strategy="backward",
        check_sortedness=False,
    )
    return found.sort("place").get_column("rate_to_base")


def _without_rate(rows: pl.DataFrame) -> pl.DataFrame:
    columns = [name for name in rows.columns if name in schemas.TRANSACTIONS.columns]
    return rows.select(
        table=pl.lit(schemas.TRANSACTIONS.name),
        source_file="source_file",
        source_record="source_record",
        rule=pl.lit(NO_RATE),
        column=pl.lit("amount_base"),
        value=pl.format("{} at {}", "currency", pl.col("known_at").dt.to_string("%Y-%m-%dT%H:%M:%SZ")),
        row=row_as_json(columns),
    )
