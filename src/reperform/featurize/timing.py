"""KPI 3: how unusual the hour of the week is for the account, by its own clock; nights, weekends, holidays, paydays."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import field
from datetime import date, timedelta
from functools import cache, lru_cache
from typing import Any

import numpy as np
import polars as pl
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize.kernels import F64, I64, times_seen
from reperform.featurize.ledger import Ledger
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.windows import DAY_US, HOUR_US, length_us

HOURS_OF_WEEK = 168
NIGHT_ENDS_HOUR = 6
THURSDAY, SATURDAY = 3, 5  # from Monday on; 1970 began on a Thursday
EPOCH = date(1970, 1, 1)
MINUTE_US = 60_000_000


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Calendar:
    """One version of a calendar of holidays. On a day the version counts that was the latest one published by then.

    Args:
        name: of the calendar; its versions share it.
        published: day on which this version was published; before the first one the calendar says nothing.
        citation: where it is written.
        countries: home countries of accounts that it holds for; empty for all.
        yearly: holidays of every year, as MM-DD.
        easter: holidays of every year, in days after Easter Sunday.
        dates: holidays of one year.
        dropped: days that it takes back, such as a yearly holiday that one year does without.
    """

    name: str
    published: date
    citation: str
    countries: list[str] = field(default_factory=list)
    yearly: list[str] = field(default_factory=list)
    easter: list[int] = field(default_factory=list)
    dates: list[date] = field(default_factory=list)
    dropped: list[date] = field(default_factory=list)

    def holds(self, day: date) -> bool:
        """Whether a day is a holiday."""
        if day in self.dropped:
            return False
        since_easter = (day - easter(day.year)).days
        return day in self.dates or f"{day:%m-%d}" in self.yearly or since_easter in self.easter


TARGET = Calendar(
    name="target",
    published=date(2000, 12, 14),
    citation="TARGET's long-term calendar, ECB, 14 December 2000; in force from 2002",
    yearly=["01-01", "05-01", "12-25", "12-26"],
    easter=[-2, 1],
)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Windows and clocks of KPI 3.

    Args:
        window: history from which the account's own hours are learned.
        prior_weight: weight of the segment's hours, in records.
        default_timezone: for accounts whose timezone the source does not give.
        score_windows: lengths over which surprisals are averaged.
        pair_window: length over which they are averaged for one counterparty.
        calendars: holidays, in versions.
    """

    window: str = "180d"
    prior_weight: float = 24.0
    default_timezone: str = "UTC"
    score_windows: list[str] = field(default_factory=lambda: ["24h", "7d"])
    pair_window: str = "30d"
    calendars: list[Calendar] = field(default_factory=lambda: [TARGET])


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
        Column(
            "time_is_holiday",
            "1 on holidays of the calendars that hold for the account's home country, as published by the day: "
            + ", ".join(dict.fromkeys(calendar.name for calendar in settings.calendars)),
            "0 or 1",
            null_rule="no calendar holds for the account's home country, or none was published yet",
        ),
        Column("time_payday_distance", "days from the nearest last working day of a month; before it negative", "days"),
    )


def hour_of_week(ledger: Ledger) -> I64:
    """0 (Monday 00:00) to 167 by the account's clock."""
    return weekday(ledger) * 24 + hours(ledger)


def hours(ledger: Ledger) -> I64:
    """0 to 23 by the account's clock."""
    return (ledger.local_us - ledger.local_day * DAY_US) // HOUR_US


def weekday(ledger: Ledger) -> I64:
    """0 (Monday) to 6 by the account's clock."""
    return (ledger.local_day + THURSDAY) % 7


def fit(ledger: Ledger, end_us: int, _settings: Settings) -> dict[str, Any]:
    """Rows per hour of the week for each segment, over the rows that may be learned from."""
    learn = ledger.known_before(end_us)
    hour, segments = hour_of_week(ledger)[learn], ledger.segment.filter(pl.Series(learn))
    of_segment = {
        str(name): np.bincount(hour[(segments == name).to_numpy()], minlength=HOURS_OF_WEEK).tolist()
        for name in sorted(segments.unique())
    }
    return {"rows_per_hour": of_segment, "all": np.bincount(hour, minlength=HOURS_OF_WEEK).tolist()}


def compute(ledger: Ledger, fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Surprisal of the row's hour of the week, given the account's past hours."""
    hour, w = hour_of_week(ledger), settings.window
    bins = ledger.account * HOURS_OF_WEEK + hour
    history = ledger.by_account
    events = history.tape(length_us(w))
    (n,) = history.sums(events, np.ones(len(ledger), np.int64))
    here = times_seen(events, bins, bins, history.keys * HOURS_OF_WEEK, len(ledger))
    prior = prior_of(ledger, hour, fitted)
    p = (here + settings.prior_weight * prior) / (n + settings.prior_weight)
    days, day = np.unique(ledger.local_day, return_inverse=True)
    minutes = (ledger.local_us - ledger.local_day * DAY_US) // MINUTE_US
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
        "time_hour_local": minutes // 60 + minutes % 60 / 60,
        "time_is_night": (minutes // 60 < NIGHT_ENDS_HOUR).astype(float),
        "time_is_weekend": (weekday(ledger) >= SATURDAY).astype(float),
        "time_is_holiday": holiday(ledger, [date_of(d) for d in days], day, settings),
        "time_payday_distance": np.array([float(payday_distance(date_of(d))) for d in days])[day],
    }


def prior_of(ledger: Ledger, hour: I64, fitted: dict[str, Any]) -> F64:
    """p(hour | segment), one row added to every hour so that none is impossible; NaN where nothing was learned."""
    total = np.asarray(fitted["all"], float)
    if total.sum() == 0:
        return np.full(len(hour), np.nan)
    names = [*fitted["rows_per_hour"], None]
    table = np.array([fitted["rows_per_hour"].get(name, total) for name in names], float) + 1
    table /= table.sum(axis=1, keepdims=True)
    place = {name: number for number, name in enumerate(names)}
    row = ledger.looked_up(["segment"], lambda segment: place.get(segment, len(names) - 1)).astype(np.int64)
    return np.asarray(table[row, hour])


def date_of(day_number: Any) -> date:
    """The date of a day number since 1970."""
    return EPOCH + timedelta(days=int(day_number))


@cache
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


def in_force(calendars: list[Calendar], day: date) -> list[Calendar]:
    """The latest version of each calendar that was published by a day."""
    versions = sorted((c for c in calendars if c.published <= day), key=lambda c: c.published)
    return list({c.name: c for c in versions}.values())


def holiday(ledger: Ledger, days: list[date], day: I64, settings: Settings) -> F64:
    """1 or 0 by each row's day and home country; NaN where no calendar holds.

    Args:
        ledger: the rows.
        days: the different days of rows.
        day: place of each row's day in `days`.
        settings: the calendars.
    """
    published = sorted({c.published for c in settings.calendars})
    era = [bisect_right(published, d) for d in days]
    versions = {e: in_force(settings.calendars, published[e - 1]) if e else [] for e in set(era)}
    valid = [versions[e] for e in era]
    _, first, country = np.unique(ledger.codes_of("home_country"), return_index=True, return_inverse=True)
    countries = [ledger.home_country[row] for row in first.tolist()]
    table = np.array([[_of_country(c, d, name) for name in countries] for c, d in zip(valid, days, strict=True)])
    return np.asarray(table.reshape(len(days), len(countries))[day, country])


def _of_country(calendars: list[Calendar], day: date, country: str | None) -> float:
    holding = [c for c in calendars if not c.countries or country in c.countries]
    return float(any(c.holds(day) for c in holding)) if holding else np.nan


@lru_cache(10_000)
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
    inputs=("account_id", "booked_at", "known_at", "timezone", "segment", "home_country", "counterparty_id"),
    key="account",
    null_rule="never",
    source="Shannon (1948), A Mathematical Theory of Communication; TARGET closing days: ECB, 14 December 2000",
    settings=Settings,
    columns=columns,
    compute=compute,
    fit=fit,
)
