"""From when on an account's silence counts: since it was opened, but not before the data begin.

When the data begin is learned like every parameter. A ledger that holds a part of the accounts would find another day.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import polars as pl

from reperform.featurize.days import NEVER
from reperform.featurize.kernels import F64, I64
from reperform.featurize.ledger import Ledger, codes


def data_begin(ledger: Ledger, end_us: int) -> int | None:
    """First day with a transaction that may be learned from, as a day number since 1970; None without any."""
    days = ledger.local_day[ledger.known_before(end_us)]
    return int(days.min()) if len(days) else None


def open_days(ledger: Ledger, begin: int | None) -> I64:
    """Day from which each account of `ledger.days` exists without a record; `NEVER` where that is unknown."""
    if begin is None:
        return np.full(len(ledger.days.accounts), NEVER)
    return np.maximum(np.minimum(ledger.opening_days, NEVER), begin)


def entities(ledger: Ledger) -> I64:
    """Code of the entity that each account of `ledger.days` belongs to.

    The accounts' table says so; of an account that it does not name, the transactions do.
    """
    named = pl.concat(
        [ledger.accounts.select("account_id", "entity_id"), ledger.transactions.select("account_id", "entity_id")]
    ).unique("account_id", keep="first", maintain_order=True)
    joined = ledger.days.accounts.to_frame("account_id").join(named, on="account_id", how="left", maintain_order="left")
    return codes(joined["entity_id"])


def stream_keys(accounts: pl.Series) -> I64:
    """A number for each account's random numbers, from its name alone."""
    return np.array([zlib.crc32(name.encode()) for name in accounts], np.int64)


@dataclass(frozen=True)
class Series:
    """One number per account and day, from the day on which the account exists.

    Args:
        starts: shape (accounts + 1,), first slot of each account.
        first_day: of each account.
        alive: first day of each account on which it was known to exist.
        account: of each slot.
        x: of each slot.
    """

    starts: I64
    first_day: I64
    alive: I64
    account: I64
    x: F64

    @property
    def day(self) -> I64:
        """Day number of each slot."""
        return self.first_day[self.account] + np.arange(len(self.x)) - self.starts[self.account]


def series(ledger: Ledger, begin: int | None) -> Series:
    """ln(1 + amounts of the day), from what was known when the day ended; later arrivals do not change it."""
    days, opened = ledger.days, open_days(ledger, begin)
    prompt = days.known_day == days.day + 1
    x = np.log1p(days.total(np.where(prompt, ledger.cents, 0)) / 100)
    length = np.diff(days.starts)
    first = np.where(length > 0, np.minimum(days.first_day, opened), days.first_day)
    pad = days.first_day - first
    starts = np.concatenate([[0], np.cumsum(length + pad)]).astype(np.int64)
    account = np.repeat(np.arange(len(first)), length + pad)
    padded = np.zeros(len(account))
    padded[np.arange(len(x)) + np.cumsum(pad)[days.slot_account]] = x
    alive = opened.copy()
    np.minimum.at(alive, days.account_of_row[prompt], days.day[prompt])
    return Series(starts, first, alive, account, padded)
