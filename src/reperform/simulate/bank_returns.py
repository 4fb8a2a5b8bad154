"""What an institution's monthly return holds: its ledger's totals, and a balance sheet around them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta

import numpy as np
import polars as pl

from reperform import taxonomy
from reperform.taxonomy import CHANNEL_MEMBERS

Key = tuple[str, str]  # a line of the return, and the moment or channel that it is stated for
Value = int | str | bool | None
MONTH, END, OPENING = "month", "end", "opening"
THOUSAND = 1000


@dataclass(frozen=True)
class Month:
    """A complete calendar month, in UTC."""

    first: date
    last: date

    @property
    def opening(self) -> date:
        """The last day before the month."""
        return self.first - timedelta(days=1)


@dataclass(frozen=True)
class Return:
    """One filing before it becomes XML."""

    filing_id: str
    entity: str
    currency: str
    month: Month
    due_at: datetime
    filed_at: datetime
    values: dict[Key, Value]

    def changed(self, changes: Mapping[Key, Value]) -> "Return":
        """The same filing with other values."""
        return replace(self, values=self.values | dict(changes))


def complete_months(start: date, days: int) -> list[Month]:
    """Calendar months that lie wholly within the world."""
    end = start + timedelta(days=days)
    first = start if start.day == 1 else _next_month(start)
    months = []
    while _next_month(first) <= end:
        months.append(Month(first, _next_month(first) - timedelta(days=1)))
        first = _next_month(first)
    return months


def _next_month(day: date) -> date:
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1)


def opening_deposits(own: pl.DataFrame) -> int:
    """Balances of all accounts before their first transaction, in whole units of currency; 0 where none is known."""
    signed = pl.when(pl.col("direction") == "in").then(pl.col("amount")).otherwise(-pl.col("amount"))
    first = (
        own.filter(pl.col("balance_after").is_not_null())
        .sort("account_id", "booked_at", "transaction_id")
        .group_by("account_id", maintain_order=True)
        .agg((pl.col("balance_after") - signed).first().alias("before"))
    )
    return _whole_units(first["before"]) if first.height else 0


def ledger_totals(own: pl.DataFrame, month: Month, known_by: datetime) -> dict[Key, int]:
    """What the ledger of one institution says of a month: numbers, and values in whole units of its currency."""
    begin = datetime.combine(month.first, time(), UTC)
    end = datetime.combine(month.last + timedelta(days=1), time(), UTC)
    rows = own.filter(pl.col("booked_at").is_between(begin, end, closed="left") & (pl.col("known_at") <= known_by))
    incoming, outgoing = rows.filter(pl.col("direction") == "in"), rows.filter(pl.col("direction") == "out")
    large = rows.filter(pl.col("amount") >= taxonomy.LARGE_VALUE_FROM)
    cash = incoming.filter(pl.col("channel").is_in(taxonomy.CASH_CHANNELS))
    totals = {
        ("OutgoingTransactionsNumber", MONTH): outgoing.height,
        ("IncomingTransactionsNumber", MONTH): incoming.height,
        ("TransactionsNumber", MONTH): rows.height,
        ("OutgoingTransactionsValue", MONTH): _whole_units(outgoing["amount"]),
        ("IncomingTransactionsValue", MONTH): _whole_units(incoming["amount"]),
        ("CashDepositsNumber", MONTH): cash.height,
        ("CashDepositsValue", MONTH): _whole_units(cash["amount"]),
        ("LargeValueTransactionsNumber", MONTH): large.height,
        ("LargeValueTransactionsValue", MONTH): _whole_units(large["amount"]),
        ("ActiveAccountsNumber", MONTH): rows["account_id"].n_unique(),
    }
    for member, part in by_channel(outgoing).items():
        totals["OutgoingTransactionsNumber", member] = part.height
        totals["OutgoingTransactionsValue", member] = _whole_units(part["amount"])
    return totals


def moved_to_next_month(totals: dict[Key, int], own: pl.DataFrame, month: Month, payments: int) -> tuple[int, int]:
    """Leave the last ordinary incoming payments of a month out of its totals: the bank's cut-off is before midnight.

    Returns:
        How many payments, and their value in whole units.
    """
    end = datetime.combine(month.last + timedelta(days=1), time(), UTC)
    begin = datetime.combine(month.last, time(), UTC)
    is_cash = pl.col("channel").is_in(taxonomy.CASH_CHANNELS).fill_null(value=False)
    ordinary = (pl.col("direction") == "in") & (pl.col("amount") < taxonomy.LARGE_VALUE_FROM) & ~is_cash
    on_last_day = own.filter(pl.col("booked_at").is_between(begin, end, closed="left") & ordinary)
    moved = on_last_day.sort("booked_at", "transaction_id").tail(payments)
    add_incoming(totals, -moved.height, -_whole_units(moved["amount"]))
    return moved.height, _whole_units(moved["amount"])


def add_incoming(totals: dict[Key, int], number: int, value: int) -> None:
    """Add incoming payments to the totals of a month."""
    totals["IncomingTransactionsNumber", MONTH] += number
    totals["TransactionsNumber", MONTH] += number
    totals["IncomingTransactionsValue", MONTH] += value


def by_channel(rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Rows of each member of the channel dimension; the last member takes what no other one names."""
    named = [channel for channels in CHANNEL_MEMBERS.values() for channel in channels]
    is_other = pl.col("channel").is_null() | ~pl.col("channel").is_in(named)
    return {
        member: rows.filter(pl.col("channel").is_in(channels) if channels else is_other)
        for member, channels in CHANNEL_MEMBERS.items()
    }


def _whole_units(amounts: pl.Series) -> int:
    """Sum in whole units, halves up. Cents are summed as integers, so that the order of rows does not matter."""
    return (int((amounts * 100).round().cast(pl.Int64).sum()) + 50) // 100


@dataclass(frozen=True)
class BalanceSheet:
    """Lines of one institution that do not come from its ledger, from month to month; amounts in whole units.

    Args:
        base: the size that shares refer to.
        loans: share of the base.
        securities: share of the base.
        margin: yearly net interest as a share of loans.
        costs: operating expenses as a share of income.
        other: other assets and other liabilities as a share of the base.
        capital: share capital.
        retained: retained earnings.
        lines: the lines of the latest month.
    """

    base: int
    loans: float
    securities: float
    margin: float
    costs: float
    other: float
    capital: int
    retained: int
    lines: dict[Key, Value] = field(default_factory=dict)

    @classmethod
    def drawn(cls, rng: np.random.Generator, deposits: int) -> "BalanceSheet":
        """A plausible bank of the size of its deposits."""
        base = max(abs(deposits), 100_000)
        return cls(
            base,
            loans=rng.uniform(0.62, 0.78),
            securities=rng.uniform(0.10, 0.18),
            margin=rng.uniform(0.030, 0.042),
            costs=rng.uniform(0.52, 0.64),
            other=rng.uniform(0.02, 0.04),
            capital=thousands(base * rng.uniform(0.05, 0.07)),
            retained=thousands(base * rng.uniform(0.03, 0.05)),
        )

    def next_month(self, rng: np.random.Generator, deposits: int, *, fees_on: int) -> "BalanceSheet":
        """The month after: loans and securities drift, profit is kept, cash and borrowing take the rest."""
        loans = self.loans * (1 + rng.normal(0.004, 0.004))
        securities = self.securities * (1 + rng.normal(0.0, 0.01))
        income = self._income(rng, loans, fees_on)
        retained = self.retained + thousands(income["ProfitBeforeTax"] * 0.75)
        assets = {
            "LoansAndAdvances": thousands(self.base * loans),
            "DebtSecurities": thousands(self.base * securities),
            "OtherAssets": thousands(self.base * self.other * (1 + rng.normal(0, 0.02))),
        }
        claims = self._claims(rng, deposits, retained, spent=sum(assets.values()))
        assets["CashAndCentralBankBalances"] = claims["TotalLiabilitiesAndEquity"] - sum(assets.values())
        assets["TotalAssets"] = claims["TotalLiabilitiesAndEquity"]
        lines: dict[Key, Value] = {(name, END): amount for name, amount in (assets | claims).items()}
        lines |= {(name, MONTH): amount for name, amount in income.items()}
        return replace(self, loans=loans, securities=securities, retained=retained, lines=lines)

    def _income(self, rng: np.random.Generator, loans: float, fees_on: int) -> dict[str, int]:
        interest = round(self.base * loans * self.margin / 12 * (1 + rng.normal(0, 0.01)))
        fees = round(fees_on * 0.002 * (1 + rng.normal(0, 0.03)))
        expenses = round((interest + fees) * self.costs * (1 + rng.normal(0, 0.015)))
        impairment = round(self.base * loans * 0.004 / 12 * (1 + abs(rng.normal(0, 0.15))))
        return {
            "NetInterestIncome": interest,
            "NetFeeIncome": fees,
            "OperatingExpenses": expenses,
            "ImpairmentLosses": impairment,
            "ProfitBeforeTax": interest + fees - expenses - impairment,
        }

    def _claims(self, rng: np.random.Generator, deposits: int, retained: int, *, spent: int) -> dict[str, int]:
        other = thousands(self.base * self.other * (1 + rng.normal(0, 0.02)))
        equity = self.capital + retained
        least_cash = self.base * 0.08
        borrowed = max(
            thousands(self.base * 0.06), thousands(spent + least_cash - thousands(deposits) - other - equity)
        )
        liabilities = thousands(deposits + borrowed + other)
        return {
            "BorrowedFunds": borrowed,
            "OtherLiabilities": other,
            "TotalLiabilities": liabilities,
            "ShareCapital": self.capital,
            "RetainedEarnings": retained,
            "TotalEquity": equity,
            "TotalLiabilitiesAndEquity": liabilities + equity,
        }


def thousands(amount: float) -> int:
    """An amount to the nearest thousand."""
    return round(amount / THOUSAND) * THOUSAND
