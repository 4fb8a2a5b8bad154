"""When labels arrive, and how many at a time."""

import numpy as np
import polars as pl

from reperform.feeds.batches import Limits
from reperform.feeds.finding import FeedFinding

INSTANT = pl.duration(seconds=60)
LEAST_LABELS = 20
WEEK_DAYS = 7
LEAST_WEEKS = 3


def findings(
    labels: pl.DataFrame, transactions: pl.DataFrame, limits: Limits, source: str, file: str
) -> list[FeedFinding]:
    """Labels that come in a flood, or at once.

    Args:
        labels: as ingested.
        transactions: as ingested.
        limits: as conf/validate/ gives them.
        source: that gives the labels.
        file: that they are in.
    """
    return [*_flood(labels, limits, source, file), *_instant(labels, transactions, limits, source, file)]


def _flood(labels: pl.DataFrame, limits: Limits, source: str, file: str) -> list[FeedFinding]:
    confirmed = labels.filter(pl.col("is_anomaly") & pl.col("confirmed_at").is_not_null())
    if confirmed.is_empty():
        return []
    day = confirmed.get_column("confirmed_at").dt.date()
    whole = pl.DataFrame({"day": pl.date_range(day.min(), day.max(), eager=True)})  # type: ignore[arg-type]  # not empty
    counted = confirmed.group_by(day=pl.col("confirmed_at").dt.date()).len()
    counts = whole.join(counted, on="day", how="left", maintain_order="left").with_columns(pl.col("len").fill_null(0))
    n = counts.get_column("len").to_numpy()
    found = []
    for place in range(LEAST_WEEKS * WEEK_DAYS, n.size):
        usual = max(float(np.quantile(n[:place], 0.9)), 1.0)
        if n[place] >= limits["label_flood_rows"] and n[place] > limits["label_flood_ratio"] * usual:
            text = f"{n[place]:,} anomalies confirmed on one day"
            expected = f"at most about {usual:,.0f} a day before"
            found.append(
                FeedFinding(
                    source, "label_flood", file, int(n[place]), text, expected, counts["day"][place], "labels",
                    files=(file,) if file else (),
                )
            )  # fmt: skip
    return found


def _instant(
    labels: pl.DataFrame, transactions: pl.DataFrame, limits: Limits, source: str, file: str
) -> list[FeedFinding]:
    both = labels.join(transactions.select("transaction_id", "booked_at"), on="transaction_id", how="inner")
    delay = (pl.col("confirmed_at") - pl.col("booked_at")).abs()
    instant = both.filter(delay <= INSTANT).height
    if both.height < LEAST_LABELS or instant <= limits["instant_share"] * both.height:
        return []
    text = f"{instant:,} of {both.height:,} labels are confirmed within a minute of booking"
    return [
        FeedFinding(
            source,
            "labels_instant",
            file,
            instant,
            text,
            "a delay for review",
            table="labels",
            files=(file,) if file else (),
        )
    ]
