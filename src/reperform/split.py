"""Divide the transactions by time, on one calendar of whole days, and say which labels a fit may know."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from reperform import schemas, tables
from reperform.errors import ReperformError
from reperform.params import SplitParams

ROW_COLUMNS = ["transaction_id", "booked_at"]


@dataclass(frozen=True)
class Fit:
    """What one of a detector's two fits may learn from, and what it scores. Ends are exclusive.

    Args:
        name: `first` or `final`.
        learns_from: first moment of the rows that it learns from.
        learns_until: first moment after them.
        known_by: labels confirmed at or after this moment are unknown to it.
        scores_from: first moment of the rows that it scores.
        scores_until: first moment after them; None = to the end of the data.
    """

    name: str
    learns_from: datetime
    learns_until: datetime
    known_by: datetime
    scores_from: datetime
    scores_until: datetime | None


def fits(calendar: SplitParams) -> tuple[Fit, Fit]:
    """The two fits of every detector; `docs/decisions/0002-two-fits-and-one-calendar.md` says why there are two."""
    start, end = calendar.train_start, calendar.train_end
    first = Fit("first", start, calendar.fit_end, calendar.validation_start, start, end)
    return first, Fit("final", start, end, calendar.test_start, end, None)


def check_calendar(calendar: SplitParams) -> SplitParams:
    """The same calendar, when its windows follow one another.

    Raises:
        ReperformError: when no day is left to learn from, or the test begins before the labels had time to arrive.
    """
    if calendar.fit_end <= calendar.train_start:
        raise ReperformError(
            "No day is left to learn from before validation.",
            expected="train_days greater than validation_days + label_delay_days",
            got=f"{calendar.train_days} against {calendar.validation_days} + {calendar.label_delay_days}",
            where="params.yaml:split",
            fix="lengthen split.train_days or shorten split.validation_days in conf/split/",
        )
    earliest = calendar.train_end + timedelta(days=calendar.label_delay_days)
    if calendar.test_start < earliest:
        raise ReperformError(
            "The test begins before the labels of the training window had time to arrive.",
            expected=f"test_from on {earliest.date()} or later",
            got=str(calendar.test_from),
            where="params.yaml:split",
            fix="move split.test_from or split.train_until, or shorten split.label_delay_days",
        )
    return calendar


def split_at(column: str, calendar: SplitParams) -> pl.Expr:
    """The split that a moment lies in: text, null where the moment is null. Windows are closed below, open above."""
    when = pl.col(column)
    ends = (
        (calendar.train_start, "history"),
        (calendar.fit_end, "train"),
        (calendar.validation_start, "delay"),
        (calendar.train_end, "validation"),
        (calendar.test_start, "delay"),
        (calendar.test_end, "test"),
    )
    split: pl.Expr = pl.when(when.is_not_null()).then(pl.lit("later"))
    for end, name in reversed(ends):
        split = pl.when(when < pl.lit(end, schemas.UTC_US)).then(pl.lit(name)).otherwise(split)
    return split.alias("split")


def split_rows(transactions: pl.DataFrame, calendar: SplitParams) -> pl.DataFrame:
    """The split of every transaction, in the order given.

    Args:
        transactions: with transaction_id and booked_at.
        calendar: the windows.

    Returns:
        transaction_id, split: as `schemas.SPLIT_ROWS`.
    """
    return transactions.select("transaction_id", split_at("booked_at", check_calendar(calendar)))


def learning_labels(
    rows: pl.DataFrame, labels: pl.DataFrame, *, known_by: datetime, maturity_days: int
) -> pl.DataFrame:
    """What was known of each transaction at one moment.

    A label counts once it is confirmed. Without one, a transaction counts as normal when it is mature: old enough that
    an anomaly would have been confirmed by then. Anything else is unknown, also when a later label settles it.

    Args:
        rows: transactions, with transaction_id and booked_at (UTC).
        labels: as `schemas.LABELS`.
        known_by: the moment; a label confirmed at this very moment is not known yet.
        maturity_days: age from which a transaction without a label counts as normal.

    Returns:
        transaction_id, y (Int8: 1 anomaly, 0 normal, null unknown), in the order of `rows`.
    """
    known = labels.filter(pl.col("confirmed_at") < pl.lit(known_by, schemas.UTC_US)).select(
        "transaction_id", known=pl.col("is_anomaly").cast(pl.Int8)
    )
    mature = pl.col("booked_at") + pl.duration(days=maturity_days) <= pl.lit(known_by, schemas.UTC_US)
    presumed = pl.when(mature).then(pl.lit(0, pl.Int8))
    return (
        rows.select(ROW_COLUMNS)
        .join(known, on="transaction_id", how="left", maintain_order="left")
        .select("transaction_id", y=pl.coalesce("known", presumed))
    )


def refuse_resampled_test(splits: pl.DataFrame, transactions: pl.DataFrame, calendar: SplitParams) -> None:
    """Make sure that the test holds every transaction of its days once, and nothing else.

    Precision means nothing on a test whose share of anomalies was changed by leaving rows out or repeating them.

    Args:
        splits: transaction_id, split.
        transactions: the validated transactions, with transaction_id and booked_at.
        calendar: the windows.

    Raises:
        ReperformError: with the counts, and examples of what is missing, repeated or added.
    """
    in_test = pl.col("split") == "test"
    got = splits.filter(in_test)["transaction_id"].sort()
    expected = split_rows(transactions, calendar).filter(in_test)["transaction_id"].sort()
    if got.equals(expected):
        return
    repeated = got.filter(got.is_duplicated()).unique(maintain_order=True).head(3).to_list()
    examples = {
        "missing": expected.filter(~expected.is_in(got.implode())).head(3).to_list(),
        "repeated": repeated,
        "added": got.filter(~got.is_in(expected.implode())).head(3).to_list(),
    }
    raise ReperformError(
        "The test was resampled.",
        expected=f"each of the {expected.len()} validated transactions from {calendar.test_start:%Y-%m-%d} "
        f"to before {calendar.test_end:%Y-%m-%d} once",
        got=f"{got.len()} rows; " + "; ".join(f"{kind}: {ids}" for kind, ids in examples.items() if ids),
        where="split test",
        fix="run `dvc repro split`; to change what is tested, change split.test_from or split.test_days",
    )


def summary(splits: pl.DataFrame, transactions: pl.DataFrame, labels: pl.DataFrame, calendar: SplitParams) -> Any:
    """Counts by split, and what each fit may know: a document for people and for the report."""
    rows = splits.with_columns(transactions["booked_at"], transactions["account_id"])
    return {
        "splits": {name: _counts(rows.filter(pl.col("split") == name)) for name in schemas.SPLITS},
        "fits": {fit.name: _fit_counts(rows, labels, fit, calendar) for fit in fits(calendar)},
        "calendar": {
            "train_start": f"{calendar.train_start:%Y-%m-%d}",
            "fit_end": f"{calendar.fit_end:%Y-%m-%d}",
            "validation_start": f"{calendar.validation_start:%Y-%m-%d}",
            "train_end": f"{calendar.train_end:%Y-%m-%d}",
            "test_start": f"{calendar.test_start:%Y-%m-%d}",
            "test_end": f"{calendar.test_end:%Y-%m-%d}",
            "label_delay_days": calendar.label_delay_days,
            "label_maturity_days": calendar.label_maturity_days,
        },
        "rows": rows.height,
    }


def _counts(rows: pl.DataFrame) -> dict[str, Any]:
    booked = rows["booked_at"]
    return {
        "rows": rows.height,
        "accounts": rows["account_id"].n_unique(),
        "days": booked.dt.date().n_unique(),
        "first_booked_at": _text(booked.min()),
        "last_booked_at": _text(booked.max()),
    }


def _fit_counts(rows: pl.DataFrame, labels: pl.DataFrame, fit: Fit, calendar: SplitParams) -> dict[str, Any]:
    within = rows.filter(
        pl.col("booked_at").is_between(
            pl.lit(fit.learns_from, schemas.UTC_US), pl.lit(fit.learns_until, schemas.UTC_US), closed="left"
        )
    )
    y = learning_labels(within, labels, known_by=fit.known_by, maturity_days=calendar.label_maturity_days)["y"]
    return {
        "learns_from": f"{fit.learns_from:%Y-%m-%d}",
        "learns_until": f"{fit.learns_until:%Y-%m-%d}",
        "labels_known_by": f"{fit.known_by:%Y-%m-%d}",
        "rows": within.height,
        "anomalies": int((y == 1).sum()),
        "normal": int((y == 0).sum()),
        "unknown": y.null_count(),
    }


def _text(moment: Any) -> str | None:
    return moment.isoformat() if moment is not None else None


def run(params: SplitParams) -> Any:
    """Write `data/split/{splits.parquet,summary.json}`; returns the summary."""
    transactions = tables.read_table("validate", "transactions", [*ROW_COLUMNS, "account_id"])
    labels = schemas.checked(tables.read_table("validate", "labels"), schemas.LABELS)
    splits = schemas.checked(split_rows(transactions, params), schemas.SPLIT_ROWS)
    refuse_resampled_test(splits, transactions, params)
    tables.write_table(splits, "split", "splits")
    document = summary(splits, transactions, labels, params)
    tables.write_json(document, "split", "summary")
    return document
