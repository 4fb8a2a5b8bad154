"""Accounts day by day, by their own clock: what each day held, and what was known of it at the start of a later day."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from reperform.featurize.kernels import F64, I64
from reperform.featurize.ledger import Ledger, codes
from reperform.featurize.windows import DAY_US

NEVER = 1 << 40  # a day after all days

ACCOUNT_DAYS: dict[str, Any] = {
    "account_id": pl.String, "day": pl.Date, "n_transactions": pl.Int64, "n_in": pl.Int64, "n_out": pl.Int64,
    "amount_in": pl.Float64, "amount_out": pl.Float64, "balance_end": pl.Float64,
}  # fmt: skip


@dataclass(frozen=True)
class Days:
    """A dense grid of accounts and days; a slot is one account on one day.

    An account's days begin when it was opened, but not before the first day of the data, or with its first transaction;
    all end with the last day of the data.

    Args:
        accounts: account ids in order, those without transactions included.
        segment: of each account.
        zone: timezone of each account, as a code: days of accounts in one zone begin at one moment.
        starts: shape (accounts + 1,), first slot of each account.
        first_day: of each account, as a day number since 1970.
        open_day: day on which each account was opened, or the data begin; `NEVER` where unknown: such an account
            exists once a record of it is known.
        account_of_row: position of each transaction's account.
        day: day number of each transaction.
        known_day: first day at whose start the transaction was known and its day was over.
    """

    accounts: pl.Series
    segment: pl.Series
    zone: I64
    starts: I64
    first_day: I64
    open_day: I64
    account_of_row: I64
    day: I64
    known_day: I64

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def slot_of_row(self) -> I64:
        """Slot of each transaction's account and day."""
        return self.starts[self.account_of_row] + self.day - self.first_day[self.account_of_row]

    @property
    def slot_account(self) -> I64:
        """Account of each slot."""
        return np.repeat(np.arange(len(self.accounts)), np.diff(self.starts))

    @property
    def slot_day(self) -> I64:
        """Day number of each slot."""
        account = self.slot_account
        return self.first_day[account] + np.arange(len(self)) - self.starts[account]

    def arrivals(self) -> tuple[I64, I64]:
        """Where each account begins, and its transactions in order of the day on which they became known."""
        rows = np.lexsort((self.known_day, self.account_of_row))
        return np.searchsorted(self.account_of_row[rows], np.arange(len(self.accounts) + 1)), rows

    def total(self, values: I64) -> I64:
        """Sum of whole numbers over each slot's transactions, as known in the end."""
        out = np.zeros(len(self), np.int64)
        np.add.at(out, self.slot_of_row, values)
        return out


def grid(ledger: Ledger) -> Days:
    """The grid of a ledger."""
    named = ledger.transactions["account_id"]
    accounts = pl.concat([named, ledger.accounts["account_id"]]).unique().sort()
    details = accounts.to_frame("account_id").join(ledger.accounts, on="account_id", how="left", maintain_order="left")
    of_row = np.searchsorted(accounts.to_numpy(), named.to_numpy()) if len(named) else np.zeros(0, np.int64)
    day = ledger.local_day
    first_row_day = np.full(len(accounts), NEVER)
    np.minimum.at(first_row_day, of_row, day)
    begin, end = ledger.day_span or (NEVER, -NEVER)
    opened = details["opened_at"].dt.date().cast(pl.Int32).cast(pl.Int64).fill_null(NEVER).to_numpy()
    open_day = np.maximum(opened, begin)
    first = np.minimum(open_day, first_row_day)
    length = np.maximum(end - first + 1, 0)
    starts = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    segment = details["segment"].fill_null("unknown")
    zone = codes(details["timezone"].fill_null(ledger.default_timezone))
    return Days(accounts, segment, zone, starts, first, open_day, of_row.astype(np.int64), day, known_days(ledger))


def known_days(ledger: Ledger) -> I64:
    """First day, by the account's clock, at whose start a transaction was known and its own day was over."""
    # Rounded up: what became known exactly at midnight was known when that day began.
    start_of = -(-ledger.local_known.dt.epoch("us").to_numpy() // DAY_US)
    return np.asarray(np.maximum(start_of, ledger.local_day + 1))


def account_days(ledger: Ledger, days: Days) -> pl.DataFrame:
    """What each account did on each day, as known in the end.

    Returns:
        account_id, day, n_transactions, n_in, n_out, amount_in, amount_out (base currency), balance_end (the account's
        own currency; the latest one reported, null before the first).
    """
    into = ledger.incoming
    n_in, n_out = days.total(into.astype(np.int64)), days.total((~into).astype(np.int64))
    cents_in, cents_out = days.total(np.where(into, ledger.cents, 0)), days.total(np.where(into, 0, ledger.cents))
    table = pl.DataFrame(
        {
            "account_id": days.accounts.gather(days.slot_account),
            "day": pl.Series(days.slot_day, dtype=pl.Int32).cast(pl.Date),
            "n_transactions": n_in + n_out,
            "n_in": n_in,
            "n_out": n_out,
            "amount_in": cents_in / 100,
            "amount_out": cents_out / 100,
            "balance_end": pl.Series(_last_balance(ledger, days), nan_to_null=True),
        }
    )
    return table.with_columns(pl.col("balance_end").forward_fill().over("account_id"))


def _last_balance(ledger: Ledger, days: Days) -> F64:
    """Balance after the last transaction of each slot that reports one; NaN where none does."""
    balance = ledger.transactions["balance_after"].to_numpy()
    reported = ~np.isnan(balance)
    out = np.full(len(days), np.nan)
    out[days.slot_of_row[reported]] = balance[reported]  # rows are in order of time: the last one stays
    return out
