"""Who is there: institutions, their accounts, and everybody else that accounts deal with."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from reperform.params import SimulateParams
from reperform.simulate.clock import Calendar, calendar
from reperform.simulate.draws import Bools, Floats, Ints, Texts, by_weight, generator, happens
from reperform.simulate.identifiers import account_ids, outsider_ids
from reperform.simulate.places import CITIES, ZONES, City
from reperform.simulate.rates import exchange_rates
from reperform.simulate.settings import BackgroundSettings, WorldSettings

PERSON_SEGMENTS = ("retail", "student", "senior", "premium")
OUTSIDER_KINDS = ("shop", "online", "atm", "branch", "person", "firm", "employer", "biller", "acquirer")
KM_PER_DEGREE = 111.2
REFERENCE_ACCOUNTS = 2000
FEWEST_DORMANT = 6


@dataclass(frozen=True)
class Institution:
    """A reporting bank.

    Args:
        name: its folder and its `entity_id`.
        format: the dialect of its raw files.
        share: of all accounts.
        currency: of all its accounts.
        countries: where its customers live.
    """

    name: str
    format: str
    share: float
    currency: str
    countries: tuple[str, ...]


@dataclass(frozen=True)
class Accounts:
    """One customer each; arrays of equal length. The index is the account's party number, too.

    Args:
        institution: index into the world's institutions.
        segment: retail, student, senior, premium or business.
        trade: what a business does; empty for people.
        city: index into `places.CITIES`.
        zone: index into `places.ZONES`.
        opened: day of opening, counted from the period's start; negative for most.
        income: monthly income (people) or turnover (businesses) in units of the account's currency.
        is_dormant: nothing happens here by itself.
    """

    institution: Ints
    segment: Texts
    trade: Texts
    city: Ints
    zone: Ints
    opened: Ints
    income: Floats
    is_dormant: Bools

    @property
    def number(self) -> int:
        """How many accounts there are."""
        return int(self.institution.size)

    def where(self, condition: Bools) -> Ints:
        """Party numbers of the accounts that meet a condition."""
        return np.flatnonzero(condition)

    @property
    def is_business(self) -> Bools:
        """Business accounts."""
        return np.asarray(self.segment == "business")

    @property
    def is_person(self) -> Bools:
        """Accounts of people that are in use."""
        return ~self.is_business & ~self.is_dormant


@dataclass(frozen=True)
class Parties:
    """Accounts first, then outsiders: shops, cash machines, people and firms that bank elsewhere.

    Args:
        identifier: as it stands in the raw files.
        kind: "account" or one of `OUTSIDER_KINDS`.
        city: index into `places.CITIES`.
        country: ISO 3166-1 alpha-2.
        latitude, longitude: of shops, cash machines and branches; NaN for others.
        popularity: relative share of business among its kind.
        trade: what a shop sells.
    """

    identifier: Texts
    kind: Texts
    city: Ints
    country: Texts
    latitude: Floats
    longitude: Floats
    popularity: Floats
    trade: Texts

    def of_kind(self, kind: str) -> Ints:
        """Party numbers of one kind."""
        return np.flatnonzero(self.kind == kind)


@dataclass(frozen=True)
class World:
    """Everything that payments are made from."""

    seed: int
    calendar: Calendar
    institutions: tuple[Institution, ...]
    accounts: Accounts
    parties: Parties
    rates: pl.DataFrame
    intensity: float

    def rng(self, *names: str) -> np.random.Generator:
        """The random stream of one named part."""
        return generator(self.seed, *names)

    def outsiders(self, rng: np.random.Generator, kind: str, size: int) -> Ints:
        """Party numbers of outsiders of a kind, drawn by popularity."""
        candidates = self.parties.of_kind(kind)
        return candidates[by_weight(rng, self.parties.popularity[candidates], size)]

    @property
    def currency(self) -> Texts:
        """Currency of each account."""
        return np.array([i.currency for i in self.institutions])[self.accounts.institution]


def build(params: SimulateParams, settings: WorldSettings) -> World:
    """The people and places of the demo world, before anything happens."""
    background = settings.background
    institutions = tuple(
        Institution(name, bank.format, bank.share, bank.currency, tuple(bank.countries))
        for name, bank in settings.institutions.items()
    )
    period = calendar(params.start, params.days, background.holidays)
    accounts = _accounts(params, institutions, background, generator(params.seed, "accounts"))
    return World(
        seed=params.seed,
        calendar=period,
        institutions=institutions,
        accounts=accounts,
        parties=_parties(accounts, institutions, generator(params.seed, "parties")),
        rates=exchange_rates(params.start, params.days, background.rates, params.seed),
        # 150 rows per account in 180 days is what the habits are written for.
        intensity=params.transactions / params.accounts / 150 * 180 / params.days,
    )


def _accounts(
    params: SimulateParams,
    institutions: tuple[Institution, ...],
    settings: BackgroundSettings,
    rng: np.random.Generator,
) -> Accounts:
    n = params.accounts
    institution = np.sort(_exact_shares(n, [i.share for i in institutions]))
    segments = settings.segments
    segment = np.array(list(segments))[_exact_shares(n, list(segments.values()))]
    rng.shuffle(segment)
    trades = settings.trades
    is_business = segment == "business"
    trade = np.full(n, "", dtype="<U16")
    trade[is_business] = np.array(list(trades))[_exact_shares(int(is_business.sum()), list(trades.values()))]
    trade[is_business] = rng.permutation(trade[is_business])
    city = _home_cities(institution, institutions, rng)
    is_new = happens(rng, settings.new_account_share, n)
    opened = np.where(is_new, rng.integers(5, params.days - 25, n), -rng.integers(40, 4500, n))
    return Accounts(
        institution=institution,
        segment=segment,
        trade=trade,
        city=city,
        zone=np.array([ZONES.index(c.zone) for c in CITIES])[city],
        opened=opened,
        income=_incomes(segment, trade, settings, rng),
        is_dormant=_asleep(~is_business & ~is_new, settings.dormant_share, rng),
    )


def _asleep(eligible: Bools, share: float, rng: np.random.Generator) -> Bools:
    """A share of those who can be dormant; a few even in a small world, as some shall wake up in every one."""
    order = rng.permutation(np.flatnonzero(eligible))
    asleep = np.zeros(eligible.size, dtype=np.bool_)
    asleep[order[: max(round(share * order.size), FEWEST_DORMANT)]] = True
    return asleep


def _exact_shares(n: int, shares: list[float]) -> Ints:
    edges = np.rint(np.cumsum(shares) / np.sum(shares) * n).astype(np.int64)
    return np.repeat(np.arange(len(shares)), np.diff(edges, prepend=0))


def _home_cities(institution: Ints, institutions: tuple[Institution, ...], rng: np.random.Generator) -> Ints:
    city = np.zeros(institution.size, dtype=np.int64)
    for index, bank in enumerate(institutions):
        own = np.flatnonzero(institution == index)
        homes = [i for i, place in enumerate(CITIES) if place.country in bank.countries]
        city[own] = np.array(homes)[by_weight(rng, [CITIES[i].weight for i in homes], own.size)]
    return city


def _incomes(segment: Texts, trade: Texts, settings: BackgroundSettings, rng: np.random.Generator) -> Floats:
    medians = settings.monthly_income
    median = np.array([float(medians[t or s]) for s, t in zip(segment.tolist(), trade.tolist(), strict=True)])
    spread = np.where(segment == "business", 0.7, 0.35)
    return np.asarray(np.round(median * np.exp(rng.normal(0, 1, segment.size) * spread), 2))


def _parties(accounts: Accounts, institutions: tuple[Institution, ...], rng: np.random.Generator) -> Parties:
    outsiders = pl.concat([_outsiders_of_kind(kind, accounts.number, rng) for kind in OUTSIDER_KINDS])
    homes = np.array([c.country for c in CITIES])
    city = np.concatenate([accounts.city, outsiders["city"].to_numpy()])
    here = np.full(accounts.number, np.nan)
    kind = np.concatenate([np.full(accounts.number, "account"), outsiders["kind"].to_numpy().astype(str)])
    country = homes[city]
    own = account_ids([i.name for i in institutions], accounts.institution, country[: accounts.number], rng)
    return Parties(
        identifier=np.concatenate([own, outsider_ids(kind[accounts.number :], country[accounts.number :], rng)]),
        kind=kind,
        city=city,
        country=country,
        latitude=np.concatenate([here, outsiders["latitude"].to_numpy()]),
        longitude=np.concatenate([here, outsiders["longitude"].to_numpy()]),
        popularity=np.concatenate([np.ones(accounts.number), outsiders["popularity"].to_numpy()]),
        trade=np.concatenate([np.full(accounts.number, ""), outsiders["trade"].to_numpy().astype(str)]),
    )


# How many outsiders of each kind a world of 2,000 accounts has; those with a place are spread over all cities.
_NUMBERS = {
    "shop": 2400, "online": 320, "atm": 320, "branch": 160, "person": 7000, "firm": 1600, "employer": 160,
    "biller": 90, "acquirer": 5,
}  # fmt: skip
_SHOP_TRADES = {"grocery": 0.28, "food": 0.3, "fuel": 0.1, "retail": 0.18, "health": 0.08, "transport": 0.06}
_ONLINE_TRADES = {"marketplace": 0.4, "digital": 0.25, "travel": 0.15, "fashion": 0.2}
_PLACED = ("shop", "atm", "branch")
_FLAT_POPULARITY = ("person", "branch")


def _outsiders_of_kind(kind: str, accounts: int, rng: np.random.Generator) -> pl.DataFrame:
    number = max(int(_NUMBERS[kind] * (accounts / REFERENCE_ACCOUNTS) ** 0.7), 5)
    if kind in _PLACED:
        # Every city has some of each, or travellers would find none.
        number = max(number, 4 * len(CITIES))
        city = np.concatenate([np.repeat(np.arange(len(CITIES)), 3), _cities(rng, number - 3 * len(CITIES))])
    else:
        city = _cities(rng, number)
    trades = {"shop": _SHOP_TRADES, "online": _ONLINE_TRADES}.get(kind, {"": 1.0})
    places: tuple[City, ...] = CITIES
    centre = np.array([(c.latitude, c.longitude) for c in places])[city]
    offset_km = rng.normal(0, 1, (number, 2)) * rng.choice(np.array([2.0, 6.0, 12.0]), (number, 1))
    degrees = offset_km / KM_PER_DEGREE
    degrees[:, 1] /= np.cos(np.radians(centre[:, 0]))
    point = np.where(kind in _PLACED, np.round(centre + degrees, 5), np.nan)
    return pl.DataFrame(
        {
            "kind": np.full(number, kind),
            "city": city,
            "latitude": point[:, 0],
            "longitude": point[:, 1],
            "popularity": np.ones(number) if kind in _FLAT_POPULARITY else np.exp(rng.normal(0, 1.2, number)),
            "trade": np.array(list(trades))[by_weight(rng, list(trades.values()), number)],
        }
    )


def _cities(rng: np.random.Generator, number: int) -> Ints:
    return by_weight(rng, [c.weight for c in CITIES], number)
