"""Rows that were told before: under new ids, or on new dates."""

import polars as pl

from reperform.feeds.batches import Feed
from reperform.feeds.finding import FeedFinding

CONTENT = ("account_id", "counterparty_id", "direction", "amount", "currency", "booked_at")
PAYMENT = ("account_id", "counterparty_id", "direction", "amount")
_KEYS = ["source", "source_file", "unit"]


def findings(feed: Feed) -> list[FeedFinding]:
    """Files of which a large part was told before."""
    # In the order of time, so that what comes second is what is repeated.
    rows = feed.rows.sort("batch", "source_file", maintain_order=True).with_columns(
        unit=pl.col("source_file") + pl.col("day").dt.strftime("|%Y-%m")
    )
    clock = pl.col("booked_at").dt.minute().cast(pl.Int32) * 60 + pl.col("booked_at").dt.second()
    told = rows.with_columns(content=pl.struct(CONTENT).hash(), payment=pl.struct(*PAYMENT, clock).hash(), clock=clock)
    again = ~pl.col("content").is_first_distinct()
    first_day = pl.col("day").min().over("payment")
    # Times without minutes and seconds say nothing: rents would look like old files.
    old = (pl.col("clock") > 0) & (pl.col("day") > first_day) & ~again
    shares = (
        told.with_columns(again=again, old=old)
        .group_by(_KEYS)
        .agg(n=pl.len(), again=pl.col("again").sum(), old=pl.col("old").sum(), first=pl.col("day").min())
        .sort("source", "first", "unit")
    )
    found = []
    for row in shares.iter_rows(named=True):
        for rule, name, text in (
            ("duplicate_feed", "again", "rows tell the same account, counterparty, amount and second as rows before"),
            ("stale_file", "old", "rows tell a payment of an earlier day, to the second, with another date"),
        ):
            if row[name] >= feed.limits["repeated_rows"] and row[name] > feed.limits[f"{rule}_share"] * row["n"]:
                seen = f"{row[name]:,} of {row['n']:,} {text}"
                file = row["source_file"]
                found.append(FeedFinding(row["source"], rule, file, row[name], seen, "next to none", files=(file,)))
    return found
