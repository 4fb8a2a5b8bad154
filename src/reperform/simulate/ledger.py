"""From payments to account rows: two legs for every transfer, balances that add up, times that never tie."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from reperform.simulate.draws import CENTS, Floats, Ints, happens
from reperform.simulate.identifiers import REFERENCE_BITS
from reperform.simulate.rates import rate_at
from reperform.simulate.world import World

OUTSIDE = -1
PAYMENT_SCHEMA = {
    "payer": pl.Int64,
    "payee": pl.Int64,
    "at_s": pl.Int64,
    "cents": pl.Int64,
    "channel": pl.String,
    "settle_s": pl.Int64,
    "event": pl.String,
    "lookalike": pl.String,
}


def payments(
    *,
    payer: Any,
    payee: Any,
    at_s: Any,
    cents: Any,
    channel: Any,
    settle_s: Any = 1,
    event: str | None = None,
    lookalike: Any = None,
) -> pl.DataFrame:
    """Payments as they happen; scalars stand for every row.

    Args:
        payer: party number, or OUTSIDE where the bank itself is the other side.
        payee: party number, or OUTSIDE.
        at_s: when the payer's account is booked, UTC epoch seconds.
        cents: in the currency of the payer's account, or of the payee's where the payer is an outsider.
        channel: card, online, atm, cash, transfer, instant, wire, debit or fee.
        settle_s: seconds until the payee's account is booked.
        event: the planted event that this belongs to.
        lookalike: the innocent habit that resembles a planted one.
    """
    values = {
        "payer": payer, "payee": payee, "at_s": at_s, "cents": cents, "channel": channel, "settle_s": settle_s,
    }  # fmt: skip
    # A part of a small world may have nobody in it: arrays without elements stay so beside scalars.
    columns = np.broadcast_arrays(*(np.atleast_1d(value) for value in values.values()))
    frame = pl.DataFrame({name: _series(column) for name, column in zip(values, columns, strict=True)})
    kinds = lookalike if lookalike is None or isinstance(lookalike, str) else pl.Series(lookalike, dtype=pl.String)
    return frame.with_columns(
        pl.lit(event, pl.String).alias("event"),
        (kinds if isinstance(kinds, pl.Series) else pl.lit(kinds, pl.String)).alias("lookalike"),
    ).cast(PAYMENT_SCHEMA)  # type: ignore[arg-type]


def _series(column: Any) -> pl.Series:
    if column.dtype.kind == "U":
        return pl.Series(column.tolist(), dtype=pl.String)
    return pl.Series(np.rint(column).astype(np.int64))


def together(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """All payments of several parts; none is fine."""
    return pl.concat([pl.DataFrame(schema=PAYMENT_SCHEMA), *frames])


def possible(frame: pl.DataFrame, world: World) -> pl.DataFrame:
    """Payments between accounts that are open, booked on both sides within the period."""
    opened = _opened_s(world)
    payer, payee = frame["payer"].to_numpy(), frame["payee"].to_numpy()
    at_s, settled_s = frame["at_s"].to_numpy(), frame["at_s"].to_numpy() + frame["settle_s"].to_numpy()
    inside = (at_s >= world.calendar.start_s) & (settled_s < world.calendar.end_s - 1) & (payer != payee)
    return frame.filter(inside & (at_s >= opened[payer]) & (settled_s >= opened[payee]))


def _opened_s(world: World) -> Ints:
    """When each party opened; outsiders, and the bank itself in the last place, always were."""
    never = np.full(world.parties.identifier.size + 1, np.iinfo(np.int64).min)
    accounts = world.accounts
    never[: accounts.number] = world.calendar.at(accounts.opened, 9 * 3600, accounts.zone)
    return never


def rows_per_payment(frame: pl.DataFrame, world: World) -> Ints:
    """How many account rows each payment makes: 2 between two accounts, 1 with an outsider."""
    n = world.accounts.number
    sides = [_is_account(frame[side].to_numpy(), n).astype(np.int64) for side in ("payer", "payee")]
    return np.asarray(sides[0] + sides[1])


def _is_account(party: Any, accounts: int) -> Any:
    return (party >= 0) & (party < accounts)


def legs(frame: pl.DataFrame, world: World, rng: np.random.Generator) -> pl.DataFrame:
    """Account rows of payments: the payer's row out, the payee's row in, amounts in each account's own currency.

    Returns:
        account, party, at_s, sign, cents, channel, event, lookalike, pair (the payment), number (for its reference).
    """
    n = world.accounts.number
    frame = frame.with_row_index("pair").with_columns(received=pl.Series(_received_cents(frame, world)))
    shared = ["channel", "event", "lookalike", "pair"]
    out = frame.filter(_is_account(pl.col("payer"), n)).select(
        pl.col("payer").alias("account"),
        pl.col("payee").alias("party"),
        "at_s",
        pl.lit(-1, pl.Int64).alias("sign"),
        "cents",
        *shared,
    )
    into = frame.filter(_is_account(pl.col("payee"), n)).select(
        pl.col("payee").alias("account"),
        pl.col("payer").alias("party"),
        (pl.col("at_s") + pl.col("settle_s")).alias("at_s"),
        pl.lit(1, pl.Int64).alias("sign"),
        pl.col("received").alias("cents"),
        *shared,
    )
    both = pl.concat([out, into])
    return both.with_columns(number=pl.Series(rng.integers(0, 2**REFERENCE_BITS, both.height)))


def _received_cents(frame: pl.DataFrame, world: World) -> Ints:
    cents, n = frame["cents"].to_numpy(), world.accounts.number
    payer, payee = frame["payer"].to_numpy(), frame["payee"].to_numpy()
    both = _is_account(payer, n) & _is_account(payee, n)
    base = to_base(world, np.where(both, payer, 0), frame["at_s"].to_numpy())
    back = to_base(world, np.where(both, payee, 0), frame["at_s"].to_numpy())
    return np.where(both, np.maximum(np.rint(cents * base / back).astype(np.int64), 1), cents)


def to_base(world: World, account: Any, at_s: Any) -> Floats:
    """Units of base currency per unit of an account's currency, at a time."""
    account, at_s = np.broadcast_arrays(np.asarray(account), np.asarray(at_s))
    currency = world.currency[account]
    factor = np.ones(account.size)
    for code in np.unique(currency):
        own = currency == code
        factor[own] = rate_at(world.rates, str(code), at_s[own])
    return factor


def without_ties(rows: pl.DataFrame) -> pl.DataFrame:
    """The same rows, none of an account in the same second as another: later ones wait a second each."""
    rows = rows.sort("account", "at_s", "pair", "sign")
    at_s, account = rows["at_s"].to_numpy(), rows["account"].to_numpy()
    position = np.arange(rows.height)
    # A large step per account keeps the running maximum from leaking into the next one.
    shifted = at_s + account * 10**11 - position
    return rows.with_columns(
        at_s=pl.Series(np.maximum.accumulate(shifted) + position - account * 10**11 if rows.height else at_s)
    )


def beside(planted: pl.DataFrame, background: pl.DataFrame) -> pl.DataFrame:
    """Planted rows, each moved on by seconds until its account has no other row in that second."""
    taken = set(zip(background["account"].to_list(), background["at_s"].to_list(), strict=True))
    planted = planted.sort("at_s", "pair", "sign")
    moved = []
    for account, at_s in zip(planted["account"].to_list(), planted["at_s"].to_list(), strict=True):
        second = at_s
        while (account, second) in taken:
            second += 1
        taken.add((account, second))
        moved.append(second)
    return planted.with_columns(at_s=pl.Series(moved, dtype=pl.Int64))


@dataclass(frozen=True)
class History:
    """Balances of the background, to plan planted payments that the accounts could afford.

    Args:
        start: first row of each account in the arrays below; one more at the end.
        at_s: times, sorted by account and time.
        balance: in cents after each row.
        opening: in cents, per account.
    """

    start: Ints
    at_s: Ints
    balance: Ints
    opening: Ints

    def balance_units(self, account: int, at_s: float) -> float:
        """What the account held just before a time, in units of its currency."""
        first, last = int(self.start[account]), int(self.start[account + 1])
        position = first + int(np.searchsorted(self.at_s[first:last], at_s, side="left"))
        cents = self.opening[account] if position == first else self.balance[position - 1]
        return float(cents) / CENTS


def opening_cents(rows: pl.DataFrame, world: World, overdraft_share: float) -> Ints:
    """What each account holds before its first row: a cushion, and enough that most never fall below zero.

    Accounts that open within the period start with nothing unless their first weeks need more.
    """
    rng, accounts = world.rng("opening"), world.accounts
    cushion = accounts.income * np.where(accounts.is_dormant, 12.0, 0.8) * np.exp(rng.normal(0, 0.9, accounts.number))
    lowest = np.zeros(accounts.number, dtype=np.int64)
    low = (
        rows.sort("account", "at_s")
        .with_columns(path=(pl.col("sign") * pl.col("cents")).cum_sum().over("account"))
        .group_by("account", maintain_order=True)
        .agg(pl.col("path").min())
    )
    lowest[low["account"].to_numpy()] = np.minimum(low["path"].to_numpy(), 0)
    keeps_above_zero = ~happens(rng, overdraft_share, accounts.number)
    need = np.where(keeps_above_zero, -lowest, (-lowest * 0.8).astype(np.int64))
    return np.rint(need + cushion * CENTS).astype(np.int64)


def history(rows: pl.DataFrame, opening: Ints) -> History:
    """Running balances of the background rows."""
    rolled = rolled_balances(rows, opening)
    account = rolled["account"].to_numpy()
    return History(
        start=np.searchsorted(account, np.arange(opening.size + 1)),
        at_s=rolled["at_s"].to_numpy(),
        balance=rolled["balance"].to_numpy(),
        opening=opening,
    )


def rolled_balances(rows: pl.DataFrame, opening: Ints) -> pl.DataFrame:
    """Rows by account and time, with the balance after each in whole cents."""
    path = (pl.col("sign") * pl.col("cents")).cum_sum().over("account")
    rows = rows.sort("account", "at_s")
    first = pl.Series(opening[rows["account"].to_numpy()])
    return rows.with_columns(balance=first + rows.select(path).to_series())
