"""What people do with money apart from shopping: wages, rent, bills, friends, savings, cash."""

from typing import Any

import numpy as np
import polars as pl

from reperform.simulate.clock import DAY_S, HOUR_S
from reperform.simulate.draws import (
    CENTS,
    Ints,
    by_weight,
    happens,
    human_cents,
    lognormal_cents,
    per_owner,
    priced_cents,
    rounded_cents,
)
from reperform.simulate.ledger import OUTSIDE, payments, together
from reperform.simulate.settings import PeopleSettings
from reperform.simulate.world import World

WIRED_CENTS = 600_000


def habits(world: World, settings: PeopleSettings) -> pl.DataFrame:
    """Everything that people do regularly or now and then, apart from shopping."""
    return together(
        [
            wages(world, settings),
            rents(world, settings),
            bills(world, settings),
            fees(world),
            friends(world, settings),
            one_offs(world, settings),
            savings(world, settings),
            cash_in(world, settings),
        ]
    )


def monthly_days(world: World, day_of_month: Any, *, before_weekend: bool = False) -> tuple[Ints, Ints]:
    """Days on which something monthly falls due.

    Args:
        world: for its calendar.
        day_of_month: per owner, 1 to 31; beyond a month's end its last day.
        before_weekend: move to the business day before instead of the one after.

    Returns:
        Owner positions and days; days outside the period are left out.
    """
    wanted, period = np.asarray(day_of_month, dtype=np.int64), world.calendar
    owners, days = [], []
    for first, length in period.months:
        due = first + np.minimum(wanted, length) - 1
        day = period.previous_business(due) if before_weekend else period.next_business(due)
        inside = np.flatnonzero((day >= 0) & (day < period.days))
        owners.append(inside)
        days.append(day[inside])
    return np.concatenate(owners), np.concatenate(days)


def local_s(rng: np.random.Generator, size: int, *, around_h: float, spread_h: float) -> Ints:
    """Seconds of the local day around an hour, kept within the day."""
    return np.clip(rng.normal(around_h, spread_h, size) * HOUR_S, 60, DAY_S - 60).astype(np.int64)


def transfer_channel(world: World, rng: np.random.Generator, day: Ints) -> Any:
    """Instant or ordinary transfer; instant ones gain ground, as a new rule makes banks offer them."""
    share = 0.2 + 0.25 * np.clip((day / world.calendar.days - 0.35) / 0.5, 0, 1)
    return np.where(happens(rng, share, day.size), "instant", "transfer")


def settlement_s(rng: np.random.Generator, channel: Any, size: int) -> Ints:
    """Seconds until the other side is booked: at once for instant payments, hours for transfers, days for wires."""
    channel = np.broadcast_to(np.asarray(channel), (size,))
    fast, hours = rng.integers(2, 12, size), rng.integers(20, 7 * HOUR_S, size)
    days = rng.integers(5 * HOUR_S, 40 * HOUR_S, size)
    return np.asarray(np.select([channel == "instant", channel == "wire"], [fast, days], hours))


def wages(world: World, settings: PeopleSettings) -> pl.DataFrame:
    """Wages, pensions and grants, once a month; half of the employees work for businesses that bank here."""
    rng, accounts = world.rng("people", "wages"), world.accounts
    earners = accounts.where(accounts.is_person & happens(rng, settings.earner_share, accounts.number))
    employer = world.outsiders(rng, "employer", earners.size)
    for country in np.unique(world.parties.country[earners]):
        here = np.flatnonzero(world.parties.country[earners] == country)
        hiring = accounts.where(accounts.is_business & (world.parties.country[: accounts.number] == country))
        staff = here[happens(rng, settings.employed_here_share, here.size) & (hiring.size > 0)]
        if staff.size:
            employer[staff] = hiring[by_weight(rng, accounts.income[hiring] ** 0.6, staff.size)]
    # Whoever pays, pays everybody on the same day.
    payday = world.rng("people", "paydays").integers(24, 32, world.parties.identifier.size)[employer]
    who, day = monthly_days(world, payday, before_weekend=True)
    bonus = np.where(happens(rng, 0.03, who.size), rng.uniform(1.2, 2.0, who.size), 1.0)
    hour = world.rng("people", "payhours").uniform(0.1, 15, world.parties.identifier.size)[employer[who]]
    return payments(
        payer=employer[who],
        payee=earners[who],
        at_s=world.calendar.at(day, hour * HOUR_S, accounts.zone[earners[who]]) + rng.integers(0, 90, who.size),
        cents=np.rint(accounts.income[earners[who]] * bonus * CENTS),
        channel="transfer",
        settle_s=rng.integers(5, 4 * HOUR_S, who.size),
        lookalike=_when(employer[who] < accounts.number, "payroll"),
    )


def rents(world: World, settings: PeopleSettings) -> pl.DataFrame:
    """Rent to landlords who bank here or elsewhere, in the first days of the month."""
    rng, accounts = world.rng("people", "rents"), world.accounts
    tenants = accounts.where(accounts.is_person & happens(rng, settings.tenant_share, accounts.number))
    landlord = world.outsiders(rng, "firm", tenants.size)
    letting = accounts.where(accounts.trade == "landlord")
    here = happens(rng, settings.rents_here_share, tenants.size)
    for country in np.unique(world.parties.country[tenants]):
        own = letting[world.parties.country[letting] == country]
        mine = np.flatnonzero(here & (world.parties.country[tenants] == country))
        if own.size:
            landlord[mine] = rng.choice(own, mine.size)
    rent = rounded_cents(lognormal_cents(rng, accounts.income[tenants] * 0.3, 0.2, tenants.size), 5)
    who, day = monthly_days(world, rng.integers(1, 5, tenants.size))
    return payments(
        payer=tenants[who],
        payee=landlord[who],
        at_s=world.calendar.at(day, local_s(rng, who.size, around_h=8, spread_h=3.5), accounts.zone[tenants[who]]),
        cents=rent[who],
        channel="transfer",
        settle_s=settlement_s(rng, "transfer", who.size),
        lookalike=_when(landlord[who] < accounts.number, "rent_collection"),
    )


def bills(world: World, settings: PeopleSettings) -> pl.DataFrame:
    """Utilities, phone, insurance and subscriptions by direct debit, collected at night; amounts hardly vary."""
    rng, accounts = world.rng("people", "bills"), world.accounts
    contracts = per_owner(rng, settings.bills_per_account, accounts.where(~accounts.is_dormant))
    biller = world.outsiders(rng, "biller", contracts.size)
    usual = priced_cents(rng, lognormal_cents(rng, 42, 0.8, contracts.size))
    usual = np.where(accounts.is_business[contracts], usual * 4, usual)
    who, day = monthly_days(world, rng.integers(1, 29, contracts.size))
    wobble = np.where(happens(rng, 0.3, who.size), rng.uniform(0.85, 1.2, who.size), 1.0)
    return payments(
        payer=contracts[who],
        payee=biller[who],
        at_s=world.calendar.at(day, local_s(rng, who.size, around_h=4, spread_h=1.2), accounts.zone[contracts[who]]),
        cents=np.maximum(usual[who] * wobble, 1),
        channel="debit",
    )


def fees(world: World) -> pl.DataFrame:
    """What the bank charges at the end of each quarter."""
    rng, accounts = world.rng("people", "fees"), world.accounts
    everyone = np.arange(accounts.number)
    who, day = monthly_days(world, np.full(accounts.number, 31), before_weekend=True)
    month = np.array(
        [(world.calendar.start.month - 1 + int(m)) % 12 for m in np.searchsorted(_firsts(world), day + 1) - 1]
    )
    quarter = month % 3 == 2  # noqa: PLR2004  # March, June, September, December, counted from 0
    who, day = who[quarter], day[quarter]
    return payments(
        payer=everyone[who],
        payee=OUTSIDE,
        at_s=world.calendar.at(day, local_s(rng, who.size, around_h=22, spread_h=0.3), accounts.zone[who]),
        cents=np.where(accounts.is_business[who], 4500, 1170),
        channel="fee",
    )


def _firsts(world: World) -> Ints:
    return np.array([first for first, _ in world.calendar.months]) + 1


def friends(world: World, settings: PeopleSettings) -> pl.DataFrame:
    """Small transfers within circles of friends: splitting a bill, a gift, the money back."""
    rng, accounts = world.rng("people", "friends"), world.accounts
    people = accounts.where(accounts.is_person)
    circle = _circles(world, people, rng)
    payer_at = per_owner(rng, settings.to_friends * world.intensity, np.arange(people.size))
    size = payer_at.size
    friend = circle[payer_at, by_weight(rng, [8, 5, 3, 2, 1], size)]
    outside = happens(rng, 0.35, size)
    known = world.outsiders(rng, "person", people.size * 2).reshape(people.size, 2)
    payee = np.where(outside, known[payer_at, rng.integers(0, 2, size)], friend)
    day = _any_day(world, rng, size)
    channel = transfer_channel(world, rng, day)
    return payments(
        payer=people[payer_at],
        payee=payee,
        at_s=world.calendar.at(day, local_s(rng, size, around_h=17, spread_h=4), accounts.zone[people[payer_at]]),
        cents=human_cents(rng, lognormal_cents(rng, 28, 1.0, size)),
        channel=channel,
        settle_s=settlement_s(rng, channel, size),
    )


def _circles(world: World, people: Ints, rng: np.random.Generator) -> Ints:
    """Five friends of each, shape (people, 5): neighbours in a random ring within the city, so that circles overlap."""
    order = np.lexsort((rng.random(people.size), world.accounts.city[people]))
    steps = rng.choice(np.array([-4, -3, -2, -1, 1, 2, 3, 4]), (people.size, 5))
    place = np.empty(people.size, dtype=np.int64)
    place[order] = np.arange(people.size)
    return np.asarray(people[order[(place[:, None] + steps) % people.size]])


def one_offs(world: World, settings: PeopleSettings) -> pl.DataFrame:
    """Payments to and from strangers: a craftsman, a used car, a deposit, a tax refund, an inheritance."""
    rng, accounts = world.rng("people", "one_offs"), world.accounts
    people = accounts.where(accounts.is_person)
    out = per_owner(rng, settings.to_strangers * world.intensity, people)
    into = per_owner(rng, settings.from_strangers * world.intensity, people)
    mine = np.concatenate([out, into])
    kind = np.where(happens(rng, 0.65, mine.size), 0, 1)
    stranger = np.where(kind == 0, world.outsiders(rng, "person", mine.size), world.outsiders(rng, "firm", mine.size))
    here = happens(rng, 0.1, mine.size)
    stranger = np.where(here, rng.choice(people, mine.size), stranger)
    is_out = np.arange(mine.size) < out.size
    day = _any_day(world, rng, mine.size)
    cents = human_cents(rng, lognormal_cents(rng, 190, 1.35, mine.size))
    channel = np.where(cents > WIRED_CENTS, "wire", transfer_channel(world, rng, day))
    return payments(
        payer=np.where(is_out, mine, stranger),
        payee=np.where(is_out, stranger, mine),
        at_s=world.calendar.at(day, local_s(rng, mine.size, around_h=14.5, spread_h=4.5), accounts.zone[mine]),
        cents=cents,
        channel=channel,
        settle_s=settlement_s(rng, channel, mine.size),
    )


def savings(world: World, settings: PeopleSettings) -> pl.DataFrame:
    """Monthly savings to an account elsewhere, and now and then some of it back."""
    rng, accounts = world.rng("people", "savings"), world.accounts
    savers = accounts.where(accounts.is_person & happens(rng, settings.saver_share, accounts.number))
    elsewhere = world.outsiders(rng, "person", savers.size)
    who, day = monthly_days(world, rng.integers(1, 28, savers.size))
    back = happens(rng, 0.1, who.size)
    usual = rounded_cents(lognormal_cents(rng, accounts.income[savers] * 0.09, 0.4, savers.size), 10)
    cents = np.where(
        back, rounded_cents(lognormal_cents(rng, accounts.income[savers[who]] * 0.4, 0.7, who.size), 50), usual[who]
    )
    return payments(
        payer=np.where(back, elsewhere[who], savers[who]),
        payee=np.where(back, savers[who], elsewhere[who]),
        at_s=world.calendar.at(day, local_s(rng, who.size, around_h=9, spread_h=4), accounts.zone[savers[who]]),
        cents=cents,
        channel="transfer",
        settle_s=settlement_s(rng, "transfer", who.size),
    )


def cash_in(world: World, settings: PeopleSettings) -> pl.DataFrame:
    """Cash that people bring to the counter: tips of many, takings of a few, often just under a round sum."""
    rng, accounts = world.rng("people", "cash_in"), world.accounts
    people = accounts.where(accounts.is_person)
    weeks = world.calendar.days / 7
    some = people[happens(rng, settings.cash_worker_share, people.size)]
    heavy = people[happens(rng, settings.cash_heavy_share, people.size)]
    often = per_owner(rng, weeks * 0.5, some)
    big = per_owner(rng, weeks * 0.7, heavy)
    usual = dict(zip(heavy.tolist(), np.exp(rng.normal(np.log(3800), 0.55, heavy.size)).tolist(), strict=True))
    median = np.array([usual[a] for a in big.tolist()])
    just_under = happens(rng, 0.35, big.size)
    takings = np.minimum(rounded_cents(lognormal_cents(rng, median, 0.45, big.size), 10), 985_000)
    under = rounded_cents(takings, 1000) - rng.choice(np.array([5, 10, 20, 50, 100]), big.size) * CENTS
    takings = np.where(just_under & (under > 0), np.minimum(under, 995_000), takings)
    account = np.concatenate([often, big])
    cents = np.concatenate([rounded_cents(lognormal_cents(rng, 260, 0.7, often.size), 10), takings])
    return cash_deposits(
        world, rng, account, cents, lookalike=_when(np.arange(account.size) >= often.size, "cash_takings")
    )


def cash_deposits(
    world: World, rng: np.random.Generator, account: Ints, cents: Ints, *, lookalike: Any
) -> pl.DataFrame:
    """Cash over the counter of a branch in the account's own city, in opening hours."""
    day = world.calendar.next_business(rng.integers(0, world.calendar.days, account.size))
    return payments(
        payer=own_branch(world, rng, account),
        payee=account,
        at_s=world.calendar.at(
            day, local_s(rng, account.size, around_h=13, spread_h=2.2), world.accounts.zone[account]
        ),
        cents=cents,
        channel="cash",
        settle_s=1,
        lookalike=lookalike,
    )


def own_branch(world: World, rng: np.random.Generator, account: Ints) -> Ints:
    """A branch in each account's city; people have a favourite, and sometimes use another one."""
    branches = world.parties.of_kind("branch")
    city = world.parties.city[branches]
    order = np.argsort(city, kind="stable")
    first = np.searchsorted(city[order], np.arange(city.max() + 2))
    home = world.accounts.city[account]
    number = first[home + 1] - first[home]
    favourite = account % number
    choice = np.where(happens(rng, 0.75, account.size), favourite, rng.integers(0, number))
    return branches[order[first[home] + choice]]


def _any_day(world: World, rng: np.random.Generator, size: int) -> Ints:
    weight = np.where(world.calendar.is_business, 1.0, 0.75)
    return by_weight(rng, weight, size)


def _when(condition: Any, name: str) -> list[str | None]:
    return [name if yes else None for yes in condition.tolist()]
