"""The transactions as every KPI reads them: arrays in one order, keys as codes, histories by key.

A ledger may hold the whole table, or one bucket of the accounts or of the counterparties: a KPI gives the same values
either way, because it never looks beyond its own key.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from reperform.errors import ReperformError
from reperform.featurize.kernels import F64, I64, Mask, dense
from reperform.featurize.windows import FOREVER_US, History
from reperform.schemas import UTC_US

if TYPE_CHECKING:
    from reperform.featurize.days import Days

UNKNOWN_SEGMENT = "unknown"
UNKNOWN_TIME_US = FOREVER_US


@dataclass(frozen=True)
class Ledger:
    """Transactions with what is known of their accounts and labels.

    Args:
        transactions: as `schemas.TRANSACTIONS`, in order of (booked_at, transaction_id).
        accounts: as `schemas.ACCOUNTS`.
        labels: as `schemas.LABELS`.
        maturity: age from which a transaction without a confirmed label counts as normal.
        default_timezone: for accounts whose timezone the source does not give.
        span: first and last day of the whole data by accounts' own clocks, where this ledger holds only part of them.
    """

    transactions: pl.DataFrame
    accounts: pl.DataFrame
    labels: pl.DataFrame
    maturity: timedelta
    default_timezone: str = "UTC"
    span: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.transactions.height

    @cached_property
    def time(self) -> I64:
        """When each row happened, microseconds since 1970 UTC."""
        return _microseconds(self.transactions["booked_at"])

    @cached_property
    def known(self) -> I64:
        """When each row's record arrived, microseconds since 1970 UTC; never before it happened."""
        return np.maximum(_microseconds(self.transactions["known_at"]), self.time)

    @cached_property
    def amount(self) -> F64:
        """Amount in base currency."""
        return self.transactions["amount_base"].to_numpy()

    @cached_property
    def cents(self) -> I64:
        """Amount in hundredths of the base currency: sums of these are exact in any order."""
        return hundredths(self.amount)

    @cached_property
    def incoming(self) -> Mask:
        """Whether money comes into the account."""
        return (self.transactions["direction"] == "in").to_numpy()

    @cached_property
    def account(self) -> I64:
        """Account codes."""
        return codes(self.transactions["account_id"])

    @cached_property
    def counterparty(self) -> I64:
        """Counterparty codes; -1 where the source names none."""
        return codes(self.transactions["counterparty_id"])

    @cached_property
    def pair(self) -> I64:
        """Codes of (account, counterparty); -1 without a counterparty."""
        return pair_codes(self.account, self.counterparty)

    @cached_property
    def by_account(self) -> History:
        """Histories of accounts."""
        return self._history(self.account)

    @cached_property
    def by_account_direction(self) -> History:
        """Histories of accounts, money in and money out apart."""
        return self._history(2 * self.account + self.incoming)

    @cached_property
    def by_counterparty(self) -> History:
        """Histories of counterparties."""
        return self._history(self.counterparty)

    @cached_property
    def by_pair(self) -> History:
        """Histories of one account with one counterparty."""
        return self._history(self.pair)

    @cached_property
    def _details(self) -> pl.DataFrame:
        details = self.accounts.select(
            "account_id", "opened_at", "home_country", "timezone", pl.col("segment").fill_null(UNKNOWN_SEGMENT)
        )
        joined = self.transactions.select("account_id").join(
            details, on="account_id", how="left", maintain_order="left"
        )
        return joined.with_columns(pl.col("segment").fill_null(UNKNOWN_SEGMENT))

    @cached_property
    def opened(self) -> I64:
        """When each row's account was opened, microseconds; `UNKNOWN_TIME_US` where the source does not say."""
        opened = self._details["opened_at"]
        return _microseconds(opened)

    @cached_property
    def segment(self) -> pl.Series:
        """Segment of each row's account."""
        return self._details["segment"]

    @cached_property
    def home_country(self) -> pl.Series:
        """Home country of each row's account."""
        return self._details["home_country"]

    def codes_of(self, name: str) -> I64:
        """Different texts of a column as 0 … n - 1, in any order; -1 for null.

        Args:
            name: of a column of transactions, or `segment` or `home_country`.
        """
        return codes(self._texts(name))

    def _texts(self, name: str) -> pl.Series:
        of_account = {"segment": "segment", "home_country": "home_country"}.get(name)
        return getattr(self, of_account) if of_account else self.transactions[name]

    def among(self, name: str, values: Sequence[str]) -> Mask:
        """Rows whose text is one of some; columns as in `codes_of`."""
        return self._texts(name).is_in(values).fill_null(value=False).to_numpy()

    def looked_up(self, names: Sequence[str], value_of: Callable[..., float]) -> F64:
        """What a function gives for each row's texts, asked once for each combination of them.

        Args:
            names: columns as in `codes_of`.
            value_of: takes the texts in their order, None for null.
        """
        kind, of = np.zeros(len(self), np.int64), [self.codes_of(name) + 1 for name in names]
        for each in of:
            kind = kind * (int(each.max(initial=0)) + 1) + each
        kind, first = dense(kind)
        texts = [self._texts(name) for name in names]
        return np.array([value_of(*(text[row] for text in texts)) for row in first.tolist()], np.float64)[kind]

    @cached_property
    def opening_days(self) -> I64:
        """Day on which each account of `days` was opened, as a number since 1970; `UNKNOWN_TIME_US` where unknown."""
        days = self.days.accounts.to_frame("account_id").join(
            self.accounts.select("account_id", pl.col("opened_at").dt.date().cast(pl.Int32)),
            on="account_id", how="left", maintain_order="left",
        )  # fmt: skip
        return days["opened_at"].cast(pl.Int64).fill_null(UNKNOWN_TIME_US).to_numpy()

    @cached_property
    def local(self) -> pl.Series:
        """When each row happened by the clock on the account's wall: without zone, summer time observed."""
        return self._by_the_wall(self.transactions["booked_at"])

    @cached_property
    def local_us(self) -> I64:
        """The same in microseconds since 1970 began on that clock."""
        return self.local.dt.epoch("us").to_numpy().astype(np.int64)

    @cached_property
    def local_known(self) -> pl.Series:
        """When each row became known by the same clock."""
        return self._by_the_wall(pl.Series(self.known).cast(UTC_US))

    def _by_the_wall(self, times: pl.Series) -> pl.Series:
        zones = self._details["timezone"].fill_null(self.default_timezone)
        names = sorted(zones.unique())
        if len(names) == 1:
            return wall_clock(times, names[0]).alias("local")
        out = np.empty(len(self), "datetime64[us]")
        for zone in names:
            here = (zones == zone).to_numpy()
            out[here] = wall_clock(times.filter(pl.Series(here)), zone).to_numpy()
        return pl.Series("local", out, dtype=pl.Datetime("us"))

    @cached_property
    def local_day(self) -> I64:
        """Day number (since 1970) by the account's own clock."""
        return self.local.dt.date().cast(pl.Int32).to_numpy().astype(np.int64)

    @cached_property
    def day_span(self) -> tuple[int, int] | None:
        """First and last day of the whole data; None without rows."""
        if self.span is not None or not len(self):
            return self.span
        return day_span(self.transactions.lazy(), self.accounts, self.default_timezone)

    @cached_property
    def days(self) -> "Days":
        """The grid of accounts and days."""
        from reperform.featurize.days import grid  # noqa: PLC0415  # the grid is made of a ledger

        return grid(self)

    @cached_property
    def label(self) -> tuple[NDArray[np.int8], I64]:
        """What case handling said of each row, and when (microseconds).

        Returns:
            1 anomaly, 0 reviewed and normal, -1 nothing; the moment of confirmation, or `UNKNOWN_TIME_US`.
        """
        joined = self.transactions.select("transaction_id").join(
            self.labels.select("transaction_id", "is_anomaly", "confirmed_at"),
            on="transaction_id", how="left", maintain_order="left",
        )  # fmt: skip
        said = joined["is_anomaly"].cast(pl.Int8).fill_null(-1).to_numpy()
        return said, _microseconds(joined["confirmed_at"])

    def part(self, rows: I64, columns: Collection[str]) -> "Ledger":
        """Some of the rows as a ledger of their own, with the accounts and labels that belong to them.

        Args:
            rows: positions; those of one key in the table's order.
            columns: of transactions, as far as there are any of these names.
        """
        return self.holding(
            self.transactions.select(name for name in self.transactions.columns if name in columns)[rows]
        )

    def holding(self, transactions: pl.DataFrame) -> "Ledger":
        """The same accounts and labels, as far as they belong to given rows."""
        accounts = self.accounts.join(
            transactions.select("account_id").unique(), on="account_id", how="semi", maintain_order="left"
        )
        labels = self.labels.join(
            transactions.select("transaction_id"), on="transaction_id", how="semi", maintain_order="left"
        )
        return replace(self, transactions=transactions, accounts=accounts, labels=labels, span=self.day_span)

    def known_before(self, moment_us: int) -> Mask:
        """Rows that had happened and were known before a moment: what parameters may be fitted on."""
        return (self.time < moment_us) & (self.known < moment_us)

    def _history(self, key: I64) -> History:
        return History.of(key, int(key.max(initial=-1)) + 1, self.time, self.known)


def day_span(transactions: pl.LazyFrame, accounts: pl.DataFrame, default_timezone: str) -> tuple[int, int] | None:
    """First and last day (since 1970) on which anything happened, each by its account's own clock; None without rows.

    Args:
        transactions: with account_id and booked_at.
        accounts: as `schemas.ACCOUNTS`.
        default_timezone: for accounts whose timezone is not given.
    """
    ends = transactions.group_by("account_id").agg(first=pl.col("booked_at").min(), last=pl.col("booked_at").max())
    placed = ends.collect(engine="streaming").join(
        accounts.select("account_id", "timezone"), on="account_id", how="left"
    )
    by_zone = placed.group_by(pl.col("timezone").fill_null(default_timezone)).agg(
        pl.col("first").min(), pl.col("last").max()
    )
    days = [
        wall_clock(pl.Series([moment], dtype=UTC_US), zone).dt.date().cast(pl.Int32).item()
        for zone, first, last in by_zone.iter_rows()
        for moment in (first, last)
    ]
    return (min(days), max(days)) if days else None


def hundredths(amount: F64) -> I64:
    """Amounts as whole hundredths."""
    return np.rint(amount * 100).astype(np.int64)


def codes(names: pl.Series) -> I64:
    """Names as 0 … n - 1 in their own order; -1 for null."""
    if names.dtype != pl.String:
        return (names.rank("dense").cast(pl.Int64) - 1).fill_null(-1).to_numpy()
    # Far fewer names than rows, as a rule: sort the names alone.
    known = pl.Enum(names.drop_nulls().unique().sort())
    return names.cast(known).to_physical().cast(pl.Int64).fill_null(-1).to_numpy()


def pair_codes(first: I64, second: I64) -> I64:
    """Codes of pairs, dense; -1 where either is missing. A pair belongs to one value of `first` alone."""
    wide = np.where((first < 0) | (second < 0), -1, first * (second.max(initial=0) + 1) + second)
    return dense(wide.astype(np.int64))[0]


def _microseconds(times: pl.Series) -> I64:
    """Microseconds since 1970 UTC; `UNKNOWN_TIME_US` for null."""
    return times.cast(UTC_US).dt.epoch("us").fill_null(UNKNOWN_TIME_US).to_numpy().astype(np.int64)


def wall_clock(booked: pl.Series, zone: str) -> pl.Series:
    """What a clock in a timezone shows at moments.

    Raises:
        ReperformError: when there is no such timezone.
    """
    try:
        return booked.dt.convert_time_zone(zone).dt.replace_time_zone(None)
    except pl.exceptions.ComputeError as error:
        raise ReperformError(
            f"{zone!r} is not a timezone.",
            expected="a name of the IANA database, such as Europe/Berlin",
            got=zone,
            where="accounts.timezone, or featurize.settings.time_pattern.default_timezone",
            fix="correct the column map in conf/ingest/",
        ) from error
