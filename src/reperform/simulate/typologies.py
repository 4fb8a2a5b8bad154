"""Planted anomalies: ten typologies of financial crime, each event with a defining property that holds exactly."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import polars as pl

from reperform.errors import ReperformError
from reperform.simulate.clock import DAY_S, HOUR_S
from reperform.simulate.draws import (
    CENTS,
    Bools,
    Floats,
    Ints,
    between,
    happens,
    human_cents,
    lognormal_cents,
    priced_cents,
    rounded_cents,
    whole_between,
)
from reperform.simulate.ledger import History, payments, to_base, together
from reperform.simulate.people import own_branch, settlement_s
from reperform.simulate.settings import (
    Amount,
    AwakenedSettings,
    CardTestingSettings,
    CycleSettings,
    FanOutSettings,
    InsiderSettings,
    MuleSettings,
    PlantedSettings,
    ScatterGatherSettings,
    SmurfingSettings,
    StructuringSettings,
    TakeoverSettings,
    TypologySettings,
)
from reperform.simulate.spending import in_city
from reperform.simulate.world import World

REFERENCE_ROWS = 300_000
FEWEST_EVENTS = 3
FIRST_DAY = 6
RING_SIZE = 30
WEAK_SHOPS = 10
SAFE_SHARE = 0.9
S = TypeVar("S", bound=PlantedSettings)


@dataclass(frozen=True)
class Scene(Generic[S]):
    """One event about to be planted.

    Args:
        world: who is there.
        history: what the accounts hold, so that nobody pays what he has not got.
        rng: this event's own stream.
        settings: the typology's parameters.
        name: the event's id.
        day: on which it starts.
        actor: the account at its centre.
    """

    world: World
    history: History
    rng: np.random.Generator
    settings: S
    name: str
    day: int
    actor: int

    def moments(self, day: Any) -> Ints:
        """Times on given days by the actor's clock: mostly in waking hours, some at any hour."""
        day = np.asarray(day, dtype=np.int64)
        odd = happens(self.rng, self.settings.odd_hour_share, day.size)
        hour = np.where(odd, self.rng.uniform(0, 24, day.size), self.rng.normal(15, 3.8, day.size) % 24)
        return self.world.calendar.at(day, hour * HOUR_S, self.world.accounts.zone[self.actor])

    def amounts(self, size: int, amount: Amount) -> Ints:
        """Cents around a median, rounded as people do."""
        median, sigma = amount
        return human_cents(self.rng, lognormal_cents(self.rng, median, sigma, size))

    def strangers(self, size: int) -> Ints:
        """People elsewhere: some belong to a ring that turns up in several events, the others are anybody."""
        ring = self.world.rng("ring").choice(self.world.parties.of_kind("person"), RING_SIZE, replace=False)
        anybody = self.world.outsiders(self.rng, "person", size)
        known = happens(self.rng, self.settings.ring_share, size)
        return np.where(known, self.rng.choice(ring, size), anybody)

    def others(self, size: int, pool: Bools) -> Ints:
        """Distinct accounts that have been open for a while, other than the actor."""
        able = self.world.accounts.where(pool & (self.world.accounts.opened < self.day - 2))
        return self.rng.choice(able[able != self.actor], size, replace=False)

    def held_cents(self, at_s: float) -> int:
        """What the actor can spend at a time, in cents; never less than a token sum."""
        return max(int(self.history.balance_units(self.actor, at_s) * SAFE_SHARE * CENTS), 5_000)

    def pay(self, payer: Any, payee: Any, at_s: Any, cents: Any, channel: Any) -> pl.DataFrame:
        """Payments of this event; those between two accounts settle as any other payment of their channel does."""
        payer, payee, at_s, cents, channel = np.broadcast_arrays(
            *map(np.atleast_1d, (payer, payee, at_s, cents, channel))
        )
        between_accounts = (payer < self.world.accounts.number) & (payee < self.world.accounts.number)
        settle_s = np.where(between_accounts, settlement_s(self.rng, channel, payer.size), 1)
        return payments(
            payer=payer, payee=payee, at_s=at_s, cents=cents, channel=channel, settle_s=settle_s, event=self.name
        )


def structuring(scene: Scene[StructuringSettings]) -> pl.DataFrame:
    """Cash paid in on several days, each sum below the reporting limit, together above it; often wired on.

    The limit holds in the account's currency and in the base currency alike.
    """
    s, rng, world = scene.settings, scene.rng, scene.world
    size = whole_between(rng, s.deposits)
    days = np.sort(rng.choice(int(s.window_days), size, replace=False)) + scene.day
    rate = float(to_base(world, np.array([scene.actor]), scene.moments([scene.day]))[0])
    limit = float(s.limit) * min(1.0, SAFE_SHARE / rate if rate > 1 else 1.0)
    share = rng.uniform(s.below[0], s.below[1], size)
    # Together above the limit by construction: the largest is raised when luck made all of them small.
    share[-1] = max(share[-1], min(1.05 - share[:-1].sum(), s.below[1]))
    cents = np.minimum(
        rounded_cents((limit * share * CENTS).astype(np.int64), rng.choice(np.array([10, 50, 100]))), limit * 99
    )
    at_s = world.calendar.at(days, rng.uniform(9.2, 17.2, size) * HOUR_S, world.accounts.zone[scene.actor])
    paid_in = scene.pay(own_branch(world, rng, np.full(size, scene.actor)), scene.actor, at_s, cents, "cash")
    if rng.random() > s.wired_on_share:
        return paid_in
    later_s = at_s[-1] + rng.integers(4 * HOUR_S, 3 * DAY_S)
    onward = rng.uniform(0.6, 0.97) * cents.sum()
    return together([paid_in, scene.pay(scene.actor, scene.strangers(1), later_s, onward, "wire")])


def smurfing(scene: Scene[SmurfingSettings]) -> pl.DataFrame:
    """Fan-in: many senders, each with a small sum, to one collector within days; then most of it moves on."""
    s, rng = scene.settings, scene.rng
    size = whole_between(rng, s.senders)
    here = happens(rng, s.senders_here_share, size)
    senders = np.where(here, scene.others(size, scene.world.accounts.is_person), scene.strangers(size))
    at_s = scene.moments(scene.day + rng.integers(0, int(s.window_days), size))
    cents = scene.amounts(size, s.amount)
    into = scene.pay(senders, scene.actor, at_s, cents, "instant")
    if rng.random() > s.moved_on_share:
        return into
    parts = int(rng.integers(1, 3))
    later_s = at_s.max() + np.sort(rng.integers(HOUR_S, 2 * DAY_S, parts))
    onward = cents.sum() * rng.uniform(0.7, 0.97) * _shares(rng, parts)
    return together([into, scene.pay(scene.actor, scene.strangers(parts), later_s, onward, "instant")])


def fan_out(scene: Scene[FanOutSettings]) -> pl.DataFrame:
    """One sum comes in and is scattered over many receivers within hours."""
    s, rng = scene.settings, scene.rng
    size = whole_between(rng, s.receivers)
    cents = scene.amounts(size, s.amount)
    first_s = scene.moments([scene.day])
    into = scene.pay(scene.strangers(1), scene.actor, first_s, cents.sum() * rng.uniform(1.0, 1.15), "transfer")
    here = happens(rng, s.receivers_here_share, size)
    receivers = np.where(here, scene.others(size, scene.world.accounts.is_person), scene.strangers(size))
    at_s = first_s + 900 + rng.integers(0, int(between(rng, s.within_h) * HOUR_S), size)
    return together([into, scene.pay(scene.actor, receivers, at_s, cents, "instant")])


def mule_pass_through(scene: Scene[MuleSettings]) -> pl.DataFrame:
    """Money comes in and nearly all of it leaves within hours, a few times over."""
    s, rng, frames = scene.settings, scene.rng, []
    day = scene.day
    for _ in range(whole_between(rng, s.rounds)):
        cents, at_s = scene.amounts(1, s.amount), scene.moments([day])
        parts = whole_between(rng, s.parts)
        wait_s = np.cumsum(np.exp(rng.normal(np.log(s.median_wait_h), 0.9, parts)) * HOUR_S).astype(np.int64) + 240
        out = cents * between(rng, s.passed_share) * _shares(rng, parts)
        cash = happens(rng, s.cash_share, parts)
        machine = in_city(scene.world, rng, "atm", np.full(parts, scene.world.accounts.city[scene.actor]))
        frames += [
            scene.pay(scene.strangers(1), scene.actor, at_s, cents, "instant"),
            scene.pay(
                scene.actor,
                np.where(cash, machine, scene.strangers(parts)),
                at_s + wait_s,
                np.where(cash, rounded_cents(np.minimum(out, 80_000).astype(np.int64), 10), np.maximum(out, 100)),
                np.where(cash, "atm", "instant"),
            ),
        ]
        day += whole_between(rng, s.rest_days)
    return together(frames)


def cycle(scene: Scene[CycleSettings]) -> pl.DataFrame:
    """Money goes round three to five accounts and returns to its origin, a little less at each hop."""
    s, rng = scene.settings, scene.rng
    ring = np.concatenate([[scene.actor], scene.others(whole_between(rng, s.accounts) - 1, _in_use(scene.world))])
    at_s = _hops(scene, ring.size)
    base = min(scene.amounts(1, s.amount)[0], scene.held_cents(at_s[0])) * float(
        to_base(scene.world, ring[:1], at_s[:1])[0]
    )
    kept = np.concatenate([[1.0], np.cumprod(1 - rng.uniform(s.fee[0], s.fee[1], ring.size - 1))])
    cents = np.maximum(np.rint(base * kept / to_base(scene.world, ring, at_s)), 100)
    return scene.pay(ring, np.roll(ring, -1), at_s, cents, "instant")


def scatter_gather(scene: Scene[ScatterGatherSettings]) -> pl.DataFrame:
    """One account scatters a sum over several, and all of them pass it on to the same receiver."""
    s, rng, world = scene.settings, scene.rng, scene.world
    middle = whole_between(rng, s.middlemen)
    chosen = scene.others(middle + 1, world.accounts.is_person)
    sink, between_them = chosen[0], chosen[1:]
    out_s = np.sort(scene.moments(np.full(middle, scene.day)))
    base = scene.amounts(middle, s.amount) * to_base(world, np.full(middle, scene.actor), out_s)
    base = np.minimum(base, scene.held_cents(out_s[0]) * to_base(world, [scene.actor], out_s[:1]) / middle)
    on_s = out_s + (np.exp(rng.normal(np.log(s.median_wait_h), 0.7, middle)) * HOUR_S).astype(np.int64) + 1_200
    passed = base * rng.uniform(s.passed_share[0], s.passed_share[1], middle)
    first = np.maximum(np.rint(base / to_base(world, np.full(middle, scene.actor), out_s)), 100)
    second = np.maximum(np.rint(passed / to_base(world, between_them, on_s)), 90)
    return together(
        [
            scene.pay(scene.actor, between_them, out_s, first, "instant"),
            scene.pay(between_them, sink, on_s, second, "instant"),
        ]
    )


def account_takeover(scene: Scene[TakeoverSettings]) -> pl.DataFrame:
    """A thief uses somebody's account: within hours orders online, transfers to strangers, cash in another town."""
    s, rng, world = scene.settings, scene.rng, scene.world
    size = whole_between(rng, s.payments)
    at_s = scene.moments([scene.day])[0] + np.sort(rng.integers(0, int(between(rng, s.within_h) * HOUR_S), size))
    channel = np.array(list(s.channels))[rng.choice(len(s.channels), size, p=_normal(s.channels.values()))]
    away = in_city(world, rng, "atm", np.full(size, rng.integers(0, 33)))
    payee = np.select(
        [channel == "online", channel == "atm"], [_thieves_shops(scene, size), away], scene.strangers(size)
    )
    cents = scene.amounts(size, s.amount)
    cents = np.where(channel == "atm", rounded_cents(np.minimum(cents, 60_000), 20), cents)
    too_much = cents.sum() / max(scene.held_cents(at_s[0]), 1)
    cents = np.where(too_much > 1, np.maximum(cents / max(too_much, 1), 300), cents)
    return scene.pay(scene.actor, payee, at_s, cents, channel)


def card_testing(scene: Scene[CardTestingSettings]) -> pl.DataFrame:
    """A stolen card number is tried with small sums at one or two online shops, then used."""
    s, rng = scene.settings, scene.rng
    size, uses = whole_between(rng, s.trials), whole_between(rng, s.uses)
    shops = _thieves_shops(scene, 2)[rng.integers(0, 2, size)]
    gap_s = np.cumsum(rng.exponential(between(rng, s.gap_s), size)).astype(np.int64)
    start_s = scene.moments([scene.day])[0]
    small = np.minimum(
        np.maximum(priced_cents(rng, lognormal_cents(rng, s.trial_amount[0], s.trial_amount[1], size)), 30),
        s.limit * 100 - 1,
    )
    later_s = start_s + gap_s[-1] + np.sort(rng.integers(600, 30 * HOUR_S, uses))
    large = np.minimum(scene.amounts(uses, s.amount), scene.held_cents(later_s[0]) // uses)
    return together(
        [
            scene.pay(scene.actor, shops, start_s + gap_s, small, "online"),
            scene.pay(scene.actor, _thieves_shops(scene, uses), later_s, large, "online"),
        ]
    )


def _thieves_shops(scene: Scene[TakeoverSettings] | Scene[CardTestingSettings], size: int) -> Ints:
    """Online shops: many of those that check little, which thieves know, else any."""
    weak = scene.world.rng("weak_shops").choice(scene.world.parties.of_kind("online"), WEAK_SHOPS, replace=False)
    is_weak = happens(scene.rng, scene.settings.weak_shop_share, size)
    return np.where(is_weak, scene.rng.choice(weak, size), scene.world.outsiders(scene.rng, "online", size))


def dormant_awakened(scene: Scene[AwakenedSettings]) -> pl.DataFrame:
    """An account in which nothing happened for long is suddenly used: sums pass, or its savings drain away."""
    s, rng = scene.settings, scene.rng
    size = whole_between(rng, s.payments)
    at_s = np.sort(scene.moments(scene.day + rng.integers(0, int(s.window_days), size)))
    cents = scene.amounts(size, s.amount)
    is_in = happens(rng, s.in_share, size) & (np.arange(size) < size - 1)
    budget = scene.held_cents(at_s[0]) + int(cents[is_in].sum() * 0.5)
    spent = max(int(cents[~is_in].sum()), 1)
    cents = np.where(~is_in & (spent > budget), np.maximum(cents * (budget / spent), 500), cents)
    other = scene.strangers(size)
    channel = rng.choice(np.array(["instant", "transfer", "wire"]), size, p=[0.5, 0.35, 0.15])
    return scene.pay(np.where(is_in, other, scene.actor), np.where(is_in, scene.actor, other), at_s, cents, channel)


def off_hours_insider(scene: Scene[InsiderSettings]) -> pl.DataFrame:
    """Somebody in a firm pays himself at night and at weekends, below the sum that needs a second signature."""
    s, rng, world = scene.settings, scene.rng, scene.world
    size = whole_between(rng, s.payments)
    day = scene.day + np.sort(rng.choice(int(s.window_days), size, replace=False))
    night = happens(rng, s.night_share, size)
    hour = np.where(night, rng.normal(25.0, 2.4, size) % 24, rng.normal(15, 3, size))
    payees = scene.strangers(int(rng.integers(1, 4)))
    cents = np.minimum(scene.amounts(size, s.amount), int(s.approval_limit * CENTS) - rng.integers(1, 40_000, size))
    cents = np.minimum(cents, scene.held_cents(world.calendar.start_s + scene.day * DAY_S) // size)
    at_s = world.calendar.at(day, hour * HOUR_S, world.accounts.zone[scene.actor])
    return scene.pay(scene.actor, rng.choice(payees, size), at_s, np.maximum(cents, 500), "instant")


@dataclass(frozen=True)
class Typology:
    """How to plant one kind of event, around which accounts, over how many days at most.

    Args:
        plant: makes one event's payments.
        pool: accounts that can be at its centre.
        length_days: an event that starts this long before the period's end is still whole.
    """

    plant: Callable[[Scene[Any]], pl.DataFrame]
    pool: Callable[[World], Bools]
    length_days: int


def _segments(*names: str) -> Callable[[World], Bools]:
    return lambda world: np.isin(world.accounts.segment, names) & ~world.accounts.is_dormant


def _trades(*names: str) -> Callable[[World], Bools]:
    return lambda world: np.isin(world.accounts.trade, names)


def _in_use(world: World) -> Bools:
    return ~world.accounts.is_dormant


def _sleeping(world: World) -> Bools:
    dormant = world.accounts.where(world.accounts.is_dormant)
    # The first half of the same random order awakens innocently.
    ours = world.rng("dormant").permutation(dormant)[dormant.size // 2 :]
    pool = np.zeros(world.accounts.number, dtype=np.bool_)
    pool[ours] = True
    return pool


def _cash_users(world: World) -> Bools:
    return _segments("retail", "premium")(world) | _trades("shop", "restaurant", "contractor")(world)


TYPOLOGIES = {
    "structuring": Typology(structuring, _cash_users, 12),
    "smurfing": Typology(smurfing, _segments("retail", "student"), 9),
    "fan_out": Typology(fan_out, _segments("retail", "student", "premium"), 5),
    "mule_pass_through": Typology(mule_pass_through, _segments("retail", "student"), 14),
    "cycle": Typology(cycle, _in_use, 10),
    "scatter_gather": Typology(scatter_gather, _segments("retail", "premium", "business"), 8),
    "account_takeover": Typology(account_takeover, _segments("retail", "senior", "premium"), 5),
    "card_testing": Typology(card_testing, _segments("retail", "student", "senior", "premium"), 4),
    "dormant_awakened": Typology(dormant_awakened, _sleeping, 10),
    "off_hours_insider": Typology(
        off_hours_insider, _trades("services", "contractor", "landlord", "escrow", "logistics"), 14
    ),
}


def plant(world: World, history: History, settings: TypologySettings, rows: int) -> pl.DataFrame:
    """Payments of all planted events, spread evenly over the period.

    Args:
        world: who is there.
        history: the background's balances.
        settings: per typology `events` (in a world of 300,000 rows) and its own parameters.
        rows: of the whole world; smaller worlds have fewer events, but at least three of each kind.
    """
    asked = {name: getattr(settings, name) for name in TYPOLOGIES}
    return together(_events(world, history, name, values, rows) for name, values in asked.items() if values)


def _events(world: World, history: History, name: str, settings: PlantedSettings, rows: int) -> pl.DataFrame:
    number = max(round(settings.events * rows / REFERENCE_ROWS), FEWEST_EVENTS) if settings.events else 0
    rng = world.rng("typologies", name)
    last = max(world.calendar.days - TYPOLOGIES[name].length_days, FIRST_DAY + 1)
    starts = FIRST_DAY + (np.arange(number) + rng.random(number)) / max(number, 1) * (last - FIRST_DAY)
    order = rng.permutation(world.accounts.where(TYPOLOGIES[name].pool(world)))
    if not order.size and number:
        raise ReperformError(
            f"No account can play a part in {name}.",
            expected="at least one account of a fitting segment",
            got=f"{world.accounts.number} accounts",
            where=f"simulate.typologies.{name}",
            fix="simulate more accounts, or set its events to 0",
        )
    return together(
        _event(world, history, name=name, settings=settings, k=k, day=int(starts[k]), order=order)
        for k in range(number)
    )


def _event(
    world: World, history: History, *, name: str, settings: PlantedSettings, k: int, day: int, order: Ints
) -> pl.DataFrame:
    able = order[world.accounts.opened[order] < day - 2]
    scene = Scene(
        world=world,
        history=history,
        rng=world.rng("typologies", name, str(k)),
        settings=settings,
        name=f"{name}-{k + 1:03d}",
        day=day,
        actor=int(able[k % able.size]),
    )
    return TYPOLOGIES[name].plant(scene)


def _hops(scene: Scene[CycleSettings], size: int) -> Ints:
    gap_s = np.exp(scene.rng.normal(np.log(scene.settings.median_gap_h), 0.8, size)) * HOUR_S
    gap_s = np.clip(gap_s, 1_200, 36 * HOUR_S).astype(np.int64)
    return np.asarray(scene.moments([scene.day])[0] + np.cumsum(gap_s) - gap_s[0])


def _shares(rng: np.random.Generator, parts: int) -> Floats:
    return rng.dirichlet(np.full(parts, 6.0))


def _normal(weights: Any) -> Floats:
    values = np.array(list(weights), dtype=np.float64)
    return np.asarray(values / values.sum())
