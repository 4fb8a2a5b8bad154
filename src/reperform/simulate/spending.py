"""Shopping: cards in shops near home or on a journey, orders online, cash from machines."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from reperform.simulate.clock import DAY_S, HOUR_S
from reperform.simulate.draws import (
    Bools,
    Floats,
    Ints,
    by_weight,
    happens,
    lognormal_cents,
    priced_cents,
    rounded_cents,
)
from reperform.simulate.ledger import payments
from reperform.simulate.places import CITIES, ZONES
from reperform.simulate.settings import SpendingSettings
from reperform.simulate.world import World

AT_HOME, ON_THE_WAY = -1, -2
FAVOURITES = 10
# Median amount and spread (sd of the log) by what a shop sells, in units of any of the currencies.
PRICES = {
    "grocery": (24, 0.75), "food": (14, 0.7), "fuel": (52, 0.35), "retail": (38, 0.95), "health": (18, 0.8),
    "transport": (6, 0.8), "marketplace": (34, 0.95), "digital": (9, 0.7), "travel": (160, 0.95), "fashion": (58, 0.7),
}  # fmt: skip
# Shopping by hour of day, 0 to 23, on weekdays and at weekends; online shops never close.
_DAYTIME = [0, 0, 0, 0, 0, 0, 2, 6, 8, 8, 9, 10, 12, 10, 9, 9, 11, 14, 15, 12, 7, 4, 2, 1]
_EATING = [2, 1, 1, 0, 0, 0, 1, 5, 6, 3, 3, 7, 16, 12, 5, 4, 5, 8, 14, 16, 13, 9, 6, 4]
_ONLINE = [5, 3, 2, 1, 1, 1, 2, 4, 6, 7, 8, 8, 9, 8, 8, 8, 8, 9, 10, 13, 16, 17, 13, 8]
_HOURS = {"food": _EATING, "transport": _EATING, "online": _ONLINE}


@dataclass(frozen=True)
class Journeys:
    """Where everybody is: per account and day the city of a journey, AT_HOME or ON_THE_WAY.

    A day on the way has no purchases in shops, so that nobody is in two places at once.
    """

    city: Ints


def journeys(world: World, settings: SpendingSettings) -> Journeys:
    """Holidays and business trips of people, more of them towards summer."""
    rng, accounts, days = world.rng("spending", "journeys"), world.accounts, world.calendar.days
    city = np.full((accounts.number, days), AT_HOME, dtype=np.int64)
    travellers = np.flatnonzero(accounts.is_person & happens(rng, settings.traveller_share, accounts.number))
    trips = np.repeat(travellers, rng.integers(1, 4, travellers.size))
    season = 0.6 + np.arange(days) / days
    first = by_weight(rng, season, trips.size)
    length = np.where(happens(rng, 0.5, trips.size), rng.integers(2, 5, trips.size), rng.integers(6, 15, trips.size))
    goal = by_weight(rng, [c.holiday_weight for c in CITIES], trips.size)
    for account, start, stay, where in zip(trips.tolist(), first.tolist(), length.tolist(), goal.tolist(), strict=True):
        if where != accounts.city[account]:
            city[account, max(start - 1, 0) : start + stay + 1] = ON_THE_WAY
            city[account, start : start + stay] = where
    return Journeys(city)


def purchases(world: World, away: Journeys, settings: SpendingSettings, rows: int) -> pl.DataFrame:
    """So many purchases and cash withdrawals, over all accounts in use.

    Args:
        world: who is there.
        away: who is on a journey.
        settings: shares of online shopping and cash machines.
        rows: how many payments to make; each is one account row.
    """
    rng, accounts = world.rng("spending", "purchases"), world.accounts
    account = np.sort(by_weight(rng, shopping_rate(world, rng), rows))
    day = _days(world, rng, account)
    where = away.city[account, day]
    online_share = np.where(accounts.is_business, 0.45, settings.online_share) * np.exp(
        rng.normal(0, 0.35, accounts.number)
    )
    # Online shopping gains a little through the period.
    is_online = happens(rng, online_share[account] * (0.9 + 0.25 * day / world.calendar.days), rows)
    is_online |= where == ON_THE_WAY
    is_atm = ~is_online & happens(rng, settings.atm_share, rows)
    city = np.where(where >= 0, where, accounts.city[account])
    shop = _shops(world, rng, account, city, where >= 0)
    shop = np.where(is_atm, _machines(world, rng, account, city), shop)
    shop = np.where(is_online, world.outsiders(rng, "online", rows), shop)
    trade = world.parties.trade[shop]
    return payments(
        payer=account,
        payee=shop,
        at_s=_times(world, rng, day=day, trade=trade, city=city, is_online=is_online, account=account),
        cents=_amounts(world, rng, account, trade, is_atm),
        channel=np.select([is_online, is_atm], ["online", "atm"], "card"),
        lookalike=[("journey" if w >= 0 else None) for w in where.tolist()],
    )


def shopping_rate(world: World, rng: np.random.Generator) -> Floats:
    """Relative number of purchases of each account over the period."""
    accounts = world.accounts
    habit = {"retail": 1.0, "student": 1.25, "senior": 0.7, "premium": 1.3, "business": 0.45}
    base = np.array([habit[s] for s in accounts.segment.tolist()])
    lively = np.exp(rng.normal(0, 0.55, accounts.number))
    lively[accounts.is_dormant] = 0
    open_share = 1 - np.clip(accounts.opened, 0, None) / world.calendar.days
    # Whoever has just opened an account here means to use it.
    return np.asarray(base * lively * open_share * np.where(accounts.opened > 0, 1.6, 1.0))


def _days(world: World, rng: np.random.Generator, account: Ints) -> Ints:
    period = world.calendar
    by_weekday = np.array([0.9, 0.9, 0.95, 1.0, 1.25, 1.35, 0.75])
    day_of_month = np.array([(d - first) for first, length in period.months for d in range(first, first + length)])
    start = -period.months[0][0]
    payday = 1 + 0.25 * np.exp(-((day_of_month[start : start + period.days] + 5) % 30) / 6)
    weight = by_weekday[period.weekday] * payday * np.linspace(0.96, 1.06, period.days)
    edges = np.concatenate([[0.0], np.cumsum(weight)])
    low = edges[np.clip(world.accounts.opened[account] + 1, 0, period.days)]
    drawn = low + rng.random(account.size) * (edges[-1] - low)
    return np.asarray(np.clip(np.searchsorted(edges, drawn, side="right") - 1, 0, period.days - 1))


def by_city(world: World, kind: str) -> tuple[Ints, Ints, Floats]:
    """Shops or machines sorted by city; where each city starts; the running popularity over all of them."""
    members = world.parties.of_kind(kind)
    members = members[np.argsort(world.parties.city[members], kind="stable")]
    start = np.searchsorted(world.parties.city[members], np.arange(len(CITIES) + 1))
    return members, start, np.concatenate([[0.0], np.cumsum(world.parties.popularity[members])])


def in_city(world: World, rng: np.random.Generator, kind: str, city: Ints) -> Ints:
    """One shop or machine per city given, drawn by popularity."""
    members, start, edges = by_city(world, kind)
    low, high = edges[start[city]], edges[start[city + 1]]
    position = np.searchsorted(edges, low + rng.random(city.size) * (high - low), side="right") - 1
    return members[np.clip(position, start[city], start[city + 1] - 1)]


def _shops(world: World, rng: np.random.Generator, account: Ints, city: Ints, is_away: Bools) -> Ints:
    """Mostly a favourite near home; else any in town."""
    n = world.accounts.number
    favourites = in_city(world, rng, "shop", np.repeat(world.accounts.city, FAVOURITES)).reshape(n, FAVOURITES)
    rank = np.minimum(rng.geometric(0.28, account.size) - 1, FAVOURITES - 1)
    usual = happens(rng, 0.7, account.size) & ~is_away
    return np.where(usual, favourites[account, rank], in_city(world, rng, "shop", city))


def _machines(world: World, rng: np.random.Generator, account: Ints, city: Ints) -> Ints:
    near = in_city(world, rng, "atm", world.accounts.city)
    usual = happens(rng, 0.6, account.size) & (city == world.accounts.city[account])
    return np.where(usual, near[account], in_city(world, rng, "atm", city))


def _times(
    world: World, rng: np.random.Generator, *, day: Ints, trade: Any, city: Ints, is_online: Bools, account: Ints
) -> Ints:
    owl_h = rng.normal(0, 0.9, world.accounts.number)
    hour = np.empty(day.size)
    kind = np.where(is_online, "online", trade)
    for name in np.unique(kind):
        mine = np.flatnonzero(kind == name)
        hour[mine] = by_weight(rng, _HOURS.get(str(name), _DAYTIME), mine.size)
    second = (hour + rng.random(day.size) + owl_h[account]) * HOUR_S
    zone = np.array([ZONES.index(c.zone) for c in CITIES])[city]
    return world.calendar.at(day, second % DAY_S, zone)


def _amounts(world: World, rng: np.random.Generator, account: Ints, trade: Any, is_atm: Bools) -> Ints:
    accounts = world.accounts
    wealth = np.where(accounts.is_business, 2.2, (accounts.income / 2600) ** 0.55)
    median, sigma = np.full(account.size, 30.0), np.full(account.size, 0.8)
    for name, (price, spread) in PRICES.items():
        mine = trade == name
        median[mine], sigma[mine] = price, spread
    # Cheap things cost the rich as much as the poor.
    scale = np.where(np.isin(trade, ["transport", "digital"]), 1.0, wealth[account])
    bought = priced_cents(rng, lognormal_cents(rng, median * scale, sigma, account.size))
    notes = rounded_cents(lognormal_cents(rng, 70 * wealth[account], 0.6, account.size), 10)
    return np.where(is_atm, np.minimum(notes, 100_000), np.maximum(bought, 40))
