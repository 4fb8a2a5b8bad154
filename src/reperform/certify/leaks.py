"""Planted leaks. Each is a fault that has been made in earnest, and the certificate must catch every one of them.

`HONEST` are the same questions asked properly: the certificate must find nothing in them.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from reperform import featurize
from reperform.certify.worlds import Tables
from reperform.featurize.ledger import Ledger
from reperform.params import FeaturizeParams, SplitParams

Make = Callable[[Tables], pl.DataFrame]
KEYS = featurize.IDENTITY
DAY = pl.col("booked_at").dt.date()
AMOUNT = pl.col("amount_base")


def ledger_of(tables: Tables, stage: FeaturizeParams, split: SplitParams) -> Ledger:
    """The tables as KPIs read them."""
    return featurize.ledger_of(tables.transactions, tables.accounts, tables.labels, stage, split)


def features(
    tables: Tables, stage: FeaturizeParams, split: SplitParams, learned: dict[str, Any] | None
) -> pl.DataFrame:
    """Every KPI of every transaction; parameters are learned anew where none are given."""
    ledger = ledger_of(tables, stage, split)
    return featurize.compute(ledger, stage, learned or featurize.fit(ledger, stage, split.fit_end))


def _one_column(rows: pl.DataFrame, values: pl.Expr) -> pl.DataFrame:
    return rows.select(*KEYS, leak=values.cast(pl.Float64))


def _count(rows: pl.DataFrame, period: str, offset: str, closed: Any) -> pl.Series:
    counted = rows.with_row_index("at").sort("account_id", "booked_at", "at")
    window = counted.rolling("booked_at", period=period, offset=offset, closed=closed, group_by="account_id").agg(
        n=pl.len()
    )
    return counted.select("at").with_columns(window["n"]).sort("at")["n"]


# Windows and records.


def window_closed_on_the_wrong_side(tables: Tables) -> pl.DataFrame:
    """Counts the day after the row instead of the day before it."""
    n = _count(tables.transactions, "24h", "0h", "right")
    return _one_column(tables.transactions.with_columns(n=n), pl.col("n"))


def centred_window(tables: Tables) -> pl.DataFrame:
    """Counts half a day to either side, as `rolling(center=True)` does."""
    n = _count(tables.transactions, "24h", "-12h", "both")
    return _one_column(tables.transactions.with_columns(n=n), pl.col("n"))


def row_of_the_same_time(tables: Tables) -> pl.DataFrame:
    """Sums rows up to and including the moment: of rows at one moment each sees the others."""
    rows = tables.transactions.with_row_index("at").sort("account_id", "booked_at", "at")
    total = rows.rolling("booked_at", period="24h", closed="both", group_by="account_id").agg(s=AMOUNT.sum())
    return _one_column(rows.with_columns(total["s"]).sort("at"), pl.col("s"))


def late_record_used_early(tables: Tables) -> pl.DataFrame:
    """Takes every record as known when it happened."""
    return _velocity(replace(tables, transactions=tables.transactions.with_columns(known_at="booked_at")))


def time_until_the_next(tables: Tables) -> pl.DataFrame:
    """Measures the gap after the row instead of the gap before it."""
    rows = tables.transactions.sort("account_id", "booked_at", "transaction_id")
    gap = (pl.col("booked_at").shift(-1).over("account_id") - pl.col("booked_at")).dt.total_seconds()
    return _one_column(rows, gap)


def lifetime_of_the_account(tables: Tables) -> pl.DataFrame:
    """Divides by the account's days from first to last record, of which the last is not known yet."""
    life = (pl.col("booked_at").max() - pl.col("booked_at").min()).over("account_id").dt.total_seconds()
    return _one_column(tables.transactions, pl.len().over("account_id") / (life + 1))


# Values of a day that is not over.


def end_of_day_balance_of_the_same_day(tables: Tables) -> pl.DataFrame:
    """Takes the balance with which the day closed for a row in the middle of it."""
    closing = pl.col("balance_after").drop_nulls().last().over("account_id", DAY)
    return _one_column(tables.transactions, closing)


def peers_median_of_the_running_day(tables: Tables) -> pl.DataFrame:
    """Compares with the median of all accounts on the same day, evening included."""
    return _one_column(tables.transactions, AMOUNT / AMOUNT.median().over("entity_id", DAY))


def rate_published_later(tables: Tables) -> pl.DataFrame:
    """Converts with the day's closing rate, published when the day was over."""
    rate = (AMOUNT / pl.col("amount")).last().over("currency", DAY)
    return _one_column(tables.transactions, pl.col("amount") * rate)


def calendar_of_the_whole_data(tables: Tables) -> pl.DataFrame:
    """Finds quiet days, taken for holidays, by counting records of the whole table, later ones included."""
    n = pl.len().over(DAY)
    return _one_column(tables.transactions, n / n.median())


# Statistics of the whole table.


def global_scaler(tables: Tables) -> pl.DataFrame:
    """Standardises amounts with the mean and deviation of the whole table."""
    return _one_column(tables.transactions, (AMOUNT - AMOUNT.mean()) / AMOUNT.std())


def rank_over_the_whole_table(tables: Tables) -> pl.DataFrame:
    """Gives the amount's percentile among all rows, later ones included."""
    return _one_column(tables.transactions, AMOUNT.rank() / pl.len())


def unknown_filled_with_the_median(tables: Tables) -> pl.DataFrame:
    """Fills what is unknown with the column's median over the whole table."""
    balance = pl.col("balance_after")
    return _one_column(tables.transactions, balance.fill_null(balance.median()))


def unknown_filled_backward(tables: Tables) -> pl.DataFrame:
    """Fills what is unknown with the account's next known value."""
    filled = pl.col("balance_after").fill_null(strategy="backward").over("account_id")
    return _one_column(tables.transactions, filled)


def fit_past_the_end_of_training(tables: Tables) -> pl.DataFrame:
    """Learns medians of segments from all rows, those after the training window included."""
    stage, calendar = small("amount_deviation"), calendar_before(tables)
    ledger = ledger_of(tables, stage, calendar)
    return featurize.compute(ledger, stage, featurize.fit(ledger, stage, datetime(2200, 1, 1, tzinfo=UTC)))


# Labels.


def label_before_confirmation(tables: Tables) -> pl.DataFrame:
    """Takes labels as known with the transaction."""
    moments = tables.transactions.select("transaction_id", "known_at")
    early = tables.labels.join(moments, on="transaction_id", how="inner", maintain_order="left")
    return _risk(replace(tables, labels=early.with_columns(confirmed_at="known_at").drop("known_at")))


def resolved_by_what_came_later(tables: Tables) -> pl.DataFrame:
    """Leaves out of the mature rows those that turn out to be anomalies only later."""
    later = tables.transactions["transaction_id"].is_in(tables.labels.filter("is_anomaly")["transaction_id"].implode())
    rows = tables.transactions.with_columns(normal=~later).sort("account_id", "booked_at", "transaction_id")
    clean = rows.with_columns(n=pl.col("normal").cast(pl.Int64).cum_sum().shift(1).over("account_id"))
    return _one_column(clean, pl.col("n"))


def target_encoding_over_all_data(tables: Tables) -> pl.DataFrame:
    """Replaces the counterparty by its rate of anomalies over all labels, whenever they were confirmed."""
    bad = tables.labels.filter("is_anomaly").select("transaction_id", y=pl.lit(1.0))
    rows = tables.transactions.join(bad, on="transaction_id", how="left", maintain_order="left")
    return _one_column(rows, pl.col("y").fill_null(0.0).mean().over("counterparty_id"))


# The graph.


def future_counterparty(tables: Tables) -> pl.DataFrame:
    """Counts all accounts that the counterparty ever deals with."""
    rows = tables.transactions.sort("counterparty_id", "booked_at", "transaction_id")
    return _one_column(rows, pl.col("account_id").n_unique().over("counterparty_id"))


def future_edge(tables: Tables) -> pl.DataFrame:
    """Says that two parties pay each other both ways, also where the answer is yet to come."""
    both = pl.col("direction").n_unique().over("account_id", "counterparty_id")
    return _one_column(tables.transactions, both - 1)


def pagerank_of_the_whole_graph(tables: Tables) -> pl.DataFrame:
    """Ranks accounts by PageRank over all payments of the table."""
    rows = tables.transactions.with_columns(pl.col("counterparty_id").fill_null("unknown"))
    names = pl.concat([rows["account_id"], rows["counterparty_id"]]).unique().sort()
    kind = pl.Enum(names)
    source, target = (rows[c].cast(kind).to_physical().to_numpy() for c in ("account_id", "counterparty_id"))
    degree = np.bincount(source, minlength=len(names))
    rank = np.full(len(names), 1 / len(names))
    for _ in range(20):
        sent = np.bincount(target, weights=rank[source] / degree[source], minlength=len(names))
        rank = 0.15 / len(names) + 0.85 * sent
    return _one_column(rows.with_columns(rank=pl.Series(rank[target])), pl.col("rank"))


def small(name: str) -> FeaturizeParams:
    """One KPI with its defaults."""
    return FeaturizeParams(kpis=[name], settings={})


def calendar_before(tables: Tables) -> SplitParams:
    """A calendar whose training window ends before the slice, so that nothing is learned from it."""
    first = tables.transactions["booked_at"].min()
    day = first.date() - timedelta(days=2) if isinstance(first, datetime) else datetime(2025, 1, 1, tzinfo=UTC).date()
    return SplitParams(
        train_days=2, train_until=day, label_delay_days=0, label_maturity_days=2, validation_days=1,
        test_from=day + timedelta(days=1), test_days=1, drop_known_compromised=False,
    )  # fmt: skip


def _velocity(tables: Tables) -> pl.DataFrame:
    return features(tables, small("velocity"), calendar_before(tables), None)


def _amount_deviation(tables: Tables) -> pl.DataFrame:
    return features(tables, small("amount_deviation"), calendar_before(tables), None)


def _risk(tables: Tables) -> pl.DataFrame:
    return features(tables, small("account_risk"), calendar_before(tables), {"account_risk": {"rate": 0.01}})


def _closing_balance_of_the_day_before(tables: Tables) -> pl.DataFrame:
    """Of days that are over, as far as their records had arrived: the newest balance that is two days old."""
    rows = tables.transactions.with_row_index("at").sort("booked_at", "at")
    old = rows.select("account_id", then=pl.col("known_at") + timedelta(days=2), b="balance_after").drop_nulls()
    asked = rows.join_asof(
        old.sort("then", "account_id", "b"), left_on="booked_at", right_on="then", by="account_id",
        check_sortedness=False,
    )  # fmt: skip
    return _one_column(asked.sort("at"), pl.col("b"))


def _seen_before(tables: Tables) -> pl.DataFrame:
    """Payments between the two parties that were known before the row happened."""
    rows = tables.transactions
    events = rows.select("account_id", "counterparty_id", then="known_at").sort("then")
    counted = events.with_columns(n=pl.int_range(1, pl.len() + 1).over("account_id", "counterparty_id"))
    asked = rows.with_columns(before=pl.col("booked_at") - timedelta(microseconds=1)).join_asof(
        counted, left_on="before", right_on="then", by=["account_id", "counterparty_id"], check_sortedness=False
    )
    return _one_column(asked, pl.col("n"))


HONEST: dict[str, Make] = {
    "velocity": _velocity,
    "amount_deviation": _amount_deviation,
    "account_risk": _risk,
    "closing_balance_of_the_day_before": _closing_balance_of_the_day_before,
    "seen_before": _seen_before,
}
LEAKS: dict[str, Make] = {
    make.__name__: make
    for make in (
        window_closed_on_the_wrong_side,
        centred_window,
        row_of_the_same_time,
        late_record_used_early,
        time_until_the_next,
        lifetime_of_the_account,
        end_of_day_balance_of_the_same_day,
        peers_median_of_the_running_day,
        rate_published_later,
        calendar_of_the_whole_data,
        global_scaler,
        rank_over_the_whole_table,
        unknown_filled_with_the_median,
        unknown_filled_backward,
        fit_past_the_end_of_training,
        label_before_confirmation,
        resolved_by_what_came_later,
        target_encoding_over_all_data,
        future_counterparty,
        future_edge,
        pagerank_of_the_whole_graph,
    )
}
