"""Rows of a source in batches of some size, in order of time: each is compared with those before it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import polars as pl

from reperform.feeds.finding import FeedFinding, named

MOST_TIME_ZONES = 40
LONG_FILE_DAYS = 45  # a file that spans more is looked at by calendar month
STRAY_SHARE = 0.2
_SPARE = ("source_record",)
Limits = Mapping[str, float]


@dataclass(frozen=True)
class Feed:
    """All transactions as they came, cut into batches.

    Args:
        rows: transactions with `source`, `day` (UTC), `local` (naive time on the account's clock), `unit` (a file, or a
            month of a long one), `batch` (Int64; unique over all sources, ascending in time within each).
        batches: `batch`, `source`, `n`, `files`, `first`, `last`, in order of `batch`.
        accounts: as `schemas.ACCOUNTS`.
        limits: as conf/validate/ gives them.
    """

    rows: pl.DataFrame
    batches: pl.DataFrame
    accounts: pl.DataFrame
    limits: Limits

    def finding(self, rule: str, batch: Mapping[str, Any], rows: int, observed: str, expected: str) -> FeedFinding:
        """A finding about a whole batch."""
        files = tuple(batch["files"])
        return FeedFinding(batch["source"], rule, named(files), rows, observed, expected, files=files)

    def compared(self, per_batch: pl.DataFrame) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Each batch that is large enough, with the earlier ones of its source, where these hold enough rows and days.

        Args:
            per_batch: `batch` and what was measured of it.
        """
        measured = self.batches.join(per_batch, on="batch", how="left", maintain_order="left").to_dicts()
        pairs = []
        for one in measured:
            before = [b for b in measured if b["source"] == one["source"] and b["batch"] < one["batch"]]
            enough = sum(b["n"] for b in before) >= self.limits["history_rows"]
            if enough and one["n"] >= self.limits["batch_rows"] and _days(before) >= self.limits["history_days"]:
                pairs.append((one, [b for b in before if b["n"] >= self.limits["batch_rows"] / 2] or before))
        return pairs


def _days(batches: list[dict[str, Any]]) -> int:
    first: date = min(b["first"] for b in batches)
    last: date = max(b["last"] for b in batches)
    return (last - first).days + 1


def feed(transactions: pl.DataFrame, accounts: pl.DataFrame, source_of: Mapping[str, str], limits: Limits) -> Feed:
    """Cut transactions into batches.

    Args:
        transactions: as ingested.
        accounts: as ingested; their time zones are the clocks that people live by.
        source_of: from raw files to the names of their sources.
        limits: as conf/validate/ gives them.
    """
    known = pl.DataFrame({"source_file": list(source_of), "source": list(source_of.values())}, schema={
        "source_file": pl.String, "source": pl.String})  # fmt: skip
    rows = (
        transactions.drop(_SPARE)
        .join(known, on="source_file", how="left", maintain_order="left")
        .with_columns(
            pl.col("source").fill_null(pl.col("entity_id")).fill_null("unknown"),
            pl.col("source_file").fill_null(""),
            day=pl.col("booked_at").dt.date(),
        )
    )
    rows = _with_local_time(rows, accounts)
    units = _units(rows)
    batches = _batches(units, int(limits["batch_rows"]), int(limits["batch_days"]))
    keys = ["source", "source_file", "month"]
    cut = _months(rows).join(batches.select(*keys, "unit", "batch"), on=keys, how="left", maintain_order="left")
    return Feed(cut.drop("month"), _summary(batches), accounts, limits)


def _with_local_time(rows: pl.DataFrame, accounts: pl.DataFrame) -> pl.DataFrame:
    """The time on the account's clock; in UTC where that is unknown. Summer time then moves no profile."""
    zones = accounts.select("account_id", "timezone").unique("account_id", keep="first", maintain_order=True)
    beside = rows.join(zones, on="account_id", how="left", maintain_order="left")
    local = pl.col("booked_at").dt.replace_time_zone(None)
    counted = zones.drop_nulls().group_by("timezone").len().sort(["len", "timezone"], descending=[True, False])
    for zone in counted.get_column("timezone").head(MOST_TIME_ZONES).to_list():
        try:
            there = pl.col("booked_at").dt.convert_time_zone(zone).dt.replace_time_zone(None)
            pl.Series([], dtype=pl.Datetime("us", "UTC")).dt.convert_time_zone(zone)
        except pl.exceptions.ComputeError:
            continue  # no such zone: a row rule says so
        local = pl.when(pl.col("timezone") == zone).then(there).otherwise(local)
    return beside.with_columns(local=local).drop("timezone")


def _months(rows: pl.DataFrame) -> pl.DataFrame:
    """A month for rows of files that span long, and nothing for others, whose few stray rows stay with them."""
    keys = ["source", "source_file"]
    span = rows.group_by(keys).agg(
        span=(
            pl.col("booked_at").quantile(0.99, "nearest") - pl.col("booked_at").quantile(0.01, "nearest")
        ).dt.total_days()
    )
    long = pl.col("span") > LONG_FILE_DAYS
    month = pl.when(long).then(pl.col("day").dt.strftime("%Y-%m")).otherwise(pl.lit(""))
    return rows.join(span, on=keys, how="left", maintain_order="left").with_columns(month=month).drop("span")


def _units(rows: pl.DataFrame) -> pl.DataFrame:
    grouped = _months(rows).group_by("source", "source_file", "month").agg(
        n=pl.len(), middle=pl.col("booked_at").quantile(0.5, "nearest"),
        begun=pl.col("day").quantile(0.05, "nearest"), until=pl.col("day").quantile(0.95, "nearest")
    )  # fmt: skip
    return grouped.sort("source", "middle", "source_file", "month").with_row_index("unit").cast({"unit": pl.Int64})


def _batches(units: pl.DataFrame, least: int, days: int) -> pl.DataFrame:
    """Neighbouring small units together, until a batch has enough rows and spans enough days: weekends differ."""
    number, held, source, begun, ended = 0, 0, None, None, None
    batch = []
    for unit in units.iter_rows(named=True):
        full = begun is not None and ended is not None and held >= least and (ended - begun).days + 1 >= days
        if source is not None and (unit["source"] != source or full):
            number, held, begun = number + 1, 0, None
        source, held = unit["source"], held + unit["n"]
        begun, ended = begun or unit["begun"], unit["until"]
        batch.append(number)
    return units.with_columns(pl.Series("batch", batch, pl.Int64))


def _summary(units: pl.DataFrame) -> pl.DataFrame:
    return units.group_by("batch", maintain_order=True).agg(
        pl.col("source").first(),
        pl.col("n").sum(),
        files=pl.col("source_file").unique(maintain_order=True),
        first=pl.col("begun").min(),
        last=pl.col("until").max(),
    )


def usual_span(rows: pl.DataFrame, gap_days: float) -> tuple[date, date]:
    """First and last day of the bulk of the rows, without a few that lie far from it, behind a long gap.

    Args:
        rows: with `day`, at least one.
        gap_days: days without a row that part a stray row from the bulk.
    """
    days = rows.group_by("day").agg(n=pl.len()).drop_nulls().sort("day")
    apart = (pl.col("day").diff().dt.total_days() > gap_days).fill_null(value=False)
    runs = (
        days.with_columns(run=apart.cast(pl.Int64).cum_sum())
        .group_by("run", maintain_order=True)
        .agg(pl.col("n").sum(), first=pl.col("day").min(), last=pl.col("day").max())
    )
    bulk = runs.sort("n", descending=True, maintain_order=True).row(0, named=True)
    if rows.height - bulk["n"] > STRAY_SHARE * rows.height:  # that many are another period, and no mistake
        return days["day"][0], days["day"][-1]
    return bulk["first"], bulk["last"]
