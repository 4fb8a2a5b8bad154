"""Daily exchange rates: a random walk, published on business days at 16:00 UTC."""

from collections.abc import Mapping
from datetime import date, timedelta

import numpy as np
import polars as pl

from reperform.simulate.clock import HOUR_S, SATURDAY, epoch_s
from reperform.simulate.draws import Floats, Ints, generator
from reperform.simulate.settings import Walk

PUBLISHED_S = 16 * HOUR_S
DAYS_BEFORE = 12


def exchange_rates(start: date, days: int, settings: Mapping[str, Walk], seed: int) -> pl.DataFrame:
    """Rates to the base currency, from some days before the period until its end.

    Args:
        start: first day of the period.
        days: its length.
        settings: per currency the first rate and the daily volatility (sd of the log change).
        seed: the world's seed.

    Returns:
        currency, rate_to_base (units of base per unit of currency), published_s (UTC epoch seconds); by time, currency.
    """
    dates = [start + timedelta(days=d) for d in range(-DAYS_BEFORE, days)]
    published = np.array([epoch_s(d) + PUBLISHED_S for d in dates if d.weekday() < SATURDAY], dtype=np.int64)
    frames = [
        pl.DataFrame(
            {
                "currency": np.repeat(currency, published.size),
                "rate_to_base": _path(walk, generator(seed, "rates", currency), published.size),
                "published_s": published,
            }
        )
        for currency, walk in sorted(settings.items())
    ]
    return pl.concat(frames).sort("published_s", "currency")


def rate_at(rates: pl.DataFrame, currency: str, at_s: Ints) -> Floats:
    """The last rate published at or before each time; 1 for the base currency, which has no rates."""
    own = rates.filter(pl.col("currency") == currency)
    if own.is_empty():
        return np.ones(at_s.size)
    position = np.searchsorted(own["published_s"].to_numpy(), at_s, side="right") - 1
    return own["rate_to_base"].to_numpy()[np.maximum(position, 0)]


def _path(walk: Walk, rng: np.random.Generator, steps: int) -> Floats:
    return np.asarray(np.round(walk.first * np.exp(np.cumsum(rng.normal(0, walk.daily_volatility, steps))), 5))
