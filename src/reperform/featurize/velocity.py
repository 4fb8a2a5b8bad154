"""KPI 1: how fast an account moves money, in transactions, amounts and counterparties per hour."""

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Any

import numpy as np
import polars as pl
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize.kernels import F64, I64, distinct, distinct_with_own, extreme_times, times_seen
from reperform.featurize.ledger import UNKNOWN_TIME_US, Ledger, pair_codes
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.windows import FOREVER_US, HOUR_US, length_us


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Windows of KPI 1.

    Args:
        windows: lengths; the first and the last are compared for the acceleration.
        counterparty_windows: lengths for different counterparties.
        channel_windows: lengths over which transactions in the row's channel are counted.
        channel_window: history from which the share of the channel is taken.
        least_age_hours: an account counts as at least this old, so that its first seconds give no huge rate.
        include_current: whether the row itself counts; it is known when it is scored.
    """

    windows: list[str] = field(default_factory=lambda: ["1h", "24h", "7d", "30d"])
    counterparty_windows: list[str] = field(default_factory=lambda: ["24h", "7d", "30d"])
    channel_windows: list[str] = field(default_factory=lambda: ["1h", "24h"])
    channel_window: str = "180d"
    least_age_hours: float = 1.0
    include_current: bool = False


def columns(settings: Settings) -> tuple[Column, ...]:
    """Counts, rates and amount rates per window, distinct counterparties, and the acceleration."""
    current = ", and the row itself" if settings.include_current else ""
    per_window = [
        column
        for w in settings.windows
        for column in (
            Column(
                f"velocity_n_{w}",
                f"transactions of the account in [t - {w}, t), known by t{current}",
                "transactions",
                w,
            ),
            Column(f"velocity_{w}", f"velocity_n_{w} / min({w}, age of the account)", "transactions per hour", w),
            Column(f"velocity_amount_{w}", f"their amounts / min({w}, age)", "base currency per hour", w),
        )
    ]
    parties = [
        Column(
            f"velocity_counterparties_{w}",
            f"different counterparties{current} / min({w}, age)",
            "counterparties per hour",
            w,
        )
        for w in settings.counterparty_windows
    ]
    short, long = settings.windows[0], settings.windows[-1]
    gain = Column(
        "velocity_acceleration",
        f"ln((V_{short} + eps) / (V_{long} + eps)), eps = one transaction per {long}",
        "natural log of a ratio",
        long,
    )
    c = settings.channel_window
    channel = (
        *(
            Column(f"velocity_channel_n_{w}", "transactions of the account in the row's channel", "transactions", w)
            for w in settings.channel_windows
        ),
        Column(f"velocity_channel_share_{c}", "(those of the channel + 1) / (all of them + 2)", "share", c),
        Column(
            "velocity_channel_rarity",
            "-log2 of the channel's share of the segment's training rows",
            "bits",
            null_rule="no row to learn the segment's channels from",
        ),
    )
    return (*per_window, *parties, gain, *channel)


def account_age_us(ledger: Ledger) -> I64:
    """Age of the account at each row: since it was opened, or since its first known record; 0 without either."""
    history = ledger.by_account
    first, _ = extreme_times(history.tape(FOREVER_US), ledger.time, len(ledger))
    since_first = np.where(first >= 0, ledger.time - ledger.time[first], 0)
    since_opening = ledger.time - np.where(ledger.opened == UNKNOWN_TIME_US, ledger.time, ledger.opened)
    return np.where(ledger.opened == UNKNOWN_TIME_US, since_first, np.maximum(since_opening, 0))


def fit(ledger: Ledger, end_us: int, _settings: Settings) -> dict[str, Any]:
    """Rows per channel for each segment, over the rows that may be learned from."""
    rows = pl.DataFrame({"segment": ledger.segment, "channel": ledger.transactions["channel"].fill_null("")})
    counts = rows.filter(ledger.known_before(end_us)).sort("segment", "channel")
    out: dict[str, dict[str, int]] = {}
    for segment, channel, n in counts.group_by("segment", "channel", maintain_order=True).len().iter_rows():
        out.setdefault(segment, {})[channel] = n
    return {"rows_per_channel": out}


def rarity(ledger: Ledger, fitted: dict[str, Any]) -> F64:
    """-log2 p(channel | segment), one row added to each channel and to all unseen ones; NaN for an unseen segment."""

    def bits(segment: str, channel: str | None) -> float:
        counts = fitted["rows_per_channel"].get(segment)
        if not counts:
            return np.nan
        total = sum(counts.values()) + len(counts) + 1
        return -math.log2((counts.get(channel or "", 0) + 1) / total)

    return ledger.looked_up(["segment", "channel"], bits)


def compute(ledger: Ledger, fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Velocities over windows of the account's past."""
    history, out = ledger.by_account, Values()
    age_hours = np.maximum(account_age_us(ledger) / HOUR_US, settings.least_age_hours)
    ones = np.ones(len(ledger), np.int64)
    for window in settings.windows:
        hours = np.minimum(length_us(window) / HOUR_US, age_hours)
        n, cents = history.window_sums(length_us(window), ones, ledger.cents)
        if settings.include_current:
            n, cents = n + 1, cents + ledger.cents
        out[f"velocity_n_{window}"] = n.astype(float)
        out[f"velocity_{window}"] = n / hours
        out[f"velocity_amount_{window}"] = cents / 100 / hours
    n_pairs = int(ledger.pair.max(initial=-1)) + 1
    for window in settings.counterparty_windows:
        hours = np.minimum(length_us(window) / HOUR_US, age_hours)
        count = distinct_with_own if settings.include_current else distinct
        different = count(history.tape(length_us(window)), ledger.pair, n_pairs, len(ledger))
        out[f"velocity_counterparties_{window}"] = different / hours
    short, long = settings.windows[0], settings.windows[-1]
    least = HOUR_US / length_us(long)
    out["velocity_acceleration"] = np.log((out[f"velocity_{short}"] + least) / (out[f"velocity_{long}"] + least))
    return out | _channel(ledger, settings) | {"velocity_channel_rarity": rarity(ledger, fitted)}


def _channel(ledger: Ledger, settings: Settings) -> Values:
    """How often the account used the row's channel; a row without one is compared with rows without one."""
    history, rows = ledger.by_account, len(ledger)
    item = pair_codes(history.codes, ledger.codes_of("channel") + 1)
    n_items = int(item.max(initial=-1)) + 1
    out: Values = {}
    for window in settings.channel_windows:
        events = history.tape(length_us(window))
        out[f"velocity_channel_n_{window}"] = times_seen(events, item, item, n_items, rows).astype(float)
    events = history.tape(length_us(settings.channel_window))
    (n,) = history.sums(events, np.ones(rows, np.int64))
    here = times_seen(events, item, item, n_items, rows)
    out[f"velocity_channel_share_{settings.channel_window}"] = (here + 1) / (n + 2)
    return out


KPI = Kpi(
    name="velocity",
    number=1,
    title="Transaction velocity",
    family="velocity",
    formula="V_W(t) = |{j: same account, t - W <= t_j < t, known by t}| / min(W, age of the account)",
    unit="transactions per hour",
    inputs=("account_id", "booked_at", "known_at", "amount_base", "counterparty_id", "channel", "segment", "opened_at"),
    key="account",
    null_rule="never: no record in the window is a velocity of zero",
    source="Whitrow et al. (2009), doi:10.1007/s10618-008-0116-z; Bahnsen et al. (2016), "
    "doi:10.1016/j.eswa.2015.12.030",
    settings=Settings,
    columns=columns,
    compute=compute,
    fit=fit,
)
