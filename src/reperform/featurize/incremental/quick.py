"""KPIs of an account or a counterparty for single rows, by kernels that look back from each of them.

One function for each KPI gives, for the rows that ask, what its `compute` gives in a table: sums are counted anew for
each row (`asof`), and everything that is not a sum is computed by the same expressions as there, or by the very
functions of the KPI's module. Tests hold every bit of them against whole tables. A KPI that is not named here is
computed by its own `compute`, over a ledger of its key's rows.
"""

# ruff: noqa: PLR0917  # rows, what they look back on and settings go from function to function in one order

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from reperform.featurize import (
    amounts,
    balance,
    benford,
    concentration,
    frequency,
    geography,
    information,
    risk,
    spikes,
    thresholds,
    timing,
    velocity,
)
from reperform.featurize.days import NEVER
from reperform.featurize.engine import Task
from reperform.featurize.incremental import asof
from reperform.featurize.incremental.past import TIERS_US, Past, Some
from reperform.featurize.kernels import F64, I64
from reperform.featurize.ledger import UNKNOWN_TIME_US, hundredths
from reperform.featurize.registry import Values
from reperform.featurize.rhythm import own_decoupling
from reperform.featurize.windows import DAY_US, FOREVER_US, HOUR_US, MILLION, length_us, ratio, where_enough

if TYPE_CHECKING:
    from reperform.featurize.incremental import State


class Asking:
    """Rows that ask, with what they look back on.

    Args:
        state: everything that is known.
        slots: of the rows.
        key: by which their past is kept, `account` or `counterparty`.
    """

    def __init__(self, state: "State", slots: I64, key: str) -> None:
        self.state, self.slots, self.key = state, slots, key
        self.lists = state.by_account if key == "account" else state.by_counterparty
        self.keys: I64 = state.table[f"{key}_id"][slots]
        self.now: I64 = state.table["time"][slots]
        self._pasts: dict[int, Past] = {}

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, name: str) -> Any:
        return self.state.table[name][self.slots]

    def past(self, reach_us: int) -> Past:
        """The past of the rows, at least so far back."""
        tier = next(tier for tier in TIERS_US if tier >= min(reach_us, FOREVER_US))
        if tier not in self._pasts:
            self._pasts[tier] = Past(self.state.table, self.lists, self.keys, self.now, tier)
        return self._pasts[tier]

    @cached_property
    def rows(self) -> Some:
        """The rows as a ledger."""
        return self.state.some(self.slots)

    @cached_property
    def incoming(self) -> I64:
        """1 for money in."""
        return self.rows.incoming.astype(np.int64)

    def incoming_of(self, past: Past) -> I64:
        """The same of what rows look back on."""
        code = self.state.table.names["direction"].code.get("in", -2)
        return np.asarray(past["direction"] == code).astype(np.int64)

    def sums(self, windows: Sequence[str], *columns: str | I64, within: bool = False) -> I64:
        """Exact sums by window, shape (rows, windows, columns); `within` one direction if asked for."""
        lengths = lengths_of(windows)
        past = self.past(int(lengths.max(initial=0)))
        values = np.stack([past[column] if isinstance(column, str) else column for column in columns])
        return self.sums_of(past, lengths, values, within=within)

    def sums_of(self, past: Past, lengths: I64, values: I64, *, within: bool = False) -> I64:
        """The same of values that are there already, shape (columns, places of the past)."""
        if not len(lengths):
            return np.zeros((len(self), 0, len(values)), np.int64)
        group = self.incoming_of(past) if within else np.zeros(len(past.time), np.int64)
        own = self.incoming if within else np.zeros(len(self), np.int64)
        return asof.sums(*past.walk, lengths, group, own, np.ascontiguousarray(values))

    def items(self, windows: Sequence[str], of: Callable[[Past], I64], own: I64) -> tuple[I64, I64]:
        """Different parties by window, and how often the own one is seen."""
        lengths = lengths_of(windows)
        if not len(lengths):
            return np.zeros((len(self), 0), np.int64), np.zeros((len(self), 0), np.int64)
        past = self.past(int(lengths.max()))
        return self.items_of(past, lengths, of(past), own)

    def items_of(self, past: Past, lengths: I64, item: I64, own: I64) -> tuple[I64, I64]:
        """The same of parties that are picked already."""
        marks = self.state.marks
        different, seen, marks.turn = asof.items(*past.walk, lengths, item, own, marks.stamp, marks.turn)
        return different, seen

    def same(self, windows: Sequence[str], column: str) -> tuple[I64, I64]:
        """Rows by window, and those whose code is the own one."""
        lengths = lengths_of(windows)
        if not len(lengths):
            return np.zeros((len(self), 0), np.int64), np.zeros((len(self), 0), np.int64)
        past = self.past(int(lengths.max()))
        return asof.same(*past.walk, lengths, past[column], self[column])

    @property
    def opened_day(self) -> I64:
        """Day on which each row's account was opened; `NEVER` where that is unknown."""
        return np.asarray(self.state.register["opened_day"][self.keys])

    def first_days(self, until: I64 | None) -> I64:
        """First day of each row's account of which something was known by a day, or of all its rows."""
        table, lists = self.state.table, self.lists
        known_by = np.full(len(self), FOREVER_US) if until is None else until
        return asof.first_days(
            lists.starts, lists.used, lists.slots, table["time"], self.keys, table["day"], table["known_day"],
            known_by, False,  # compiled
        )  # fmt: skip

    def ends_known(self) -> tuple[I64, I64]:
        """Earliest and latest time of the key's known rows; -1 for none."""
        table, lists = self.state.table, self.lists
        return asof.ends_known(
            lists.starts, lists.used, lists.slots, table["time"], table["enter"], self.keys, self.now
        )

    def scored(self, name: str, reach_us: int) -> tuple[Past, F64]:
        """What rows of the past were scored themselves, as far as they may be read: those older stay unknown."""
        past = self.past(reach_us)
        values = np.full(len(past.time), np.nan)
        read = np.ones(len(past.time), np.bool_)
        if past.oldest is not None:
            read = past.time >= past.oldest + (past.reach_us - reach_us)
        values[read] = self.state.kept_of(name, past.slots[read])
        return past, values

    def mean_scores(self, windows: Sequence[str], past: Past, scores: F64, own: F64, counts: I64 | None = None) -> F64:
        """As `History.mean_scores`; shape (windows, rows). `counts`, if given, says which rows are of one pair."""
        known, mine = ~np.isnan(scores), ~np.isnan(own)
        millionths = np.where(known, np.rint(np.nan_to_num(scores) * MILLION), 0).astype(np.int64)
        own_millionths = np.where(mine, np.rint(np.nan_to_num(own) * MILLION), 0).astype(np.int64)
        lengths, values = lengths_of(windows), np.stack([millionths, known.astype(np.int64)])
        if counts is None:
            found = self.sums_of(past, lengths, values)
        else:
            found = asof.sums(*past.walk, lengths, counts, self["counterparty_id"], values)
        return np.stack(
            [
                ratio((found[:, place, 0] + own_millionths) / MILLION, found[:, place, 1] + mine)
                for place in range(len(lengths))
            ]
        )


def lengths_of(windows: Sequence[str]) -> I64:
    """Windows in microseconds."""
    return np.array([length_us(window) for window in windows], np.int64)


def _velocity(asking: Asking, task: Task, _made: Mapping[str, F64]) -> Values:
    s, out, n_cents = task.settings, Values(), asking["cents"]
    first, _ = asking.ends_known()
    opened = asking.rows.opened
    since_first = np.where(first >= 0, asking.now - first, 0)
    since_opening = asking.now - np.where(opened == UNKNOWN_TIME_US, asking.now, opened)
    age = np.where(opened == UNKNOWN_TIME_US, since_first, np.maximum(since_opening, 0))
    age_hours = np.maximum(age / HOUR_US, s.least_age_hours)
    past = asking.past(int(lengths_of(s.windows).max()))
    found = asking.sums_of(past, lengths_of(s.windows), np.stack([np.ones(len(past.time), np.int64), past["cents"]]))
    for place, window in enumerate(s.windows):
        hours = np.minimum(length_us(window) / HOUR_US, age_hours)
        n, cents = found[:, place, 0], found[:, place, 1]
        if s.include_current:
            n, cents = n + 1, cents + n_cents
        out[f"velocity_n_{window}"] = n.astype(float)
        out[f"velocity_{window}"] = n / hours
        out[f"velocity_amount_{window}"] = cents / 100 / hours
    own = asking["counterparty_id"]
    different, seen = asking.items(s.counterparty_windows, lambda past: past["counterparty_id"], own)
    for place, window in enumerate(s.counterparty_windows):
        hours = np.minimum(length_us(window) / HOUR_US, age_hours)
        count = different[:, place]
        if s.include_current:
            count = count + ((own >= 0) & (seen[:, place] == 0))
        out[f"velocity_counterparties_{window}"] = count / hours
    short, long = s.windows[0], s.windows[-1]
    least = HOUR_US / length_us(long)
    out["velocity_acceleration"] = np.log((out[f"velocity_{short}"] + least) / (out[f"velocity_{long}"] + least))
    n_all, here = asking.same([*s.channel_windows, s.channel_window], "channel")
    for place, window in enumerate(s.channel_windows):
        out[f"velocity_channel_n_{window}"] = here[:, place].astype(float)
    out[f"velocity_channel_share_{s.channel_window}"] = (here[:, -1] + 1) / (n_all[:, -1] + 2)
    return out | {"velocity_channel_rarity": velocity.rarity(asking.rows, task.fitted)}


def _amount_scores(asking: Asking, task: Task) -> Values:
    s, w = task.settings, task.settings.window
    log_amount, amount = asking["log_amount"], asking["amount_base"]
    past = asking.past(length_us(w))
    n, median, deviation, largest, rank = asof.order_statistics(
        *past.walk, length_us(w), asking.incoming_of(past), asking.incoming, past["log_amount"], log_amount
    )
    centre = amounts.backed_off(median, n, amounts.group_median(asking.rows, task.fitted), s.backoff_weight)
    z = where_enough((log_amount - centre) / (amounts.MAD_TO_SD * deviation + amounts.FLOOR), n, s.least_n)
    return {
        "amount_log": log_amount,
        "amount_is_incoming": asking.rows.incoming.astype(float),
        f"amount_deviation_z_{w}": z,
        f"amount_deviation_n_{w}": n.astype(float),
        f"amount_deviation_flag_{w}": np.where(np.isnan(z), np.nan, np.abs(z) > s.flag_above),
        f"amount_to_max_{w}": where_enough(ratio(amount, np.expm1(largest)), n, s.least_n),
        f"amount_rank_{w}": where_enough(rank, n, s.least_n),
    }


def _amount(asking: Asking, task: Task, made: Mapping[str, F64]) -> Values:
    s, out, name = task.settings, dict(made), f"amount_deviation_z_{task.settings.window}"
    if s.mean_windows:
        past = asking.past(int(lengths_of(s.mean_windows).max()))
        found = asking.sums_of(
            past, lengths_of(s.mean_windows), np.stack([np.ones(len(past.time), np.int64), past["cents"]]), within=True
        )
        for place, window in enumerate(s.mean_windows):
            count, cents = found[:, place, 0], found[:, place, 1]
            out[f"amount_to_mean_{window}"] = ratio(asking["amount_base"] * count, cents / 100)
    if s.score_windows:
        past, z = asking.scored(name, int(lengths_of(s.score_windows).max()))
        clipped, own = (np.clip(x, -amounts.LARGEST_Z, amounts.LARGEST_Z) for x in (z, out[name]))
        for window, mean in zip(s.score_windows, asking.mean_scores(s.score_windows, past, clipped, own), strict=True):
            out[f"amount_deviation_mean_{window}"] = mean
    return out


def _spikes(asking: Asking, task: Task, _made: Mapping[str, F64]) -> Values:
    s, amount = task.settings, asking["amount_base"]
    w, recent = s.window, s.recent
    past = asking.past(max(length_us(w), length_us(recent)))
    counts, values = asof.spikes(
        *past.walk, length_us(w), length_us(recent), asking.incoming_of(past), asking.incoming, past["cents"],
        s.factor, spikes.MOST_CENTS,
    )  # fmt: skip
    n, n_recent, n_above = counts.T
    median, largest, mean, deviation = values.T / spikes.CENTS
    return {
        f"amount_to_median_{w}": ratio(amount, median),
        f"amount_sd_score_{w}": (amount - mean) / (deviation + 1),
        f"amount_median_{w}": np.log1p(median),
        f"amount_history_n_{w}": n.astype(float),
        f"amount_spike_max_{recent}": ratio(largest, median),
        f"amount_spike_n_{recent}": np.where(n > 0, n_above, np.nan),
        f"amount_spike_share_{recent}": ratio(n_above, n_recent),
    }


def _benford(asking: Asking, task: Task, _made: Mapping[str, F64]) -> Values:
    s, w = task.settings, task.settings.window
    past = asking.past(length_us(w))
    n, deviation = asof.digit_deviation(*past.walk, length_us(w), past["digit"], benford.EXPECTED, s.least_n)
    band = np.searchsorted(s.bands, deviation, side="left")
    return {
        f"benford_mad_{w}": deviation,
        f"benford_band_{w}": where_enough(band.astype(float), n, s.least_n),
        f"benford_n_{w}": n.astype(float),
    }


def _time_scores(asking: Asking, task: Task) -> Values:
    s, w = task.settings, task.settings.window
    n, here = (found[:, 0] for found in asking.same([w], "hour"))
    prior = timing.prior_of(asking.rows, asking["hour"], task.fitted)
    p = (here + s.prior_weight * prior) / (n + s.prior_weight)
    return {f"time_surprisal_{w}": -np.log2(p), f"time_surprisal_n_{w}": n.astype(float)}


def _time(asking: Asking, task: Task, made: Mapping[str, F64]) -> Values:
    s, out, name = task.settings, dict(made), f"time_surprisal_{task.settings.window}"
    if s.score_windows:
        past, scores = asking.scored(name, int(lengths_of(s.score_windows).max()))
        means = asking.mean_scores(s.score_windows, past, scores, out[name])
        out |= {f"time_surprisal_mean_{w}": mean for w, mean in zip(s.score_windows, means, strict=True)}
    out[f"time_surprisal_pair_{s.pair_window}"] = _pair_mean(asking, name, s.pair_window, out[name])
    local, day = asking["local"], asking["day"]
    days, place = np.unique(day, return_inverse=True)
    minutes = (local - day * DAY_US) // timing.MINUTE_US
    dates = [timing.date_of(one) for one in days]
    return out | {
        "time_hour_local": minutes // 60 + minutes % 60 / 60,
        "time_is_night": (minutes // 60 < timing.NIGHT_ENDS_HOUR).astype(float),
        "time_is_weekend": ((day + timing.THURSDAY) % 7 >= timing.SATURDAY).astype(float),
        "time_is_holiday": timing.holiday(asking.rows, dates, place, s),
        "time_payday_distance": np.array([float(timing.payday_distance(one)) for one in dates])[place],
    }


def _pair_mean(asking: Asking, name: str, window: str, own: F64) -> F64:
    """Mean over the account's rows with the row's counterparty; only their scores are asked for."""
    past, other = asking.past(length_us(window)), asking["counterparty_id"]
    scores = np.full(len(past.time), np.nan)
    # Rows of parties that somebody asks about, far enough back: few of all.
    asked = np.isin(past["counterparty_id"], np.unique(other))
    if past.oldest is not None:
        asked &= past.time >= past.oldest + (past.reach_us - length_us(window))
    scores[asked] = asking.state.kept_of(name, past.slots[asked])
    mean = asking.mean_scores([window], past, scores, own, past["counterparty_id"])[0]
    return np.where(other < 0, np.nan, mean)


def _frequency(asking: Asking, task: Task, _made: Mapping[str, F64]) -> Values:
    s, w = task.settings, task.settings.window
    out = daily_of(asking.state, task, asking.keys, asking["day"], asking.now, asking)
    out.pop("p")
    past = asking.past(length_us(w))
    n, mean, sd, median = asof.gap_statistics(*past.walk, length_us(w))
    _, latest = asking.ends_known()
    since_us = np.where(latest >= 0, asking.now - latest, np.nan)
    out[f"frequency_burstiness_{w}"] = where_enough(ratio(sd - mean, sd + mean), n, s.least_n)
    out[f"frequency_gaps_n_{w}"] = n.astype(float)
    dormancy = since_us / 1e6 / np.maximum(median, frequency.LEAST_GAP_S)
    out[f"frequency_dormancy_{w}"] = where_enough(dormancy, n, s.least_n_dormancy)
    out["frequency_hours_since_last"] = since_us / HOUR_US
    return out


def daily_of(state: "State", task: Task, accounts: I64, today: I64, now: I64, asking: Asking | None = None) -> Values:
    """As `frequency.daily`, of accounts on days as known when these began.

    Args:
        state: everything that is known.
        task: KPI 4, or the same among all accounts.
        accounts: party of each.
        today: day of each by the account's clock.
        now: any moment of the day, or after it.
        asking: rows whose past holds these days, if there are any.
    """
    s, table, lists, begin = task.settings, state.table, state.by_account, task.fitted.get("begin")
    opened = np.full(len(accounts), NEVER)
    if begin is not None:
        opened = np.maximum(np.minimum(state.register["opened_day"][accounts], NEVER), begin)
    known = asof.first_days(
        lists.starts, lists.used, lists.slots, table["time"], accounts, table["day"], table["known_day"],
        today, False,  # compiled
    )  # fmt: skip
    origin = np.minimum(opened, known)
    complete = np.maximum(today - origin, 0)
    reach = (s.history_days + 6) * DAY_US
    past = Past(table, lists, accounts, now, reach) if asking is None else asking.past(reach)
    last, weighted = asof.daily_counts(
        past.begin, past.end, today, past["day"], past["known_day"], complete, s.history_days, s.other_weekday_weight
    )
    back = np.arange(s.history_days + 1)
    share = np.where(back % 7 == 0, 1.0, s.other_weekday_weight)
    share[0] = 0.0
    weight = np.cumsum(share)[np.clip(complete - 1, 0, s.history_days)]
    default, names = task.fitted["all"] or [np.nan, np.nan], state.register.names["segment"].text
    priors = np.array([task.fitted["prior"].get(name) or default for name in names], np.float64)
    prior = priors[state.register["segment"][accounts] + 1]
    return frequency.surprise_of(last, weighted, weight, complete, prior[:, 0], prior[:, 1], s)


def _balance(asking: Asking, task: Task, _made: Mapping[str, F64]) -> Values:
    s, fitted, today = task.settings, task.fitted, asking["day"]
    past = asking.past(FOREVER_US)
    default = 1.0 if fitted["all"] is None else fitted["all"]
    names = asking.state.table.names["currency"].text
    floors = np.array([fitted["floor"].get(name, default) for name in names], np.float64)
    first = np.minimum(np.maximum(asking.opened_day, asking.state.first_day), asking.first_days(None))
    found = asof.daily_balances(
        past.begin, past.end, today, first, past["day"], past["known_day"],
        past["balance_after"] / floors[past["currency"] + 1],
        s.days, s.short_days, s.long_days, s.decay, balance.LONGEST_DAYS,
    )  # fmt: skip
    volatility, n, short, long, move, drawdown, negative = found.T
    if fitted["all"] is None:
        volatility, short = np.full(len(asking), np.nan), np.full(len(asking), np.nan)
    made = (volatility, n, ratio(short, long), move, drawdown, negative)
    out = dict(zip([c.name for c in task.columns if not c.name.startswith("balance_drain")], made, strict=True))
    amount, after, incoming = asking["amount"], asking["balance_after"], asking.rows.incoming
    paid = np.where(incoming, 0, hundredths(amount))
    out["balance_drain"] = np.where(incoming, np.nan, balance.share_of(amount, after + amount))
    if s.drain_windows:
        recent = asking.past(int(lengths_of(s.drain_windows).max()))
        paid_before = np.where(asking.incoming_of(recent), 0, hundredths(recent["amount"]))
        before = asking.sums_of(recent, lengths_of(s.drain_windows), paid_before[None])
        for place, window in enumerate(s.drain_windows):
            total = (before[:, place, 0] + paid) / 100
            out[f"balance_drain_{window}"] = balance.share_of(total, after + total)
    return out


def _geography_scores(asking: Asking, task: Task) -> Values:
    s, w = task.settings, task.settings.window
    past, country = asking.past(length_us(w)), asking["country"]
    found = asof.places(*past.walk, length_us(w), past["country"], country, past["located"], past["y"], past["x"])
    here, n = np.where(country < 0, 0, found[:, 0]), found[:, 1]
    p = (here + s.prior_weight * geography.prior_of(asking.rows, task.fitted)) / (n + s.prior_weight)
    n_located, sum_y, sum_x, sum_yy, sum_xx = found[:, 2:].T
    latitude, longitude = asking["latitude"], asking["longitude"]
    located = asking["located"] > 0
    return {
        f"geo_country_surprisal_{w}": np.where(country < 0, np.nan, -np.log2(p)),
        f"geo_country_n_{w}": n.astype(float),
        f"geo_radius_z_{w}": geography.radius_z(
            n_located, (sum_y, sum_x, sum_yy, sum_xx), latitude, longitude, located, s
        ),
        f"geo_radius_n_{w}": n_located.astype(float),
    }


def _geography(asking: Asking, task: Task, made: Mapping[str, F64]) -> Values:
    s, out, rows = task.settings, dict(made), asking.rows
    name = f"geo_country_surprisal_{s.window}"
    if s.score_windows:
        past, scores = asking.scored(name, int(lengths_of(s.score_windows).max()))
        means = asking.mean_scores(s.score_windows, past, scores, out[name])
        out |= {f"geo_country_surprisal_mean_{w}": mean for w, mean in zip(s.score_windows, means, strict=True)}
    country, latitude, longitude = asking["country"], asking["latitude"], asking["longitude"]
    located = asking["located"] > 0
    abroad = rows.looked_up(
        ["country", "home_country"], lambda at, home: np.nan if at is None or home is None else float(at != home)
    )
    out["geo_is_abroad"] = abroad
    out["geo_is_high_risk"] = np.where(country < 0, np.nan, geography.is_high_risk(rows, s))
    past = asking.past(length_us(s.speed_window))
    before = asking.state.some(past.slots)
    counts = (past["located"] > 0) & geography.card_present(before, s)
    found = asof.latest(*past.walk, length_us(s.speed_window), counts)
    placed = located & geography.card_present(rows, s)
    holds = placed & (found >= 0)
    at = np.maximum(found, 0)
    if len(past.time):
        gap_us = asking.now - past.time[at]
        way = geography.distance_km(latitude, longitude, past["latitude"][at], past["longitude"][at])
    else:
        gap_us, way = np.zeros(len(asking), np.int64), np.full(len(asking), np.nan)
    km = np.where(holds, way, np.nan)
    speed = km / (np.maximum(gap_us, geography.LEAST_GAP_US) / HOUR_US)
    flag = (speed > s.flag_above_kmh) & (km > s.flag_above_km)
    out |= {"geo_speed": speed, "geo_distance": km, "geo_speed_flag": np.where(holds, flag, np.nan)}
    return out | geography.position(rows, latitude, longitude, located, s)


def _risk(asking: Asking, task: Task, _made: Mapping[str, F64]) -> Values:
    s, who, rate = task.settings, asking.key, task.fitted["rate"]
    past, named, out = asking.past(FOREVER_US), asking.keys >= 0, Values()
    counts, lately, newest = asof.risk(
        *past.walk, past["said"], past["confirmed"], asking.state.maturity_us,
        lengths_of(s.windows), lengths_of(s.confirmed_windows),
    )  # fmt: skip
    pi0, weight = np.nan if rate is None else rate, s.prior_weight
    for place, window in enumerate(s.windows):
        anomalies, resolved = counts[:, place, 0], counts[:, place, 1]
        out[f"{who}_risk_{window}"] = (anomalies + weight * pi0) / (resolved + weight)
        out[f"{who}_risk_n_{window}"] = resolved.astype(float)
        if window == s.windows[-1]:
            low, high = _interval(asking, task, anomalies, resolved, weight * pi0, weight * (1 - pi0))
            out[f"{who}_risk_low_{window}"], out[f"{who}_risk_high_{window}"] = low, high
    for place, window in enumerate(s.confirmed_windows):
        out[f"{who}_confirmed_n_{window}"] = lately[:, place, 0].astype(float)
        out[f"{who}_confirmed_share_{window}"] = ratio(lately[:, place, 0], lately[:, place, 1])
    for place, name in enumerate(("anomaly", "confirmation")):
        since = (asking.now - newest[:, place]) / DAY_US
        out[f"{who}_days_since_{name}"] = np.where(newest[:, place] >= 0, since, np.nan)
    if who == "counterparty":
        out["counterparty_listed"] = risk.listed(asking.rows, s.lists)
    return {name: np.where(named, values, np.nan) for name, values in out.items()}


def _interval(asking: Asking, task: Task, anomalies: I64, resolved: I64, alpha: float, beta: float) -> tuple[F64, F64]:
    """As `risk.beta_interval`, which takes long: asked once for each pair of counts."""
    held = asking.state.intervals.setdefault((alpha, beta, task.settings.interval), {})
    pairs = list(zip(anomalies.tolist(), resolved.tolist(), strict=True))
    new = [pair for pair in dict.fromkeys(pairs) if pair not in held]
    if new:
        k, n = np.array(new, np.int64).T
        low, high = risk.beta_interval(k, n, alpha, beta, task.settings.interval)
        held |= dict(zip(new, zip(low.tolist(), high.tolist(), strict=True), strict=True))
    found = np.array([held[pair] for pair in pairs], np.float64)
    return found[:, 0], found[:, 1]


def _streak(asking: Asking, task: Task, _made: Mapping[str, F64]) -> Values:
    s, who, past = task.settings, asking.key, asking.past(FOREVER_US)
    found, among = asof.streaks(
        *past.walk, past["said"], past["confirmed"], asking.state.maturity_us,
        np.array(s.latest, np.int64), length_us(s.span),
    )  # fmt: skip
    unknown = (asking.keys < 0) | (task.fitted["rate"] is None)
    n = np.maximum(found[:, 0], 0)

    def days_since(time: I64) -> F64:
        return np.where(time >= 0, (asking.now - time) / DAY_US, np.nan)

    out: Values = {
        f"{who}_anomaly_run": np.where(n > 0, found[:, 1], np.nan),
        f"{who}_anomaly_run_days": days_since(found[:, 2]),
        f"{who}_resolved_n": n.astype(float),
        f"{who}_normal_n_since_anomaly": np.where(found[:, 3] >= 0, found[:, 3], np.nan),
        f"{who}_days_since_first_anomaly_{s.span}": days_since(found[:, 4]),
    }
    for column, latest in enumerate(s.latest):
        share = among[:, column] / np.maximum(np.minimum(n, latest), 1)
        out[f"{who}_anomaly_share_last_{latest}"] = np.where(n > 0, share, np.nan)
    return {name: np.where(unknown, np.nan, values) for name, values in out.items()}


def _thresholds(asking: Asking, task: Task, _made: Mapping[str, F64]) -> Values:
    s, rows = task.settings, asking.rows
    reach = max(length_us(s.structuring_window), length_us(s.smurfing_window), 25 * HOUR_US)
    reach = max([reach, *(length_us(r.window) for r in s.rules if r.window not in thresholds.NO_LENGTH)])
    past = asking.past(reach)
    before = asking.state.some(past.slots)
    group = asking.incoming_of(past), asking.incoming
    found, broken = [], []
    for rule in s.rules:
        learned = task.fitted.get(rule.name, thresholds.NOTHING_LEARNED)
        values, breaks = _of_rule(asking, past, before, rows, rule, learned, s, group)
        found.append(values)
        broken.append(breaks)
    own = {f"limit_ratio_{rule.name}": f["limit_ratio"] for rule, f in zip(s.rules, found, strict=True)}
    names = [c.name for c in task.columns if c.name != "limit_broken_n" and c.name not in own]
    out = own | {name: thresholds.largest([f[name] for f in found], len(asking)) for name in names}
    total = np.nansum(np.array(broken).reshape(len(found), len(asking)), axis=0)
    out["limit_broken_n"] = np.where(np.isnan(out["limit_ratio"]), np.nan, total)
    return out


def _of_rule(
    asking: Asking,
    past: Past,
    before: Some,
    rows: Some,
    rule: thresholds.Rule,
    learned: dict[str, Any],
    s: thresholds.Settings,
    group: tuple[I64, I64],
) -> tuple[Values, F64]:
    """Columns of one limit, and whether its sum is broken."""
    at, unknown = thresholds.scope(rows, rule), np.full(len(asking), np.nan)
    if not at.applies.any():
        names = [c.name for c in thresholds.columns(s)]
        return dict.fromkeys(names, unknown), unknown
    was, limit = thresholds.scope(before, rule), at.limit
    day, own_day = thresholds.business_day(before, rule), thresholds.business_day(rows, rule)
    total = at.cents.copy()
    if rule.window == "day":
        total += asof.day_sums(*past.walk, 25 * HOUR_US, *group, day, own_day, was.cents)
    elif rule.window != "transaction":
        total += asking.sums_of(past, lengths_of([rule.window]), was.cents[None], within=True)[:, 0, 0]
    w, m, least_broken = s.structuring_window, s.smurfing_window, limit + (rule.operator == ">")
    n, k, days, cents, broken_days = asof.split_amounts(
        *past.walk, length_us(w), *group, was.applies, was.near(s.near_share), was.cents, day,
        at.applies, at.near(s.near_share), at.cents, own_day, least_broken,
    )  # fmt: skip
    flag = (k >= s.structuring_least_n) & (cents >= limit) & (broken_days == 0)
    shares = learned["share"]
    share = rows.looked_up(["segment"], lambda segment: shares.get(segment, shares.get("", 0.5)))
    z = learned["bunching"]["z"]
    values = {
        "limit_ratio": total / limit,
        f"structuring_n_{w}": k,
        f"structuring_days_{w}": days,
        f"structuring_ratio_{w}": cents / limit,
        f"structuring_flag_{w}": flag,
        f"structuring_surprise_{w}": thresholds.binomial_surprise(k, n, share),
        f"structuring_of_n_{w}": n,
        "limit_bunching": np.full(len(asking), np.nan if z is None else z),
    }
    out = {name: np.where(at.applies, v, np.nan) for name, v in values.items()}
    parties = _parties(asking, past, was, at, "counterparty_id", m, group)
    out |= thresholds.party_values(parties, ("smurfing_parties", "smurfing"), limit, at.applies, s)
    micro_limit = round(s.micro_share * limit)
    micro_was, micro = was.below & (was.cents < micro_limit), at.below & (at.cents < micro_limit)
    sums = asking.sums_of(
        past, lengths_of([m]), np.stack([micro_was.astype(np.int64), np.where(micro_was, was.cents, 0)]), within=True
    )
    count, micro_total = sums[:, 0, 0] + micro, sums[:, 0, 1] + np.where(micro, at.cents, 0)
    flag = (count >= s.micro_least_n) & (micro_total >= limit)
    for name, found in (("micro_n", count), ("micro_ratio", micro_total / limit), ("micro_flag", flag)):
        out[f"smurfing_{name}_{m}"] = np.where(at.applies, found, np.nan)
    return out, np.where(at.applies, at.broken_by(total, rule.operator), np.nan)


def _parties(
    asking: Asking,
    past: Past,
    was: thresholds.Scope,
    at: thresholds.Scope,
    party: str,
    window: str,
    group: tuple[I64, I64],
) -> tuple[I64, I64, I64]:
    """As `thresholds._parties`, for rows of one direction."""
    other, own = past[party], asking[party]
    counts, own_counts = was.below & (other >= 0), at.below & (own >= 0)
    mine = np.where(own_counts, own, -1)
    # A party may be met in both directions: two numbers for each, so that one direction alone is counted.
    lengths = lengths_of([window])
    different, seen = np.zeros(len(asking), np.int64), np.zeros(len(asking), np.int64)
    for way in (0, 1):
        item = np.where(counts & (group[0] == way), other, -1)
        found, own_seen = asking.items_of(past, lengths, item, mine)
        here = group[1] == way
        different[here], seen[here] = found[here, 0], own_seen[here, 0]
    below = np.stack([counts.astype(np.int64), np.where(counts, was.cents, 0)])
    sums = asof.sums(*past.walk, lengths, *group, below)
    n = different + ((mine >= 0) & (seen == 0))
    return n, sums[:, 0, 0] + own_counts, sums[:, 0, 1] + np.where(own_counts, at.cents, 0)


def _thresholds_counterparty(asking: Asking, task: Task, _made: Mapping[str, F64]) -> Values:
    s, rows, m = task.settings, asking.rows, task.settings.smurfing_window
    past = asking.past(length_us(m))
    before, found = asking.state.some(past.slots), []
    group = asking.incoming_of(past), asking.incoming
    for rule in s.rules:
        at = thresholds.scope(rows, rule)
        holds = at.applies & (asking.keys >= 0)
        if not holds.any():
            found.append(dict.fromkeys([c.name for c in task.columns], np.full(len(asking), np.nan)))
            continue
        parties = _parties(asking, past, thresholds.scope(before, rule), at, "account_id", m, group)
        names = ("smurfing_accounts", "smurfing_accounts")
        found.append(thresholds.party_values(parties, names, at.limit, holds, s))
    return {c.name: thresholds.largest([f[c.name] for f in found], len(asking)) for c in task.columns}


def _information(asking: Asking, task: Task, _made: Mapping[str, F64]) -> Values:
    s, w = task.settings, task.settings.window
    past = asking.past(length_us(w))
    asked, filled = _fields(asking.rows, s)
    asked_before, filled_before = _fields(asking.state.some(past.slots), s)
    values = np.stack([asked_before > 0, filled_before < asked_before]).astype(np.int64)
    found = asking.sums_of(past, lengths_of([w]), values)
    covered, lacking = found[:, 0, 0], found[:, 0, 1]
    return {
        "information_required_n": asked.astype(float),
        "information_completeness": ratio(filled, asked),
        f"information_covered_n_{w}": covered.astype(float),
        f"information_incomplete_share_{w}": ratio(lacking, covered),
    }


def _fields(rows: Some, settings: information.Settings) -> tuple[I64, I64]:
    asked, filled = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    for name, where in information.asked_by(rows, settings).items():
        asked += where
        filled += where & rows.filled(name)
    return asked, filled


def _concentration(asking: Asking, task: Task, made: Mapping[str, F64]) -> Values | None:
    s, w, out = task.settings, task.settings.window, Values()
    past, scores = asking.scored(s.risk, length_us(w)) if s.risk in asking.state.maker else (
        asking.past(length_us(w)), None)  # fmt: skip
    del made
    weights = concentration.weighted(past["cents"], scores)
    for group in s.groups:
        codes = past[f"{group}_id" if group == "counterparty" else group]
        weight, members = (asking.state.marks.noughts(int(codes.max(initial=0)) + 1, which) for which in (0, 1))
        n, groups, hhi, unbiased, z, many = asof.shares(
            *past.walk, length_us(w), codes, weights, s.least_n, s.most_n, weight, members
        )
        if many.any():
            return None
        out |= concentration.columns_of(group, s, n, groups, hhi, unbiased, z)
    return out


def _network_scores(asking: Asking, task: Task) -> Values:
    p = task.settings.pass_through_window
    table, lists, own = asking.state.table, asking.lists, asking["counterparty_id"]
    past = asking.past(length_us(p))
    found = asof.latest(*past.walk, length_us(p), asking.incoming_of(past) > 0)
    since_us = asking.now - (past.time[np.maximum(found, 0)] if len(past.time) else asking.now)
    latest = asof.pair_latest(
        lists.starts, lists.used, lists.slots, table["time"], table["enter"], asking.keys, asking.now,
        table["counterparty_id"], own,
    )  # fmt: skip
    named = own >= 0
    days = (asking.now - latest) / DAY_US
    return {
        f"network_since_incoming_{p}": np.where(found >= 0, since_us / HOUR_US, np.nan),
        "network_is_first_time": np.where(named, latest < 0, np.nan),
        "network_days_since_pair": np.where(named & (latest >= 0), days, np.nan),
    }


def _network(asking: Asking, task: Task, made: Mapping[str, F64]) -> Values:
    s, out, w, p = task.settings, dict(made), task.settings.window, task.settings.pass_through_window
    own, cents, incoming = asking["counterparty_id"], asking["cents"], asking.rows.incoming
    named = own >= 0
    past = asking.past(length_us(w))
    into = asking.incoming_of(past)
    found = asking.sums_of(past, lengths_of([w]), np.stack([1 - into, into]))
    party = past["counterparty_id"]
    counts = {}
    for name, item in (("in", np.where(into > 0, party, -1)), ("out", np.where(into > 0, -1, party)), ("all", party)):
        counts[name] = asking.items_of(past, lengths_of([w]), item, own)[0][:, 0]
    out |= {
        f"network_in_degree_{w}": found[:, 0, 1].astype(float),
        f"network_out_degree_{w}": found[:, 0, 0].astype(float),
        f"network_fan_in_{w}": counts["in"].astype(float),
        f"network_fan_out_{w}": counts["out"].astype(float),
        f"network_reciprocity_{w}": ratio(counts["in"] + counts["out"] - counts["all"], counts["all"]),
    }
    recent, since = asking.scored(f"network_since_incoming_{p}", length_us(p))
    came = asking.incoming_of(recent)
    own_in = np.where(incoming, cents, 0)
    own_out = cents - own_in
    flows = asking.sums_of(recent, lengths_of([p]), np.stack([came * recent["cents"], (1 - came) * recent["cents"]]))
    money_in, money_out = flows[:, 0, 0], flows[:, 0, 1]
    one = np.zeros(len(recent.time), np.int64), np.zeros(len(asking), np.int64)
    dwell = asof.order_statistics(
        *recent.walk, length_us(p), *one, np.where(came > 0, np.nan, since), np.full(len(asking), np.nan)
    )[1]
    now_in, now_out = money_in + own_in, money_out + own_out
    out |= {
        f"network_pass_through_{p}": ratio(np.minimum(money_in, money_out), np.maximum(money_in, money_out)),
        f"network_pass_through_now_{p}": ratio(np.minimum(now_in, now_out), np.maximum(now_in, now_out)),
        f"network_dwell_{p}": dwell,
    }
    n, here = asking.same([w, *s.pair_windows], "counterparty_id")
    for place, window in enumerate([w, *s.pair_windows]):
        out[f"network_pair_n_{window}"] = np.where(named, here[:, place], np.nan)
    del n
    mean = asking.mean_scores([w], past, past["log_amount"], asking["log_amount"], party)[0]
    out[f"network_pair_amount_{w}"] = np.where(named, mean, np.nan)
    first = out["network_is_first_time"] == 1.0
    new, own_new = np.where(first, own, -1), np.where(first, cents, 0)
    if s.new_windows:
        lengths = lengths_of(s.new_windows)
        before, was_first = asking.scored("network_is_first_time", int(lengths.max()))
        fresh = np.where(was_first == 1.0, before["counterparty_id"], -1)
        different, seen = asking.items_of(before, lengths, fresh, new)
        amounts_ = asking.sums_of(before, lengths, np.where(was_first == 1.0, before["cents"], 0)[None], within=True)
        for place, length in enumerate(s.new_windows):
            count = different[:, place] + ((new >= 0) & (seen[:, place] == 0))
            out[f"network_new_n_{length}"] = count.astype(float)
            out[f"network_new_amount_{length}"] = (amounts_[:, place, 0] + own_new) / 100
    return out


def _network_counterparty(asking: Asking, task: Task, _made: Mapping[str, F64]) -> Values:
    s, out, w, named = task.settings, Values(), task.settings.window, asking.keys >= 0
    past = asking.past(int(lengths_of([*s.counterparty_windows, w]).max()))
    ones = np.ones(len(past.time), np.int64)
    n = asking.sums_of(past, lengths_of(s.counterparty_windows), ones[None])
    for place, window in enumerate(s.counterparty_windows):
        out[f"counterparty_n_{window}"] = n[:, place, 0].astype(float)
    different, _ = asking.items([w], lambda past: past["account_id"], asking["account_id"])
    out[f"counterparty_accounts_{w}"] = different[:, 0].astype(float)
    same_way = asking.sums_of(past, lengths_of([w]), np.stack([ones, past["cents"]]), within=True)[:, 0]
    out[f"counterparty_amount_to_mean_{w}"] = ratio(asking["amount_base"] * same_way[:, 0], same_way[:, 1] / 100)
    first, latest = asking.ends_known()
    for name, time in (("counterparty_days_since_seen", latest), ("counterparty_age", first)):
        out[name] = np.where(time >= 0, (asking.now - time) / DAY_US, np.nan)
    return {name: np.where(named, values, np.nan) for name, values in out.items()}


def _rhythm(asking: Asking, task: Task, _made: Mapping[str, F64]) -> Values:
    s, day = task.settings, asking["day"]
    found = rhythms_of(asking.state, task, asking.keys, day - day % s.refresh_days)
    names = (f"correlation_self_{s.days}d", f"correlation_self_p_{s.days}d", "correlation_reference_n")
    return dict(zip(names, found.T, strict=True))


def rhythms_of(state: "State", task: Task, accounts: I64, days: I64) -> F64:
    """KPI 12 of accounts on days on which it is taken anew; taken once. Shape (accounts, 3)."""
    pairs = list(zip(accounts.tolist(), days.tolist(), strict=True))
    new = [pair for pair in dict.fromkeys(pairs) if pair[1] not in state.rhythms.get(pair[0], ())]
    if new:
        party, day = np.array(new, np.int64).T
        for (account, at), values in zip(new, _taken(state, task, party, day).tolist(), strict=True):
            state.rhythms.setdefault(account, {})[at] = tuple(values)
    return np.array([state.rhythms[account][at] for account, at in pairs], np.float64).reshape(-1, 3)


def daily_series(state: "State", task: Task, accounts: I64, day: I64, span: int) -> tuple[F64, I64]:
    """As `opening.series`, of so many days before a day and of this day, which holds nothing yet.

    Returns:
        Numbers, shape (accounts, span + 1); first day on which each account was known to exist.
    """
    table, lists, begin = state.table, state.by_account, task.fitted.get("begin")
    of_lists = lists.starts, lists.used, lists.slots
    cents = asof.prompt_sums(*of_lists, accounts, day, span, table["day"], table["known_day"], table["cents"])
    opened = np.full(len(accounts), NEVER)
    if begin is not None:
        opened = np.maximum(np.minimum(state.register["opened_day"][accounts], NEVER), begin)
    first = asof.first_days(*of_lists, table["time"], accounts, table["day"], table["known_day"], day, True)  # compiled
    return np.log1p(cents / 100), np.minimum(opened, first)


def _taken(state: "State", task: Task, party: I64, day: I64) -> F64:
    s, table = task.settings, state.table
    span = s.days + s.reference_days
    x, alive = daily_series(state, task, party, day, span)
    wanted = np.zeros((len(party), span + 1), np.bool_)
    wanted[:, span] = True
    keys = np.array([crc32(str(table.parties.text[code + 1]).encode()) for code in party.tolist()], np.int64)
    found = own_decoupling(
        np.arange(len(party) + 1) * (span + 1), x.ravel(), wanted.ravel(), alive - (day - span), day - span, keys,
        s.days, s.reference_days, s.least_reference_days, s.lags, s.shuffles, s.stop_at, s.seed,
    )  # fmt: skip
    return np.stack([values[span :: span + 1] for values in found], axis=1)


SCORES: dict[str, Callable[[Asking, Task], Values]] = {
    "amount_deviation": _amount_scores,
    "time_pattern": _time_scores,
    "geography": _geography_scores,
    "network": _network_scores,
}
"""Columns that a KPI's other columns read of earlier rows; made first."""
READ: dict[str, Callable[[Any], Sequence[str]]] = {
    "amount_deviation": lambda s: (f"amount_deviation_z_{s.window}",),
    "time_pattern": lambda s: (f"time_surprisal_{s.window}",),
    "geography": lambda s: (f"geo_country_surprisal_{s.window}",),
    "network": lambda s: (f"network_since_incoming_{s.pass_through_window}", "network_is_first_time"),
}
"""Those of them that are read, and kept."""


def read_of(task: Task) -> Sequence[str]:
    """Columns that the KPI reads of earlier rows of its own."""
    return READ[task.kpi.name](task.settings) if task.kpi.name in READ else ()


QUICK: dict[str, Callable[[Asking, Task, Mapping[str, F64]], Values | None]] = {
    "velocity": _velocity,
    "amount_deviation": _amount,
    "amount_spike": _spikes,
    "benford": _benford,
    "time_pattern": _time,
    "frequency": _frequency,
    "balance": _balance,
    "geography": _geography,
    "counterparty_risk": _risk,
    "account_risk": _risk,
    "counterparty_streak": _streak,
    "account_streak": _streak,
    "thresholds": _thresholds,
    "thresholds_counterparty": _thresholds_counterparty,
    "payment_information": _information,
    "concentration": _concentration,
    "correlation": _rhythm,
    "network": _network,
    "network_counterparty": _network_counterparty,
}
"""KPIs by name; the value None says that a row wants the KPI's own way."""
