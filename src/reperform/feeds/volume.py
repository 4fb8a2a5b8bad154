"""How many rows come on which day, against the same weekday of earlier weeks."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl

from reperform.feeds.batches import Feed, Limits, usual_span
from reperform.feeds.finding import FeedFinding, named

WEEKS = 8  # looked back
LEAST_WEEKS = 3
POISSON_SPREAD = 0.5  # of the square root of a count
MAD_TO_SPREAD = 1.4826
LEAST_OTHERS = 2
LEAST_COMMON = 0.25


def findings(feed: Feed) -> list[FeedFinding]:
    """Missing days, drops and surges of every source, and sources that end before the others."""
    first, last = usual_span(feed.rows, feed.limits["stray_gap_days"])
    counted = (
        feed.rows.filter(pl.col("day").is_between(first, last))
        .with_columns(day=pl.col("local").dt.date())  # senders cut their files at midnight on their own clocks
        .group_by("source", "day")
        .agg(n=pl.len(), files=pl.col("source_file").unique().sort())
        .sort("source", "day")
    )
    last_days = counted.group_by("source").agg(pl.col("day").max()).get_column("day").sort(descending=True).to_list()
    ends = last_days[1] if len(last_days) > 1 else (last_days[0] if last_days else None)
    series = {}
    for source in counted.get_column("source").unique().sort().to_list():
        own = {row["day"]: row for row in counted.filter(pl.col("source") == source).iter_rows(named=True)}
        series[source] = _course(own)
    found: list[FeedFinding] = []
    for source, course in series.items():
        others = [one for name, one in series.items() if name != source]
        found += _of_source(source, course, others, ends, feed.limits)
    return found


@dataclass(frozen=True)
class Course:
    """Rows of a source per day.

    Args:
        own: days with rows, with `n` and `files`.
        counts: rows of every day from the first to the last.
        expected: what earlier weeks make one expect, where there are enough of them.
    """

    own: dict[date, Any]
    counts: dict[date, int]
    expected: dict[date, float]

    def ratio(self, day: date) -> float | None:
        """Rows over what was expected; None where nothing was."""
        return self.counts[day] / self.expected[day] if self.expected.get(day) else None


def _course(own: dict[date, Any]) -> Course:
    first, last = min(own), max(own)
    days = [first + timedelta(days=i) for i in range((last - first).days + 1)]
    counts = {day: own[day]["n"] if day in own else 0 for day in days}
    expected = {
        day: expected_count([counts.get(day - timedelta(days=7 * week)) for week in range(1, WEEKS + 1)])
        for day in days
    }
    return Course(own, counts, {day: value for day, value in expected.items() if value is not None})


def _common(day: date, others: Sequence[Course]) -> float:
    """How the day is for other sources: a holiday has few rows everywhere, and is no drop of one feed."""
    ratios = [ratio for one in others if (ratio := one.ratio(day)) is not None]
    return float(np.clip(np.median(ratios), LEAST_COMMON, 1 / LEAST_COMMON)) if len(ratios) >= LEAST_OTHERS else 1.0


def _of_source(
    source: str, course: Course, others: Sequence[Course], ends: date | None, limits: Limits
) -> list[FeedFinding]:
    counts, own = course.counts, course.own
    days = list(counts)
    found: list[FeedFinding] = []
    spread: list[float] = []
    missing: list[date] = []
    for day in days:
        if day not in course.expected:
            continue
        usual_here = course.expected[day]
        expected = usual_here * _common(day, others)
        residual = float(np.sqrt(counts[day]) - np.sqrt(expected))
        z = residual / max(POISSON_SPREAD, MAD_TO_SPREAD * float(np.median(np.abs(spread))) if spread else 0)
        spread.append(residual)
        rule = _judged(counts[day], usual_here, expected, z, limits, inside=days[0] < day < days[-1])
        if rule == "missing_day":
            missing.append(day)
        elif rule:
            files = tuple(own[day]["files"])
            text = f"{counts[day]:,} rows on {day:%A}"
            usual = f"about {expected:,.0f} rows, as on earlier {day:%A}s and as other sources had that day"
            found.append(FeedFinding(source, rule, named(files), counts[day], text, usual, day=day, files=files))
    return [*found, *_missing(source, course, missing), *_ended(source, counts, days[-1], ends, limits)]


def _missing(source: str, course: Course, missing: Sequence[date]) -> list[FeedFinding]:
    """One finding for each run of days without a row."""
    found, run = [], list[date]()
    for day, following in zip(missing, [*missing[1:], None], strict=False):
        run.append(day)
        if following is not None and following - day == timedelta(days=1):
            continue
        files = _around(course.own, run[0], run[-1])
        text = "no row on " + (f"{run[0]:%A}" if len(run) == 1 else f"{len(run)} days from {run[0]} to {run[-1]}")
        usual = f"about {course.expected[run[0]]:,.0f} rows, as on earlier {run[0]:%A}s"
        found.append(FeedFinding(source, "missing_day", named(files), 0, text, usual, day=run[0], files=files))
        run = []
    return found


def expected_count(earlier: Sequence[int | None]) -> float | None:
    """Median of the same weekday in earlier weeks; None where there are too few of them."""
    known = [count for count in earlier if count is not None]
    return float(np.median(known)) if len(known) >= LEAST_WEEKS else None


def _judged(n: int, usual: float, expected: float, z: float, limits: Limits, *, inside: bool) -> str | None:
    if n == 0:
        return "missing_day" if usual >= limits["missing_day_rows"] else None
    if n <= limits["volume_drop_ratio"] * expected and z <= -limits["volume_z"] and inside:
        return "volume_drop"
    if n >= limits["volume_surge_ratio"] * expected and z >= limits["volume_z"]:
        return "volume_surge"
    return None


def _around(own: dict[date, Any], first: date, last: date) -> tuple[str, ...]:
    """The files of the day before and of the day after: the missing one would have stood between them."""
    before = max((d for d in own if d < first), default=None)
    after = min((d for d in own if d > last), default=None)
    files = [file for d in (before, after) if d is not None for file in own[d]["files"]]
    return tuple(dict.fromkeys(files))


def _ended(source: str, counts: dict[date, int], last: date, ends: date | None, limits: Limits) -> list[FeedFinding]:
    usual = float(np.median(list(counts.values()))) if counts else 0.0
    if ends is None or (ends - last).days < limits["ended_early_days"] or usual < limits["missing_day_rows"]:
        return []
    if len(counts) < limits["history_days"]:
        return []
    text = f"no row after {last}, {(ends - last).days} days before the others end"
    return [FeedFinding(source, "feed_ended_early", "", 0, text, f"rows until {ends}", day=last + timedelta(days=1))]
