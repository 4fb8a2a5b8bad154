"""KPI 13: the place of account and counterparty among recent payments, and money that passes through."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize.kernels import F64, I64, distinct_with_own, extreme_times, order_statistics
from reperform.featurize.ledger import Ledger, pair_codes
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.windows import DAY_US, FOREVER_US, HOUR_US, length_us, ratio


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Windows of KPI 13.

    Args:
        window: age up to which a payment is an edge of the graph.
        pass_through_window: time within which money that came in counts as passed on.
        counterparty_windows: lengths over which the counterparty's payments are counted.
        pair_windows: shorter lengths over which payments of a pair are counted.
        new_windows: lengths over which first payments to new counterparties are counted.
    """

    window: str = "30d"
    pass_through_window: str = "72h"  # noqa: S105  # a length of time, no password
    counterparty_windows: list[str] = field(default_factory=lambda: ["1h", "24h", "7d", "30d"])
    pair_windows: list[str] = field(default_factory=lambda: ["1h", "24h"])
    new_windows: list[str] = field(default_factory=lambda: ["24h", "7d"])


def columns(settings: Settings) -> tuple[Column, ...]:
    """Degrees, distinct parties, reciprocity, pass-through, and how well the account knows the counterparty."""
    w, p = settings.window, settings.pass_through_window
    no_party = "the row names no counterparty"
    return (
        Column(f"network_in_degree_{w}", "payments into the account", "payments", w),
        Column(f"network_out_degree_{w}", "payments out of the account", "payments", w),
        Column(f"network_fan_in_{w}", "different counterparties that paid the account", "counterparties", w),
        Column(f"network_fan_out_{w}", "different counterparties that the account paid", "counterparties", w),
        Column(
            f"network_reciprocity_{w}",
            "counterparties in both directions / all counterparties",
            "share",
            w,
            null_rule="no known payment with a named counterparty in the window",
        ),
        Column(
            f"network_pass_through_{p}",
            "min(in, out) / max(in, out) of the amounts before the row",
            "share",
            p,
            null_rule="no known payment in the window",
        ),
        Column(
            f"network_pass_through_now_{p}",
            "the same with the row's own amount",
            "share",
            p,
            null_rule="never",
        ),
        Column(
            f"network_dwell_{p}",
            "median time from the latest payment in to each payment out in the window",
            "hours",
            p,
            null_rule="no payment out that followed a payment in within the window",
        ),
        Column(
            f"network_since_incoming_{p}",
            "time since the latest payment into the account",
            "hours",
            p,
            null_rule="no known payment into the account in the window",
        ),
        *(
            column
            for n in settings.new_windows
            for column in (
                Column(
                    f"network_new_n_{n}",
                    "counterparties that the account first dealt with in the window, the row included",
                    "counterparties",
                    n,
                ),
                Column(
                    f"network_new_amount_{n}",
                    "amount of first payments with a counterparty in the row's direction, the row included",
                    "base currency",
                    n,
                ),
            )
        ),
        *(
            Column(
                f"network_pair_n_{n}",
                "payments of the account with the counterparty",
                "payments",
                n,
                null_rule=no_party,
            )
            for n in settings.pair_windows
        ),
        Column(
            f"network_pair_amount_{w}",
            "mean ln(1 + amount) of the account's payments with the counterparty, the row included",
            "natural log",
            w,
            null_rule=no_party,
        ),
        Column(
            "network_is_first_time",
            "1 if the account has no known payment with the counterparty",
            "0 or 1",
            null_rule=no_party,
        ),
        Column(
            f"network_pair_n_{w}", "payments of the account with the counterparty", "payments", w, null_rule=no_party
        ),
        Column(
            "network_days_since_pair",
            "time since the latest known payment with the counterparty",
            "days",
            null_rule="no known payment with the counterparty, or none named",
        ),
    )


def compute(ledger: Ledger, _fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """The account's side of the graph."""
    return (
        _degrees(ledger, settings.window)
        | _pass_through(ledger, settings.pass_through_window)
        | _pair(ledger, settings)
    )


def _degrees(ledger: Ledger, window: str) -> Values:
    history, events = ledger.by_account, ledger.by_account.tape(length_us(window))
    n_pairs = int(ledger.pair.max(initial=-1)) + 1
    paid, received = history.sums(events, ~ledger.incoming, ledger.incoming)
    fan_in = history.distinct(events, np.where(ledger.incoming, ledger.pair, -1), n_pairs)
    fan_out = history.distinct(events, np.where(ledger.incoming, -1, ledger.pair), n_pairs)
    parties = history.distinct(events, ledger.pair, n_pairs)
    return {
        f"network_in_degree_{window}": received.astype(float),
        f"network_out_degree_{window}": paid.astype(float),
        f"network_fan_in_{window}": fan_in.astype(float),
        f"network_fan_out_{window}": fan_out.astype(float),
        # |in and out| = |in| + |out| - |in or out|
        f"network_reciprocity_{window}": ratio(fan_in + fan_out - parties, parties),
    }


def _pass_through(ledger: Ledger, window: str) -> Values:
    history, events = ledger.by_account, ledger.by_account.tape(length_us(window))
    own_in = np.where(ledger.incoming, ledger.cents, 0)
    own_out = ledger.cents - own_in
    into, out_of = history.sums(events, own_in, own_out)
    since = hours_since_incoming(ledger, window)
    dwell = np.where(ledger.incoming, np.nan, since)
    _, median, _, _, _ = order_statistics(events, dwell, len(ledger))
    now_in, now_out = into + own_in, out_of + own_out
    return {
        f"network_pass_through_{window}": ratio(np.minimum(into, out_of), np.maximum(into, out_of)),
        f"network_pass_through_now_{window}": ratio(np.minimum(now_in, now_out), np.maximum(now_in, now_out)),
        f"network_dwell_{window}": median,
        f"network_since_incoming_{window}": since,
    }


def hours_since_incoming(ledger: Ledger, window: str) -> F64:
    """Hours since the latest known payment into the account; NaN if there is none in the window."""
    history = ledger.by_account
    events = history.tape_of(np.where(ledger.incoming, history.codes, -1), history.enter, ledger.time + FOREVER_US)
    _, latest = extreme_times(events, ledger.time, len(ledger))
    since_us = ledger.time - ledger.time[latest]
    return np.where((latest >= 0) & (since_us <= length_us(window)), since_us / HOUR_US, np.nan)


def _pair(ledger: Ledger, settings: Settings) -> Values:
    history, window, rows = ledger.by_pair, settings.window, len(ledger)
    named = ledger.pair >= 0
    _, latest = extreme_times(history.tape(FOREVER_US), ledger.time, rows)
    (n,) = history.sums(history.tape(length_us(window)), np.ones(rows, np.int64))
    days = (ledger.time - ledger.time[latest]) / DAY_US
    out: Values = {
        "network_is_first_time": np.where(named, latest < 0, np.nan),
        f"network_pair_n_{window}": np.where(named, n, np.nan),
        f"network_pair_amount_{window}": history.mean_scores(window, np.log1p(ledger.amount)),
        "network_days_since_pair": np.where(named & (latest >= 0), days, np.nan),
    }
    for length in settings.pair_windows:
        (n,) = history.sums(history.tape(length_us(length)), np.ones(rows, np.int64))
        out[f"network_pair_n_{length}"] = np.where(named, n, np.nan)
    new = np.where(latest < 0, ledger.pair, -1)
    own = np.where(named & (latest < 0), ledger.cents, 0)
    for length in settings.new_windows:
        events = ledger.by_account.tape(length_us(length))
        out[f"network_new_n_{length}"] = distinct_with_own(events, new, history.keys, rows).astype(float)
        (before,) = ledger.by_account_direction.sums(ledger.by_account_direction.tape(length_us(length)), own)
        out[f"network_new_amount_{length}"] = (before + own) / 100
    return out


def counterparty_columns(settings: Settings) -> tuple[Column, ...]:
    """Activity of the counterparty with any account."""
    counts = [
        Column(f"counterparty_n_{w}", "payments with the counterparty, by any account", "payments", w)
        for w in settings.counterparty_windows
    ]
    w = settings.window
    unseen = "no known payment with the counterparty, or none named"
    return (
        *counts,
        Column(f"counterparty_accounts_{w}", "different accounts that dealt with the counterparty", "accounts", w),
        Column(
            f"counterparty_amount_to_mean_{w}",
            "amount / mean amount of the counterparty's payments in the row's direction",
            "x",
            w,
            null_rule="no known payment with the counterparty in this direction in the window",
        ),
        Column(
            "counterparty_days_since_seen",
            "time since the latest known payment with the counterparty",
            "days",
            null_rule=unseen,
        ),
        Column(
            "counterparty_age", "time since the first known payment with the counterparty", "days", null_rule=unseen
        ),
    )


def compute_counterparty(
    ledger: Ledger, _fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]
) -> Values:
    """The counterparty's side of the graph."""
    history, out, w = ledger.by_counterparty, Values(), settings.window
    ones = np.ones(len(ledger), np.int64)
    for window in settings.counterparty_windows:
        (n,) = history.sums(history.tape(length_us(window)), ones)
        out[f"counterparty_n_{window}"] = n.astype(float)
    events = history.tape(length_us(w))
    party = pair_codes(ledger.counterparty, ledger.account)
    out[f"counterparty_accounts_{w}"] = history.distinct(events, party, int(party.max(initial=-1)) + 1).astype(float)
    out[f"counterparty_amount_to_mean_{w}"] = _amount_to_mean(ledger, events)
    first, latest = extreme_times(history.tape(FOREVER_US), ledger.time, len(ledger))
    for name, row in (("counterparty_days_since_seen", latest), ("counterparty_age", first)):
        out[name] = np.where(row >= 0, (ledger.time - ledger.time[row]) / DAY_US, np.nan)
    return {name: np.where(history.codes >= 0, values, np.nan) for name, values in out.items()}


def _amount_to_mean(ledger: Ledger, events: I64) -> F64:
    into = ledger.incoming
    n_in, n_out, cents_in, cents_out = ledger.by_counterparty.sums(
        events, into, ~into, np.where(into, ledger.cents, 0), np.where(into, 0, ledger.cents)
    )
    return ratio(ledger.amount * np.where(into, n_in, n_out), np.where(into, cents_in, cents_out) / 100)


KPI = Kpi(
    name="network",
    number=13,
    title="Network effect indicators",
    family="network",
    formula="degrees, fan-in, fan-out and reciprocity of the payment graph with edges in [t - 30 d, t) known by t; "
    "pass-through = min(in, out) / max(in, out) of amounts within 72 h; history of the pair",
    unit="counts, shares and hours",
    inputs=("account_id", "counterparty_id", "booked_at", "known_at", "direction", "amount_base"),
    key="account",
    null_rule="never: no known payment is a count of zero",
    source="Suzumura and Kanezashi (2021), IBM AMLSim; FATF (2018), Professional Money Laundering (pass-through "
    "accounts)",
    settings=Settings,
    columns=columns,
    compute=compute,
)
COUNTERPARTY_KPI = Kpi(
    name="network_counterparty",
    number=13,
    title="Network effect indicators of the counterparty",
    family="network",
    formula="payments and different accounts of the counterparty in [t - W, t) known by t",
    unit="counts and days",
    inputs=("account_id", "counterparty_id", "booked_at", "known_at", "direction", "amount_base"),
    key="counterparty",
    null_rule="the row names no counterparty",
    source="Van Vlasselaer et al. (2015), APATE, doi:10.1016/j.dss.2015.04.013",
    settings=Settings,
    columns=counterparty_columns,
    compute=compute_counterparty,
    settings_key="network",
)
