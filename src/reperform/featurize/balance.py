"""KPI 5: how much an account's balance moves, from end-of-day balances that were known by then."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

import numpy as np
import polars as pl
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize.kernels import F64, daily_balances
from reperform.featurize.ledger import Ledger, hundredths
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.windows import DAY_US, length_us, ratio

LEAST_FLOOR = 0.01  # a hundredth of the currency: accounts that are always empty must not make it nothing
MOST_DRAIN = 10.0  # an overdraft that is nearly used up would give any number
LONGEST_DAYS = 180  # of the exponential mean: older days weigh less than 0.94**180 = 0.00001


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Windows of KPI 5, in days.

    Args:
        days: window of the volatility; at least half of its days must report a balance.
        short_days: window of the recent volatility in the ratio.
        long_days: window of the usual volatility in the ratio.
        decay: weight of yesterday's variance.
        drain_windows: lengths over which payments out are held against the balance.
    """

    days: int = 30
    short_days: int = 7
    long_days: int = 90
    decay: float = 0.94
    drain_windows: list[str] = field(default_factory=lambda: ["24h", "7d"])


def columns(settings: Settings) -> tuple[Column, ...]:
    """Volatility, its ratio, the last move, drawdown, days below zero, and what the row takes from the balance."""
    d, s, long = settings.days, settings.short_days, settings.long_days
    few = f"balances reported on fewer than half of the last {d} days, or nothing to learn c from"
    none = "no earlier day's balance is known"
    return (
        Column(
            f"balance_volatility_{d}d",
            "1.4826 MAD(daily change) / (median |balance| + c)",
            "fraction of the typical balance",
            f"{d}d",
            null_rule=few,
        ),
        Column(
            f"balance_n_{d}d", "days that report a balance", "days", f"{d}d", is_model_input=False, null_rule="never"
        ),
        Column(
            "balance_volatility_ratio",
            f"volatility over {s} d / over {long} d",
            "x",
            f"{long}d",
            null_rule="balances on fewer than half of the days of either window, no movement in the longer, or "
            "nothing to learn c from",
        ),
        Column(
            "balance_move",
            f"|last daily change| / its exponentially weighted standard deviation (decay {settings.decay})",
            "SD",
            f"{LONGEST_DAYS}d",
            null_rule="no earlier change of the balance is known",
        ),
        Column(
            f"balance_drawdown_{long}d",
            "1 - last balance / highest balance",
            "share",
            f"{long}d",
            null_rule=f"{none}, or the highest is not positive",
        ),
        Column(f"balance_negative_{d}d", "days that ended below zero", "days", f"{d}d", null_rule=none),
        Column(
            "balance_drain",
            "amount paid out / balance before it, from the row itself; at most 10",
            "share",
            null_rule="money in, no balance reported, or none left before the row",
        ),
        *(
            Column(
                f"balance_drain_{w}",
                "amounts paid out, the row included / (balance after the row + these amounts); at most 10",
                "share",
                w,
                null_rule="the row reports no balance, or an overdraft beyond what was paid out",
            )
            for w in settings.drain_windows
        ),
    )


def fit(ledger: Ledger, end_us: int, _settings: Settings) -> dict[str, Any]:
    """Fifth percentile over accounts of the median absolute end-of-day balance before a moment, by currency."""
    days = ledger.days
    balance = ledger.transactions["balance_after"].to_numpy()
    rows = np.flatnonzero(ledger.known_before(end_us) & ~np.isnan(balance) & (days.day < end_us // DAY_US))
    last = rows[_last_of_each(days.slot_of_row[rows])]
    ends = pl.DataFrame(
        {
            "currency": ledger.transactions["currency"].gather(last),
            "account": days.account_of_row[last],
            "balance": np.abs(balance[last]),
        }
    ).sort("currency", "account", "balance")
    medians = ends.group_by("currency", "account", maintain_order=True).agg(pl.col("balance").median())
    floor = pl.col("balance").quantile(0.05, "linear").clip(LEAST_FLOOR)
    floors = medians.group_by("currency", maintain_order=True).agg(floor)
    return {"floor": dict(floors.iter_rows()), "all": medians.select(floor).item()}


def _last_of_each(slot: Any) -> Any:
    """Mask of the last row of each slot, rows being in order of time."""
    _, first_from_end = np.unique(slot[::-1], return_index=True)
    out = np.zeros(len(slot), bool)
    out[len(slot) - 1 - first_from_end] = True
    return out


def daily(ledger: Ledger, fitted: dict[str, Any], settings: Settings) -> Values:
    """Values per slot of the grid, as known at the start of its day."""
    days, names = ledger.days, [c.name for c in columns(settings) if not c.name.startswith("balance_drain")]
    balance = ledger.transactions["balance_after"].to_numpy()
    if np.isnan(balance).all():
        return {name: np.full(len(days), 0.0 if "_n_" in name else np.nan) for name in names}
    starts, rows = days.arrivals()
    found = daily_balances(
        days.starts,
        days.first_day,
        starts,
        rows,
        days.day,
        days.known_day,
        # In units of the currency's floor every quotient is the same, and one floor serves all currencies.
        balance / _floor(ledger, fitted),
        1.0,
        settings.days,
        settings.short_days,
        settings.long_days,
        settings.decay,
        LONGEST_DAYS,
    )
    volatility, n, short, long, move, drawdown, negative = found
    if fitted["all"] is None:
        volatility, short = np.full(len(days), np.nan), np.full(len(days), np.nan)
    return dict(zip(names, (volatility, n, ratio(short, long), move, drawdown, negative), strict=True))


def _floor(ledger: Ledger, fitted: dict[str, Any]) -> F64:
    """The floor in each row's currency; that of all currencies for one that nothing was learned of."""
    default = 1.0 if fitted["all"] is None else fitted["all"]
    return ledger.looked_up(["currency"], lambda currency: fitted["floor"].get(currency, default))


def compute(ledger: Ledger, fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Daily values of the row's day, and the row's own share of the balance."""
    slots = ledger.days.slot_of_row
    out = {name: values[slots] for name, values in daily(ledger, fitted, settings).items()}
    return out | _drain(ledger, settings)


def _drain(ledger: Ledger, settings: Settings) -> Values:
    """Share of the balance that was paid out, in the account's own currency."""
    amount, after = ledger.transactions["amount"].to_numpy(), ledger.transactions["balance_after"].to_numpy()
    paid = np.where(ledger.incoming, 0, hundredths(amount))
    out: Values = {"balance_drain": np.where(ledger.incoming, np.nan, share_of(amount, after + amount))}
    for window in settings.drain_windows:
        (past,) = ledger.by_account.sums(ledger.by_account.tape(length_us(window)), paid)
        total = (past + paid) / 100
        out[f"balance_drain_{window}"] = share_of(total, after + total)
    return out


def share_of(part: F64, whole: F64) -> F64:
    """Shares of what is above nothing, at most 10."""
    return np.minimum(ratio(part, np.where(whole > 0, whole, np.nan)), MOST_DRAIN)


KPI = Kpi(
    name="balance",
    number=5,
    title="Balance volatility",
    family="balance",
    formula="vol_W = 1.4826 MAD(D) / (median |b| + c) over complete days; b = end-of-day balance carried forward, D "
    "= its daily change, "
    "c = fifth percentile of accounts' median |b| on the training window, per currency. No balance is made up from "
    "transactions: no source gives an opening balance",
    unit="fraction of the typical balance",
    inputs=("account_id", "booked_at", "known_at", "balance_after", "amount", "currency", "direction", "timezone"),
    key="account",
    null_rule="the source reports no balances",
    source="Rousseeuw and Croux (1993), doi:10.1080/01621459.1993.10476408 (MAD); RiskMetrics (1996), decay 0.94",
    settings=Settings,
    columns=columns,
    compute=compute,
    fit=fit,
)
