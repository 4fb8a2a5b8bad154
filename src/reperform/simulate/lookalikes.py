"""Innocent habits that resemble planted typologies: without them every alarm would be right."""

from typing import Any

import numpy as np
import polars as pl

from reperform.simulate.clock import DAY_S, HOUR_S
from reperform.simulate.draws import Ints, happens, human_cents, lognormal_cents, priced_cents
from reperform.simulate.ledger import payments, together
from reperform.simulate.people import settlement_s
from reperform.simulate.settings import LookalikeSettings
from reperform.simulate.world import World


def habits(world: World, settings: LookalikeSettings) -> pl.DataFrame:
    """All of them, each with its own stream; `settings` says how many of each a world of 2,000 accounts sees."""
    scale = world.accounts.number / 2000
    makers = {
        "gift_collection": gift_collection,
        "round_trip": round_trip,
        "reactivation": reactivation,
        "small_purchases": small_purchases,
        "big_week": big_week,
        "newcomer": newcomer,
        "passed_on": passed_on,
        "shared_out": shared_out,
    }
    frames = []
    for name, make in makers.items():
        rng = world.rng("lookalikes", name)
        wanted = getattr(settings, name)
        frames += [make(world, rng) for _ in range(max(round(wanted * scale), min(wanted, 1)))]
    return together(frames)


def gift_collection(world: World, rng: np.random.Generator) -> pl.DataFrame:
    """Fan-in: friends and relatives chip in for a wedding, a farewell, a club's fees, within days."""
    host, size = _person(world, rng), int(rng.integers(6, 18))
    givers = np.where(happens(rng, 0.4, size), _people(world, rng, size), world.outsiders(rng, "person", size))
    day = int(rng.integers(1, world.calendar.days - 8)) + rng.integers(0, 6, size)
    usual = float(rng.choice(np.array([20, 50, 100, 180, 300])))
    return _moves(
        world, rng, givers, host, day,
        cents=human_cents(rng, lognormal_cents(rng, usual, 0.5, size)), channel="instant", lookalike="gift_collection",
    )  # fmt: skip


def shared_out(world: World, rng: np.random.Generator) -> pl.DataFrame:
    """Fan-out: one sum arrives and is shared among many: a club's trip, an estate, helpers after a move."""
    host, size = _person(world, rng), int(rng.integers(5, 14))
    takers = np.where(happens(rng, 0.4, size), _people(world, rng, size), world.outsiders(rng, "person", size))
    first = int(rng.integers(1, world.calendar.days - 8))
    cents = human_cents(rng, lognormal_cents(rng, float(rng.choice(np.array([60, 150, 400, 900]))), 0.5, size))
    source = world.outsiders(rng, "person", 1)
    into = _moves(
        world, rng, source, host, np.array([first]),
        cents=np.array([int(cents.sum() * rng.uniform(0.9, 1.3))]), channel="transfer", lookalike="shared_out",
    )  # fmt: skip
    out = _moves(
        world, rng, np.full(size, host), takers, first + 1 + rng.integers(0, 3, size),
        cents=cents, channel="instant", lookalike="shared_out",
    )  # fmt: skip
    return together([into, out])


def round_trip(world: World, rng: np.random.Generator) -> pl.DataFrame:
    """Cycle: three or four accounts pay one another in turn, as partners, families and groups of firms do."""
    size = int(rng.integers(3, 5))
    circle = _businesses(world, rng, size) if rng.integers(2) else _people(world, rng, size)
    usual = float(np.exp(rng.normal(np.log(900), 1.1)))
    day = np.sort(int(rng.integers(1, world.calendar.days - 12)) + rng.integers(0, 9, size))
    return _moves(
        world, rng, circle, np.roll(circle, -1), day,
        cents=human_cents(rng, lognormal_cents(rng, usual, 0.25, size)), channel="instant", lookalike="round_trip",
    )  # fmt: skip


def reactivation(world: World, rng: np.random.Generator) -> pl.DataFrame:
    """Dormant accounts come back to life: a house is bought, a child starts to use it, an heir empties it."""
    dormant = world.accounts.where(world.accounts.is_dormant)
    # The other half belongs to the planted awakenings; both are drawn from one random order.
    ours = world.rng("dormant").permutation(dormant)[: dormant.size // 2]
    account, size = int(rng.choice(ours)), int(rng.integers(2, 9))
    other = np.where(happens(rng, 0.6, size), world.outsiders(rng, "person", size), world.outsiders(rng, "firm", size))
    day = int(rng.integers(10, world.calendar.days - 12)) + rng.integers(0, 10, size)
    is_in = happens(rng, 0.35, size)
    return _moves(
        world, rng, np.where(is_in, other, account), np.where(is_in, account, other), day,
        cents=human_cents(rng, lognormal_cents(rng, 650, 1.2, size)), channel="transfer", lookalike="reactivation",
    )  # fmt: skip


def small_purchases(world: World, rng: np.random.Generator) -> pl.DataFrame:
    """Card testing: a game, a parking machine, a print shop charges small sums, one after the other."""
    account, size = _person(world, rng), int(rng.integers(4, 16))
    shop = np.repeat(world.outsiders(rng, "online", 2), size)[: size + 1][rng.integers(0, 2, size)]
    start = int(_clock(world, rng, np.array([account]), rng.integers(1, world.calendar.days - 2, 1))[0])
    gap_s = np.cumsum(rng.exponential(rng.uniform(60, 600), size)).astype(np.int64)
    return payments(
        payer=account, payee=shop, at_s=start + gap_s,
        cents=np.maximum(priced_cents(rng, lognormal_cents(rng, 2.2, 0.7, size)), 40),
        channel="online", lookalike="small_purchases",
    )  # fmt: skip


def big_week(world: World, rng: np.random.Generator) -> pl.DataFrame:
    """Takeover: someone moves house or marries, and for days pays many, much, at odd hours, to strangers."""
    account, size = _person(world, rng), int(rng.integers(5, 14))
    is_online = happens(rng, 0.5, size)
    payee = np.where(is_online, world.outsiders(rng, "online", size), world.outsiders(rng, "person", size))
    day = int(rng.integers(1, world.calendar.days - 5)) + rng.integers(0, int(rng.integers(1, 4)), size)
    frame = _moves(
        world, rng, np.full(size, account), payee, day,
        cents=human_cents(rng, lognormal_cents(rng, 170, 1.0, size)), channel="instant", lookalike="big_week",
    )  # fmt: skip
    return frame.with_columns(channel=pl.when(pl.Series(is_online)).then(pl.lit("online")).otherwise("channel"))


def newcomer(world: World, rng: np.random.Generator) -> pl.DataFrame:
    """A new account whose owner moves everything here within days: large sums in, many payments out."""
    new = world.accounts.where((world.accounts.opened > 0) & (world.accounts.opened < world.calendar.days - 15))
    if not new.size:
        return together([])
    account, size = int(rng.choice(new)), int(rng.integers(4, 12))
    day = int(world.accounts.opened[account]) + 1 + rng.integers(0, 9, size)
    is_in = np.arange(size) < max(size // 3, 1)
    other = world.outsiders(rng, "person", size)
    return _moves(
        world, rng, np.where(is_in, other, account), np.where(is_in, account, other), day,
        cents=human_cents(rng, lognormal_cents(rng, np.where(is_in, 1800, 420), 0.8, size)),
        channel="transfer", lookalike="newcomer",
    )  # fmt: skip


def passed_on(world: World, rng: np.random.Generator) -> pl.DataFrame:
    """Mule: money comes in and most of it leaves within hours, as when one friend books the holiday for all."""
    account, size = _person(world, rng), int(rng.integers(1, 4))
    start = _clock(world, rng, np.full(size, account), np.full(size, rng.integers(1, world.calendar.days - 5)))
    cents = human_cents(rng, lognormal_cents(rng, 850, 0.9, size))
    into = payments(
        payer=world.outsiders(rng, "person", size), payee=account, at_s=start, cents=cents,
        channel="instant", settle_s=5, lookalike="passed_on",
    )  # fmt: skip
    later_s = (np.exp(rng.normal(np.log(8), 1.1, size)) * HOUR_S).astype(np.int64) + 300
    out = payments(
        payer=account, payee=world.outsiders(rng, "person", size), at_s=start + later_s,
        cents=np.maximum(np.rint(cents * rng.uniform(0.75, 1.0, size)), 100), channel="instant", lookalike="passed_on",
    )  # fmt: skip
    return together([into, out])


def _person(world: World, rng: np.random.Generator) -> int:
    return int(rng.choice(world.accounts.where(world.accounts.is_person)))


def _people(world: World, rng: np.random.Generator, size: int) -> Ints:
    return rng.choice(world.accounts.where(world.accounts.is_person), size, replace=False)


def _businesses(world: World, rng: np.random.Generator, size: int) -> Ints:
    return rng.choice(world.accounts.where(world.accounts.is_business), size, replace=False)


def _clock(world: World, rng: np.random.Generator, account: Ints, day: Ints) -> Ints:
    zone = world.accounts.zone[np.where(account < world.accounts.number, account, 0)]
    hour = np.where(happens(rng, 0.15, day.size), rng.uniform(0, 24, day.size), rng.normal(16, 4, day.size) % 24)
    return world.calendar.at(day, (hour * HOUR_S).astype(np.int64) % DAY_S, zone)


def _moves(
    world: World,
    rng: np.random.Generator,
    payer: Any,
    payee: Any,
    day: Ints,
    *,
    cents: Ints,
    channel: str,
    lookalike: str,
) -> pl.DataFrame:
    size = day.size
    mine = np.where(np.broadcast_to(payer, (size,)) < world.accounts.number, payer, payee)
    return payments(
        payer=payer,
        payee=payee,
        at_s=_clock(world, rng, np.asarray(mine), day),
        cents=cents,
        channel=channel,
        settle_s=settlement_s(rng, channel, size),
        lookalike=lookalike,
    )
