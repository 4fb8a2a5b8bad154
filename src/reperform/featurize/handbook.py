"""The fifteen features of the Fraud Detection Handbook, as published, to compare detectors on the same work.

They are computed when `featurize.kpis` names them, and never otherwise: counts and means include the row itself, and
KPIs 1, 2 and 7 say the same better.
"""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize.kernels import F64, I64
from reperform.featurize.ledger import UNKNOWN_TIME_US, Ledger
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.risk import positive_known
from reperform.featurize.windows import DAY_US, HOUR_US, History, length_us, ratio

SOURCE = "Le Borgne et al. (2022), Reproducible Machine Learning for Credit Card Fraud Detection, chapter 3"
LAST_NIGHT_HOUR = 6
SATURDAY = 5
WEEKDAY_OF_DAY_0 = 3  # 1970-01-01 was a Thursday
DAYS_OF_WEEK = 7
CENTS = 100


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Windows.

    Args:
        windows: lengths over which counts, means and shares are taken.
        delay: how long the frauds of a terminal take to be known.
    """

    windows: list[str] = field(default_factory=lambda: ["1d", "7d", "30d"])
    delay: str = "7d"


def customer_columns(settings: Settings) -> tuple[Column, ...]:
    """Amount, weekend and night of the row; count and mean amount of its customer."""
    return (
        Column("tx_amount", "amount in base currency of the row itself", "base currency"),
        Column("tx_during_weekend", "1 on Saturday and Sunday, UTC", "0 or 1"),
        Column("tx_during_night", f"1 from 0 to {LAST_NIGHT_HOUR} o'clock, UTC", "0 or 1"),
        *(
            column
            for w in settings.windows
            for column in (
                Column(f"customer_nb_tx_{w}", f"records in (t - {w}, t], the row included", "transactions", w),
                Column(
                    f"customer_avg_amount_{w}", f"mean amount in (t - {w}, t], the row included", "base currency", w
                ),
            )
        ),
    )


def terminal_columns(settings: Settings) -> tuple[Column, ...]:
    """Count and share of frauds of the row's terminal, as old as the delay."""
    d = settings.delay
    return tuple(
        column
        for w in settings.windows
        for column in (
            Column(f"terminal_nb_tx_{w}", f"records in (t - {d} - {w}, t - {d}]", "transactions", w),
            Column(f"terminal_risk_{w}", f"share of frauds in (t - {d} - {w}, t - {d}], 0 without records", "share", w),
        )
    )


def _totals(history: History, enter: I64, leave: I64, *values: I64) -> tuple[I64, ...]:
    codes = np.where(enter < UNKNOWN_TIME_US, history.codes, -1)
    return history.sums(history.tape_of(codes, enter, leave), *values)


def compute_customer(ledger: Ledger, _fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """A row enters when it is known, for itself and for all others of that moment."""
    day = ledger.time // DAY_US
    out: Values = {
        "tx_amount": ledger.amount,
        "tx_during_weekend": ((day + WEEKDAY_OF_DAY_0) % DAYS_OF_WEEK >= SATURDAY).astype(float),
        "tx_during_night": ((ledger.time % DAY_US) // HOUR_US <= LAST_NIGHT_HOUR).astype(float),
    }
    ones, late = np.ones(len(ledger), np.int64), ledger.known > ledger.time
    for w in settings.windows:
        n, cents = _totals(ledger.by_account, ledger.known, ledger.time + length_us(w) - 1, ones, ledger.cents)
        n, cents = n + late, cents + np.where(late, ledger.cents, 0)  # a late record has itself at hand, too
        out[f"customer_nb_tx_{w}"], out[f"customer_avg_amount_{w}"] = n.astype(float), ratio(cents / CENTS, n)
    return out


def compute_terminal(ledger: Ledger, _fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Records and frauds enter once the delay is over and they are known."""
    history, old_enough = ledger.by_counterparty, ledger.time + length_us(settings.delay)
    ones, out = np.ones(len(ledger), np.int64), Values()
    for w in settings.windows:
        leave = old_enough + length_us(w) - 1
        (n,) = _totals(history, np.maximum(old_enough, ledger.known), leave, ones)
        (frauds,) = _totals(history, np.maximum(old_enough, positive_known(ledger)), leave, ones)
        out[f"terminal_nb_tx_{w}"] = n.astype(float)
        out[f"terminal_risk_{w}"] = frauds / np.maximum(n, 1)
    return {name: np.where(history.codes < 0, np.nan, values) for name, values in out.items()}


CUSTOMER_KPI = Kpi(
    name="handbook_customer",
    number=1,
    title="Handbook: transaction and customer",
    family="handbook",
    formula="amount, weekend, night; count and mean amount of the customer, the row included",
    unit="transactions",
    inputs=("account_id", "booked_at", "known_at", "amount_base"),
    key="account",
    null_rule="never",
    source=SOURCE,
    settings=Settings,
    columns=customer_columns,
    compute=compute_customer,
    settings_key="handbook",
)
TERMINAL_KPI = Kpi(
    name="handbook_terminal",
    number=7,
    title="Handbook: terminal",
    family="handbook",
    formula="count and share of frauds of the terminal, as old as the delay",
    unit="share",
    inputs=("counterparty_id", "booked_at", "known_at", "is_anomaly", "confirmed_at"),
    key="counterparty",
    null_rule="the row names no counterparty",
    source=SOURCE,
    settings=Settings,
    columns=terminal_columns,
    compute=compute_terminal,
    settings_key="handbook",
)
