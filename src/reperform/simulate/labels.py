"""What case handling confirms, and when: late, incompletely, and some of it innocent."""

from typing import Any

import numpy as np
import polars as pl

from reperform.simulate.clock import DAY_S, HOUR_S, SATURDAY
from reperform.simulate.draws import Bools, Ints, generator, happens
from reperform.simulate.settings import LabelSettings

OFFICE_OPENS_H, OFFICE_HOURS = 8, 9


def confirmed(rows: pl.DataFrame, settings: LabelSettings, seed: int) -> pl.DataFrame:
    """The labels that investigators recorded.

    Args:
        rows: transaction_id, event, lookalike, pair, known_s, of all account rows.
        settings: delays and shares, as in `conf/simulate/`.
        seed: the world's seed.

    Returns:
        transaction_id, is_anomaly, typology (null where the case was closed without one), confirmed_s; by time.
    """
    found = [_found(rows.filter(pl.col("event").is_not_null()), settings, seed)]
    found.append(_reviewed(rows.filter(pl.col("lookalike").is_not_null() & pl.col("event").is_null()), settings, seed))
    return pl.concat(found).sort("confirmed_s", "transaction_id")


def _found(planted: pl.DataFrame, settings: LabelSettings, seed: int) -> pl.DataFrame:
    frames = [
        _case(event, case, settings, generator(seed, "labels", str(event[0])))
        for event, case in planted.sort("event", "known_s", "transaction_id").group_by("event", maintain_order=True)
    ]
    return pl.concat([_nothing(), *frames])


def _case(
    event: tuple[Any, ...], case: pl.DataFrame, settings: LabelSettings, rng: np.random.Generator
) -> pl.DataFrame:
    """One event's labels: usually all of its rows become known together, within a day or two of one another."""
    if rng.random() < settings.event_never_share:
        return _nothing()
    delay_days = settings.median_delay_days * np.exp(rng.normal(0, settings.delay_sigma))
    each_s = delay_days * rng.uniform(0.8, 1.2, case.height) * DAY_S
    confirmed_s = in_office_hours(case["known_s"].to_numpy() + each_s.astype(np.int64), rng)
    typology = str(event[0]).rsplit("-", 1)[0] if rng.random() >= settings.unnamed_share else None
    kept = _recorded_legs(case, settings.one_leg_share, rng) & (~happens(rng, settings.row_missed_share, case.height))
    return _labels(case, confirmed_s, is_anomaly=True, typology=typology).filter(pl.Series(kept))


def _recorded_legs(case: pl.DataFrame, one_leg_share: float, rng: np.random.Generator) -> Bools:
    """False for the row of a transfer that the investigator, who saw the other side's, did not record."""
    pair = case["pair"].to_numpy()
    _, position, count = np.unique(pair, return_inverse=True, return_counts=True)
    drawn = rng.random(count.size)
    # Which of two rows is left out: the one whose rank among the pair's rows equals a coin toss.
    coin = rng.integers(0, 2, count.size)
    order = np.lexsort((np.arange(pair.size), position))
    rank = np.empty(pair.size, dtype=np.int64)
    rank[order] = np.arange(pair.size) - np.searchsorted(position[order], position[order], side="left")
    is_left_out = (count[position] > 1) & (drawn[position] < one_leg_share) & (rank == coin[position])
    return np.asarray(~is_left_out)


def _reviewed(innocent: pl.DataFrame, settings: LabelSettings, seed: int) -> pl.DataFrame:
    """Rows that somebody looked into and found normal; a slower business than confirming a crime."""
    rng = generator(seed, "labels", "reviewed")
    seen = innocent.sort("known_s", "transaction_id").filter(
        pl.Series(happens(rng, settings.reviewed_normal_share, innocent.height), dtype=pl.Boolean)
    )
    delay_days = settings.median_delay_days * 1.3 * np.exp(rng.normal(0, settings.delay_sigma, seen.height))
    confirmed_s = in_office_hours(seen["known_s"].to_numpy() + (delay_days * DAY_S).astype(np.int64), rng)
    return _labels(seen, confirmed_s, is_anomaly=False, typology=None)


def in_office_hours(at_s: Ints, rng: np.random.Generator) -> Ints:
    """The same day in office hours if that is later, else the next working day's office hours (UTC)."""
    day = at_s // DAY_S
    office_s = OFFICE_OPENS_H * HOUR_S + rng.integers(0, OFFICE_HOURS * HOUR_S, at_s.size)
    day = day + (at_s > day * DAY_S + office_s)
    weekday = (day + 3) % 7  # 1970-01-01 was a Thursday
    day = day + np.where(weekday >= SATURDAY, 7 - weekday, 0)
    return day * DAY_S + office_s


def _labels(rows: pl.DataFrame, confirmed_s: Ints, *, is_anomaly: bool, typology: str | None) -> pl.DataFrame:
    return rows.select(
        "transaction_id",
        pl.lit(is_anomaly).alias("is_anomaly"),
        pl.lit(typology, pl.String).alias("typology"),
        pl.Series("confirmed_s", confirmed_s, dtype=pl.Int64),
    )


def _nothing() -> pl.DataFrame:
    return pl.DataFrame(
        schema={"transaction_id": pl.String, "is_anomaly": pl.Boolean, "typology": pl.String, "confirmed_s": pl.Int64}
    )
