"""What businesses do: takings, customers and suppliers, taxes, payouts, money held for others, work at night."""

from typing import Any

import numpy as np
import polars as pl

from reperform.simulate.clock import HOUR_S
from reperform.simulate.draws import CENTS, Ints, happens, human_cents, lognormal_cents, per_owner, rounded_cents
from reperform.simulate.ledger import payments, together
from reperform.simulate.people import cash_deposits, local_s, monthly_days, settlement_s, transfer_channel
from reperform.simulate.settings import BusinessSettings
from reperform.simulate.world import World

NIGHT_TRADES = ("restaurant", "logistics")
WIRED_INVOICE_CENTS, WIRED_DEAL_CENTS = 5_000_000, 1_500_000


def habits(world: World, settings: BusinessSettings) -> pl.DataFrame:
    """Everything that businesses do regularly."""
    return together(
        [
            card_takings(world, settings),
            cash_takings(world, settings),
            suppliers(world, settings),
            customers(world, settings),
            taxes(world),
            payouts(world, settings),
            held_money(world, settings),
            night_work(world, settings),
        ]
    )


def _of_trade(world: World, *trades: str) -> Ints:
    return world.accounts.where(np.isin(world.accounts.trade, trades))


def card_takings(world: World, settings: BusinessSettings) -> pl.DataFrame:
    """What acquirers pay out for card sales: some shops are settled daily, others weekly."""
    rng, accounts, period = world.rng("business", "card_takings"), world.accounts, world.calendar
    shops = _of_trade(world, "shop", "restaurant", "marketplace")
    daily = happens(rng, settings.daily_settlement_share, shops.size)
    acquirer = world.outsiders(rng, "acquirer", shops.size)
    open_days = np.flatnonzero(period.is_business)
    weekly_day = rng.integers(0, 5, shops.size)
    is_due = daily[:, None] | (period.weekday[open_days][None, :] == weekly_day[:, None])
    who, which = np.nonzero(is_due)
    per_time = accounts.income[shops[who]] * np.where(daily[who], 1 / 21, 1 / 4.3) * 0.7
    day = open_days[which]
    return payments(
        payer=acquirer[who],
        payee=shops[who],
        at_s=period.at(day, local_s(rng, who.size, around_h=6, spread_h=0.8), accounts.zone[shops[who]]),
        cents=lognormal_cents(rng, per_time, 0.3, who.size),
        channel="transfer",
    )


def cash_takings(world: World, settings: BusinessSettings) -> pl.DataFrame:
    """Cash of shops and restaurants, brought to the bank about once a week, usually short of the reporting limit."""
    rng, accounts = world.rng("business", "cash_takings"), world.accounts
    tills = _of_trade(world, "shop", "restaurant")
    tills = tills[happens(rng, settings.cash_till_share, tills.size)]
    owner = per_owner(rng, world.calendar.days / 9, tills)
    cents = rounded_cents(lognormal_cents(rng, accounts.income[owner] * 0.07, 0.45, owner.size), 10)
    # Insurance covers a limited sum on the way to the bank, so that takings are split before they reach it.
    cents = np.minimum(cents, rng.integers(80, 99, owner.size) * 100 * CENTS)
    return cash_deposits(world, rng, owner, cents, lookalike="cash_takings")


def suppliers(world: World, settings: BusinessSettings) -> pl.DataFrame:
    """Invoices paid to a handful of suppliers, some of which bank here, every one to six weeks."""
    rng, accounts = world.rng("business", "suppliers"), world.accounts
    businesses = accounts.where(accounts.is_business)
    buyer = per_owner(rng, settings.suppliers_per_business, businesses)
    here = happens(rng, 0.45, buyer.size) & (businesses.size > 1)
    seller = np.where(here, rng.choice(businesses, buyer.size), world.outsiders(rng, "firm", buyer.size))
    usual = accounts.income[buyer] * 0.35 * rng.dirichlet(np.ones(6), buyer.size)[:, 0]
    return _invoices(world, rng, buyer, seller, usual, clock=buyer)


def customers(world: World, settings: BusinessSettings) -> pl.DataFrame:
    """Invoices paid by customers who bank elsewhere."""
    rng, accounts = world.rng("business", "customers"), world.accounts
    sellers = _of_trade(world, "services", "contractor", "logistics", "escrow", "landlord")
    seller = per_owner(rng, settings.customers_per_business, sellers)
    buyer = world.outsiders(rng, "firm", seller.size)
    usual = accounts.income[seller] * 0.9 * rng.dirichlet(np.ones(6), seller.size)[:, 0]
    return _invoices(world, rng, buyer, seller, usual, clock=seller)


def _invoices(
    world: World, rng: np.random.Generator, payer: Ints, payee: Ints, usual: Any, *, clock: Ints
) -> pl.DataFrame:
    """Repeated payments of relations: each has its rhythm, its usual amount and its own office hours."""
    period = world.calendar
    rhythm_days = rng.choice(np.array([7, 14, 30, 42]), payer.size, p=[0.15, 0.25, 0.45, 0.15])
    times = rng.poisson(period.days / rhythm_days * world.intensity)
    relation = np.repeat(np.arange(payer.size), times)
    day = period.next_business(rng.integers(0, period.days, relation.size))
    cents = lognormal_cents(rng, np.maximum(usual[relation], 20), 0.4, relation.size)
    channel = np.where(
        (cents > WIRED_INVOICE_CENTS) & happens(rng, 0.5, relation.size), "wire", transfer_channel(world, rng, day)
    )
    return payments(
        payer=payer[relation],
        payee=payee[relation],
        at_s=period.at(
            day, local_s(rng, relation.size, around_h=11.5, spread_h=2.8), world.accounts.zone[clock[relation]]
        ),
        cents=cents,
        channel=channel,
        settle_s=settlement_s(rng, channel, relation.size),
    )


def taxes(world: World) -> pl.DataFrame:
    """Turnover tax by direct debit, each month around the tenth."""
    rng, accounts = world.rng("business", "taxes"), world.accounts
    payers = accounts.where(accounts.is_business)
    office = world.outsiders(rng, "biller", 3)
    who, day = monthly_days(world, rng.integers(9, 13, payers.size))
    return payments(
        payer=payers[who],
        payee=office[accounts.institution[payers[who]] % 3],
        at_s=world.calendar.at(day, local_s(rng, who.size, around_h=5, spread_h=1), accounts.zone[payers[who]]),
        cents=lognormal_cents(rng, accounts.income[payers[who]] * 0.06, 0.25, who.size),
        channel="debit",
    )


def payouts(world: World, settings: BusinessSettings) -> pl.DataFrame:
    """Marketplaces pay their sellers every other week, many at once."""
    rng, accounts, period = world.rng("business", "payouts"), world.accounts, world.calendar
    hosts = _of_trade(world, "marketplace")
    sellers = {int(h): world.outsiders(rng, "person", settings.sellers_per_marketplace) for h in hosts}
    frames = []
    for host in hosts.tolist():
        for day in period.next_business(np.arange(rng.integers(0, 14), period.days, 14)).tolist():
            due = sellers[host][happens(rng, 0.55, sellers[host].size)]
            start_s = int(local_s(rng, 1, around_h=10, spread_h=3)[0])
            at_s = period.at(day, start_s + np.sort(rng.integers(0, 1800, due.size)), accounts.zone[host])
            median = accounts.income[host] * 0.3 / settings.sellers_per_marketplace
            cents = lognormal_cents(rng, median, 0.7, due.size)
            frames.append(
                payments(payer=host, payee=due, at_s=at_s, cents=cents, channel="transfer", lookalike="payout_run")
            )
    return together(f for f in frames if f.height)


def held_money(world: World, settings: BusinessSettings) -> pl.DataFrame:
    """Notaries and agents receive large sums and pass nearly all of it on within hours or days."""
    rng, accounts, period = world.rng("business", "held_money"), world.accounts, world.calendar
    agents = per_owner(rng, settings.deals_per_agent * period.days / 30, _of_trade(world, "escrow"))
    size = agents.size
    day = period.next_business(rng.integers(0, period.days, size))
    at_s = period.at(day, local_s(rng, size, around_h=11, spread_h=2.5), accounts.zone[agents])
    cents = rounded_cents(lognormal_cents(rng, 6_000, 1.2, size), 50)
    channel = np.where(cents > WIRED_DEAL_CENTS, "wire", "transfer")
    into = payments(
        payer=world.outsiders(rng, "person", size), payee=agents, at_s=at_s, cents=cents, channel=channel,
        lookalike="held_money",
    )  # fmt: skip
    wait_s = (np.exp(rng.normal(np.log(9), 1.1, size)) * HOUR_S).astype(np.int64) + 600
    out = payments(
        payer=agents,
        payee=world.outsiders(rng, "person", size),
        at_s=at_s + wait_s,
        cents=np.rint(cents * rng.uniform(0.93, 0.995, size)),
        channel=channel,
        lookalike="held_money",
    )
    return together([into, out])


def night_work(world: World, settings: BusinessSettings) -> pl.DataFrame:
    """Restaurants and carriers pay staff and drivers at night; offices now and then work late before a closing."""
    rng, accounts, period = world.rng("business", "night_work"), world.accounts, world.calendar
    owners = per_owner(rng, settings.night_payments * period.days / 30, _of_trade(world, *NIGHT_TRADES))
    late = per_owner(rng, period.days / 45, _of_trade(world, "services", "contractor", "escrow"))
    who = np.concatenate([owners, late])
    regular = world.outsiders(rng, "person", accounts.number * 4).reshape(accounts.number, 4)
    day = rng.integers(0, period.days, who.size)
    evening = happens(rng, 0.4, who.size)  # the rest is spread over the night
    hour = np.where(evening, rng.normal(22, 1.5, who.size), rng.normal(25.5, 2.2, who.size)) % 24
    second = (hour * HOUR_S).astype(np.int64)
    channel = transfer_channel(world, rng, day)
    return payments(
        payer=who,
        payee=np.where(
            happens(rng, 0.75, who.size),
            regular[who, rng.integers(0, 4, who.size)],
            world.outsiders(rng, "firm", who.size),
        ),
        at_s=period.at(day, second, accounts.zone[who]),
        cents=human_cents(rng, lognormal_cents(rng, np.maximum(accounts.income[who] * 0.02, 60), 0.9, who.size)),
        channel=channel,
        settle_s=settlement_s(rng, channel, who.size),
        lookalike="night_work",
    )
