"""KPI 12: does an account still follow its own rhythm and that of its peers?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize.days import Days
from reperform.featurize.kernels import F64, I64, decoupling
from reperform.featurize.ledger import Ledger
from reperform.featurize.registry import Column, Kpi, Values


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Windows of KPI 12, in days.

    Args:
        days: window whose correlation is judged.
        reference_days: days before it that it is compared with.
        least_reference_days: fewer give no score.
        lags: own earlier days that today is compared with; the best one counts.
        refresh_days: the score is taken anew every so many days, and kept in between: it moves slowly.
    """

    days: int = 28
    reference_days: int = 90
    least_reference_days: int = 28
    lags: int = 7
    refresh_days: int = 7


def columns(settings: Settings) -> tuple[Column, ...]:
    """Decoupling from peers and from the account's own past."""
    w = f"{settings.days}d"
    rule = f"fewer than {settings.days + settings.least_reference_days} days, or no variation in one of the windows"
    z = f"(atanh rho of up to {settings.reference_days} days before - atanh rho of {w}) / standard error"
    return (
        Column(
            f"correlation_peer_{w}",
            f"{z}; rho = Spearman with the median of the segment's other accounts",
            "z",
            w,
            null_rule=f"{rule}, or no peers",
        ),
        Column(
            f"correlation_self_{w}",
            f"{z}; rho = largest Spearman with the account's own days 1 to {settings.lags} before",
            "z",
            w,
            null_rule=rule,
        ),
        Column(
            "correlation_reference_n",
            "days of the reference window",
            "days",
            w,
            is_model_input=False,
            null_rule="never",
        ),
    )


def daily_log_amount(ledger: Ledger, days: Days) -> F64:
    """ln(1 + amounts of the day) per slot, from what was known when the day ended; later arrivals do not change it."""
    cents = np.where(days.known_day == days.day + 1, ledger.cents, 0)
    return np.log1p(days.total(cents) / 100)


def alive(days: Days) -> Any:
    """Slots of accounts that were known to exist when the day ended."""
    first = days.open_day.copy()
    prompt = days.known_day == days.day + 1
    np.minimum.at(first, days.account_of_row[prompt], days.day[prompt])
    return days.slot_day >= first[days.slot_account]


def peer_medians(x: F64, days: Days) -> F64:
    """Median of the other accounts of the segment on the same day; NaN without any, or for accounts not yet known."""
    out = np.full(len(x), np.nan)
    names, segment = np.unique(days.segment.to_numpy(), return_inverse=True)
    slots = np.flatnonzero(alive(days))
    group = days.slot_day[slots] * max(len(names), 1) + segment[days.slot_account[slots]]
    order = np.lexsort((x[slots], group))
    slots, group = slots[order], group[order]
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]])) if len(group) else np.zeros(0, np.int64)
    size = np.diff(np.append(starts, len(group)))
    begin, n = np.repeat(starts, size), np.repeat(size, size)
    rank, others = np.arange(len(group)) - begin, n - 1
    upper, lower = others // 2, (others - 1) // 2
    at = [begin + np.where(k < rank, k, np.minimum(k + 1, n - 1)) for k in (lower, upper)]
    values = x[slots]
    out[slots] = np.where(others > 0, 0.5 * (values[at[0]] + values[at[1]]), np.nan) if len(group) else out[slots]
    return out


def compute(ledger: Ledger, _fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Daily scores of the row's day."""
    days, w = ledger.days, f"{settings.days}d"
    x = daily_log_amount(ledger, days)
    # Fixed days of the calendar: a day counted from an account's first record would move with late records.
    offset = days.day - days.day % settings.refresh_days - days.first_day[days.account_of_row]
    slots = days.starts[days.account_of_row] + np.maximum(offset, 0)
    wanted = np.zeros(len(days), np.bool_)
    wanted[slots[offset >= 0]] = True
    peer, own, n = decoupling(
        days.starts,
        x,
        peer_medians(x, days),
        wanted,
        _first_alive(days),
        settings.days,
        settings.reference_days,
        settings.least_reference_days,
        settings.lags,
    )
    return {
        f"correlation_peer_{w}": np.where(offset >= 0, peer[slots], np.nan),
        f"correlation_self_{w}": np.where(offset >= 0, own[slots], np.nan),
        "correlation_reference_n": np.where(offset >= 0, n[slots], 0.0),
    }


def _first_alive(days: Days) -> I64:
    """First offset within each account's days from which it was known to exist."""
    first = days.open_day.copy()
    prompt = days.known_day == days.day + 1
    np.minimum.at(first, days.account_of_row[prompt], days.day[prompt])
    return first - days.first_day


KPI = Kpi(
    name="correlation",
    number=12,
    title="Temporal correlation score",
    family="correlation",
    formula="x = daily ln(1 + amount) less the median of its weekday; z = (atanh rho_ref - atanh rho_now) / "
    "sqrt(1.06/(n_ref - 3) + 1.06/(n_now - 3)); "
    "n effective: n / (1 + 2 sum_k r_x(k) r_y(k)). Own days through yesterday; days with peers through the day before, "
    "when they are over in every timezone",
    unit="z",
    inputs=("account_id", "booked_at", "known_at", "amount_base", "segment", "timezone"),
    key="entity",
    null_rule="the account is too young, or its days do not vary",
    source="Fieller, Hartley and Pearson (1957), doi:10.1093/biomet/44.3-4.470; Bartlett (1935), doi:10.2307/2342284",
    settings=Settings,
    columns=columns,
    compute=compute,
)
