"""When rows reach us: minutes after booking from most, with the next statement from institutions that send those."""

from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from reperform.simulate.clock import HOUR_S
from reperform.simulate.draws import Ints, happens
from reperform.simulate.places import CITIES
from reperform.simulate.world import Institution, World

LATE_SHARE = 0.03
STATEMENTS = "camt."


def statement_zone(institution: Institution) -> str:
    """The local time of an institution: that of its first country."""
    return next(city.zone for city in CITIES if city.country == institution.countries[0])


def local_days(institution: Institution, at_s: Ints) -> Ints:
    """Local calendar day of times, as days since 1970."""
    local = pl.from_epoch(pl.Series(at_s, dtype=pl.Int64)).dt.replace_time_zone("UTC")
    zoned = local.dt.convert_time_zone(statement_zone(institution))
    return zoned.dt.date().to_physical().to_numpy().astype(np.int64)


def known_s(rows: pl.DataFrame, world: World, rng: np.random.Generator) -> Ints:
    """When each row could be known, UTC epoch seconds; never before it was booked.

    Args:
        rows: with account and at_s.
        world: for institutions.
        rng: this part's stream.
    """
    at_s = rows["at_s"].to_numpy()
    institution = world.accounts.institution[rows["account"].to_numpy()]
    minutes = np.exp(rng.normal(np.log(240), 0.9, at_s.size))
    late = np.where(happens(rng, LATE_SHARE, at_s.size), rng.exponential(16 * HOUR_S, at_s.size) + HOUR_S, 0)
    known = at_s + np.maximum(minutes + late, 1).astype(np.int64)
    for index, bank in enumerate(world.institutions):
        own = np.flatnonzero(institution == index)
        if bank.format.startswith(STATEMENTS) and own.size:
            known[own] = statement_created_s(world, bank, local_days(bank, at_s[own]))
    return np.asarray(known)


def statement_created_s(world: World, institution: Institution, day: Ints) -> Ints:
    """When the statement of each local day (days since 1970) was made: in the hour after midnight."""
    zone = ZoneInfo(statement_zone(institution))
    unique, position = np.unique(day, return_inverse=True)
    midnight = pl.Series(unique + 1, dtype=pl.Int32).cast(pl.Date).cast(pl.Datetime("us"))
    utc = midnight.dt.replace_time_zone(str(zone)).dt.convert_time_zone("UTC").dt.epoch("s").to_numpy()
    # A stream per day: the time of a statement does not depend on which other days have one.
    delay = [int(world.rng("statements", institution.name, str(d)).integers(600, HOUR_S)) for d in unique.tolist()]
    return np.asarray((utc + np.array(delay, dtype=np.int64))[position])
