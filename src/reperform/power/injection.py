"""Put events into a user's own background: real accounts, their own past, counterparties that they have never met."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from reperform.metrics import Bools, Floats, Ints
from reperform.power.patterns import HOUR_S, PATTERNS, ROLE_CHANNELS, Cell, Leg, Role

LEAST_ROWS = 20
ACTIVE_DAYS = 14
TRIES = 12
US = 1_000_000


@dataclass(frozen=True)
class Accounts:
    """What is known of accounts at the start of the test.

    Args:
        identifier: sorted, shape (n,).
        rows_before: rows before the test, shape (n,).
        last_before_us: time of the last of them, shape (n,).
        rows_within: rows within the test, shape (n,).
        balance: last known before the test, in the account's currency, NaN = unknown, shape (n,).
        rate: units of base currency per unit of the account's, shape (n,).
        entity: shape (n,).
        currency: shape (n,).
        latitude: last known, NaN = unknown, shape (n,).
        longitude: last known, NaN = unknown, shape (n,).
    """

    identifier: list[str]
    rows_before: Ints
    last_before_us: Ints
    rows_within: Ints
    balance: Floats
    rate: Floats
    entity: list[str]
    currency: list[str]
    latitude: Floats
    longitude: Floats


@dataclass(frozen=True)
class Background:
    """The user's transactions, with what injection needs of them.

    Args:
        transactions: as `schemas.TRANSACTIONS`, in order.
        accounts: see there.
        parties: counterparties that are no accounts, by role: identifier and country.
        channels: by role and whether money comes in, the channel that such payments take here.
        delay_us: usual time until a record is known, by entity.
        start: of the test.
        end: of the test.
    """

    transactions: pl.DataFrame
    accounts: Accounts
    parties: dict[Role, pl.DataFrame]
    channels: dict[tuple[Role, bool], str | None]
    delay_us: dict[str, int]
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Event:
    """One event on one account.

    Args:
        number: unique.
        cell: its dials.
        account: position in `Accounts`.
        start: of its first payment.
        legs: its payments.
    """

    number: int
    cell: Cell
    account: int
    start: datetime
    legs: list[Leg]


def background_of(transactions: pl.DataFrame, start: datetime, end: datetime) -> Background:
    """The background as it stands before anything is injected."""
    return Background(
        transactions=transactions,
        accounts=_accounts(transactions, start, end),
        parties={role: _parties(transactions, role) for role in ROLE_CHANNELS},
        channels={
            (role, is_in): _channel(transactions, role, is_in) for role in ROLE_CHANNELS for is_in in (True, False)
        },
        delay_us=_delays(transactions),
        start=start,
        end=end,
    )


def _accounts(transactions: pl.DataFrame, start: datetime, end: datetime) -> Accounts:
    booked = pl.col("booked_at")
    before = booked < start
    told = (
        transactions.sort("account_id", "booked_at", "transaction_id")
        .group_by("account_id", maintain_order=True)
        .agg(
            before.sum().alias("rows_before"),
            booked.filter(before).max().dt.epoch("us").fill_null(0).alias("last_before_us"),
            booked.is_between(start, end, closed="left").sum().alias("rows_within"),
            pl.col("balance_after").filter(before).last().alias("balance"),
            (pl.col("amount_base") / pl.col("amount")).last().alias("rate"),
            pl.col("entity_id").last(),
            pl.col("currency").last(),
            pl.col("latitude", "longitude").drop_nulls().last(),
        )
    )
    numbers = {
        name: told[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
        for name in ("balance", "rate", "latitude", "longitude")
    }
    counts = {name: told[name].cast(pl.Int64).to_numpy() for name in ("rows_before", "last_before_us", "rows_within")}
    return Accounts(
        identifier=told["account_id"].to_list(),
        entity=told["entity_id"].to_list(),
        currency=told["currency"].to_list(),
        **numbers,
        **counts,
    )


def _parties(transactions: pl.DataFrame, role: Role) -> pl.DataFrame:
    """Outsiders that payments of this role go to or come from; all outsiders where it has none."""
    accounts = transactions["account_id"].unique().implode()
    outsiders = transactions.filter(
        pl.col("counterparty_id").is_not_null() & ~pl.col("counterparty_id").is_in(accounts)
    )
    fitting = outsiders.filter(pl.col("channel").is_in(list(ROLE_CHANNELS[role])))
    chosen = fitting if fitting.height else outsiders
    return (
        chosen.select("counterparty_id", "country")
        .sort("counterparty_id", "country")
        .group_by("counterparty_id", maintain_order=True)
        .agg(pl.col("country").drop_nulls().first())
    )


def _channel(transactions: pl.DataFrame, role: Role, is_in: bool) -> str | None:  # a key of a table
    way = transactions.filter(pl.col("direction") == ("in" if is_in else "out"))["channel"].drop_nulls()
    counts = dict(way.value_counts().sort(["count", "channel"], descending=[True, False]).iter_rows())
    named = [name for name in ROLE_CHANNELS[role] if name in counts]
    return named[0] if named else next(iter(counts), None)


def _delays(transactions: pl.DataFrame) -> dict[str, int]:
    delay = (pl.col("known_at") - pl.col("booked_at")).dt.total_microseconds()
    told = transactions.sort("entity_id").group_by("entity_id", maintain_order=True).agg(delay.median().cast(pl.Int64))
    return {str(entity): int(us) for entity, us in told.iter_rows()}


def able(background: Background, pattern: str, quiet_days: int) -> Ints:
    """Accounts on which a pattern can be injected: in use, or quiet for so many days and throughout the test."""
    accounts, start_us = background.accounts, int(background.start.timestamp()) * US
    if PATTERNS[pattern].dormant:
        quiet = accounts.last_before_us < start_us - quiet_days * 24 * HOUR_S * US
        return np.flatnonzero((accounts.rows_before > 0) & quiet & (accounts.rows_within == 0))
    recent = accounts.last_before_us >= start_us - ACTIVE_DAYS * 24 * HOUR_S * US
    return np.flatnonzero((accounts.rows_before >= LEAST_ROWS) & recent)


def events_of(background: Background, cells: Sequence[Cell], repeats: int, quiet_days: int, seed: int) -> list[Event]:
    """All events of all cells; none for a pattern that no account could bear, or that does not fit into the test."""
    pools = {name: able(background, name, quiet_days) for name in {cell.pattern for cell in cells}}
    events: list[Event] = []
    for place, cell in enumerate(cells):
        for repeat in range(repeats):
            rng = np.random.default_rng([seed, place, repeat])
            legs = sorted(PATTERNS[cell.pattern].make(cell, rng), key=lambda leg: leg.at_s)
            pool = pools[cell.pattern]
            start = _start(background, cell, legs[-1].at_s, rng)
            if pool.size and start is not None:
                account = _payer(background.accounts, pool, legs, rng)
                events.append(Event(len(events), cell, account, start, legs))
    return events


def _start(background: Background, cell: Cell, lasts_s: int, rng: np.random.Generator) -> datetime | None:
    days = (background.end - background.start).days
    room = days - (lasts_s + 24 * HOUR_S) / (24 * HOUR_S)
    if room < 0:
        return None
    hour = rng.uniform(8, 20) if PATTERNS[cell.pattern].start == "day" else rng.uniform(0.5, 4)
    day = int(rng.integers(0, int(room) + 1))
    return background.start + timedelta(days=day, seconds=int(hour * HOUR_S))


def _payer(accounts: Accounts, pool: Ints, legs: Sequence[Leg], rng: np.random.Generator) -> int:
    """An account that can afford the event, among a few drawn; else the richest of them."""
    drawn = rng.choice(pool, min(TRIES, pool.size), replace=False)
    spent = np.cumsum([-leg.amount if not leg.is_in else leg.amount for leg in legs]).min()
    held = np.nan_to_num(accounts.balance[drawn] * accounts.rate[drawn], nan=np.inf)
    enough = np.flatnonzero(held + spent >= 0)
    return int(drawn[enough[0] if enough.size else int(np.argmax(held))])


def rounds_of(events: Sequence[Event], most_rows: int, seed: int) -> Iterator[list[Event]]:
    """Events in rounds of so many rows at most, none on an account that has another in the same round."""
    order = np.random.default_rng([seed, len(events)]).permutation(len(events))
    waiting = [events[i] for i in order]
    while waiting:
        chosen: list[Event] = []
        taken: set[int] = set()
        rows, left = 0, []
        for event in waiting:
            fits = event.account not in taken and (rows + len(event.legs) <= most_rows or not chosen)
            if fits:
                chosen.append(event)
                taken.add(event.account)
                rows += len(event.legs)
            else:
                left.append(event)
        yield chosen
        waiting = left


def injected(background: Background, events: Sequence[Event], seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The background with events in it, balances after them moved, in order; and which injected row is of which event.

    Returns:
        Transactions as `schemas.TRANSACTIONS`; transaction_id and event.
    """
    rows = [row for event in events for row in _rows(background, event, seed)]
    schema = background.transactions.schema
    added = pl.DataFrame([{name: row[name] for name in schema} for row in rows], schema=schema, orient="row")
    together = pl.concat([background.transactions, added]).sort("booked_at", "transaction_id")
    owners = pl.DataFrame(
        {"transaction_id": [row["transaction_id"] for row in rows], "event": [row["event"] for row in rows]},
        schema={"transaction_id": pl.String, "event": pl.Int64},
    )
    return _rebalanced(together, added), owners


def _rebalanced(transactions: pl.DataFrame, added: pl.DataFrame) -> pl.DataFrame:
    """Balances with what was injected before, or by, each row; unknown ones stay unknown."""
    signed = pl.when(pl.col("direction") == "in").then("amount").otherwise(-pl.col("amount"))
    is_new = pl.col("transaction_id").is_in(added["transaction_id"].implode())
    moved = pl.when(is_new).then(signed).otherwise(0.0).cum_sum().over("account_id")
    before = pl.when(is_new).then(None).otherwise("balance_after").forward_fill().over("account_id")
    # A new row's own balance is that of the row before it, plus all that was injected until then.
    return transactions.with_columns(
        balance_after=(pl.when(is_new).then(before).otherwise("balance_after") + moved).round(2)
    )


def _rows(background: Background, event: Event, seed: int) -> Iterator[dict[str, Any]]:
    accounts, at = background.accounts, event.account
    rng = np.random.default_rng([seed, event.number, 1])
    met = _strangers(background, event, rng)
    rate = float(np.nan_to_num(accounts.rate[at], nan=1.0)) or 1.0
    for number, leg in enumerate(event.legs):
        booked = event.start + timedelta(seconds=leg.at_s)
        party, country = met[leg.role, leg.party]
        is_placed = leg.role == "cash" and np.isfinite(accounts.latitude[at])
        amount = max(round(leg.amount / rate, 2), 0.01)
        yield {
            "event": event.number,
            "transaction_id": f"injected-{event.number:06d}-{number:03d}",
            "booked_at": booked,
            "known_at": booked + timedelta(microseconds=background.delay_us[accounts.entity[at]]),
            "account_id": accounts.identifier[at],
            "counterparty_id": party,
            "entity_id": accounts.entity[at],
            "direction": "in" if leg.is_in else "out",
            "amount": amount,
            "currency": accounts.currency[at],
            "amount_base": amount * rate,
            "channel": background.channels[leg.role, leg.is_in],
            "country": country,
            "latitude": float(accounts.latitude[at]) if is_placed else None,
            "longitude": float(accounts.longitude[at]) if is_placed else None,
            "balance_after": None,
            "source_file": "injected",
            "source_record": number,
        }


def _strangers(
    background: Background, event: Event, rng: np.random.Generator
) -> dict[tuple[Role, int], tuple[str, str | None]]:
    """The other side of each payment: an outsider of the background that this account has never met."""
    account = background.accounts.identifier[event.account]
    known = background.transactions.filter(pl.col("account_id") == account)["counterparty_id"].drop_nulls()
    wanted = list(dict.fromkeys((leg.role, leg.party) for leg in event.legs))
    found: dict[tuple[Role, int], tuple[str, str | None]] = {}
    for role in dict.fromkeys(role for role, _ in wanted):
        numbers = [number for of, number in wanted if of == role]
        pool = background.parties[role].filter(~pl.col("counterparty_id").is_in(known.implode()))
        drawn = rng.permutation(pool.height)[: len(numbers)]
        for place, number in enumerate(numbers):
            row = pool.row(int(drawn[place])) if place < len(drawn) else (f"unmet-{event.number}-{number}", None)
            found[role, number] = (str(row[0]), row[1])
    return found


def untouched(transactions: pl.DataFrame, events: Sequence[Event], background: Background) -> Bools:
    """Rows of the test on accounts that carry no event of this round."""
    names = pl.Series([background.accounts.identifier[event.account] for event in events], dtype=pl.String)
    within = pl.col("booked_at").is_between(background.start, background.end, closed="left")
    return transactions.select(within & ~pl.col("account_id").is_in(names.implode())).to_series().to_numpy()
