"""The world's calendar: days, months, holidays, and local time against UTC."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from reperform.simulate.draws import Bools, Ints
from reperform.simulate.places import ZONES

DAY_S = 86_400
HOUR_S = 3_600
SATURDAY = 5


@dataclass(frozen=True)
class Calendar:
    """Days of the simulated period, counted from 0.

    Args:
        start: the first day.
        days: how many.
        start_s: its midnight, in UTC epoch seconds.
        weekday: 0 = Monday, per day.
        is_business: neither weekend nor public holiday, per day.
        offset_s: local minus UTC time at noon, shape (zones, days).
        months: first day and length in days of each calendar month that overlaps; the first day may be negative.
    """

    start: date
    days: int
    start_s: int
    weekday: Ints
    is_business: Bools
    offset_s: Ints
    months: tuple[tuple[int, int], ...]

    @property
    def end_s(self) -> int:
        """First second after the period, in UTC epoch seconds."""
        return self.start_s + self.days * DAY_S

    def at(self, day: Any, local_s: Any, zone: Any) -> Ints:
        """UTC epoch seconds of a local second of the day; a day outside the period takes its nearest offset."""
        day = np.asarray(day, dtype=np.int64)
        offset = self.offset_s[np.asarray(zone), np.clip(day, 0, self.days - 1)]
        return np.asarray(self.start_s + day * DAY_S + np.asarray(local_s, dtype=np.int64) - offset, dtype=np.int64)

    def day_of(self, at_s: Any) -> Ints:
        """UTC day of a time, kept inside the period."""
        return np.asarray(np.clip((np.asarray(at_s) - self.start_s) // DAY_S, 0, self.days - 1))

    def next_business(self, day: Any) -> Ints:
        """The day itself, or the next business day; beyond the end nothing is known to be closed."""
        later = np.arange(self.days)
        later = np.where(self.is_business, later, self.days)
        following = np.minimum.accumulate(later[::-1])[::-1]
        day = np.asarray(day, dtype=np.int64)
        inside = np.clip(day, 0, self.days - 1)
        return np.asarray(np.where((day >= 0) & (day < self.days), following[inside], day))

    def previous_business(self, day: Any) -> Ints:
        """The day itself, or the last business day before it."""
        earlier = np.where(self.is_business, np.arange(self.days), -1)
        preceding = np.maximum.accumulate(earlier)
        day = np.asarray(day, dtype=np.int64)
        return np.asarray(np.where((day >= 0) & (day < self.days), preceding[np.clip(day, 0, self.days - 1)], day))


def calendar(start: date, days: int, holidays: list[date]) -> Calendar:
    """The calendar of a period."""
    dates = [start + timedelta(days=d) for d in range(days)]
    weekday = np.array([d.weekday() for d in dates], dtype=np.int64)
    closed = np.array([d in set(holidays) for d in dates])
    return Calendar(
        start=start,
        days=days,
        start_s=epoch_s(start),
        weekday=weekday,
        is_business=(weekday < SATURDAY) & ~closed,
        offset_s=np.array([[_offset_s(d, ZoneInfo(zone)) for d in dates] for zone in ZONES], dtype=np.int64),
        months=_months(start, days),
    )


def epoch_s(day: date) -> int:
    """UTC midnight of a day in epoch seconds."""
    return int(datetime.combine(day, time(), tzinfo=UTC).timestamp())


def _offset_s(day: date, zone: ZoneInfo) -> int:
    # Noon: clocks change at night, and nothing that is booked here depends on that hour.
    offset = datetime.combine(day, time(12), tzinfo=zone).utcoffset()
    return int(offset.total_seconds()) if offset else 0


def _months(start: date, days: int) -> tuple[tuple[int, int], ...]:
    first, months = start.replace(day=1), []
    while (first - start).days < days:
        following = (first + timedelta(days=32)).replace(day=1)
        months.append(((first - start).days, (following - first).days))
        first = following
    return tuple(months)
