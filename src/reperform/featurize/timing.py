"""KPI 3: how unusual the hour of the week is for the account, by its own clock; nights, weekends, holidays, paydays."""

from collections.abc import Mapping
from dataclasses import field
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize.kernels import F64, I64, times_seen
from reperform.featurize.ledger import Ledger
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.windows import length_us

HOURS_OF_WEEK = 168
NIGHT_ENDS_HOUR = 6
SATURDAY = 6
EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Windows and clocks of KPI 3.

    Args:
        window: history from which the account's own hours are learned.
        prior_weight: weight of the segment's hours, in records.
        default_timezone: for accounts whose timezone the source does not give.
        score_windows: lengths over which surprisals are averaged.
        pair_window: length over which they are averaged for one counterparty.
    """

    window: str = "180d"
    prior_weight: float = 24.0
    default_timezone: str = "UTC"
    score_windows: list[str] = field(default_factory=lambda: ["24h", "7d"])
    pair_window: str = "30d"


def columns(settings: Settings) -> tuple[Column, ...]:
    """Surprisal and its number of records, and what the calendar says of the moment."""
    w = settings.window
    return (
        Column(
            f"time_surprisal_{w}",
            "-log2 p(hour of week)",
            "bits",
            w,
            null_rule="no row to learn the segment's hours from",
        ),
        Column(
            f"time_surprisal_n_{w}",
            "known records of the account in the window",
            "transactions",
            w,
            is_model_input=False,
        ),
        *(
            Column(
                f"time_surprisal_mean_{window}",
                "mean surprisal of the account's rows, as scored then, the row included",
                "bits",
                window,
                null_rule="no row to learn the segment's hours from",
            )
            for window in settings.score_windows
        ),
        Column(
            f"time_surprisal_pair_{settings.pair_window}",
            "the same over the account's rows with the counterparty",
            "bits",
            settings.pair_window,
            null_rule="the row names no counterparty, or nothing was learned",
        ),
        Column("time_hour_local", "hour of the day by the account's clock, with minutes", "hours"),
        Column("time_is_night", f"1 from 00:00 to 0{NIGHT_ENDS_HOUR}:00 by the account's clock", "0 or 1"),
        Column("time_is_weekend", "1 on Saturday and Sunday by the account's clock", "0 or 1"),
        Column("time_is_holiday", "1 on TARGET closing days other than weekends", "0 or 1"),
        Column("time_payday_distance", "days from the nearest last working day of a month; before it negative", "days"),
    )


def hour_of_week(ledger: Ledger) -> I64:
    """0 (Monday 00:00) to 167 by the account's clock."""
    local = ledger.local
    return ((local.dt.weekday().cast(pl.Int64) - 1) * 24 + local.dt.hour().cast(pl.Int64)).to_numpy()


def fit(ledger: Ledger, end_us: int, _settings: Settings) -> dict[str, Any]:
    """Rows per hour of the week for each segment, over the rows that may be learned from."""
    learn = ledger.known_before(end_us)
    hours, segments = hour_of_week(ledger)[learn], ledger.segment.filter(pl.Series(learn))
    of_segment = {
        str(name): np.bincount(hours[(segments == name).to_numpy()], minlength=HOURS_OF_WEEK).tolist()
        for name in sorted(segments.unique())
    }
    return {"rows_per_hour": of_segment, "all": np.bincount(hours, minlength=HOURS_OF_WEEK).tolist()}


def compute(ledger: Ledger, fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Surprisal of the row's hour of the week, given the account's past hours."""
    hours, w = hour_of_week(ledger), settings.window
    bins = ledger.account * HOURS_OF_WEEK + hours
    history = ledger.by_account
    events = history.tape(length_us(w))
    (n,) = history.sums(events, np.ones(len(ledger), np.int64))
    here = times_seen(events, bins, bins, history.keys * HOURS_OF_WEEK, len(ledger))
    prior = _prior(ledger.segment, hours, fitted)
    p = (here + settings.prior_weight * prior) / (n + settings.prior_weight)
    days, day = np.unique(ledger.local_day, return_inverse=True)
    local = ledger.local
    surprisal = -np.log2(p)
    means = {
        f"time_surprisal_mean_{length}": history.mean_scores(length, surprisal) for length in settings.score_windows
    }
    pair = settings.pair_window
    return {
        f"time_surprisal_{w}": surprisal,
        **means,
        f"time_surprisal_pair_{pair}": ledger.by_pair.mean_scores(pair, surprisal),
        f"time_surprisal_n_{w}": n.astype(float),
        "time_hour_local": (local.dt.hour().cast(pl.Float64) + local.dt.minute().cast(pl.Float64) / 60).to_numpy(),
        "time_is_night": (local.dt.hour() < NIGHT_ENDS_HOUR).to_numpy().astype(float),
        "time_is_weekend": (local.dt.weekday() >= SATURDAY).to_numpy().astype(float),
        "time_is_holiday": np.array([float(_is_target_holiday(_date(d))) for d in days])[day],
        "time_payday_distance": np.array([float(payday_distance(_date(d))) for d in days])[day],
    }


def _prior(segments: pl.Series, hours: I64, fitted: dict[str, Any]) -> F64:
    """p(hour | segment), one row added to every hour so that none is impossible; NaN where nothing was learned."""
    total = np.asarray(fitted["all"], float)
    if total.sum() == 0:
        return np.full(len(hours), np.nan)
    names = sorted(segments.unique())
    table = np.array([fitted["rows_per_hour"].get(name, total) for name in names], float) + 1
    table /= table.sum(axis=1, keepdims=True)
    row = segments.replace_strict(names, range(len(names)), return_dtype=pl.Int64).to_numpy()
    return np.asarray(table[row, hours])


def _date(day_number: Any) -> date:
    return EPOCH + timedelta(days=int(day_number))


def easter(year: int) -> date:
    """Easter Sunday of the Gregorian calendar (anonymous algorithm; Meeus 1991, Astronomical Algorithms, ch. 8)."""
    a, (b, c) = year % 19, divmod(year, 100)
    d, e = divmod(b, 4)
    g = (8 * b + 13) // 25
    h = (19 * a + b - d - g + 15) % 30
    i, k = divmod(c, 4)
    el = (32 + 2 * e + 2 * i - h - k) % 7
    m = (a + 11 * h + 22 * el) // 451
    month, day = divmod(h + el - 7 * m + 114, 31)
    return date(year, month, day + 1)


def _is_target_holiday(day: date) -> bool:
    """TARGET's long-term calendar, published by the ECB on 14 December 2000, in force from 2002: known ever since."""
    fixed = (day.month, day.day) in {(1, 1), (5, 1), (12, 25), (12, 26)}
    return fixed or day - easter(day.year) in {timedelta(days=-2), timedelta(days=1)}


def payday_distance(day: date) -> int:
    """Days from the nearest last working day (Monday to Friday) of a month; ties go to the one that has passed."""
    first = day.replace(day=1)
    this_end = _last_working_day((first + timedelta(days=32)).replace(day=1))
    last_end = _last_working_day(first)
    return min((day - last_end).days, (day - this_end).days, key=abs)


def _last_working_day(first_of_next_month: date) -> date:
    day = first_of_next_month - timedelta(days=1)
    return day - timedelta(days=max(day.isoweekday() - 5, 0))


KPI = Kpi(
    name="time_pattern",
    number=3,
    title="Time-based patterns",
    family="time",
    formula="S = -log2 p(b), b = hour of the week by the account's clock; p(b) = (n_b + m p_segment(b)) / (n + m)",
    unit="bits",
    inputs=("account_id", "booked_at", "known_at", "timezone", "segment"),
    key="account",
    null_rule="never",
    source="Shannon (1948), A Mathematical Theory of Communication; TARGET closing days: ECB, 14 December 2000",
    settings=Settings,
    columns=columns,
    compute=compute,
    fit=fit,
)
